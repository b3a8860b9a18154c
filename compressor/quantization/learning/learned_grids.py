"""Grids whose steps learn, for weights and for activations: what torch computes is what the exported file will compute.

v = clamp(round(x / s) + z, low, high), y = (v - z) s, with straight-through gradients through the rounding. Steps s are
learned (LSQ: Esser et al. 2019, arXiv:1902.08153, equations 1 to 5, with the gradient scale 1 / sqrt(N Q_p) of section
2.2), and so are zero points of activations between the ends of the integers (LSQ+: Bhalgat et al. 2020,
arXiv:2004.09576, equations 4 to 6). Both are learned relative to where they began, s = s_0 exp(t) and z = z_0 + 2^bits
u, so that one learning rate suits steps of 1e-4 and of 10.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.quantization.grids.activations import ActivationGrid
from compressor.quantization.grids.schemes import integer_bounds
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.learning.tied_weights import TiedWeight
from compressor.quantization.torch_graph.straight_through import straight_through_round


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
    return (to_integers(values, scale, zero_point, low=low, high=high) - zero_point) * scale


def to_integers(values: Tensor, scale: Tensor, zero_point: Tensor, *, low: int, high: int) -> Tensor:
    """The integers of `values`, whole numbers in float32; gradients pass straight through the rounding."""
    return (straight_through_round(values / scale) + zero_point).clamp(low, high)


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

    def integers(self) -> Tensor:
        """The integers as the file will hold them, whole numbers in float32 of the weight's shape."""
        low, high = integer_bounds(self.grid.bits, signed=True)
        spread = self.grid.spread
        return to_integers(
            self.weight(), spread(self.scale()), spread(self.get_buffer("zero_point")), low=low, high=high
        )

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
