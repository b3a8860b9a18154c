"""Which nodes only move values, and what may stand on one grid: an operator's row as its attributes narrow it.

What moves values has its input's grid on its output. Some operators move values at some settings and compute new ones
at others (Resize), and a Pad adds a value of its own, which its input's grid need not reach.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

import onnx
from onnx import TensorProto, numpy_helper

from compressor.files.graphs import attribute
from compressor.files.operators import Fact, operator_of
from compressor.quantization.grids.activations import ActivationGrid


def moves(node: onnx.NodeProto) -> bool:
    """Whether each value that `node` gives is one of its input's, or the value that a Pad adds."""
    row = operator_of(node.op_type)
    # A second output of a max pool holds places, not values.
    if Fact.MOVES not in row.facts or (node.op_type == "MaxPool" and len([*filter(None, node.output)]) > 1):
        return False
    return all(attribute(node, name, b"").decode() not in settings for name, settings in row.makes.items())


def follows(node: onnx.NodeProto) -> bool:
    """Whether ONNX Runtime computes `node` right on 8-bit tensors, where both of its sides are 8-bit."""
    facts = operator_of(node.op_type).facts
    if node.op_type == "AveragePool":
        # ONNX Runtime 1.32, on integers: windows beyond the padding are divided by all of their places, none has gaps.
        beyond = attribute(node, "ceil_mode", 0) and attribute(node, "count_include_pad", 0)
        if beyond or any(gap != 1 for gap in attribute(node, "dilations", ())):
            return False
    return Fact.FOLLOWS in facts and (Fact.MOVES not in facts or moves(node))


def cut_at(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> tuple[float, float] | None:
    """(low, high) at which a ReLU or Clip cuts off, numbers or arrays of one; None where it is found at run time."""
    bounds = operator_of(node.op_type).bounds
    if bounds is None:
        return None
    limits = list(bounds)
    for side, name in enumerate(node.input[1:3]):
        if name and name not in constants:
            return None
        if name:
            values = numpy_helper.to_array(constants[name]).reshape(-1)
            if values.size != 1:
                return None
            limits[side] = float(values[0])
    return limits[0], limits[1]


def padding_value(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> float | None:
    """The number that a Pad adds: 0.0 where it repeats what is there, None where it is found at run time.

    None for any other operator, too.
    """
    if node.op_type != "Pad":
        return None
    if attribute(node, "mode", b"constant") != b"constant" or len(node.input) < 3 or not node.input[2]:
        return 0.0
    if node.input[2] not in constants:
        return None
    return float(numpy_helper.to_array(constants[node.input[2]]).reshape(-1)[0])


def keep_foreign_pads_float(
    graph: onnx.GraphProto,
    nodes: set[str],
    activations: Mapping[str, ActivationGrid],
    constants: Mapping[str, TensorProto],
    read: Mapping[str, Sequence[onnx.NodeProto]],
) -> None:
    """Takes the Pads out of `nodes` whose value their input's grid does not reach: integers would cut it off.

    Below the grid, minus infinity with it, is as good as its lowest integer where only max pools read it.
    """
    for node in graph.node:
        grid = activations.get(node.input[0]) if node.op_type == "Pad" and node.name in nodes else None
        if grid is None:
            continue
        value, half = padding_value(node, constants), float(grid.scale) / 2
        inside = value is not None and isfinite(value) and grid.low - half <= value <= grid.high + half
        below = value is not None and value < grid.low and _only_max_pools(node.output[0], read, graph)
        if not (inside or below):
            nodes.discard(node.name)


def _only_max_pools(name: str, read: Mapping[str, Sequence[onnx.NodeProto]], graph: onnx.GraphProto) -> bool:
    found = read.get(name, ())
    outputs = {value.name for value in graph.output}
    return bool(found) and name not in outputs and all(reader.op_type == "MaxPool" for reader in found)
