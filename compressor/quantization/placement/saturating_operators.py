"""Which operators of a float graph need nothing of their own between integers: what moves values, and what cuts.

Reshapes and max pools have their input's grid on their output. ReLUs and clips go where the integers of their output
end at the same bounds, because rounding to those integers saturates.
"""

from collections.abc import Mapping

import onnx
from onnx import TensorProto

from compressor.files.graphs import output_names, producers, readers
from compressor.files.operators import Fact, facts_of, operator_of
from compressor.quantization.grids.activations import ActivationGrid
from compressor.quantization.placement.movement import cut_at, moves


def keep_trailing_moves_float(graph: onnx.GraphProto, nodes: set[str]) -> None:
    """Takes out of `nodes` what moves or joins values that only float operators read: it can move floats as well.

    Joined in floats, every signal keeps the grid of its own.
    """
    read = readers(graph.node)
    for node in reversed(graph.node):
        if (moves(node) or Fact.JOINS in facts_of(node.op_type)) and not any(
            reader.name in nodes for name in node.output for reader in read[name]
        ):
            nodes.discard(node.name)


def drop_saturating(
    graph: onnx.GraphProto,
    nodes: set[str],
    activations: Mapping[str, ActivationGrid],
    constants: Mapping[str, TensorProto],
) -> set[str]:
    """Removes from the graph the ReLUs and clips whose bounds the integers of their output enforce by saturating.

    The tensors that are cut off so, under the name that the last of what was removed gave them: whoever makes them has
    to round them, whoever reads them. Where they are what the graph gives out, and a layer has a kernel that hands out
    floats, these are cut off as they are.
    """
    cut: set[str] = set()
    made, read = producers(graph.node), readers(graph.node)
    outputs = output_names(graph)
    for node in list(graph.node):
        if node.name not in nodes or operator_of(node.op_type).bounds is None:
            continue
        source, grid = made.get(node.input[0]), activations.get(node.output[0])
        alone = len(read[node.input[0]]) == 1 and node.input[0] not in outputs
        if source is None or grid is None or not alone or not _saturates(node, grid, constants):
            # It stays and computes floats.
            nodes.discard(node.name)
        elif source.name in nodes and not moves(source) and not _gives_out_floats(source, node, read, nodes, outputs):
            position = list(source.output).index(node.input[0])
            source.output[position] = node.output[0]
            made[node.output[0]] = source
            cut.discard(node.input[0])
            cut.add(node.output[0])
            graph.node.remove(node)
        else:
            nodes.discard(node.name)
    return cut


def _gives_out_floats(
    source: onnx.NodeProto,
    node: onnx.NodeProto,
    read: Mapping[str, list[onnx.NodeProto]],
    nodes: set[str],
    outputs: set[str],
) -> bool:
    """Whether `node` cuts off, for the graph's outputs, what a layer can give in floats: rounding would cost precision.

    What floats read inside of the graph is rounded: ONNX Runtime runs no layer on integers ahead of a ReLU or a clip
    that stays, if there is no rounding behind it.
    """
    return (
        Fact.FLOAT_OUTPUT in facts_of(source.op_type)
        and node.output[0] in outputs
        and not any(reader.name in nodes for reader in read.get(node.output[0], ()))
    )


def _saturates(node: onnx.NodeProto, grid: ActivationGrid, constants: Mapping[str, TensorProto]) -> bool:
    limits = cut_at(node, constants)
    if limits is None:
        return False
    # Half a step is what rounding costs anyway.
    half = float(grid.scale) / 2
    return grid.low >= limits[0] - half and grid.high <= limits[1] + half
