"""What operators that write some positions of a tensor do to its axes: by index, by mask, and scattered."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compressor.structure.axes.axis import join
from compressor.structure.axes.calls import Call, Dims, Rule, adding_to, broadcast

WRITES: dict[str, Rule] = {}
_rule = adding_to(WRITES)

_WRITTEN = "some of its positions are written by their number"


def indexed_dims(indices: Sequence[Tensor | None], ndim: int) -> list[int]:
    """The dimensions of a tensor of `ndim` that `indices` look up; a mask stands for as many as it has."""
    taken: list[int] = []
    dim = 0
    for index in indices:
        width = index.ndim if index is not None and is_mask(index) else 1
        taken += range(dim, dim + width) if index is not None else ()
        dim += width
    return [number for number in taken if number < ndim]


def is_mask(index: Tensor) -> bool:
    """Whether `index` says for each position whether it is meant."""
    return index.dtype in {torch.bool, torch.uint8}


@_rule("index_add", "index_copy", "index_reduce", "index_fill")
def _index_along(call: Call) -> Dims:
    dims = call.dims("self")
    if not dims:
        return dims
    dim = call["dim"] % len(dims)
    call.lock(dims[dim], _WRITTEN)
    if "source" in call.arguments:
        for number, (axis, other) in enumerate(zip(dims, call.dims("source"), strict=True)):
            if number == dim:
                call.lock(other, _WRITTEN)
            else:
                join(axis, other)
    for axis in call.dims("index"):
        call.lock(axis, _WRITTEN)
    return dims


@_rule("scatter", "scatter_add", "scatter_reduce")
def _scatter(call: Call) -> Dims:
    dims = call.dims("self")
    if not dims:
        return dims
    along = call["dim"] % len(dims)
    others = [call.dims(name) for name in ("index", "src") if isinstance(call.arguments.get(name), Tensor)]
    for number, axis in enumerate(dims):
        for other in others:
            if number != along and other[number].size == axis.size:
                join(axis, other[number])
            else:
                for written in (axis, other[number]):
                    call.lock(written, _WRITTEN)
    return dims


@_rule("index_put", "_index_put_impl", "_unsafe_index_put")
def _index_put(call: Call) -> Dims:
    dims = call.dims("self")
    indices = [index for index in call["indices"] if isinstance(index, Tensor)]
    taken = indexed_dims(call["indices"], len(dims))
    value: Tensor = call["values"]
    if len(indices) == 1 and is_mask(indices[0]) and value.numel() == 1:
        # One number for all that the mask marks: each position is on its own.
        for number, axis in zip(taken, call.dims_of(indices[0]), strict=True):
            join(dims[number], axis)
        return dims
    for axis in (*(dims[number] for number in taken), *(axis for index in indices for axis in call.dims_of(index))):
        call.lock(axis, _WRITTEN)
    rest = [axis for number, axis in enumerate(dims) if number not in taken]
    values = call.dims_of(value)
    if taken != list(range(taken[0], taken[-1] + 1)) or not taken:
        for axis in (*rest, *values):
            call.lock(axis, _WRITTEN)
        return dims
    # Behind the looked-up positions the values have what is left of the tensor, as far as they have dimensions at all.
    behind = [axis for number, axis in enumerate(dims) if number > taken[-1]]
    tail = values[max(0, len(values) - len(behind)) :]
    if tail:
        broadcast([behind, tail], [axis.size for axis in behind], join)
    before = [axis for number, axis in enumerate(dims) if number < taken[0]]
    for axis in (*values[: len(values) - len(tail)], *(before if len(values) > len(behind) else ())):
        call.lock(axis, _WRITTEN)
    return dims


@_rule("masked_scatter")
def _masked_scatter(call: Call) -> Dims:
    dims = call.dims("self")
    for axis in (*dims, *call.dims("mask"), *call.dims("source")):
        call.lock(axis, "its elements are filled in one after another")
    return dims
