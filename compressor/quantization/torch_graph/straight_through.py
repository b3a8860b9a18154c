"""Rounding that lets gradients pass: the straight-through estimator (Bengio et al. 2013, arXiv:1308.3432)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Values of a piece, a quarter of a megabyte each in float32.
_CACHED = 2**16


def straight_through_round(values: Tensor) -> Tensor:
    """The nearest whole numbers, halves to even; the gradient is that of the identity."""
    rounded: Tensor = _Round.apply(values)  # type: ignore[no-untyped-call] # torch does not annotate it
    return rounded


def round_trip(values: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int]) -> Tensor:
    """What remains of `values` on the grid of the scalars `scale` and `zero_point` with integers within `bounds`.

    Values and gradients are those of `fake_quantize`, from a few passes in place where autograd would make a dozen.
    """
    result: Tensor = _RoundTrip.apply(values, scale, zero_point, bounds)  # type: ignore[no-untyped-call] # the same
    return result


def dynamic_integers(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(integers, scale, zero point) of `values` over their own range, all float32: ONNX's DynamicQuantizeLinear.

    With low = min(0, smallest) and high = max(0, largest): s = (high - low) / 255, z = round(-low / s) and round(x / s)
    + z in [0, 255]; s = 1 where all values are zero. The range follows the values, so that nothing is cut off: the
    gradient to `values` is 1 / s everywhere, and neither s nor z hands one on.
    """
    integers, scale, zero_point = _DynamicIntegers.apply(values)  # type: ignore[no-untyped-call] # the same
    return integers, scale, zero_point


class _DynamicIntegers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        smallest, largest = values.aminmax()
        low, high = smallest.clamp(max=0), largest.clamp(min=0)
        scale = torch.where(high > low, (high - low) / 255, torch.ones_like(high))
        zero_point = (-low / scale).round_().clamp_(0, 255)
        integers = (values / scale).round_().add_(zero_point).clamp_(0, 255)
        ctx.save_for_backward(scale)
        ctx.mark_non_differentiable(scale, zero_point)
        return integers, scale, zero_point

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor:
        scale: Tensor = ctx.saved_tensors[0]
        return gradient / scale


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _RoundTrip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(values, scale, zero_point)
        ctx.bounds = low, high = bounds
        result = torch.empty_like(values)
        for part, piece in zip(_pieces(result), _pieces(values), strict=True):
            torch.div(piece, scale, out=part)
            part.round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        values, scale, zero_point = ctx.saved_tensors
        result = torch.empty_like(values)
        of_scale, of_zero = torch.zeros_like(scale), torch.zeros_like(scale)
        for part, piece, given in zip(_pieces(result), _pieces(values), _pieces(gradient), strict=True):
            steps = piece / scale
            shifted = steps.round().add_(zero_point)
            kept = shifted.clamp(*ctx.bounds)
            torch.mul(given, shifted.eq_(kept), out=part)
            if ctx.needs_input_grad[1]:
                # Inside: round(x / s) - x / s; outside: the integer at the end.
                of_scale += kept.sub_(zero_point).mul_(given).sub_(steps.mul_(part)).sum()
            if ctx.needs_input_grad[2]:
                of_zero += (part.sum() - given.sum()) * scale
        needs = ctx.needs_input_grad
        return result, of_scale if needs[1] else None, of_zero if needs[2] else None, None


def _pieces(values: Tensor) -> Sequence[Tensor]:
    """Parts along the batch that fit a core's cache, where a dozen passes cost as much as one through memory."""
    if values.ndim == 0 or values.shape[0] == 0:
        return [values]
    return torch.split(values, max(1, _CACHED * values.shape[0] // max(1, values.numel())))
