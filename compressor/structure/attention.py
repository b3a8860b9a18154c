"""Multi-head attention whose heads may be fewer than fill the model's width: torch's layer insists that they do."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NarrowAttention(nn.Module):
    """nn.MultiheadAttention with `num_heads * head_dim` free of `embed_dim`; parameters keep their names.

    Shapes: in_proj_weight (3 * num_heads * head_dim, embed_dim), or q/k/v_proj_weight (num_heads * head_dim, width of
    query, key or value); out_proj (embed_dim, num_heads * head_dim). Made by `narrow_attention_`; `project_by_layers_`
    puts a linear layer `in_proj` in the place of in_proj_weight and in_proj_bias. Vaswani et al. 2017,
    arXiv:1706.03762, sec. 3.2.2; removing heads: Michel et al. 2019, arXiv:1905.10650.
    """

    in_proj_weight: nn.Parameter | None
    q_proj_weight: nn.Parameter
    k_proj_weight: nn.Parameter
    v_proj_weight: nn.Parameter
    in_proj_bias: nn.Parameter | None
    bias_k: nn.Parameter | None
    bias_v: nn.Parameter | None
    in_proj: Any

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = whole.embed_dim, whole.num_heads, whole.head_dim
        self.kdim, self.vdim = whole.kdim, whole.vdim
        self.dropout, self.batch_first, self.add_zero_attn = whole.dropout, whole.batch_first, whole.add_zero_attn
        # Says to the layers of nn.Transformer that their fused kernel does not fit.
        self._qkv_same_embed_dim = False
        names = (
            "in_proj_weight",
            "q_proj_weight",
            "k_proj_weight",
            "v_proj_weight",
            "in_proj_bias",
            "bias_k",
            "bias_v",
        )
        for name in names:
            self.register_parameter(name, getattr(whole, name))
        self.register_module("in_proj", None)
        self.out_proj = whole.out_proj
        self.train(whole.training)

    def forward(  # noqa: PLR0917 - the signature of nn.MultiheadAttention
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - the signature of nn.MultiheadAttention
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002 - as above
        is_causal: bool = False,  # noqa: FBT001, FBT002 - as above
    ) -> tuple[Tensor, Tensor | None]:
        """The output, shaped like `query`, and the attention weights, as nn.MultiheadAttention gives them."""
        batched, alike = query.dim() == 3, query is key and key is value
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        projected = self._projected(query, key, value) if not alike else self._projected_alike(query)
        heads = [self._heads(tensor) for tensor in projected]
        heads[1], heads[2] = self._extended(heads[1], heads[2])
        mask = self._mask(attn_mask, key_padding_mask, heads, is_causal=is_causal)
        weights = None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = heads[0] @ heads[1].transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            output = F.dropout(weights, dropout) @ heads[2] if dropout else weights @ heads[2]
        else:
            queries, keys, values = heads
            output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(output.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return (output if self.batch_first else output.transpose(0, 1)), weights

    def _projected_alike(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of one tensor: in one product, where their matrices are one."""
        if self.in_proj is not None:
            projected: Tensor = self.in_proj(tensor)
            return projected.chunk(3, dim=-1)
        if self.in_proj_weight is not None:
            return F.linear(tensor, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        return self._projected(tensor, tensor, tensor)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        bias = self.in_proj_bias if self.in_proj is None else self.in_proj.bias
        whole = self.in_proj_weight if self.in_proj is None else self.in_proj.weight
        apart = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = apart if whole is None else whole.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return tuple(
            F.linear(tensor, weight, part)
            for tensor, weight, part in zip((query, key, value), weights, biases, strict=True)
        )

    def _heads(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(*tensor.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def _extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values with the learned and the zero position that some layers append."""
        if self.bias_k is not None and self.bias_v is not None:
            learned = [self._heads(bias.expand(key.shape[0], -1, -1)) for bias in (self.bias_k, self.bias_v)]
            key, value = torch.cat([key, learned[0]], dim=2), torch.cat([value, learned[1]], dim=2)
        if self.add_zero_attn:
            key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
        return key, value

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: list[Tensor], *, is_causal: bool
    ) -> Tensor | None:
        """What is added to the scores, broadcastable to (batch, heads, places, places of the keys), or None."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal wants attn_mask as well, as in nn.MultiheadAttention")
        batch, _, _, _ = heads[0].shape
        extra = int(self.bias_k is not None) + int(self.add_zero_attn)
        total: Tensor | None = None
        if attn_mask is not None:
            total = _additive(attn_mask, heads[0])
            total = total if total.dim() == 2 else total.reshape(batch, -1, *total.shape[1:])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, heads[0])[:, None, None, :]
            total = padding if total is None else total + padding
        return F.pad(total, (0, extra)) if total is not None and extra else total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


def narrow_attention_(model: nn.Module, names: list[str]) -> nn.Module:
    """`model` itself with its nn.MultiheadAttention layers `names` exchanged; a shared layer stays shared.

    Raises ValueError where a name is no such layer.
    """
    layers: list[tuple[str, Any]] = []
    for name in names:
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            layer = None
        if not name or not isinstance(layer, nn.MultiheadAttention):
            raise ValueError(
                f"the plan exchanges attention layer {name!r}, which {type(model).__name__} does not have; give the "
                "model that the plan was made for"
            )
        layers.append((name, layer))
    narrow: dict[int, NarrowAttention] = {}
    for name, layer in layers:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, narrow.setdefault(id(layer), NarrowAttention(layer)))
    for part in model.modules():
        # Nested tensors are for the fused kernel of the layers inside.
        if isinstance(part, nn.TransformerEncoder) and any(
            isinstance(inner, NarrowAttention) for inner in part.modules()
        ):
            part.use_nested_tensor = False
    return model


def project_by_layers_(model: nn.Module, names: list[str]) -> nn.Module:
    """`model` itself, whose attention layers `names`, NarrowAttention, project by a linear layer `in_proj` each.

    It computes what their in_proj_weight and in_proj_bias computed. Raises ValueError where a name is no such layer.
    """
    layers: dict[int, NarrowAttention] = {}
    for name in names:
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, NarrowAttention) or layer.in_proj_weight is None:
            raise ValueError(
                f"the plan gives attention layer {name!r} a projection, which {type(model).__name__} does not have as "
                "one matrix; give the model that the plan was made for"
            )
        layers[id(layer)] = layer
    for layer in layers.values():
        weight, bias = layer.in_proj_weight, layer.in_proj_bias
        assert weight is not None  # looked at above
        # On the meta device nothing is drawn for weights that are there.
        projection = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        projection.weight, projection.bias = weight, bias  # type: ignore[assignment]  # None is no bias
        layer.in_proj_weight = layer.in_proj_bias = None
        layer.in_proj = projection.train(layer.training)
    return model
