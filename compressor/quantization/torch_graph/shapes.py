"""ONNX operators that move, select, compare and make values, as torch functions."""

import math

import torch
from torch import Tensor

from compressor.errors import StageError
from compressor.quantization.torch_graph.operators import Call, Operator, binary, unary

# onnx.TensorProto's numbers of element types.
TORCH_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
    4: torch.int32,
    12: torch.int64,
}


def _reshape(call: Call) -> Tensor:
    values, wanted = call.tensor(0), call.integers("shape", 1) or []
    if not call.get("allowzero", 0):
        wanted = [values.shape[index] if size == 0 else size for index, size in enumerate(wanted)]
    return values.reshape(wanted)


def _flatten(call: Call) -> Tensor:
    values, axis = call.tensor(0), call.get("axis", 1)
    axis = axis % values.ndim if axis < 0 else axis
    return values.reshape(math.prod(values.shape[:axis]), -1)


def _transpose(call: Call) -> Tensor:
    values = call.tensor(0)
    return values.permute(call.get("perm", list(reversed(range(values.ndim)))))


def _squeeze(call: Call) -> Tensor:
    values, axes = call.tensor(0), call.integers("axes", 1)
    return values.squeeze() if axes is None else values.squeeze(tuple(axes))


def _unsqueeze(call: Call) -> Tensor:
    values, axes = call.tensor(0), call.integers("axes", 1) or []
    rank = values.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        values = values.unsqueeze(axis)
    return values


def _concat(call: Call) -> Tensor:
    return torch.cat([call.tensor(position) for position in range(len(call.inputs))], dim=call.attributes["axis"])


def _split(call: Call) -> tuple[Tensor, ...]:
    values, axis = call.tensor(0), call.get("axis", 0)
    sizes = call.integers("split", 1)
    if sizes is None:
        sizes = [-(-values.shape[axis] // call.outputs)] * call.outputs
        sizes[-1] = values.shape[axis] - sum(sizes[:-1])
    return tuple(torch.split(values, sizes, dim=axis))


def _slice(call: Call) -> Tensor:
    values = call.tensor(0)
    starts, ends = call.integers("starts", 1) or [], call.integers("ends", 2) or []
    axes = call.integers("axes", 3) or list(range(len(starts)))
    steps = call.integers("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Ends far outside, such as -2**63, mean the ends of the tensor.
        chosen = range(values.shape[axis])[slice(start, end, step)]
        if step == 1:
            values = values.narrow(axis, chosen.start, len(chosen))
        else:
            values = values.index_select(axis, torch.tensor(list(chosen), device=values.device))
    return values


def _gather(call: Call) -> Tensor:
    values, indices, axis = call.tensor(0), call.tensor(1).long(), call.get("axis", 0)
    axis = axis % values.ndim
    indices = torch.where(indices < 0, indices + values.shape[axis], indices)
    picked = values.index_select(axis, indices.reshape(-1))
    return picked.reshape(values.shape[:axis] + indices.shape + values.shape[axis + 1 :])


def _gather_elements(call: Call) -> Tensor:
    values, indices, axis = call.tensor(0), call.tensor(1).long(), call.get("axis", 0)
    return values.gather(axis, torch.where(indices < 0, indices + values.shape[axis], indices))


def _expand(call: Call) -> Tensor:
    values, shape = call.tensor(0), call.integers("shape", 1) or []
    rank = max(values.ndim, len(shape))
    own, wanted = [1] * (rank - values.ndim) + list(values.shape), [1] * (rank - len(shape)) + shape
    # Both sides may be wider: a 1 in the shape keeps what the tensor has.
    return values.expand([have if want == 1 else want for have, want in zip(own, wanted, strict=True)])


def _shape(call: Call) -> Tensor:
    values = call.tensor(0)
    return torch.tensor(list(values.shape)[call.get("start", 0) : call.attributes.get("end")], dtype=torch.int64)


def _cast(call: Call) -> Tensor:
    wanted = call.attributes["to"]
    if wanted not in TORCH_TYPES:
        raise StageError(f"Cast {call.name!r} to the ONNX type {wanted} has no form in torch; leave it out with skip")
    return call.tensor(0).to(TORCH_TYPES[wanted])


def _constant_of_shape(call: Call) -> Tensor:
    value: Tensor = call.get("value", torch.zeros(1))
    return value.reshape(()).expand([int(size) for size in call.tensor(0).tolist()]).clone()


def _constant(call: Call) -> Tensor:
    value: Tensor = call.attributes["value"]
    return value


def _range(call: Call) -> Tensor:
    start, limit, step = (call.tensor(position).item() for position in range(3))
    return torch.arange(start, limit, step, dtype=call.tensor(0).dtype)


def _one_value(value: Tensor) -> bool | int | float:
    return value.item()


def _trilu(call: Call) -> Tensor:
    offset = call.optional(1)
    diagonal = 0 if offset is None else int(_one_value(offset))
    return torch.triu(call.tensor(0), diagonal) if call.get("upper", 1) else torch.tril(call.tensor(0), diagonal)


def _depth_to_space(call: Call) -> Tensor:
    values, block = call.tensor(0), int(call.attributes["blocksize"])
    batch, channels, height, width = values.shape
    if call.get("mode", "DCR") == "CRD":
        return torch.pixel_shuffle(values, block)
    # Blocks lie outside the channels here, inside of them in torch.
    swapped = values.reshape(batch, block**2, channels // block**2, height, width).swapaxes(1, 2)
    return torch.pixel_shuffle(swapped.reshape(values.shape), block)


SHAPES: dict[str, Operator] = {
    "Identity": unary(lambda x: x),
    "Dropout": unary(lambda x: x),
    "Not": unary(torch.logical_not),
    "IsNaN": unary(torch.isnan),
    "Equal": binary(torch.eq),
    "Greater": binary(torch.gt),
    "Less": binary(torch.lt),
    "GreaterOrEqual": binary(torch.ge),
    "LessOrEqual": binary(torch.le),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    "Xor": binary(torch.logical_xor),
    "BitwiseAnd": binary(torch.bitwise_and),
    "Where": lambda call: torch.where(call.tensor(0), call.tensor(1), call.tensor(2)),
    "Tile": lambda call: call.tensor(0).tile(call.integers("repeats", 1) or ()),
    "CumSum": lambda call: call.tensor(0).cumsum(int(_one_value(call.tensor(1)))),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "DepthToSpace": _depth_to_space,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Shape": _shape,
    "Cast": _cast,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Trilu": _trilu,
    "Constant": _constant,
}
