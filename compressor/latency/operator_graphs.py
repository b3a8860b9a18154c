"""Small ONNX graphs that time one operator: several copies of it, in the form that ONNX Runtime runs inside a model.

Nothing reads what the copies compute: ONNX Runtime runs them all the same, and leaves out the change of layout that
only the end of a model pays. The time of one copy is the difference between graphs of more and of fewer copies, in
which the start of a call and the change of layout at the input cancel.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from compressor.latency.light_graphs import ALIKE, BETWEEN_INTEGERS, BY_ROW, LIGHT
from compressor.latency.operators import CONVOLUTIONS, RECURRENT, Operator
from compressor.latency.small_graphs import MICROSOFT, OperatorGraph, SmallGraph
from compressor.target import Isa, Target, filled_width

# Fewer input channels are colours: windows of them that do not overlap get no channel of zeros.
_INNER = 4


@lru_cache(maxsize=1 << 14)
def runnable(operator: Operator, precision: str) -> Operator:
    """The operator as the table keeps it: with the precision it really runs in, without what its time ignores.

    `precision`, "float32" or "int8", counts where the operator's own is open. GRU, RNN, transposed convolutions and
    products of two activations have no int8 kernel worth using: they stay in float32.
    """
    if precision not in {"float32", "int8"}:
        raise ValueError(f'precision is "float32" or "int8", got {precision!r}')
    chosen = operator.precision or precision
    if operator.kind == "light":
        name = operator.flags[0] if operator.flags else "Add"
        if chosen == "int8" and not operator.precision:
            name = BETWEEN_INTEGERS.get(name, name)
        name = ALIKE.get(name, name if name in LIGHT else "Add")
        rows, row = operator.size if len(operator.size) == 2 else (math.prod(operator.size), 1)
        if name not in BY_ROW:
            rows, row = rows * row, 1
        return Operator(
            kind="light", size=(1, 1) if name in {"Reshape", "Call"} else (rows, row), flags=(name,), precision=""
        )
    if operator.kind in {"conv_transpose", "gru", "rnn", "matmul"}:
        chosen = "float32"
    kept = set(operator.flags) - ({"relu", "bias"} if chosen == "int8" else {"dynamic", "bias"})
    if operator.kind != "linear":
        kept -= {"dynamic"}
    if operator.kind not in CONVOLUTIONS:
        kept -= {"add"}
    return replace(operator, flags=tuple(kept), precision=chosen)


def operator_graph(operator: Operator, copies: int, target: Target) -> OperatorGraph:
    """The graph with `copies` (>= 0) of an operator that `runnable` gave back, as a file for `target` has it.

    Its weights are random and differ from copy to copy, so that none is merged and each is read from memory.
    """
    graph = SmallGraph(signed=target.signed_activations)
    if operator.kind == "light":
        LIGHT[operator.flags[0]](graph, operator.size, copies)
    elif operator.kind in CONVOLUTIONS:
        if operator.precision == "int8":
            widened = operator if target.signed_activations else _filled_up(operator, target.isa)
            _quantized_convolutions(graph, widened, copies)
        else:
            _convolutions(graph, operator, copies)
    elif operator.kind == "linear":
        (_quantized_linears if operator.precision == "int8" else _linears)(graph, operator, copies)
    elif operator.kind in RECURRENT:
        _recurrents(graph, operator, copies)
    else:
        left = graph.feed("left", (operator.batch, *operator.size, operator.inputs))
        right = graph.feed("right", (operator.batch, operator.inputs, operator.outputs))
        for _ in range(copies):
            graph.node("MatMul", [left, right])
    return graph.finished(optimize=operator.kind not in {"light", "matmul"})


def _convolutions(graph: SmallGraph, operator: Operator, copies: int) -> None:
    x = graph.feed("x", (operator.batch, operator.inputs, *operator.size))
    transposed = operator.kind == "conv_transpose"
    shape = (operator.outputs, operator.inputs // operator.groups)
    if transposed:
        shape = (operator.inputs, operator.outputs // operator.groups)

    def convolve() -> str:
        inputs = [x, graph.weight((*shape, *operator.kernel)), graph.weight((operator.outputs,))]
        return graph.node("ConvTranspose" if transposed else "Conv", inputs, **_window(operator))

    # The first makes what the others add to, in the layout that they need; each sum is done in place, as in a model.
    total = convolve() if "add" in operator.flags else ""
    for _ in range(copies):
        made = convolve()
        if total:
            made = graph.node("Add", [made, total])
        if "relu" in operator.flags:
            made = graph.node("Relu", [made])
        total = made if total else ""


def _quantized_convolutions(graph: SmallGraph, operator: Operator, copies: int) -> None:
    # ONNX Runtime's own form of DequantizeLinear, Conv, QuantizeLinear: 8-bit convolutions with the channels last.
    x = graph.feed("x", (operator.batch, *operator.size, operator.inputs), graph.activations)
    scale, zero = graph.constant(0.05), graph.constant(3, graph.activations)
    scales, zeros = graph.constant([0.01] * operator.outputs), graph.constant([0] * operator.outputs, np.int8)
    shape = (operator.outputs, operator.inputs // operator.groups, *operator.kernel)
    for _ in range(copies):
        parts = [x, scale, zero, graph.weight(shape, np.int8), scales, zeros, scale, zero]
        bias = graph.weight((operator.outputs,), np.int32)
        made = graph.node("QLinearConv", [*parts, bias], domain=MICROSOFT, channels_last=1, **_window(operator))
        if "add" in operator.flags:
            other = graph.feed("skip", (operator.batch, *operator.output_size, operator.outputs), graph.activations)
            graph.node("QLinearAdd", [made, scale, zero, other, scale, zero, scale, zero], domain=MICROSOFT)


def _filled_up(operator: Operator, isa: Isa) -> Operator:
    """The convolution with the channels of zeros that a quantized file gives it."""
    depthwise = operator.groups == operator.inputs == operator.outputs
    if len(operator.kernel) != 2 or (operator.groups > 1 and not depthwise):
        return operator
    inputs, outputs = filled_width(operator.inputs, isa), filled_width(operator.outputs, isa)
    if depthwise:
        return replace(operator, inputs=inputs, outputs=inputs, groups=inputs)
    patches = all(size <= stride for size, stride in zip(operator.kernel, operator.stride, strict=True))
    if patches and operator.inputs < _INNER:
        inputs = operator.inputs
    return replace(operator, inputs=inputs, outputs=outputs)


def _window(operator: Operator) -> dict[str, Any]:
    return {
        "kernel_shape": operator.kernel,
        "strides": operator.stride,
        "pads": operator.padding,
        "dilations": operator.dilation,
        "group": operator.groups,
    }


def _linears(graph: SmallGraph, operator: Operator, copies: int) -> None:
    x = graph.feed("x", (operator.batch, operator.inputs))
    for _ in range(copies):
        inputs = [x, graph.weight((operator.outputs, operator.inputs)), graph.weight((operator.outputs,))]
        made = graph.node("Gemm", inputs, transB=1)
        if "relu" in operator.flags:
            graph.node("Relu", [made])


def _quantized_linears(graph: SmallGraph, operator: Operator, copies: int) -> None:
    scales, zeros = graph.constant([0.01] * operator.outputs), graph.constant([0] * operator.outputs, np.int8)
    if "dynamic" in operator.flags:
        x = graph.feed("x", (operator.batch, operator.inputs))
        for _ in range(copies):
            matrix, bias = graph.weight((operator.inputs, operator.outputs), np.int8), graph.weight((operator.outputs,))
            graph.node("DynamicQuantizeMatMul", [x, matrix, scales, zeros, bias], domain=MICROSOFT)
        return
    x = graph.feed("x", (operator.batch, operator.inputs), graph.activations)
    scale, zero = graph.constant(0.05), graph.constant(3, graph.activations)
    for _ in range(copies):
        matrix = graph.weight((operator.outputs, operator.inputs), np.int8)
        bias = graph.weight((operator.outputs,), np.int32)
        inputs = [x, scale, zero, matrix, scales, zeros, bias, scale, zero]
        graph.node("QGemm", inputs, domain=MICROSOFT, transB=1)


def _recurrents(graph: SmallGraph, operator: Operator, copies: int) -> None:
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[operator.kind] * operator.outputs
    both = "bidirectional" in operator.flags
    directions = 2 if both else 1
    x = graph.feed("x", (*operator.size, operator.batch, operator.inputs))
    attributes: dict[str, Any] = {"hidden_size": operator.outputs, "direction": "bidirectional" if both else "forward"}
    for _ in range(copies):
        bias = graph.weight((directions, 2 * gates))
        if operator.precision == "int8":
            columns = (
                graph.constant([[0.01] * gates] * directions),
                graph.constant([[0] * gates] * directions, np.int8),
            )
            # Its weights lie the other way round than those of the float operator.
            W = graph.weight((directions, operator.inputs, gates), np.int8)
            R = graph.weight((directions, operator.outputs, gates), np.int8)
            inputs = [x, W, R, bias, "", "", "", "", *columns, *columns]
            graph.node("DynamicQuantizeLSTM", inputs, domain=MICROSOFT, **attributes)
            continue
        W = graph.weight((directions, gates, operator.inputs))
        R = graph.weight((directions, gates, operator.outputs))
        # PyTorch's GRU multiplies by the reset gate after the matrix product.
        extra: dict[str, Any] = {"linear_before_reset": 1} if operator.kind == "gru" else {}
        graph.node(operator.kind.upper(), [x, W, R, bias], **attributes, **extra)
