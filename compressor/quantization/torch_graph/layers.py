"""ONNX's convolutions, pooling, resizing, padding and recurrent layers as differentiable torch functions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.files.operators import operator_of
from compressor.quantization.torch_graph.operators import Call, Operator

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOLS: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _refuse(call: Call, what: str) -> StageError:
    return StageError(
        f"{call.operator} {call.name!r} with {what} has no form in torch here; export the model without it, or "
        "quantize without training"
    )


def _pads(call: Call, spatial: Sequence[int], kernel: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) of every spatial dimension."""
    rank, mode = len(spatial), call.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [(0, 0)] * rank
    if mode in {"SAME_UPPER", "SAME_LOWER"}:
        dilations = call.get("dilations", [1] * rank)
        found = []
        for size, width, stride, dilation in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size)
            small, large = total // 2, total - total // 2
            found.append((small, large) if mode == "SAME_UPPER" else (large, small))
        return found
    pads = call.get("pads", [0] * 2 * rank)
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _padded(values: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    # torch's order begins with the last dimension.
    return F.pad(values, [side for pair in reversed(pads) for side in pair], value=value)


def _convolve(call: Call) -> Tensor:
    values, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    rank = values.ndim - 2
    strides = call.get("strides", [1] * rank)
    pads = _pads(call, values.shape[2:], weight.shape[2:], strides)
    if any(before != after for before, after in pads):
        values, pads = _padded(values, pads), [(0, 0)] * rank
    return _CONVOLUTIONS[rank](
        values,
        weight,
        bias,
        stride=strides,
        padding=[before for before, _ in pads],
        dilation=call.get("dilations", [1] * rank),
        groups=call.get("group", 1),
    )


def _transposed(call: Call) -> Tensor:
    values, weight = call.tensor(0), call.tensor(1)
    rank = values.ndim - 2
    if call.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in call.attributes:
        raise _refuse(call, "auto_pad or output_shape")
    pads = _pads(call, values.shape[2:], weight.shape[2:], call.get("strides", [1] * rank))
    # Unequal pads: the larger one off both sides, and what is missing at the end put back.
    extra = call.get("output_padding", [0] * rank)
    if any(before < after for before, after in pads):
        raise _refuse(call, "more padding at the end than at the beginning")
    return _TRANSPOSED[rank](
        values,
        weight,
        call.optional(2),
        stride=call.get("strides", [1] * rank),
        padding=[before for before, _ in pads],
        output_padding=[more + before - after for more, (before, after) in zip(extra, pads, strict=True)],
        groups=call.get("group", 1),
        dilation=call.get("dilations", [1] * rank),
    )


def _max_pool(call: Call) -> Tensor:
    if call.outputs > 1:
        raise _refuse(call, "indices as an output")
    values, kernel = call.tensor(0), call.attributes["kernel_shape"]
    rank = len(kernel)
    strides = call.get("strides", [1] * rank)
    values = _padded(values, _pads(call, values.shape[2:], kernel, strides), float("-inf"))
    return _MAX_POOLS[rank](
        values, kernel, strides, dilation=call.get("dilations", [1] * rank), ceil_mode=bool(call.get("ceil_mode", 0))
    )


def _average_pool(call: Call) -> Tensor:
    values, kernel = call.tensor(0), call.attributes["kernel_shape"]
    rank = len(kernel)
    strides = call.get("strides", [1] * rank)
    if any(step != 1 for step in call.get("dilations", [1] * rank)):
        raise _refuse(call, "dilations")
    pads = _pads(call, values.shape[2:], kernel, strides)
    pool, ceil = _AVERAGE_POOLS[rank], bool(call.get("ceil_mode", 0))
    if call.get("count_include_pad", 0) or not any(side for pair in pads for side in pair):
        return pool(_padded(values, pads), kernel, strides, ceil_mode=ceil)
    ones = torch.ones_like(values[:1, :1])
    share = pool(_padded(ones, pads), kernel, strides, ceil_mode=ceil)
    return pool(_padded(values, pads), kernel, strides, ceil_mode=ceil) / share


def _global_average(call: Call) -> Tensor:
    values = call.tensor(0)
    return values.mean(dim=tuple(range(2, values.ndim)), keepdim=True)


def _global_max(call: Call) -> Tensor:
    values = call.tensor(0)
    return values.amax(dim=tuple(range(2, values.ndim)), keepdim=True)


def _pad(call: Call) -> Tensor:
    values, pads = call.tensor(0), call.integers("pads", 1) or []
    axes = call.integers("axes", 3)
    rank = len(pads) // 2
    sides = [(0, 0)] * values.ndim
    for axis, before, after in zip(axes or range(values.ndim), pads[:rank], pads[rank:], strict=True):
        sides[axis] = (before, after)
    fill, mode = call.optional(2), call.get("mode", "constant")
    if mode == "constant":
        return _padded(values, sides, 0.0 if fill is None else float(fill.detach()))
    if mode not in {"reflect", "edge"}:
        raise _refuse(call, f"mode {mode!r}")
    # Only the last dimensions can be reflected.
    moved = [pair for axis, pair in enumerate(sides) if axis >= 2]
    if any(sides[0] + sides[1]):
        raise _refuse(call, f"mode {mode!r} over the batch or the channels")
    return F.pad(
        values, [side for pair in reversed(moved) for side in pair], mode="replicate" if mode == "edge" else mode
    )


def _resize(call: Call) -> Tensor:
    values = call.tensor(0)
    scales, sizes = call.optional(2), call.optional(3)
    if sizes is not None and sizes.numel():
        wanted = [int(size) for size in sizes.tolist()]
    elif scales is not None:
        wanted = [int(size * scale) for size, scale in zip(values.shape, scales.tolist(), strict=True)]
    else:
        raise _refuse(call, "neither scales nor sizes")
    if wanted[:2] != list(values.shape[:2]):
        raise _refuse(call, "a batch or channels resized")
    mode, where = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        whole = all(new % old == 0 for new, old in zip(wanted[2:], values.shape[2:], strict=True))
        if not (whole or (where == "asymmetric" and call.get("nearest_mode", "") == "floor")):
            raise _refuse(call, f"nearest, {where}")
        return F.interpolate(values, wanted[2:], mode="nearest")
    kinds = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    kind = kinds.get((mode, values.ndim))
    if kind is None or where not in {"half_pixel", "pytorch_half_pixel", "align_corners"}:
        raise _refuse(call, f"{mode}, {where}")
    aligned = where == "align_corners"
    if sizes is None or not sizes.numel():
        # 5 pixels times 1.5 are 7 pixels, but the step between them is 1 / 1.5.
        factors = scales.tolist()[2:] if scales is not None else None
        return F.interpolate(values, scale_factor=factors, mode=kind, align_corners=aligned)
    return F.interpolate(values, wanted[2:], mode=kind, align_corners=aligned)


# The order of torch's gates in ONNX's: i, f, g, o from i, o, f, c; r, z, n from z, r, h; an RNN has none.
_LSTM_GATES, _GRU_GATES, _RNN_GATES = (0, 2, 3, 1), (1, 0, 2), (0,)


def _recurrent(call: Call, gates: Sequence[int]) -> tuple[Tensor, list[Tensor], int, int]:
    """(values, torch's flat weights, directions, hidden units) of a recurrent node; reversed where that is its way."""
    values, inputs, recurrent = call.tensor(0), call.tensor(1), call.tensor(2)
    bias = call.optional(3)
    directions, hidden = inputs.shape[0], recurrent.shape[-1]
    recurrence = operator_of(call.operator).recurrence
    assert recurrence is not None
    usual = [*recurrence.activations] * directions
    if call.get("layout", 0) or call.get("clip", 0) or call.get("activations", usual) != usual:
        raise _refuse(call, "batch-first layout, a clip or other activations")
    if call.optional(4) is not None:
        raise _refuse(call, "sequence_lens")
    if bias is None:
        bias = inputs.new_zeros(directions, 2 * len(gates) * hidden)

    def ordered(rows: Tensor) -> Tensor:
        parts = torch.split(rows, hidden)
        return torch.cat([parts[gate] for gate in gates])

    flat = []
    for side in range(directions):
        ours, theirs = torch.split(bias[side], len(gates) * hidden)
        flat += [ordered(rows) for rows in (inputs[side], recurrent[side], ours, theirs)]
    return values.flip(0) if _reverse(call) else values, flat, directions, hidden


def _reverse(call: Call) -> bool:
    return bool(call.get("direction", "forward") == "reverse")


def _state(call: Call, position: int, values: Tensor, directions: int, hidden: int) -> Tensor:
    given = call.optional(position)
    return values.new_zeros(directions, values.shape[1], hidden) if given is None else given


def _by_direction(call: Call, output: Tensor, directions: int) -> Tensor:
    # torch: (time, batch, directions * hidden); ONNX: (time, directions, batch, hidden).
    found = output.reshape(*output.shape[:2], directions, -1).movedim(2, 1)
    return found.flip(0) if _reverse(call) else found


def _lstm(call: Call) -> tuple[Tensor, ...]:
    values, flat, directions, hidden = _recurrent(call, _LSTM_GATES)
    if call.optional(7) is not None or call.get("input_forget", 0):
        raise _refuse(call, "peepholes or coupled gates")
    state = tuple(_state(call, position, values, directions, hidden) for position in (5, 6))
    output, last, cell = torch.lstm(values, state, flat, True, 1, 0.0, False, directions == 2, False)
    return _by_direction(call, output, directions), last, cell


def _gru(call: Call) -> tuple[Tensor, ...]:
    values, flat, directions, hidden = _recurrent(call, _GRU_GATES)
    if not call.get("linear_before_reset", 0):
        raise _refuse(call, "linear_before_reset=0")
    state = _state(call, 5, values, directions, hidden)
    output, last = torch.gru(values, state, flat, True, 1, 0.0, False, directions == 2, False)
    return _by_direction(call, output, directions), last


def _rnn(call: Call) -> tuple[Tensor, ...]:
    values, flat, directions, hidden = _recurrent(call, _RNN_GATES)
    state = _state(call, 5, values, directions, hidden)
    output, last = torch.rnn_tanh(values, state, flat, True, 1, 0.0, False, directions == 2, False)
    return _by_direction(call, output, directions), last


LAYERS: dict[str, Operator] = {
    "Conv": _convolve,
    "ConvTranspose": _transposed,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "Pad": _pad,
    "Resize": _resize,
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}
