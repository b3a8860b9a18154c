"""ONNX Runtime's DynamicQuantizeLSTM in numpy, with the product of matrices left to the caller.

Hochreiter and Schmidhuber 1997 in ONNX's form: gates in the order input, output, forget, cell. The input is quantized
over the whole sequence, the state anew at every step, both as DynamicQuantizeLinear does. Sigmoid and tanh are those of
numpy: ONNX Runtime approximates them to about 1e-6, so that a state may now and then round to the other integer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.quantization.other_cpus.integer_kernels import Product, matmul_integer, quantize_dynamically

Array = NDArray[Any]
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def lstm_is_plain(attributes: Mapping[str, Any], input_names: Sequence[str]) -> bool:
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
    attributes: Mapping[str, Any], inputs: Sequence[Any], product: Product
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
