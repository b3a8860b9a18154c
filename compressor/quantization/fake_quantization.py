"""A quantized graph whose grids and weights learn: what torch computes is what the exported file will compute.

v = clamp(round(x / s) + z, low, high), y = (v - z) s, with straight-through gradients through the rounding. Steps s are
learned (LSQ: Esser et al. 2019, arXiv:1902.08153, equations 1 to 5, with the gradient scale 1 / sqrt(N Q_p) of section
2.2), and so are zero points of activations between the ends of the integers (LSQ+: Bhalgat et al. 2020,
arXiv:2004.09576, equations 4 to 6). Both are learned relative to where they began, s = s_0 exp(t) and z = z_0 + 2^bits
u, so that one learning rate suits steps of 1e-4 and of 10.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compressor.affine import integer_bounds
from compressor.batches import Inputs
from compressor.quantization.activation_grids import ActivationGrid
from compressor.quantization.saturating_operators import MOVES
from compressor.quantization.straight_through import straight_through_round
from compressor.quantization.tied_weights import TiedWeight
from compressor.quantization.torch_graph import TorchGraph, torch_tensor
from compressor.quantization.weight_grids import WeightGrid, weight_positions


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def with_scaled_gradient(values: Tensor, factor: float) -> Tensor:
    """`values`, whose gradient is multiplied by `factor` (LSQ's "gradscale")."""
    result: Tensor = _ScaleGradient.apply(values, factor)  # type: ignore[no-untyped-call] # torch does not annotate it
    return result


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, *, low: int, high: int) -> Tensor:
    """What remains of `values` on the grid of `scale` and `zero_point` with integers in [low, high]; float32.

    The numbers are those of `affine.quantize` and `dequantize`. Gradients: LSQ's equation 3 to the scale, the identity
    to values within the range and zero outside.
    """
    integers = (straight_through_round(values / scale) + zero_point).clamp(low, high)
    return (integers - zero_point) * scale


class LearnedWeight(nn.Module):
    """One weight on its grid: the values underneath, tied as they were, and a step for every channel.

    The zero point is fixed: weights gain nothing from a learned one (LSQ+, section 3.2).
    """

    def __init__(self, weight: Tensor, grid: WeightGrid) -> None:
        super().__init__()
        self.grid = grid
        self.weight = TiedWeight(weight, axis=grid.axis)
        self.log_step = nn.Parameter(torch.zeros_like(grid.scale))
        self.register_buffer("first_scale", grid.scale.clone())
        self.register_buffer("zero_point", grid.zero_point.float())
        high = integer_bounds(grid.bits, signed=True)[1]
        self.gradient_factor = 1 / math.sqrt(weight.numel() / max(1, grid.scale.numel()) * high)

    def scale(self) -> Tensor:
        """The present steps, in the grid's shape."""
        first: Tensor = self.get_buffer("first_scale")
        return first * with_scaled_gradient(self.log_step, self.gradient_factor).exp()

    def forward(self) -> Tensor:
        """The weight as the file will hold it."""
        low, high = integer_bounds(self.grid.bits, signed=True)
        spread = self.grid.spread
        zero_point = spread(self.get_buffer("zero_point"))
        return fake_quantize(self.weight(), spread(self.scale()), zero_point, low=low, high=high)

    def learned(self) -> WeightGrid:
        """The grid with the present steps and integers."""
        with torch.no_grad():
            return replace(self.grid, scale=self.scale().clone()).rounded(self.weight().detach())


class LearnedGrid(nn.Module):
    """One activation's grid with a learned step, and a learned zero point where it lies between the ends.

    A zero point at an end saturates what is below zero, often in place of a ReLU: it stays. `ceiling` keeps the step
    from growing, where the highest integer stands for the upper bound of a clip.
    """

    def __init__(self, grid: ActivationGrid, *, features: int, ceiling: bool) -> None:
        super().__init__()
        self.grid, self.ceiling = grid, ceiling
        low, high = integer_bounds(grid.bits, signed=grid.signed)
        self.log_step = nn.Parameter(torch.zeros(()))
        self.register_buffer("first_scale", grid.scale.clone())
        self.register_buffer("first_zero", grid.zero_point.float())
        middle = low + high + 1 == 2 * int(grid.zero_point)
        self.moves = low < int(grid.zero_point) < high and not middle
        if self.moves:
            self.offset = nn.Parameter(torch.zeros(()))
        self.gradient_factor = 1 / math.sqrt(max(1, features) * high)

    def scale(self) -> Tensor:
        """The present step."""
        log_step = self.log_step.clamp(max=0) if self.ceiling else self.log_step
        first: Tensor = self.get_buffer("first_scale")
        return first * with_scaled_gradient(log_step, self.gradient_factor).exp()

    def zero_point(self) -> Tensor:
        """The present zero point, a whole number in float32."""
        first: Tensor = self.get_buffer("first_zero")
        if not self.moves:
            return first
        low, high = integer_bounds(self.grid.bits, signed=self.grid.signed)
        offset = with_scaled_gradient(self.offset, self.gradient_factor) * 2**self.grid.bits
        return straight_through_round(first + offset).clamp(low, high)

    def learned(self) -> ActivationGrid:
        """The grid as it is now."""
        with torch.no_grad():
            return replace(
                self.grid, scale=self.scale().detach().clone(), zero_point=self.zero_point().detach().to(torch.int32)
            )


class FakeQuantizedGraph(nn.Module):
    """`placed`, the integer graph of the float graph `graph` on the given grids, made to learn.

    `placed` is what `place_static` gives for `graph`, the nodes `static`, `activations` and `weights`. Float weights
    lie under the integers, biases under theirs on the grid of the products. What stays float learns as it is.
    `example` is a batch that says how many features every activation has.
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
        self.inner = TorchGraph(placed)
        constants = {tensor.name: torch_tensor(tensor) for tensor in graph.graph.initializer}
        inserted = {_stem(node): node for node in placed.graph.node if node.op_type == "DequantizeLinear"}
        self.moved = _moved(placed, static)
        self.names: dict[str, str] = {}
        self.weights, self.grids = nn.ModuleDict(), nn.ModuleDict()
        self.biases = nn.ParameterDict()
        # Bias -> (tensor whose grid is the input's, weight).
        self.bias_of: dict[str, tuple[str, str]] = {}
        for name, grid in weights.items():
            if name in inserted:
                # A channel whose bias needs room has a larger step in the graph than it was given.
                placed_grid = replace(grid, scale=self.inner.constant(f"{name}_scale").clone())
                self.weights[self._key(name)] = LearnedWeight(constants[name], placed_grid)
        features = self._features(placed, example)
        clipped = {name for node in graph.graph.node if node.op_type == "Clip" for name in node.output}
        for name, count in features.items():
            if name in activations and name not in self.moved:
                learned = LearnedGrid(activations[name], features=count, ceiling=name in clipped)
                self.grids[self._key(name)] = learned
        stems = {node.output[0]: stem for stem, node in inserted.items()}
        for node in placed.graph.node:
            if len(node.input) < 3 or 1 not in weight_positions(node):
                continue
            source, weight, bias = (stems.get(name, "") for name in node.input[:3])
            if source and weight in weights and bias in constants:
                self.biases[self._key(bias)] = nn.Parameter(constants[bias].clone())
                self.bias_of[bias] = (self.moved.get(source, source), weight)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs on the present grids: a tensor, or a tuple where there are several."""
        values = {
            # oneDNN's convolutions are faster in this layout, and all that follows keeps it.
            name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value
            for name, value in self.inner.feeds(dict(kwargs) if kwargs else args).items()
        } | self.stand_ins()
        outputs = self.inner.run(values, self.inner.output_names)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def stand_ins(self) -> dict[str, Tensor]:
        """{tensor of the integer graph: its present value} for grids, weights and biases."""
        values: dict[str, Tensor] = {}
        scales: dict[str, Tensor] = {}
        for name, grid in self._grids():
            scales[name] = values[f"{name}_scale"] = grid.scale()
            values[f"{name}_zero_point"] = grid.zero_point()
        for name, source in self.moved.items():
            if source in scales:
                scales[name] = values[f"{name}_scale"] = scales[source]
                values[f"{name}_zero_point"] = values[f"{source}_zero_point"]
        steps: dict[str, Tensor] = {}
        for name, weight in self._weights():
            values[f"{name}_DequantizeLinear_Output"] = weight()
            steps[name] = weight.scale().detach()
        for name, (source, weight_name) in self.bias_of.items():
            step = (scales[source] if source in scales else self.inner.constant(f"{source}_scale")).detach()
            bias, scale = self.biases[self._key(name)], step * steps[weight_name]
            # In float64, as the file's integers are rounded: a bias is many steps of the product's grid.
            rounded = straight_through_round(bias.double() / scale.double()).float()
            values[f"{name}_DequantizeLinear_Output"] = rounded * scale
        return values

    def learned(
        self, graph: onnx.ModelProto, activations: Mapping[str, ActivationGrid]
    ) -> tuple[onnx.ModelProto, dict[str, ActivationGrid], dict[str, WeightGrid]]:
        """(`graph` with the present weights and biases, `activations` and weights on the present grids)."""
        grids = {name: weight.learned() for name, weight in self._weights()}
        updated = self.inner.updated(graph)
        floats = {name: grid.values() for name, grid in grids.items()}
        floats |= {name: self.biases[self._key(name)].detach() for name in self.bias_of}
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
    """The tensor that a QuantizeLinear or DequantizeLinear was placed for."""
    return str(node.name).removesuffix("_QuantizeLinear").removesuffix("_DequantizeLinear")


def _moved(placed: onnx.ModelProto, static: frozenset[str]) -> dict[str, str]:
    """{quantized output of a node that only moves values: the tensor whose grid it has}."""
    stems = {node.output[0]: _stem(node) for node in placed.graph.node if node.op_type == "DequantizeLinear"}
    quantized = {node.input[0]: _stem(node) for node in placed.graph.node if node.op_type == "QuantizeLinear"}
    found: dict[str, str] = {}
    for node in placed.graph.node:
        if node.name in static and node.op_type in MOVES and node.input[0] in stems:
            source = stems[node.input[0]]
            for name in node.output:
                if name in quantized:
                    found[quantized[name]] = found.get(source, source)
    return found
