"""What a network is made of, as far as its optimizer depends on it.

SGD's best rate depends on how gradients scale, which batch normalization makes much the same for all convolutions: the
weights under it can be scaled without changing anything (Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 3.3). AdamW steps
by the same length whatever the gradients' scale, which everything else needs: embeddings with rare rows, recurrent
layers, attention (Zhang et al. 2019, arXiv:1912.03194), layers without any normalization.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "recurrent layers": (nn.RNNBase, nn.RNNCellBase),
    "embeddings": (nn.Embedding, nn.EmbeddingBag),
    "attention": (nn.MultiheadAttention,),
    "LayerNorm": (nn.LayerNorm,),
    "GroupNorm": (nn.GroupNorm,),
}


def suits_sgd(model: nn.Module) -> tuple[bool, str]:
    """Whether SGD suits `model`, and what in it says so, in words: convolutions with BatchNorm, and nothing else."""
    modules = list(model.modules())
    found = [name for name, kinds in _KINDS.items() if any(isinstance(module, kinds) for module in modules)]
    if any(_is_rms_norm(module) for module in modules):
        found.append("RMSNorm")
    convolutions = sum(isinstance(module, _ConvNd) for module in modules)
    batch_norms = sum(isinstance(module, _BatchNorm) for module in modules)
    if found:
        return False, f"made of {', '.join(found)}"
    if not convolutions:
        return False, "made of layers without convolution" if batch_norms else "made of layers without normalization"
    # Some have a normalization at their entry alone, which scales no convolution's gradient.
    if 2 * batch_norms < convolutions:
        return False, "made of convolutions without normalization"
    return True, "made of convolutions with BatchNorm"


def _is_rms_norm(module: nn.Module) -> bool:
    # Models bring their own class as often as torch's.
    return isinstance(module, nn.RMSNorm) or type(module).__name__.lower().endswith("rmsnorm")
