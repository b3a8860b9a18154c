"""Rounded weights looked at again, one column after the other, each beside all others as they are now.

For rows of weights v on a grid, an aim t and H the second moments of the inputs, (v - t) H (v - t)^T is least in one
weight alone at

    v_j - [(v - t) H]_j / H_jj                                        (Behdin et al. 2023, arXiv:2309.01885, equation 5)

and on the grid at the step nearest to it. Between the sweeps a row may take the scale of least squares for its
integers, (v H t^T) / (v H v^T) times the one it has. No step makes the error larger.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Columns whose changes reach those behind them in one product instead of many.
_BLOCK = 32
# By how much least squares may change a scale in a sweep: a row of few integers fits any.
_SCALE_CHANGE = 1.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What rows of weights are to come to: `aim`, weighed by `hessian`, with integers within `bounds`; all float64.

    `aim` and `zero_point` are (groups, outputs, inputs), `hessian` is (groups, inputs, inputs) with a positive
    diagonal. Weights that are `still` stay at the zero point.
    """

    aim: Tensor
    hessian: Tensor
    zero_point: Tensor
    still: Tensor
    bounds: tuple[int, int]

    def errors(self, integers: Tensor, scale: Tensor) -> Tensor:
        """(v - t) H (v - t)^T of every row, (groups, outputs)."""
        error = (integers - self.zero_point) * scale - self.aim
        return ((error @ self.hessian) * error).sum(dim=-1)

    def descended(self, integers: Tensor, scale: Tensor, *, sweeps: int, scaled: bool) -> tuple[Tensor, Tensor]:
        """(integers, scale) of no more error than those given; rows change their scale where it is `scaled`."""
        for _ in range(sweeps):
            before = integers
            integers = self._swept(integers, scale)
            if scaled:
                scale = scale * self._factors((integers - self.zero_point) * scale)
            elif torch.equal(integers, before):
                break
        return integers, scale

    def _swept(self, integers: Tensor, scale: Tensor) -> Tensor:
        integers, hessian = integers.clone(), self.hessian
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        slope = ((integers - self.zero_point) * scale - self.aim) @ hessian
        inputs = integers.shape[-1]
        for start in range(0, inputs, _BLOCK):
            end = min(start + _BLOCK, inputs)
            own, near = slope[..., start:end].clone(), hessian[:, start:end, start:end]
            changes = torch.zeros_like(own)
            for column in range(start, end):
                now, step = integers[..., column], scale[..., column]
                wanted = now - own[..., column - start] / (diagonal[:, None, column] * step)
                best = torch.where(self.still[..., column], now, wanted.round().clamp(*self.bounds))
                change = (best - now) * step
                own += change[..., None] * near[:, None, column - start]
                integers[..., column] = best
                changes[..., column - start] = change
            slope += changes @ hessian[:, start:end]
        return integers

    def _factors(self, values: Tensor) -> Tensor:
        """What every row of `values` is multiplied by for the least error, (groups, outputs, 1)."""
        seen = values @ self.hessian
        power = (seen * values).sum(dim=-1, keepdim=True)
        factors = (seen * self.aim).sum(dim=-1, keepdim=True) / torch.where(power > 0, power, 1.0)
        return torch.where(power > 0, factors.clamp(1 / _SCALE_CHANGE, _SCALE_CHANGE), 1.0)
