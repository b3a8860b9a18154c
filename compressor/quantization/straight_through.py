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
