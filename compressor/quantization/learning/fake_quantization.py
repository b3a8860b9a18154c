"""A quantized graph whose grids and weights learn: what torch computes is what the exported file will compute.

Weights lie in float under their integers; activations are rounded on calibrated grids that learn, or over their own
range at every call where the file does so, with straight-through gradients in either case (`learned_grids`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.quantization.grids.activations import ActivationGrid
from compressor.quantization.grids.weights import WeightGrid, weight_positions
from compressor.quantization.learning.learned_grids import LearnedGrid, LearnedWeight
from compressor.quantization.learning.stored_weights import bias_stand_ins, stored_weights, turned_grid
from compressor.quantization.placement.movement import moves
from compressor.quantization.placement.names import dequantized, on_grid_of, scale_of, zero_point_of
from compressor.quantization.torch_graph.graph import TorchGraph
from compressor.quantization.torch_graph.steps import torch_tensor
from compressor.quantization.torch_graph.straight_through import straight_through_round


class FakeQuantizedGraph(nn.Module):
    """`placed`, the integer graph of the float graph `graph` on the given grids, made to learn.

    `placed` is what `Prepared.place` gives for `graph`, the nodes `static`, `activations` and `weights`. Float weights
    lie under the integers, biases of static nodes under theirs on the grid of the products. What stays float learns as
    it is. `example` is a batch that says how many features every activation has.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        placed: onnx.ModelProto,
        activations: Mapping[str, ActivationGrid],
        weights: Mapping[str, WeightGrid],
        *,
        static: frozenset[str],
        example: Inputs,
    ) -> None:
        super().__init__()
        # What placing wrote, scales of integers for one, is not the float graph's and learns through the weights alone.
        self.inner = TorchGraph(placed, learn=frozenset(tensor.name for tensor in graph.graph.initializer))
        self.stored = stored_weights(graph, placed, weights)
        constants = {tensor.name: torch_tensor(tensor) for tensor in graph.graph.initializer}
        inserted = {_stem(node): node for node in placed.graph.node if node.op_type == "DequantizeLinear"}
        self.tied = {name: weights[name] for name in self.stored.tied}
        self.moved = _moved(placed, static)
        self.names: dict[str, str] = {}
        self.weights, self.grids = nn.ModuleDict(), nn.ModuleDict()
        self.biases = nn.ParameterDict()
        # Bias -> (tensor whose grid is the input's, weight).
        self.bias_of: dict[str, tuple[str, str]] = {}
        for name in self.stored.stand_ins:
            if name in self.stored.tied:
                continue
            grid = weights[name]
            if name in inserted:
                # A channel whose bias needs room has a larger step in the graph than it was given.
                grid = replace(grid, scale=self.inner.constant(scale_of(name)).clone())
            self.weights[self._key(name)] = LearnedWeight(constants[name], grid)
        features = self._features(placed, example)
        clipped = {name for node in graph.graph.node if node.op_type == "Clip" for name in node.output}
        for name, count in features.items():
            if name in activations and name not in self.moved:
                learned = LearnedGrid(activations[name], features=count, ceiling=name in clipped)
                self.grids[self._key(name)] = learned
        stems = _stems(placed)
        for node in placed.graph.node:
            if len(node.input) < 3 or 1 not in weight_positions(node):
                continue
            source, weight, bias = (stems.get(name, "") for name in node.input[:3])
            if source and weight in weights and bias in constants:
                self.biases[self._key(bias)] = nn.Parameter(constants[bias].clone())
                self.bias_of[bias] = (self.moved.get(source, source), weight)
        for bias in self.stored.cells:
            self.biases[self._key(bias)] = nn.Parameter(constants[bias].clone())

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs on the present grids: a tensor, or a tuple where there are several."""
        values = {
            # oneDNN's convolutions are faster in this layout, and all that follows keeps it.
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in self.inner.feeds(dict(kwargs) if kwargs else args).items()
        } | self.stand_ins()
        outputs = self.inner.run(values, self.inner.output_names)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def freeze_(self, names: Collection[str]) -> None:
        """Keeps the initializers `names` of the float graph, and the grids of those that are weights, as they are."""
        for name in names:
            key = "tensor " + name.replace(".", " ")
            if key in self.weights:
                self.weights[key].requires_grad_(requires_grad=False)
            elif key in self.biases:
                self.biases[key].requires_grad_(False)
            elif name in self.inner.parameter_of:
                self.inner.constant(name).requires_grad_(False)

    def stand_ins(self) -> dict[str, Tensor]:
        """{tensor of the integer graph: its present value} for grids, weights and biases."""
        values: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, grid in self._grids():
            scales[name] = values[scale_of(name)] = grid.scale()
            values[zero_point_of(name)] = grid.zero_point()
        for name, source in self.moved.items():
            if source in scales:
                scales[name] = values[scale_of(name)] = scales[source]
                values[zero_point_of(name)] = values[zero_point_of(source)]
        steps: dict[str, Tensor] = {}
        for name, weight in self._weights():
            values |= self.stored.stand_ins[name](weight)
            steps[name] = weight.scale().detach()
        for name, table in self.stored.tied.items():
            tied = self.weights[self._key(table)]
            assert isinstance(tied, LearnedWeight)
            # The graph itself turns the table's integers around.
            values[scale_of(name)] = tied.scale()
        for name, layer in self.stored.cells.items():
            values |= bias_stand_ins(layer, self.biases[self._key(name)])
        for name, (source, weight_name) in self.bias_of.items():
            step = (scales[source] if source in scales else self.inner.constant(scale_of(source))).detach()
            bias, scale = self.biases[self._key(name)], step * steps[weight_name]
            # In float64, as the file's integers are rounded: a bias is many steps of the product's grid.
            rounded = straight_through_round(bias.double() / scale.double()).float()
            values[dequantized(name)] = rounded * scale
        return values

    def learned(
        self, graph: onnx.ModelProto, activations: Mapping[str, ActivationGrid]
    ) -> tuple[onnx.ModelProto, dict[str, ActivationGrid], dict[str, WeightGrid]]:
        """(`graph` with the present weights and biases, `activations` and weights on the present grids)."""
        grids = {name: weight.learned() for name, weight in self._weights()}
        grids |= {name: turned_grid(grids[table], self.tied[name]) for name, table in self.stored.tied.items()}
        updated = self.inner.updated(graph)
        floats = {name: grid.values() for name, grid in grids.items()}
        floats |= {name: self.biases[self._key(name)].detach() for name in (*self.bias_of, *self.stored.cells)}
        for tensor in updated.graph.initializer:
            if tensor.name in floats:
                tensor.CopyFrom(numpy_helper.from_array(floats[tensor.name].cpu().contiguous().numpy(), tensor.name))
        found = dict(activations) | {name: grid.learned() for name, grid in self._grids()}
        return updated, found, grids

    def _grids(self) -> Iterable[tuple[str, LearnedGrid]]:
        for key, grid in self.grids.items():
            assert isinstance(grid, LearnedGrid)
            yield self.names[key], grid

    def _weights(self) -> Iterable[tuple[str, LearnedWeight]]:
        for key, weight in self.weights.items():
            assert isinstance(weight, LearnedWeight)
            yield self.names[key], weight

    def _key(self, name: str) -> str:
        # Neither dots nor the names of a dict's own methods can name a module.
        key = "tensor " + name.replace(".", " ")
        self.names[key] = name
        return key

    def _features(self, placed: onnx.ModelProto, example: Inputs) -> dict[str, int]:
        """{tensor behind a QuantizeLinear: its number of values for one sample}."""
        sources = {_stem(node): node.input[0] for node in placed.graph.node if node.op_type == "QuantizeLinear"}
        feeds = self.inner.feeds(example)
        batch = next(iter(feeds.values())).shape[0]
        with torch.no_grad():
            found = self.inner.run(feeds, list(sources.values()))
        return {name: value.numel() // batch for name, value in zip(sources, found, strict=True)}


def _stem(node: onnx.NodeProto) -> str:
    """The tensor whose grid a QuantizeLinear or DequantizeLinear has."""
    return on_grid_of(node.input[1])


def _stems(placed: onnx.ModelProto) -> dict[str, str]:
    """{what a DequantizeLinear gives: the tensor whose grid it has}."""
    return {node.output[0]: _stem(node) for node in placed.graph.node if node.op_type == "DequantizeLinear"}


def _moved(placed: onnx.ModelProto, static: frozenset[str]) -> dict[str, str]:
    """{quantized output of a node that only moves values: the tensor whose grid it has}."""
    stems = _stems(placed)
    quantized = {node.input[0]: _stem(node) for node in placed.graph.node if node.op_type == "QuantizeLinear"}
    found: dict[str, str] = {}
    for node in placed.graph.node:
        if node.name in static and moves(node) and node.input[0] in stems:
            source = stems[node.input[0]]
            for name in node.output:
                if name in quantized:
                    found[quantized[name]] = found.get(source, source)
    return found
