"""Where an integer graph keeps each weight, and in which shape: what learns stands in for exactly these tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from torch import Tensor

from compressor.files.graphs import attribute, attributes, initializers, producers
from compressor.files.operators import IntegerForm, operator_of
from compressor.quantization.grids.weights import WeightGrid, weight_positions
from compressor.quantization.learning.learned_grids import LearnedWeight
from compressor.quantization.placement.names import (
    bias_of,
    blocks_of,
    dequantized,
    in_loop,
    integers_of,
    scale_of,
    stored_in,
    unpacked,
    unpacking,
)
from compressor.quantization.placement.recurrent_cells import Layer, layer_of

# {tensor of the integer graph: its present value} of one weight.
StandIns = Callable[[LearnedWeight], dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class StoredWeights:
    """Of every weight on its grid what stands for it; of layers written out as cells the layer, by its bias.

    `tied` maps a matrix to the table whose integers the graph turns around for it, as the output layer of a language
    model may do with its table of words.
    """

    stand_ins: Mapping[str, StandIns]
    tied: Mapping[str, str]
    cells: Mapping[str, Layer]


def stored_weights(graph: onnx.ModelProto, placed: onnx.ModelProto, weights: Mapping[str, WeightGrid]) -> StoredWeights:
    """Where `placed`, an integer graph of the float graph `graph`, keeps those of `weights` that it has as integers."""
    makers = producers(placed.graph.node)
    made = makers.keys() | initializers(placed.graph).keys()
    constants = initializers(graph.graph)
    names = {node.name for node in placed.graph.node}
    stand_ins: dict[str, StandIns] = {}
    tied: dict[str, str] = {}
    cells: dict[str, Layer] = {}
    for node in graph.graph.node:
        for position in weight_positions(node):
            name = node.input[position] if position < len(node.input) else ""
            if name not in weights:
                continue
            floats = unpacked(name, made)
            if dequantized(name) in made:
                stand_ins[name] = _dequantized(dequantized(name))
            elif blocks_of(name) in made:
                # An embedding that a product shares has its numbers unpacked beside the product's blocks.
                stand_ins[name] = _blocks(node, name, floats)
            elif unpacking(name, "wide") in made and floats:
                stand_ins[name] = _dequantized(floats)
            elif operator_of(node.op_type).integer_form is IntegerForm.CELLS and position == 2:
                # Written out as cells, or else in float.
                layer = layer_of(node, constants)
                if layer.loop(0) in names:
                    stand_ins[name] = _recurrence(layer)
                    if layer.bias is not None:
                        cells[node.input[3]] = layer
            elif integers_of(name) in made:
                stand_ins[name] = _integers(node, name)
                turned = makers.get(integers_of(name))
                table = "" if turned is None else stored_in(turned.input[0])
                if table in weights and torch.equal(weights[table].scale, weights[name].scale):
                    tied[name] = table
    return StoredWeights(stand_ins=stand_ins, tied=tied, cells=cells)


def bias_stand_ins(layer: Layer, bias: Tensor) -> dict[str, Tensor]:
    """What `bias` (directions, 2 * gates * hidden) becomes where a recurrent layer is written out as cells."""
    early = layer.rows - layer.kept
    inputs, states = torch.split(bias, layer.rows, dim=1)
    projected = torch.cat([inputs[:, :early] + states[:, :early], inputs[:, early:]], dim=1)
    values = {bias_of(layer.node.input[1]): projected.flatten()}
    if layer.kept:
        inside = torch.cat([torch.zeros_like(states[:, :early]), states[:, early:]], dim=1)
        values |= {in_loop(layer.loop(index), bias_of("u")): row for index, row in enumerate(inside)}
    return values


def turned_grid(table: WeightGrid, matrix: WeightGrid) -> WeightGrid:
    """The grid of `matrix`, which is tied to a table, with what the table has learned."""
    same = matrix.axis == table.axis and matrix.integers.shape == table.integers.shape
    return replace(matrix, scale=table.scale, integers=table.integers if same else table.integers.T)


def _dequantized(target: str) -> StandIns:
    return lambda learned: {target: learned()}


def _blocks(node: onnx.NodeProto, name: str, floats: str) -> StandIns:
    """Of a matrix that MatMulNBits multiplies by: its rows in floats, and all of it where something looks it up."""
    turned = node.op_type == "MatMul" or not attribute(node, "transB", 0)

    def stand_ins(learned: LearnedWeight) -> dict[str, Tensor]:
        values = learned()
        return {blocks_of(name): values.T if turned else values} | ({floats: values} if floats else {})

    return stand_ins


def _integers(node: onnx.NodeProto, name: str) -> StandIns:
    settings = attributes(node)
    shape = {"Gather": _table, "LSTM": _gates, "GRU": _projection, "RNN": _projection}.get(node.op_type, _matrix)

    def stand_ins(learned: LearnedWeight) -> dict[str, Tensor]:
        integers, scale = shape(learned, settings)
        return {integers_of(name): integers, scale_of(name): scale}

    return stand_ins


def _matrix(learned: LearnedWeight, attributes: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    integers = learned.integers()
    scale = learned.scale() * attributes.get("alpha", 1.0)
    return integers.T if attributes.get("transB", 0) else integers, scale


def _table(learned: LearnedWeight, _: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    return learned.integers(), learned.grid.spread(learned.scale())


def _gates(learned: LearnedWeight, _: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    integers, scale = learned.integers(), learned.scale()
    directions, gates, _inputs = integers.shape
    return integers.transpose(1, 2), scale.expand((directions, gates) if scale.ndim else (directions,))


def _projection(learned: LearnedWeight, _: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    integers, scale = learned.integers(), learned.scale()
    return integers.flatten(0, 1).T, scale.repeat(len(integers)) if scale.ndim else scale


def _recurrence(layer: Layer) -> StandIns:
    def stand_ins(learned: LearnedWeight) -> dict[str, Tensor]:
        return {
            in_loop(layer.loop(index), blocks_of(target)): matrix[rows]
            for index, matrix in enumerate(learned())
            for target, rows in layer.products.items()
        }

    return stand_ins
