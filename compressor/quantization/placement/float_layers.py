"""Keeps ONNX Runtime from rewriting float operators to their harm, by writing them as its patterns do not expect.

Layers between integer ones: ONNX Runtime (its WeightBiasQuantization) quantizes the float weights of a Conv,
ConvTranspose or Gemm by itself, with one scale for the whole tensor, where it reads a dequantized tensor and its result
is quantized again. What was left in float for its accuracy would lose it that way, without a word; a ConvTranspose
would not even run on integers. The rule asks for one scale on the activation: the same scale once for every channel
means the same numbers.

ReLUs and clips that stay in float behind an integer product: ONNX Runtime (1.32) takes them for one with the rounding
that would follow, finds none, and multiplies dequantized floats instead, twenty times as slow as the float model for
one row of 1024 (7.6 against 0.3 milliseconds: the weights are dequantized at every call). Max and Min cut off just as
well, in the same time.

Residual sums before a norm: ONNX Runtime (1.32, CPU) makes one SkipLayerNormalization of an Add and the
LayerNormalization that reads it; its kernel computes row by row without vectors and takes three times as long as the
two by themselves (27 against 8 microseconds for 40 rows of 128). The fusion knows the operator Add; Sum, which adds two
tensors just as well, it leaves alone.
"""

from collections import Counter
from math import isfinite
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import attribute, initializers, output_names, producers, readers, replace_nodes_
from compressor.files.operators import Fact, Family, facts_of, operator_of
from compressor.quantization.placement.movement import follows


def keep_float_(graph: onnx.GraphProto, nodes: set[str]) -> None:
    """Keeps what is not among the integer `nodes` of `graph` from becoming integers between those that are.

    Layers read inputs with a scale for every channel; operators whose integer kernel computes something else read
    inputs that are dequantized step by step.
    """
    constants = initializers(graph)
    made, read = producers(graph.node), readers(graph.node)
    outputs = output_names(graph)
    added: dict[str, onnx.NodeProto] = {}
    written = []
    for node in graph.node:
        source = made.get(node.input[0]) if node.input else None
        weight = constants.get(node.input[1]) if len(node.input) > 1 else None
        if (
            Fact.ROUNDED_UNASKED in facts_of(node.op_type)
            and node.name not in nodes
            and weight is not None
            and source is not None
            and source.op_type == "DequantizeLinear"
            and _is_quantized_behind(node, read, outputs)
        ):
            name = f"{source.output[0]}_by_channel"
            if name not in added:
                added[name] = _by_channel(graph, source, name, _channels(node, weight), constants)
                written.append(added[name])
            node.input[0] = name
        elif (
            Fact.FOLLOWS in facts_of(node.op_type)
            and not follows(node)
            and source is not None
            and source.op_type == "DequantizeLinear"
            and _is_quantized_behind(node, read, outputs)
        ):
            name = f"{source.output[0]}_in_steps"
            if name not in added:
                added[name] = source
                written += _in_steps(source, name)
            node.input[0] = name
        written.append(node)
    replace_nodes_(graph, written)


def _in_steps(source: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
    """What `source` dequantizes, computed by operators that no fusion knows."""
    integers, scale, *zero_point = source.input
    nodes = [helper.make_node("Cast", [integers], [f"{name}/wide"], f"{name}/wide", to=TensorProto.FLOAT)]
    if zero_point:
        nodes.append(helper.make_node("Cast", zero_point, [f"{name}/middle"], f"{name}/middle", to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Sub", [f"{name}/wide", f"{name}/middle"], [f"{name}/left"], f"{name}/left"))
    nodes.append(helper.make_node("Mul", [nodes[-1].output[0], scale], [name], name))
    return nodes


def _is_quantized_behind(node: onnx.NodeProto, read: dict[str, list[onnx.NodeProto]], outputs: set[str]) -> bool:
    while True:
        found = read.get(node.output[0], [])
        if len(found) != 1 or node.output[0] in outputs:
            return False
        if found[0].op_type == "QuantizeLinear":
            return True
        if operator_of(found[0].op_type).bounds is None:
            return False
        node = found[0]


def _channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    if node.op_type == "Conv":
        return int(weight.dims[1] * attribute(node, "group", 1))
    return int(weight.dims[1] if attribute(node, "transB", 0) else weight.dims[0])


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


def keep_bounds_apart_(graph: onnx.GraphProto, nodes: set[str]) -> None:
    """Writes as Max and Min the ReLUs and clips of `graph` that alone read what a layer of the integer `nodes` gives.

    Those at the end, whose result no node reads, stay.
    """
    made, read = producers(graph.node), readers(graph.node)
    outputs = output_names(graph)
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        bounds, source = operator_of(node.op_type).bounds, made.get(node.input[0]) if node.input else None
        behind = (
            bounds is not None
            and source is not None
            and source.name in nodes
            and Fact.FLOAT_OUTPUT in facts_of(source.op_type)
            and len(read[node.input[0]]) == 1
            and node.input[0] not in outputs
            and bool(read.get(node.output[0]))
        )
        written += _cut_apart(graph, node, bounds) if bounds is not None and behind else [node]
    replace_nodes_(graph, written)


def _cut_apart(graph: onnx.GraphProto, node: onnx.NodeProto, bounds: tuple[float, float]) -> list[onnx.NodeProto]:
    """Max and Min that cut off where `node` does: at its inputs, or else at its `bounds` where these are finite."""
    given = [*node.input[1:3], "", ""][:2]
    kept: list[tuple[str, str]] = []
    for kind, name, bound in zip(("Max", "Min"), given, bounds, strict=True):
        if name:
            kept.append((kind, name))
        elif isfinite(bound):
            kept.append((kind, f"{node.name}/{kind.lower()}_bound"))
            graph.initializer.append(numpy_helper.from_array(np.array(bound, np.float32), kept[-1][1]))
    if not kept:
        return [node]
    found, source = [], node.input[0]
    for place, (kind, name) in enumerate(kept):
        last = place == len(kept) - 1
        target = node.output[0] if last else f"{node.output[0]}_{kind.lower()}"
        found.append(helper.make_node(kind, [source, name], [target], node.name if last else f"{node.name}/{kind}"))
        source = target
    return found


def keep_sums_apart_(model: onnx.ModelProto) -> int:
    """The number of float Add nodes that became Sum: those of two tensors that a norm over the last axis reads.

    To be called last: quantization knows Add. A sum with a constant (a bias) stays, for products absorb it.
    """
    graph = model.graph
    constants = initializers(graph).keys()
    read_by_norms = Counter(node.input[0] for node in graph.node if operator_of(node.op_type).family is Family.NORM)
    changed = 0
    for node in graph.node:
        if node.op_type == "Add" and node.domain in {"", "ai.onnx"} and read_by_norms[node.output[0]]:
            if not constants.isdisjoint(node.input):
                continue
            node.op_type = "Sum"
            changed += 1
    return changed
