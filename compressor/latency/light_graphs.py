"""Small graphs of light operators: activations, sums, norms, pooling, and what moves data; one builder for each.

A builder takes the graph, (rows, elements in a row) and the number of copies.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from compressor.latency.small_graphs import MICROSOFT, NCHWC, SmallGraph

# What carries data around, or only renames it: the float operator whose time stands for it.
ALIKE = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant", "Size"), "Reshape"),
    **dict.fromkeys(("Slice", "Gather", "Split", "Concat", "Pad", "Expand", "Tile", "Cast", "Resize"), "Concat"),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min", "Where", "Sum", "PRelu"), "Add"),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), "LayerNormalization"),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), "SkipLayerNormalization"),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), "ReduceMean"),
    **dict.fromkeys(("MaxPool", "AveragePool"), "MaxPool"),
    **dict.fromkeys(("Gelu", "FastGelu", "QuickGelu", "BiasGelu", "Erf", "Elu", "Selu", "Softplus", "Mish"), "Erf"),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "Abs", "Neg"), "Relu"),
    **dict.fromkeys(("QLinearAdd", "QLinearMul", "QLinearConcat"), "QLinearAdd"),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax"), "QLinearLeakyRelu"),
    **dict.fromkeys(("Sqrt", "Pow", "Reciprocal", "Exp", "Log"), "Exp"),
    **dict.fromkeys(("HardSigmoid", "HardSwish"), "HardSigmoid"),
}
# What becomes of float operators between 8-bit ones.
BETWEEN_INTEGERS = {
    "Add": "QLinearAdd",
    "Relu": "Reshape",
    "GlobalAveragePool": "QLinearGlobalAveragePool",
    "Sigmoid": "QLinearLeakyRelu",
    # Blocked layouts are for floats; 8-bit convolutions have their channels last, and neighbours keep it so.
    "ReorderInput": "Reshape",
    "ReorderOutput": "Reshape",
}

_Builder = Callable[[SmallGraph, tuple[int, ...], int], None]


def _unary(kind: str, domain: str = "", **attributes: Any) -> _Builder:
    def build(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
        x = graph.feed("x", size)
        for _ in range(copies):
            graph.node(kind, [x], domain=domain, **attributes)

    return build


def _sum(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x, other = graph.feed("x", size), graph.feed("other", size if size[-1] == 1 else size[-1:])
    for _ in range(copies):
        graph.node("Add", [x, other])


def _reshape(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", size)
    for _ in range(copies):
        graph.node("Reshape", [x, graph.constant([-1], np.int64)])


def _norm(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", size)
    for _ in range(copies):
        graph.node("LayerNormalization", [x, graph.weight(size[-1:]), graph.weight(size[-1:])])


def _skip_norm(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x, other = graph.feed("x", (1, *size)), graph.feed("other", (1, *size))
    for _ in range(copies):
        inputs = [x, other, graph.weight(size[-1:]), graph.weight(size[-1:])]
        graph.node("SkipLayerNormalization", inputs, domain=MICROSOFT, outputs=1)


def _batch_norm(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", (1, *size))
    ones = graph.constant([1.0] * size[0])
    for _ in range(copies):
        graph.node("BatchNormalization", [x, ones, ones, ones, ones])


def _average(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", (1, *size, 1))
    for _ in range(copies):
        graph.node("GlobalAveragePool", [x])


def _mean(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", size)
    for _ in range(copies):
        graph.node("ReduceMean", [x, graph.constant([1], np.int64)], keepdims=0)


def _transpose(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    # Rows move, or single elements between about 32 channels and a map: what layouts and attention heads differ by.
    elements = size[0]
    width = next(width for width in (32, 16, 8, 4, 2, 1) if elements % width == 0)
    x = graph.feed("x", (elements // width, width, size[-1]))
    for _ in range(copies):
        graph.node("Transpose", [x], perm=[1, 0, 2])


def _reorder(kind: str) -> _Builder:
    def build(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
        # Blocks of 16 channels everywhere: where they are of 8, the bytes moved are the same.
        x = graph.feed("x", (1, 16, max(1, math.prod(size) // 16), 1))
        for _ in range(copies):
            attributes: dict[str, Any] = {"channels": 16} if kind == "ReorderOutput" else {}
            graph.node(kind, [x], domain=NCHWC, **attributes)

    return build


def _pool_of_three(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    side = max(1, math.isqrt(math.prod(size) // 16))
    x = graph.feed("x", (1, 16, side, side))
    for _ in range(copies):
        graph.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])


def _concat(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    elements = math.prod(size)
    x, other = graph.feed("x", (1, max(1, elements // 2))), graph.feed("other", (1, max(1, elements - elements // 2)))
    for _ in range(copies):
        graph.node("Concat", [x, other], axis=1)


def _quantize(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", size)
    for _ in range(copies):
        graph.node("QuantizeLinear", [x, graph.constant(0.05), graph.constant(3, graph.activations)])


def _dequantize(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", size, graph.activations)
    for _ in range(copies):
        graph.node("DequantizeLinear", [x, graph.constant(0.05), graph.constant(3, graph.activations)])


def _quantized_sum(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x, other = graph.feed("x", size, graph.activations), graph.feed("other", size, graph.activations)
    scale, zero = graph.constant(0.05), graph.constant(3, graph.activations)
    for _ in range(copies):
        graph.node("QLinearAdd", [x, scale, zero, other, scale, zero, scale, zero], domain=MICROSOFT)


def _quantized_table(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    x = graph.feed("x", size, graph.activations)
    scale, zero = graph.constant(0.05), graph.constant(3, graph.activations)
    for _ in range(copies):
        graph.node("QLinearLeakyRelu", [x, scale, zero, scale, zero], domain=MICROSOFT, alpha=0.1)


def _quantized_average(graph: SmallGraph, size: tuple[int, ...], copies: int) -> None:
    # `size` is (channels, elements of a map); the channels stand last.
    x = graph.feed("x", (1, size[-1], 1, size[0]), graph.activations)
    scale, zero = graph.constant(0.05), graph.constant(3, graph.activations)
    for _ in range(copies):
        inputs = [x, scale, zero, scale, zero]
        graph.node("QLinearGlobalAveragePool", inputs, domain=MICROSOFT, channels_last=1)


def _nothing(_graph: SmallGraph, _size: tuple[int, ...], _copies: int) -> None:
    # The call alone: the table knows it by its name.
    return


LIGHT: dict[str, _Builder] = {
    "Call": _nothing,
    "Relu": _unary("Relu"),
    "Sigmoid": _unary("Sigmoid"),
    "Tanh": _unary("Tanh"),
    "Erf": _unary("Gelu"),
    "Exp": _unary("Exp"),
    "HardSigmoid": _unary("HardSigmoid"),
    "Softmax": _unary("Softmax", axis=-1),
    "Add": _sum,
    "Reshape": _reshape,
    "Concat": _concat,
    "Transpose": _transpose,
    "ReorderInput": _reorder("ReorderInput"),
    "ReorderOutput": _reorder("ReorderOutput"),
    "LayerNormalization": _norm,
    "SkipLayerNormalization": _skip_norm,
    "BatchNormalization": _batch_norm,
    "ReduceMean": _mean,
    "GlobalAveragePool": _average,
    "MaxPool": _pool_of_three,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "QLinearAdd": _quantized_sum,
    "QLinearLeakyRelu": _quantized_table,
    "QLinearGlobalAveragePool": _quantized_average,
}
# Their time depends on how the elements lie, not on their number alone.
BY_ROW = frozenset(
    {
        *("Softmax", "LayerNormalization", "SkipLayerNormalization", "BatchNormalization", "ReduceMean"),
        *("Add", "Transpose"),
        *("GlobalAveragePool", "QLinearGlobalAveragePool"),
    }
)
