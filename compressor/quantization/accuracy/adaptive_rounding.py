"""Learned rounding: each weight goes up or down, whichever keeps its layer's output, instead of to the nearest.

Nagel et al. 2020, arXiv:2004.10568 (AdaRound). With s the step of the grid and V one number a weight that is learned,

    w~ = s clip(floor(w / s) + h(V), n, p)                                                           (equation 22)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta = 1.1, gamma = -0.1                   (equation 23)
    minimise |f(W x) - f(W~ x')|^2 + lambda sum(1 - |2 h(V) - 1|^beta)                               (equations 24, 25)

layer by layer, f being the ReLU or clip behind the layer, x' the input in the network whose earlier layers are rounded
already. beta falls from 20 to 2, by which the h that are undecided are drawn to 0 or 1. Two things differ. A batch is
drawn from the positions of all samples instead of from whole images: positions of one image say much the same, and
patches from everywhere make the products an order of magnitude smaller. And lambda is no constant, but in
proportion to the mean gradient that rounding to nearest causes, so that layers of any scale decide at the same time.
"""

import math
from dataclasses import dataclass

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from compressor.checks import check_count, check_fraction
from compressor.files.graphs import attribute, initializers, output_names, readers
from compressor.quantization.accuracy.layer_data import Crossing, Layer, Twins
from compressor.quantization.accuracy.layer_rows import input_columns, paired_columns, to_rows, to_weight
from compressor.quantization.grids.schemes import integer_bounds
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.placement.movement import cut_at

# Section 3.4 and the authors' own implementation (AIMET): the stretch of the sigmoid, beta's way, the share of the
# iterations before the regulariser begins.
_ZETA, _GAMMA = 1.1, -0.1
_BETA = (20.0, 2.0)
_WARM_UP = 0.2
# The regulariser against the mean gradient of the error at the nearest integers.
_PULL = 1.0
# Positions of a batch for each input of a row of weights: nine weights of a depthwise filter need no more than 72.
_POSITIONS_AN_INPUT = 8
# Positions of which a layer's batches are drawn, in batches.
_POOL = 32


@dataclass(frozen=True, kw_only=True)
class AdaRound:
    """Learns for every weight whether to round up or down, layer by layer.

    `iterations` of Adam (>= 10) at `learning_rate`, each on `batch` positions (pixels, tokens) of `samples` samples, or
    on eight for every input of a row where that is less: depthwise filters, which have few inputs, are many.
    """

    iterations: int = 500
    batch: int = 512
    learning_rate: float = 0.02
    samples: int = 512

    def __post_init__(self) -> None:
        check_count(self.iterations, "iterations is the number of steps a layer", least=10)
        check_count(self.batch, "batch is the number of positions in a step")
        check_count(self.samples, "samples is the number of samples that are looked at")
        check_fraction(
            self.learning_rate, "learning_rate is Adam's", within="(0, 1]", way_out="it is usually near 0.02"
        )

    def rounded(self, layer: Layer, crossing: Crossing, twins: Twins, generator: torch.Generator) -> WeightGrid:
        """The layer's grid with the integers learned; positions and batches come from `generator`."""
        weight, grid = twins.weights[layer.weight], twins.grids[layer.weight]
        rows, scale, zero_point = twins.rows_of(layer)
        batch = min(self.batch, _POSITIONS_AN_INPUT * rows.shape[-1])
        exact, quantized = _positions(layer, crossing, twins, generator, _POOL * batch)
        bias, bounds = _behind(layer, twins.graph, rows.shape[0] * rows.shape[1])
        bias = bias.reshape(rows.shape[0], 1, -1)
        target = (exact @ rows.mT + bias).clamp(*bounds)
        low, high = integer_bounds(grid.bits, signed=True)
        steps = to_rows(layer.node, grid.continuous(weight).clamp(low, high))

        def gradient_at(values: Tensor) -> Tensor:
            chosen = torch.randint(exact.shape[1], (batch,), generator=generator)
            inputs = quantized[:, chosen]
            output = inputs @ values.mT + bias
            error = (output.clamp(*bounds) - target[:, chosen]) * ((output > bounds[0]) & (output < bounds[1]))
            return error.mT @ inputs

        rounding = SoftRounding(steps - zero_point, scale, learning_rate=self.learning_rate)
        rounding.weigh_(gradient_at(rounding.integers() * scale))
        for iteration in range(self.iterations):
            rounding.step_(gradient_at(rounding.values()), progress=iteration / self.iterations)
        integers = rounding.integers() + zero_point
        return grid.with_integers(to_weight(layer.node, integers.clamp(low, high), weight.shape))


class SoftRounding:
    """Weights between two neighbouring steps of their grid, drawn to one of them as training goes on.

    `steps` is weight / scale of any shape, `scale` of the same.
    """

    def __init__(self, steps: Tensor, scale: Tensor, *, learning_rate: float) -> None:
        self.floor, self.scale = steps.floor(), scale
        rest = steps - self.floor
        # h(V) = rest: it begins at the weights themselves.
        self.logits = -torch.log((_ZETA - _GAMMA) / (rest - _GAMMA) - 1)
        self.optimizer = torch.optim.Adam([self.logits], lr=learning_rate)
        self.regulariser = 0.0

    def share(self) -> Tensor:
        """h(V), how far up every weight is, in [0, 1]."""
        return ((_ZETA - _GAMMA) * torch.sigmoid(self.logits) + _GAMMA).clamp(0, 1)

    def values(self) -> Tensor:
        """The weights as they are now."""
        return self.scale * (self.floor + self.share())

    def integers(self) -> Tensor:
        """The steps that the weights are nearest to now."""
        return self.floor + (self.share() >= 0.5)

    def weigh_(self, gradient: Tensor) -> None:
        """Sets the weight of the regulariser, lambda, by the `gradient` of the error at the nearest integers."""
        self.regulariser = _PULL * float((gradient * self.scale).abs().mean())

    def step_(self, gradient: Tensor, *, progress: float) -> None:
        """One step of Adam for the `gradient` of the error by `values`, after the share `progress` of all steps."""
        up = self.share()
        gradient = gradient * self.scale
        if progress >= _WARM_UP:
            phase = (progress - _WARM_UP) / (1 - _WARM_UP)
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 + math.cos(math.pi * phase)) / 2
            side = 2 * up - 1
            gradient = gradient - self.regulariser * 2 * beta * side.abs() ** (beta - 1) * side.sign()
        soft = torch.sigmoid(self.logits)
        inside = (up > 0) & (up < 1)
        self.logits.grad = torch.where(inside, gradient * (_ZETA - _GAMMA) * soft * (1 - soft), 0.0)
        self.optimizer.step()


def _positions(
    layer: Layer, crossing: Crossing, twins: Twins, generator: torch.Generator, pool: int
) -> tuple[Tensor, Tensor]:
    """(float, quantized) inputs of `layer` at about `pool` positions, each (groups, positions, inputs)."""
    shape = twins.weights[layer.weight].shape
    kept: list[tuple[Tensor, Tensor]] = []
    for exact, quantized in twins.inputs_of(layer, crossing):
        a_sample = next(input_columns(layer.node, exact[:1], shape)).shape[-1]
        share = min(1.0, pool / (a_sample * crossing.samples))
        for ours, theirs in paired_columns(layer.node, exact, quantized, shape):
            count = max(1, round(share * ours.shape[-1]))
            chosen = torch.randperm(ours.shape[-1], generator=generator)[:count]
            kept.append((ours[..., chosen].mT, theirs[..., chosen].mT))
    # A row is a position: batches are then gathered ten times as fast as columns would be.
    return torch.cat([ours for ours, _ in kept], dim=1), torch.cat([theirs for _, theirs in kept], dim=1)


def _behind(layer: Layer, graph: onnx.ModelProto, outputs: int) -> tuple[Tensor, tuple[float, float]]:
    """The bias of the `outputs` (zeros where there is none) and the bounds of the ReLU or clip behind the layer.

    A bias matters for what is clipped alone: without bounds it cancels.
    """
    node, unbounded = layer.node, (-math.inf, math.inf)
    constants = initializers(graph.graph)
    bias = torch.zeros(outputs)
    read = readers(graph.graph.node)[node.output[0]]
    scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    bounds = cut_at(read[0], constants) if len(read) == 1 else None
    if bounds is None or scaled:
        return bias, unbounded
    if node.output[0] in output_names(graph.graph):
        return bias, unbounded
    if len(node.input) > 2 and node.input[2]:
        tensor = constants.get(node.input[2])
        values = None if tensor is None else torch.from_numpy(numpy_helper.to_array(tensor).copy()).flatten()
        if values is None or len(values) not in {1, outputs}:
            return bias, unbounded
        bias = values.expand(outputs)
    return bias, bounds
