"""Keeps float layers between integer ones in float.

ONNX Runtime (its WeightBiasQuantization) quantizes the float weights of a Conv, ConvTranspose or Gemm by
itself, with one scale for the whole tensor, where it reads a dequantized tensor and its result is quantized again. What
was left in float for its accuracy would lose it that way, without a word; a ConvTranspose would not even run on
integers. The rule asks for one scale on the activation: the same scale once for every channel means the same numbers.
"""

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_QUANTIZED_UNASKED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_BETWEEN = frozenset({"Relu", "Clip"})


def keep_float_(graph: onnx.GraphProto, nodes: set[str]) -> None:
    """Gives the layers of `graph` that are not among the integer `nodes` inputs with a scale for every channel."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    added: dict[str, onnx.NodeProto] = {}
    written = []
    for node in graph.node:
        source = producers.get(node.input[0]) if node.input else None
        weight = constants.get(node.input[1]) if len(node.input) > 1 else None
        if (
            node.op_type in _QUANTIZED_UNASKED
            and node.name not in nodes
            and weight is not None
            and source is not None
            and source.op_type == "DequantizeLinear"
            and _is_quantized_behind(node, readers, outputs)
        ):
            name = f"{source.output[0]}_by_channel"
            if name not in added:
                added[name] = _by_channel(graph, source, name, _channels(node, weight), constants)
                written.append(added[name])
            node.input[0] = name
        written.append(node)
    del graph.node[:]
    graph.node.extend(written)


def _is_quantized_behind(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]], outputs: set[str]) -> bool:
    while True:
        found = readers.get(node.output[0], [])
        if len(found) != 1 or node.output[0] in outputs:
            return False
        if found[0].op_type == "QuantizeLinear":
            return True
        if found[0].op_type not in _BETWEEN:
            return False
        node = found[0]


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return int(weight.dims[1] * attributes.get("group", 1))
    return int(weight.dims[1] if attributes.get("transB", 0) else weight.dims[0])


def _by_channel(
    graph: onnx.GraphProto, source: onnx.NodeProto, name: str, channels: int, constants: dict[str, onnx.TensorProto]
) -> onnx.NodeProto:
    inputs = [source.input[0]]
    for parameter in source.input[1:]:
        value: Any = numpy_helper.to_array(constants[parameter])
        inputs.append(f"{parameter}_by_channel")
        graph.initializer.append(
            numpy_helper.from_array(np.full(channels, value.reshape(-1)[0], value.dtype), inputs[-1])
        )
    return helper.make_node(
        "DequantizeLinear", inputs, [name], f"{source.name}_by_channel", domain=source.domain, axis=1
    )
