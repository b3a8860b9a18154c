"""How networks of Hugging Face transformers are made, tiny and with random weights: nothing is downloaded."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from workbench.zoo.architecture import Architecture, floats, named, padded

# Layers and heads of every text model; no dropout, for train mode is compared with eval mode's parameters alone.
TEXT = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "num_labels": 3,
    "attn_implementation": "eager",
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}


def make(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    """A function that makes `model` of a configuration of class `config`."""

    def build() -> nn.Module:
        import transformers

        implementation = settings.get("attn_implementation")
        rest = {key: value for key, value in settings.items() if key != "attn_implementation"}
        configuration = getattr(transformers, config)(**rest)
        configuration.return_dict = True
        if implementation is not None:
            configuration._attn_implementation = implementation
        return getattr(transformers, model)(configuration)

    return build


class FixedSize(nn.Module):
    """A vision model that takes images of one size alone, where its own code would pad or resize any other one.

    Exporters take minutes over the sizes that such code allows, or freeze its branches.
    """

    def __init__(self, model: nn.Module, size: int):
        super().__init__()
        self.model, self.size = model, size

    def forward(self, pixel_values: Tensor) -> Any:
        if tuple(pixel_values.shape[-2:]) != (self.size, self.size):
            raise ValueError(f"images must be of {self.size} x {self.size} pixels, got {tuple(pixel_values.shape)}")
        return self.model(pixel_values=pixel_values)


def seen(
    name: str,
    model: str,
    config: str,
    *,
    size: int = 32,
    removes: float = 0.5,
    refuses: str | None = None,
    fixed: bool = False,
    **settings: Any,
) -> Architecture:
    """A vision model on images of `size` pixels; with `fixed` of no other size."""
    build = make(model, config, **settings)
    return Architecture(
        name=name,
        build=(lambda: FixedSize(build(), size)) if fixed else build,
        sample=named(pixel_values=floats(3, size, size)),
        removes=removes,
        refuses=refuses,
    )


def read(name: str, model: str, config: str, *, removes: float = 0.4, **settings: Any) -> Architecture:
    """A text model on padded token numbers."""
    return Architecture(name=name, build=make(model, config, **settings), sample=padded(40, 9), removes=removes)
