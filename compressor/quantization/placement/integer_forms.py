"""Operators that ONNX Runtime fuses into no integer kernel by itself, written as ones that run on integers.

Pad keeps the grid: it pads integers as well, with the integer that its value has. HardSigmoid is an addition that
saturates: clip(alpha * x + beta, 0, 1), where the integers of x read with alpha times their scale are alpha * x, and a
result on a grid from 0 to 1 needs no clip (HardSwish is x times that, Howard et al. 2019, arXiv:1905.02244, eq. 2).
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.files.graphs import (
    attribute,
    initializers,
    names_read,
    output_names,
    producers,
    readers,
    replace_nodes_,
)

_ALPHA, _BETA = 0.2, 0.5  # ONNX's own


def take_integer_forms_(graph: onnx.GraphProto) -> None:
    """Rewrites the Pad and HardSigmoid of a placed `graph` that stand between 8-bit integers of one scale a tensor."""
    constants = initializers(graph)
    made, read = producers(graph.node), readers(graph.node)
    outputs = output_names(graph)
    replaced: set[str] = set()
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        source = made.get(node.input[0]) if node.input else None
        behind = read.get(node.output[0], []) if node.output[0] not in outputs else []
        forms = {"Pad": _pad, "HardSigmoid": _hard_sigmoid}
        between = (
            node.op_type in forms
            and source is not None
            and source.op_type == "DequantizeLinear"
            and len(behind) == 1
            and behind[0].op_type == "QuantizeLinear"
        )
        if source is None or not between:
            written.append(node)
            continue
        own = [_values(name, constants) for name in (*source.input[1:3], *behind[0].input[1:3])]
        if any(value is None or value.size != 1 for value in own) or own[1].dtype.itemsize != 1:  # type: ignore[union-attr]  # None ended it
            written.append(node)
            continue
        found = forms[node.op_type](graph, node, source, behind[0], constants)
        if found is None:
            written.append(node)
            continue
        written += found
        if node.op_type == "Pad":
            replaced.add(node.output[0])
    # What read the floats of a Pad goes, and what only the rewritten operators read.
    kept = [node for node in written if not replaced.intersection(node.input)]
    wanted = {name for node in kept for name in names_read(node)} | outputs
    replace_nodes_(graph, [node for node in kept if wanted.intersection(node.output)])


def _pad(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    source: onnx.NodeProto,
    quantize: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto] | None:
    """The Pad on the integers that `source` dequantizes, which writes those that `quantize` would."""
    inputs = list(node.input)
    if [_number(name, constants) for name in source.input[1:3]] != [
        _number(name, constants) for name in quantize.input[1:3]
    ]:
        return None
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in source.input[1:3])
    value = _values(inputs[2], constants) if len(inputs) > 2 and inputs[2] else np.zeros(1)
    if value is None:
        return None
    bounds = np.iinfo(zero_point.dtype)
    integer = np.clip(np.rint(value.item() / float(scale)) + int(zero_point), bounds.min, bounds.max)
    graph.initializer.append(numpy_helper.from_array(np.array(integer, zero_point.dtype), f"{node.name}/pad_value"))
    padded = onnx.NodeProto()
    padded.CopyFrom(node)
    padded.input[:] = [source.input[0], inputs[1], f"{node.name}/pad_value", *inputs[3:]]
    padded.output[:] = [quantize.output[0]]
    return [padded]


def _hard_sigmoid(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    source: onnx.NodeProto,
    quantize: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto] | None:
    """The sum alpha * x + beta; what lies beyond 0 and 1 is left to the rounding of `quantize`."""
    alpha, beta = attribute(node, "alpha", _ALPHA), attribute(node, "beta", _BETA)
    scale, zero_point = (numpy_helper.to_array(constants[name]) for name in quantize.input[1:3])
    bounds = np.iinfo(zero_point.dtype)
    low, high = ((limit - int(zero_point)) * float(scale) for limit in (bounds.min, bounds.max))
    half = float(scale) / 2
    if not (alpha > 0 and beta > 0 and low >= -half and high <= 1 + half):
        return None
    own = numpy_helper.to_array(constants[source.input[1]])
    kind = zero_point.dtype
    for name, value in (
        ("scale", (own * alpha).astype(np.float32)),
        ("beta", np.array(bounds.max, kind)),
        ("beta_scale", np.array(beta / bounds.max, np.float32)),
        ("beta_zero_point", np.array(0, kind)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, f"{node.name}/gate_{name}"))
    scaled, shift = f"{node.output[0]}_scaled", f"{node.output[0]}_shift"
    parameters = [f"{node.name}/gate_{name}" for name in ("beta", "beta_scale", "beta_zero_point")]
    return [
        helper.make_node(
            "DequantizeLinear",
            [source.input[0], f"{node.name}/gate_scale", source.input[2]],
            [scaled],
            f"{node.name}/scaled",
        ),
        helper.make_node("DequantizeLinear", parameters, [shift], f"{node.name}/shift"),
        helper.make_node("Add", [scaled, shift], list(node.output), node.name),
    ]


def _values(name: str, constants: dict[str, onnx.TensorProto]) -> NDArray[Any] | None:
    return numpy_helper.to_array(constants[name]) if name in constants else None


def _number(name: str, constants: dict[str, onnx.TensorProto]) -> float:
    return float(numpy_helper.to_array(constants[name]).reshape(-1)[0])
