"""ONNX Runtime's integer kernels in numpy, with the product of matrices left to the caller.

They agree with ONNX Runtime bit for bit when the product is exact (Jacob et al. 2018, arXiv:1712.05877, eq. 4 and 7):
zero points are corrected by sums, the sum is scaled in float32, rounded to even and saturated to 8 bits. Weights are
constants; what the caller multiplies is always signed weights (outputs, depth) by unsigned activations (depth, count).

The LSTM is that of Hochreiter and Schmidhuber 1997 in ONNX's form: gates in the order input, output, forget, cell. Its
input is quantized over the whole sequence, its state anew at every step, both as DynamicQuantizeLinear does. Sigmoid
and tanh are those of numpy: ONNX Runtime approximates them to about 1e-6, so that a state may now and then round to the
other integer.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Product = Callable[[NDArray[np.int8], NDArray[np.uint8]], NDArray[np.int32]]
Attributes = Mapping[str, Any]
# Activations of a convolution that are laid out as columns at a time, in bytes.
_COLUMN_BYTES = 16_000_000
# Whether the steps of each direction of an LSTM are read backwards.
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def qlinear_conv(attributes: Attributes, inputs: Sequence[Any], product: Product) -> Array:
    """QLinearConv of uint8 activations (batch, channels, ...) and int8 weights, in groups, over any number of axes."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, *rest = inputs
    sums = _convolution(attributes, x, w, (_zero(x_zero), _zero(w_zero)), product)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if rest and rest[0] is not None:
        sums = sums + rest[0].reshape(shape)
    scale = np.float32(_scalar(x_scale)) * w_scale.reshape(-1) / np.float32(_scalar(y_scale))
    return _requantize(sums, scale.reshape(shape), y_zero)


def qlinear_matmul(attributes: Attributes, inputs: Sequence[Any], product: Product) -> Array:
    """QLinearMatMul of uint8 activations (..., depth) and int8 weights (depth, outputs), or a stack of them."""
    del attributes
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    sums = _matmul(a, a_zero, b, b_zero, product)
    scale = np.float32(_scalar(a_scale)) * b_scale.reshape(-1) / np.float32(_scalar(y_scale))
    return _requantize(sums, scale, y_zero)


def qgemm(attributes: Attributes, inputs: Sequence[Any], product: Product) -> Array:
    """QGemm (com.microsoft): 8-bit outputs where a scale for them is given, float32 otherwise."""
    a, a_scale, a_zero, b, b_scale, b_zero, *rest = inputs
    bias, y_scale, y_zero = (*rest, None, None, None)[:3]
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    sums = _matmul(a, a_zero, b, b_zero, product)
    if bias is not None:
        sums = sums + bias
    scale = np.float32(attributes.get("alpha", 1.0)) * np.float32(_scalar(a_scale)) * b_scale.reshape(-1)
    if y_scale is not None:
        return _requantize(sums, scale / np.float32(_scalar(y_scale)), y_zero)
    result: Array = sums.astype(np.float32) * scale
    return result


def matmul_integer(attributes: Attributes, inputs: Sequence[Any], product: Product) -> Array:
    """MatMulInteger: the int32 sums themselves."""
    del attributes
    a, b, a_zero, b_zero = (*inputs, None, None)[:4]
    return _matmul(a, a_zero, b, b_zero, product)


def matmul_integer_to_float(attributes: Attributes, inputs: Sequence[Any], product: Product) -> Array:
    """MatMulIntegerToFloat (com.microsoft): sums scaled to float32, plus a float32 bias."""
    del attributes
    a, b, a_scale, b_scale, a_zero, b_zero, bias = (*inputs, None, None, None)[:7]
    sums = _matmul(a, a_zero, b, b_zero, product)
    return _plus(sums.astype(np.float32) * (np.float32(_scalar(a_scale)) * b_scale.reshape(-1)), bias)


def dynamic_quantize_matmul(attributes: Attributes, inputs: Sequence[Any], product: Product) -> Array:
    """DynamicQuantizeMatMul (com.microsoft): float32 activations, quantized over their own range first."""
    a, b, b_scale, b_zero, bias = (*inputs, None, None)[:5]
    integers, scale, zero = quantize_dynamically(a)
    return matmul_integer_to_float(attributes, [integers, b, scale, b_scale, zero, b_zero, bias], product)


def lstm_is_plain(attributes: Attributes, input_names: Sequence[str]) -> bool:
    """Whether `dynamic_quantize_lstm` computes it: default activations, no clipping, no peepholes, no lengths."""
    names = [*input_names, *[""] * 8]
    return (
        not attributes.keys() & {"clip", "activations", "activation_alpha", "activation_beta"}
        and not attributes.get("input_forget", 0)
        and not attributes.get("layout", 0)
        and not names[4]
        and not names[7]
    )


def dynamic_quantize_lstm(
    attributes: Attributes, inputs: Sequence[Any], product: Product
) -> tuple[Array, Array, Array]:
    """(all states (steps, directions, batch, hidden), last states, last cells) for float32 (steps, batch, inputs)."""
    x, w, r, bias, _, state, cell, _, w_scale, w_zero, r_scale, r_zero = inputs
    steps, batch, _ = x.shape
    hidden = r.shape[1]
    directions = _DIRECTIONS[attributes.get("direction", b"forward").decode()]
    states = np.zeros((steps, len(directions), batch, hidden), np.float32)
    last, cells = np.zeros((2, len(directions), batch, hidden), np.float32)
    for index, backwards in enumerate(directions):
        h = np.zeros((batch, hidden), np.float32) if state is None else state[index]
        c = np.zeros((batch, hidden), np.float32) if cell is None else cell[index]
        gates = _scaled(x, w[index], _of(w_scale, index), _of(w_zero, index), product)
        if bias is not None:
            gates = gates + bias[index, : 4 * hidden] + bias[index, 4 * hidden :]
        for step in reversed(range(steps)) if backwards else range(steps):
            total = gates[step] + _scaled(h, r[index], _of(r_scale, index), _of(r_zero, index), product)
            i, o, f, g = np.split(total, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
            h = (_sigmoid(o) * np.tanh(c)).astype(np.float32)
            states[step, index] = h
        last[index], cells[index] = h, c
    return states, last, cells


def quantize_dynamically(values: Array) -> tuple[Array, Array, Array]:
    """(integers, scale, zero point) of float32 values, uint8 over their own range, as DynamicQuantizeLinear does it."""
    low, high = min(values.min(initial=0), np.float32(0)), max(values.max(initial=0), np.float32(0))
    scale = np.float32(1) if high == low else np.float32((high - low) / np.float32(255))
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.float32)
    integers = np.clip(np.rint(values / scale) + zero, 0, 255).astype(np.uint8)
    return integers, np.asarray(scale), zero.astype(np.uint8)


def _matmul(a: Array, a_zero: Array | None, b: Array, b_zero: Array | None, product: Product) -> Array:
    if b.ndim > 2:
        # Every matrix of a stack by itself.
        stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        lefts, rights = (np.broadcast_to(each, (*stack, *each.shape[-2:])) for each in (a, b))
        pairs = [(lefts[place], rights[place]) for place in np.ndindex(stack)]
        products = [_matmul(left, a_zero, right, b_zero, product) for left, right in pairs]
        return np.array(products).reshape(*stack, *products[0].shape)
    depth, outputs = b.shape
    columns = np.ascontiguousarray(a.reshape(-1, depth).T)
    sums = _corrected(np.ascontiguousarray(b.T), columns, (_zero(a_zero), _zero(b_zero)), product)
    return sums.T.reshape(*a.shape[:-1], outputs)


def _convolution(attributes: Attributes, x: Array, w: Array, zeros: tuple[int, int], product: Product) -> Array:
    axes, groups = x.ndim - 2, int(attributes.get("group", 1))
    kernel = w.shape[2:]
    strides = list(attributes.get("strides", [1] * axes))
    dilations = list(attributes.get("dilations", [1] * axes))
    pads = _pads(attributes, x.shape[2:], kernel, strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *pads], constant_values=zeros[0])
    sizes = [
        (padded.shape[2 + axis] - dilations[axis] * (kernel[axis] - 1) - 1) // strides[axis] + 1 for axis in range(axes)
    ]
    outputs, channels = len(w), w.shape[1]
    # Positions of the kernel outside, input channels inside: the order of the depth in ONNX Runtime's kernels.
    weights = np.moveaxis(w, 1, -1).reshape(outputs, -1)
    sums = np.empty((len(x), outputs, *sizes), np.int32)
    per_sample = weights.shape[1] * int(np.prod(sizes))
    step = max(1, _COLUMN_BYTES // max(1, per_sample))
    for start in range(0, len(x), step):
        part = padded[start : start + step]
        for group in range(groups):
            mine = part[:, group * channels : (group + 1) * channels].swapaxes(0, 1)
            windows = []
            for position in itertools.product(*map(range, kernel)):
                offsets = [offset * dilation for offset, dilation in zip(position, dilations, strict=True)]
                region = tuple(
                    slice(offset, offset + stride * (size - 1) + 1, stride)
                    for offset, stride, size in zip(offsets, strides, sizes, strict=True)
                )
                windows.append(mine[(slice(None), slice(None), *region)].reshape(channels, -1))
            rows = slice(group * outputs // groups, (group + 1) * outputs // groups)
            result = _corrected(weights[rows], np.concatenate(windows), zeros, product)
            sums[start : start + step, rows] = result.reshape(len(result), len(part), *sizes).swapaxes(0, 1)
    return sums


def _corrected(weights: Array, columns: Array, zeros: tuple[int, int], product: Product) -> Array:
    # sum (a - za)(w - zw) = sum a w - za sum w - zw sum a + depth za zw; the kernels multiply the raw integers.
    za, zw = zeros
    sums: Array = product(weights, columns) - za * weights.sum(axis=1, dtype=np.int32)[:, None]
    if zw:
        sums = sums - zw * (columns.sum(axis=0, dtype=np.int32) - len(columns) * za)
    return sums.astype(np.int32, copy=False)


def _pads(
    attributes: Attributes, sizes: Sequence[int], kernel: Sequence[int], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    axes = len(kernel)
    if mode == "NOTSET":
        pads = list(attributes.get("pads", [0] * 2 * axes))
        return list(zip(pads[:axes], pads[axes:], strict=True))
    if mode == "VALID":
        return [(0, 0)] * axes
    result = []
    for axis in range(axes):
        wanted = -(-sizes[axis] // strides[axis])
        total = max(0, (wanted - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - sizes[axis])
        small = total // 2
        result.append((small, total - small) if mode == "SAME_UPPER" else (total - small, small))
    return result


def _requantize(sums: Array, scale: Array, zero: Array | None) -> Array:
    kind = zero.dtype if zero is not None else np.dtype(np.uint8)
    bounds, offset = np.iinfo(kind), _zero(zero)
    scaled = sums.astype(np.float32) * scale.astype(np.float32)
    rounded = np.rint(scaled.clip(bounds.min - offset, bounds.max - offset))
    result: Array = (rounded + np.float32(offset)).astype(kind)
    return result


def _plus(values: Array, bias: Array | None) -> Array:
    result: Array = values.astype(np.float32) if bias is None else (values + bias).astype(np.float32)
    return result


def _scalar(value: Array) -> float:
    return float(value.reshape(-1)[0])


def _zero(value: Array | None) -> int:
    # Zero points of weights may come one for every channel, and are then equal: the kernels ask for it.
    return 0 if value is None else int(value.reshape(-1)[0])


def _scaled(values: Array, weights: Array, scale: Array, zero: Array | None, product: Product) -> Array:
    integers, own_scale, own_zero = quantize_dynamically(values)
    sums = matmul_integer({}, [integers, weights, own_zero, zero], product)
    result: Array = sums.astype(np.float32) * (own_scale * scale)
    return result


def _of(parameter: Array | None, direction: int) -> Any:
    return None if parameter is None else parameter[direction]


def _sigmoid(values: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-values))
    return result
