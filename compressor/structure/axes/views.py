"""What operators that only rearrange, cut or repeat a tensor do to its axes."""

from typing import Any

from torch import Tensor

from compressor.structure.axes.axis import Axis, chain, cut, join, lock, product, regroup
from compressor.structure.axes.calls import Call, Dims, Rule, adding_to
from compressor.structure.axes.pieces import equal_pieces
from compressor.structure.axes.writes import indexed_dims, is_mask

VIEWS: dict[str, Rule] = {}
_rule = adding_to(VIEWS)

_PICKED = "one of its positions is picked out"
_ROLLED = "its positions are shifted or reversed"


@_rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy", "view_copy")
def _view(call: Call) -> Dims:
    return regroup(call.dims("self"), call.shape())


def permutation(call: Call) -> list[int]:
    """Which dimension of the input each dimension of the output is, for the operators that permute."""
    ndim = call["self"].ndim
    order = list(range(ndim))
    if call.name == "permute":
        return [dim % ndim for dim in call["dims"]]
    if ndim >= 2:
        first, second = (call["dim0"] % ndim, call["dim1"] % ndim) if call.name == "transpose" else (0, 1)
        order[first], order[second] = second, first
    return order


@_rule("permute", "transpose", "t", "numpy_T")
def _permute(call: Call) -> Dims:
    dims = call.dims("self")
    return [dims[dim] for dim in permutation(call)]


@_rule("squeeze", "unsqueeze", "_unsqueeze", "squeeze_copy", "unsqueeze_copy")
def _one(call: Call) -> Dims:
    # Dimensions of size 1 come and go; the others keep their order.
    rest = [axis for axis in call.dims("self") if axis.size != 1]
    return [rest.pop(0) if size != 1 else Axis(1) for size in call.shape()]


@_rule("expand", "expand_copy")
def _expand(call: Call) -> Dims:
    dims, shape = call.dims("self"), call.shape()
    old = [Axis(1)] * (len(shape) - len(dims)) + dims
    return [axis if axis.size == size else Axis(size) for axis, size in zip(old, shape, strict=True)]


@_rule("repeat")
def _repeat(call: Call) -> Dims:
    times = call["repeats"]
    old = [Axis(1)] * (len(times) - len(call.dims("self"))) + call.dims("self")
    return [product([Axis(count, "it counts copies"), axis]) for count, axis in zip(times, old, strict=True)]


@_rule("select", "select_copy")
def _select(call: Call) -> Dims:
    dims = list(call.dims("self"))
    call.lock(dims.pop(call["dim"] % len(dims)), _PICKED)
    return dims


@_rule("unbind", "unbind_copy")
def _unbind(call: Call) -> list[Dims]:
    dims = list(call.dims("self"))
    picked = dims.pop(call["dim"] % len(dims))
    call.lock(picked, _PICKED)
    return [dims] * picked.size


@_rule("slice", "narrow", "slice_copy")
def _slice(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dim = call["dim"] % len(dims)
    size = dims[dim].size
    if call["step"] != 1:
        call.lock(dims[dim], "only some of its positions are taken")
        dims[dim] = Axis(call.shape()[dim], "its positions are taken with a step")
        return dims
    start = call["start"] or 0
    start = min(max(start + size if start < 0 else start, 0), size)
    dims[dim] = cut(dims[dim], start, start + call.shape()[dim])
    return dims


@_rule("split", "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "split_copy", "split_with_sizes_copy")
def _split(call: Call) -> list[Dims]:
    dims = call.dims("self")
    dim = call["dim"] % len(dims)
    sizes = [shape[dim] for shape in call.shapes()]
    if len(sizes) > 1 and len(set(sizes)) == 1 and sizes[0] > 1:
        # Equal pieces are asked for by their number or by one size: they stay equal.
        pieces = equal_pieces(dims[dim], len(sizes))
    else:
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        pieces = [cut(dims[dim], start, start + size) for start, size in zip(starts, sizes, strict=True)]
    return [[*dims[:dim], piece, *dims[dim + 1 :]] for piece in pieces]


@_rule("glu")
def _glu(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dim = call["dim"] % len(dims)
    counter, dims[dim] = regroup([dims[dim]], [2, dims[dim].size // 2])
    lock(counter, "it counts the pieces of a split")
    return dims


@_rule("cat", "concat", "concatenate")
def _cat(call: Call) -> Dims:
    tensors = [tensor for tensor in call["tensors"] if tensor.numel() or tensor.ndim > 1]
    every = [call.dims_of(tensor) for tensor in tensors]
    dim = call["dim"] % len(every[0])
    for other in every[1:]:
        for number, (axis, mine) in enumerate(zip(other, every[0], strict=True)):
            if number != dim:
                join(axis, mine)
    return [chain([dims[dim] for dims in every]) if number == dim else axis for number, axis in enumerate(every[0])]


@_rule("stack")
def _stack(call: Call) -> Dims:
    every = [call.dims_of(tensor) for tensor in call["tensors"]]
    for other in every[1:]:
        for axis, mine in zip(other, every[0], strict=True):
            join(axis, mine)
    dim = call["dim"] % (len(every[0]) + 1)
    return [*every[0][:dim], Axis(len(every), "it counts stacked tensors"), *every[0][dim:]]


@_rule("flip", "roll")
def _flip(call: Call) -> Dims:
    dims = call.dims("self")
    for dim in call["dims"] or range(len(dims)):
        call.lock(dims[dim], _ROLLED)
    return dims


@_rule("constant_pad_nd")
def _pad(call: Call) -> Dims:
    dims = list(call.dims("self"))
    pad = call["pad"]
    for number in range(len(pad) // 2):
        before, after = pad[2 * number], pad[2 * number + 1]
        dim = len(dims) - 1 - number
        if before < 0 or after < 0:
            call.lock(dims[dim], "padding cuts it")
            dims[dim] = Axis(call.shape()[dim], "padding cuts it")
        elif before or after:
            ends = [Axis(count, "it is padding") for count in (before, after)]
            dims[dim] = chain([ends[0], dims[dim], ends[1]])
    return dims


@_rule("diagonal", "diag_embed", "tril", "triu")
def _triangle(call: Call) -> Dims:
    dims = call.dims("self")
    for axis in dims[-2:]:
        call.lock(axis, "it runs along a matrix")
    return dims if call.name.startswith("tri") else [Axis(size, "it runs along a matrix") for size in call.shape()]


@_rule("unfold")
def _unfold(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dim = call["dimension"] % len(dims)
    call.lock(dims[dim], "windows are cut from it")
    dims[dim] = Axis(call.shape()[dim], "it counts windows")
    return [*dims, Axis(call["size"], "it is the width of a window")]


@_rule("im2col")
def _im2col(call: Call) -> Dims:
    *lead, channels, height, width = call.dims("self")
    for axis in (height, width):
        call.lock(axis, "windows are cut from it")
    inner = Axis(call["kernel_size"][0] * call["kernel_size"][1], "it is the area of a window")
    return [*lead, product([channels, inner]), Axis(call.shape()[-1], "it counts windows")]


@_rule("col2im")
def _col2im(call: Call) -> Dims:
    *lead, channels, windows = call.dims("self")
    call.lock(windows, "windows are put together along it")
    area = call["kernel_size"][0] * call["kernel_size"][1]
    channels, inner = regroup([channels], [channels.size // area, area])
    lock(inner, "it is the area of a window")
    return [*lead, channels, *(Axis(size, "it is a place in a map") for size in call.shape()[-2:])]


@_rule("pixel_shuffle", "pixel_unshuffle")
def _pixels(call: Call) -> Dims:
    *lead, channels, height, width = call.dims("self")
    for axis in (height, width):
        call.lock(axis, "pixels are shuffled along it")
    places = [Axis(size, "it is a place in a map") for size in call.shape()[-2:]]
    if call.name == "pixel_unshuffle":
        return [
            *lead,
            product([channels, Axis(call["downscale_factor"] ** 2, "pixels are shuffled along it")]),
            *places,
        ]
    factor = call["upscale_factor"] ** 2
    channels, area = regroup([channels], [channels.size // factor, factor])
    lock(area, "pixels are shuffled along it")
    return [*lead, channels, *places]


@_rule("index")
def _index(call: Call) -> Dims:
    dims, indices = call.dims("self"), list(call["indices"])
    taken = indexed_dims(indices, len(dims))
    for number in taken:
        call.lock(dims[number], "positions are looked up in it")
    rest = [number for number in range(len(dims)) if number not in taken]
    found = len(call.shape()) - len(rest)
    joined = taken == list(range(taken[0], taken[-1] + 1)) if taken else False
    place = sum(number < taken[0] for number in rest) if joined else 0
    looked_up = [Axis(size, "it is looked up") for size in call.shape()[place : place + found]]
    kept = [dims[number] for number in rest]
    integers = [index for index in indices if isinstance(index, Tensor) and not is_mask(index)]
    if len(integers) == 1 and len(taken) == 1 and found == integers[0].ndim:
        looked_up = call.dims_of(integers[0])
    return [*kept[:place], *looked_up, *kept[place:]]


@_rule("index_select")
def _index_select(call: Call) -> Dims:
    dims = list(call.dims("self"))
    dim = call["dim"] % len(dims)
    call.lock(dims[dim], "positions are looked up in it")
    dims[dim] = Axis(call.shape()[dim], "it is looked up")
    return dims


@_rule("gather", "take_along_dim")
def _gather(call: Call) -> Dims:
    dims, index = call.dims("self"), call.dims("index")
    looked_up = call["dim"] % len(dims)
    call.lock(dims[looked_up], "positions are looked up in it")
    for number, (axis, other) in enumerate(zip(dims, index, strict=True)):
        if number != looked_up:
            if axis.size == other.size:
                join(axis, other)
            else:
                call.lock(axis, "positions are looked up in it")
    return index


@_rule("embedding")
def _embedding(call: Call) -> Dims:
    rows, features = call.dims("weight")
    call.lock(rows, "its rows are looked up")
    return [*call.dims("indices"), features]


@_rule("_pack_padded_sequence")
def _pack(call: Call) -> list[Dims]:
    _, _, *rest = call.dims("input")
    count = "it counts the steps of all samples"
    return [[Axis(call.shape()[0], count), *rest], [Axis(call.shapes()[1][0], count)]]


@_rule("_pad_packed_sequence")
def _unpack(call: Call) -> list[Dims]:
    places = [Axis(size, "it counts steps or samples") for size in call.shape()[:2]]
    return [[*places, *call.dims("data")[1:]], [Axis(call.shapes()[1][0], "it counts samples")]]


def unreadable(call: Call) -> Any:
    """The axes of the outputs of an operator that is not known: everything it is given keeps its size."""
    reason = f"operator {call.function} is not known"
    for tensor in call.tensors():
        for axis in call.dims_of(tensor):
            call.lock(axis, reason)
    return [[Axis(size, reason) for size in shape] for shape in call.shapes()]
