"""A linear layer or convolution as a chain of thinner ones, and the plan entry that puts such chains into a model.

    svd      (out, in * kernel) = (out, r) (r, in * kernel): Denton et al. 2014, arXiv:1404.0736; Xue et al. 2013
    spatial  a kernel of rows, then one of columns, r maps between: Jaderberg et al. 2014, arXiv:1405.3866, sec. 2.2
    tucker   1x1 to r_in maps, the kernel to r_out maps, 1x1 to out: Kim et al. 2016, arXiv:1511.06530, sec. 3.1
    cp       1x1 to r maps, a kernel for each of them, 1x1 to out: Astrid and Lee 2017, arXiv:1701.07148, sec. 3.1

None holds anything between its layers: the chain computes what one layer with the product as its weight computes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.structure.factored.recurrent import (
    BehindProjection,
    behind_projection,
    input_weight,
    why_not_recurrent,
)

SVD, SPATIAL, TUCKER, CP = "svd", "spatial", "tucker", "cp"
# How many ranks each has.
RANKS = {SVD: 1, SPATIAL: 1, TUCKER: 2, CP: 1}

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Chain(nn.Sequential):
    """The layers that took the place of one, in order; all but the last are without bias.

    What callers read of a layer is there: its sizes, its bias, and of a linear one the product as its weight.
    """

    @property
    def _first(self) -> Any:
        return self[0]

    @property
    def _last(self) -> Any:
        return self[-1]

    @property
    def in_features(self) -> int:
        """The inputs of the first layer, where it is linear."""
        return int(self._first.in_features)

    @property
    def out_features(self) -> int:
        """The outputs of the last layer, where it is linear."""
        return int(self._last.out_features)

    @property
    def in_channels(self) -> int:
        """The input channels of the first layer, where it is a convolution."""
        return int(self._first.in_channels)

    @property
    def out_channels(self) -> int:
        """The output channels of the last layer, where it is a convolution."""
        return int(self._last.out_channels)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the last layer."""
        found: Tensor | None = self._last.bias
        return found

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), the product: for code that reads a linear layer's weight instead of calling it."""
        if not isinstance(self._first, nn.Linear):
            raise AttributeError("a chain of convolutions has no one weight")
        product: Tensor = self._last.weight @ self._first.weight
        return product


def why_not(layer: nn.Module) -> str | None:
    """Why `layer` cannot become a chain, None where it can: it is no plain linear, recurrent or convolutional layer."""
    if is_transposed(layer) or type(layer) in {nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear}:
        return None
    if isinstance(layer, nn.RNNBase):
        return why_not_recurrent(layer)
    if type(layer) not in _CONVOLUTIONS:
        return f"{type(layer).__name__} is no plain linear or recurrent layer or convolution"
    groups, channels = int(layer.groups), int(layer.in_channels)  # type: ignore[arg-type]  # a convolution's
    if groups == 1:
        return None
    if groups == channels:
        return "it is depthwise: each of its kernels is a matrix of one row"
    return f"it has {groups} groups, each a matrix of its own that is small already"


def is_transposed(layer: nn.Module) -> bool:
    """Whether `layer` is transformers' Conv1D: linear, with a weight of (inputs, outputs)."""
    return type(layer).__name__ == "Conv1D" and getattr(layer, "weight", torch.empty(0)).ndim == 2


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of `layer` as (outputs, inputs, *kernel); of a recurrent one that of the inputs."""
    if isinstance(layer, nn.RNNBase):
        return input_weight(layer)
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]  # it has one
    return weight.t() if is_transposed(layer) else weight


def ways(shape: Sequence[int]) -> tuple[str, ...]:
    """What a weight of `shape`, (outputs, inputs, *kernel), can be taken apart by."""
    kernel = shape[2:]
    if math.prod(kernel) == 1:
        return (SVD,)
    return (SVD, SPATIAL, TUCKER, CP) if len(kernel) == 2 and min(kernel) > 1 else (SVD, TUCKER, CP)


def full_ranks(shape: Sequence[int], by: str) -> tuple[int, ...]:
    """The ranks at which nothing is lost of any weight of `shape`, (outputs, inputs, *kernel)."""
    outputs, inputs, *kernel = shape
    if by == SVD:
        return (min(outputs, inputs * math.prod(kernel)),)
    if by == SPATIAL:
        return (min(inputs * kernel[0], outputs * kernel[1]),)
    if by == CP:
        return (min(inputs * math.prod(kernel), outputs * math.prod(kernel), outputs * inputs),)
    return outputs, inputs


def unit_values(weight: Tensor, by: str, ranks: Sequence[int]) -> list[Tensor]:
    """Weights of the chain that need no decomposition: rows of the identity, and a part of `weight`.

    `weight` is (outputs, inputs, *kernel). At full ranks the chain computes what the layer computes; below, it does for
    the first inputs or outputs. So a plan alone makes a model of the right form.
    """
    outputs, inputs, *kernel = weight.shape

    def unit(rows: int, columns: int) -> Tensor:
        return torch.eye(rows, columns, dtype=weight.dtype, device=weight.device)

    ones = [1] * len(kernel)
    if by == SVD:
        (rank,), flat = ranks, weight.flatten(1)
        if outputs <= flat.shape[1]:
            return [weight[:rank], unit(outputs, rank).reshape(outputs, rank, *ones)]
        return [
            unit(rank, flat.shape[1]).reshape(rank, inputs, *kernel),
            flat[:, :rank].reshape(outputs, rank, *ones),
        ]
    if by == SPATIAL:
        (rank,), (height, width) = ranks, kernel
        if inputs * height <= outputs * width:
            rows = unit(rank, inputs * height).reshape(rank, inputs, height, 1)
            return [rows, weight.flatten(1, 2)[:, :rank].unsqueeze(2)]
        columns = unit(outputs * width, rank).reshape(outputs, width, rank).transpose(1, 2).unsqueeze(2)
        return [weight.permute(0, 3, 1, 2).flatten(0, 1)[:rank].unsqueeze(3), columns]
    if by == CP:
        return _unit_terms(weight, ranks[0], unit)
    made, taken = ranks
    return [
        unit(taken, inputs).reshape(taken, inputs, *ones),
        weight[:made, :taken],
        unit(outputs, made).reshape(outputs, made, *ones),
    ]


def _unit_terms(weight: Tensor, rank: int, unit: Callable[[int, int], Tensor]) -> list[Tensor]:
    """The first `rank` terms of `weight` as a sum: one for every pair of two of its three sides, of which two are unit.

    The sides are the outputs, the inputs and the positions of the kernel; the pair is that of which there are fewest.
    """
    outputs, inputs, *kernel = weight.shape
    flat = weight.flatten(2)
    positions = flat.shape[2]
    full = full_ranks(weight.shape, CP)[0]
    if full == inputs * positions:
        taken = unit(inputs, inputs).repeat_interleave(positions, dim=0)
        moved, made = unit(positions, positions).repeat(inputs, 1), flat.flatten(1)
    elif full == outputs * positions:
        taken = flat.transpose(1, 2).flatten(0, 1)
        moved, made = (
            unit(positions, positions).repeat(outputs, 1),
            unit(outputs, outputs).repeat_interleave(positions, 1),
        )
    else:
        taken = unit(inputs, inputs).repeat(outputs, 1)
        moved, made = flat.flatten(0, 1), unit(outputs, outputs).repeat_interleave(inputs, dim=1)
    ones = [1] * len(kernel)
    return [
        taken[:rank].reshape(rank, inputs, *ones),
        moved[:rank].reshape(rank, 1, *kernel),
        made[:, :rank].reshape(outputs, rank, *ones),
    ]


def chain_of(layer: nn.Module, by: str, values: Sequence[Tensor]) -> Chain | BehindProjection:
    """The chain of these weights in the place of `layer`: with its bias, steps, padding, mode, type and device."""
    if isinstance(layer, nn.RNNBase):
        return behind_projection(layer, *values)
    known: Any = layer
    # On the meta device nothing is drawn for weights that come from elsewhere.
    made: list[Any] = [
        _convolution(known, value, _step(known, by, number), groups=len(value) if (by, number) == (CP, 1) else 1)
        if isinstance(layer, _CONVOLUTIONS)
        else nn.Linear(value.shape[1], value.shape[0], device="meta")
        for number, value in enumerate(values)
    ]
    for part, value in zip(made, values, strict=True):
        weight = value.detach().clone(memory_format=torch.contiguous_format)
        part.weight = nn.Parameter(weight, requires_grad=known.weight.requires_grad)
        part.bias = None
    made[-1].bias = known.bias
    return Chain(*made).train(layer.training)


def _step(layer: Any, by: str, number: int) -> dict[str, Any]:
    """The stride, padding and dilation of the convolution `number` of a chain; none where it is of one position."""
    whole = {key: getattr(layer, key) for key in ("stride", "padding", "dilation")}
    if by == SPATIAL:
        # A kernel of rows moves along the rows alone.
        neutral = {"stride": 1, "padding": 0, "dilation": 1}
        return {
            key: value
            if isinstance(value, str)
            else tuple(v if at == number else neutral[key] for at, v in enumerate(value))
            for key, value in whole.items()
        }
    return whole if number == (0 if by == SVD else 1) else {}


def _convolution(layer: Any, value: Tensor, step: Mapping[str, Any], *, groups: int) -> Any:
    outputs, inputs, *kernel = value.shape
    mode = layer.padding_mode if step else "zeros"
    return type(layer)(groups * inputs, outputs, tuple(kernel), groups=groups, padding_mode=mode, device="meta", **step)


def factor_(model: nn.Module, layers: Mapping[str, Any]) -> nn.Module:
    """`model` itself with chains in the place of `layers`, {name: {"by": "svd", "ranks": [8], "shape": [64, 64]}}.

    `shape` is that of the weight as (outputs, inputs, *kernel). The chains have `unit_values`: better ones come from
    whoever decomposes the weight, or from a file. A layer that has several names is exchanged at all of them. Raises
    ValueError, naming the layer, where the plan does not fit the model.
    """
    found = [(name, _layer(model, name), entry) for name, entry in layers.items()]
    chains = [(layer, _chain(model, name, layer, entry)) for name, layer, entry in found]
    # Everything is checked: from here on nothing fails, so a refused entry leaves the model as it was.
    for layer, chain in chains:
        put_(model, layer, chain)
    return model


def put_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` everywhere where `model` has `old`."""
    for parent in list(model.modules()):
        # `named_children` leaves out the second name of a child.
        for key, child in list(parent._modules.items()):  # noqa: SLF001 - there is no public name
            if child is old:
                setattr(parent, key, new)


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not name or layer is None or why_not(layer) is not None:
        has = f"has {type(layer).__name__}" if layer is not None else "lacks"
        raise ValueError(
            f"the plan factorises layer {name!r}, which {type(model).__name__} {has}; give the model that the plan was "
            "made for"
        )
    return layer


def _chain(model: nn.Module, name: str, layer: nn.Module, entry: Any) -> nn.Module:
    weight = weight_of(layer)
    entry = entry if isinstance(entry, Mapping) else {}
    by, ranks, shape = entry.get("by"), entry.get("ranks"), entry.get("shape", list(weight.shape))
    if list(shape) != list(weight.shape):
        raise ValueError(
            f"the plan factorises {name!r} of shape {tuple(shape)}, but {type(model).__name__} has "
            f"{tuple(weight.shape)}; give the model that the plan was made for"
        )
    possible = ways(weight.shape)
    if by not in possible:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} is factorised by {', '.join(possible)}; got {by!r}")
    check_ranks(name, weight.shape, by, ranks)
    return chain_of(layer, by, unit_values(weight, by, ranks))


def check_ranks(name: str, shape: Sequence[int], by: str, ranks: Any) -> None:
    """Raises ValueError where a weight of `shape` cannot be taken apart `by` that with these `ranks`."""
    limits = full_ranks(shape, by)
    fits = isinstance(ranks, list | tuple) and len(ranks) == len(limits) and all(type(rank) is int for rank in ranks)
    if not fits or not all(1 <= rank <= limit for rank, limit in zip(ranks, limits, strict=True)):
        wanted = " and ".join(f"in [1, {limit}]" for limit in limits)
        raise ValueError(
            f"the rank of {name!r}, a weight of shape {tuple(shape)} by {by}, must be {wanted}; got {ranks!r}; lower "
            "it or ignore the layer"
        )
