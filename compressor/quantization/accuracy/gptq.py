"""Rounding in closed form: each weight's rounding error is made up for by the weights of its row that are still free.

Frantar et al. 2022, arXiv:2210.17323, algorithm 1 (GPTQ), after Frantar & Alistarh 2022, arXiv:2208.11580 (OBQ). For a
layer of weights w and inputs X, the squared error of the outputs is d H d^T for a change d of a row, H = X X^T. Column
by column, the one with the largest diagonal of H first, the weight q is rounded and the others take the change

    -(w_q - round(w_q)) / [H^-1]_qq * [H^-1]_q,:                                                           (equation 2)

Inputs come from the network whose earlier layers are rounded already. What that changed, x - x', is made up for first:
the row of least squares for the float output is w + w E[(x - x') x'^T] (E[x' x'^T])^-1. Of few positions it learns by
heart what other samples do not have: its damping is the one with which either half of the samples says most of the
other.

A layer of many inputs that few samples show, such as the classifier behind a pool, has a singular H, and what fits
these samples does harm on others: H is shrunk towards the mean of its diagonal, by as much as a prior worth one
position an input would (Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices").

Where the layer's bias makes up for the means, the squared error is least around them: X and both expectations are then
those of x' - E[x'], and the weights are free to keep what varies.

A column once rounded never sees what became of the columns behind it: all are looked at again by `coordinate_descent`.
Of few bits the range of least error of the weights is not that of the outputs: rows are rounded on several scales and
keep the best.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.checks import check_count
from compressor.quantization.accuracy.coordinate_descent import Rows
from compressor.quantization.accuracy.layer_data import Crossing, Layer, Twins
from compressor.quantization.accuracy.layer_rows import paired_columns, to_rows, to_weight
from compressor.quantization.grids.schemes import integer_bounds
from compressor.quantization.grids.weights import FEW_BITS, WeightGrid

# Columns that are rounded before their changes are passed on to the columns behind, in one product instead of many.
_BLOCK = 32
# Positions for every input with which H is known: first layers that read photographs have thousands a sample.
_POSITIONS_AN_INPUT = 256
# Scales that rows of few bits are rounded on besides their own, as factors.
_SCALES = (0.85, 1.15)
# Multiples of the damping that are tried where the drift of inputs is made up for.
_DRIFT_FACTORS = (1.0, 4.0, 16.0, 64.0)


@dataclass(frozen=True, kw_only=True)
class GPTQ:
    """Rounds column by column and lets the remaining weights make up for it, in closed form.

    `damping` is added to the diagonal of H as a fraction of its mean (>= 0), or inputs over positions where that is
    more. `samples` is how many samples H is the sum of; fewer where they have 256 positions for every input. In
    `sweeps` over all that is rounded every weight, and of up to 5 bits every scale, takes the value that is best beside
    the others; 0 is the paper's method.
    """

    damping: float = 0.01
    samples: int = 256
    sweeps: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.damping < 10:
            raise ValueError(f"damping is a fraction of the mean of the diagonal, from 0 to 10; got {self.damping}")
        check_count(self.samples, "samples is the number of samples that are looked at")
        check_count(self.sweeps, "sweeps is how often rounded weights are looked at again", least=0)

    def rounded(self, layer: Layer, crossing: Crossing, twins: Twins, generator: torch.Generator) -> WeightGrid:
        """The layer's grid with the integers that `gptq` finds; nothing is random."""
        del generator
        halves = _second_moments(layer, crossing, twins)
        grid = twins.grids[layer.weight]
        rows, scale, zero_point = (part.double() for part in twins.rows_of(layer))
        moments = halves[0] + halves[1]
        # The diagonal counts as many positions as there are inputs: of few, H sees but what these have in common.
        damping = max(self.damping, rows.shape[-1] / moments.count)
        bounds = integer_bounds(grid.bits, signed=True)
        problem = rows_of(
            rows,
            zero_point,
            moments.hessian,
            moments.drift,
            bounds=bounds,
            damping=damping,
            drift_damping=drift_damping_of(rows, halves, damping) if self.sweeps else damping,
        )
        # One scale a row, not one for the tensor and none for every group: rows can choose theirs, by what they read.
        own = grid.scale.numel() == rows[..., 0].numel() and not bool(zero_point.any())
        free = grid.bits <= FEW_BITS and self.sweeps > 0 and own and bool(moments.hessian.any())
        integers = rounded_columns(problem, scale)
        least = problem.errors(integers, scale)
        for other in [factor * scale for factor in _SCALES] if free else []:
            tried = rounded_columns(problem, other)
            errors = problem.errors(tried, other)
            better = (errors < least)[..., None]
            integers, scale = torch.where(better, tried, integers), torch.where(better, other, scale)
            least = torch.minimum(errors, least)
        integers, scale = problem.descended(integers, scale, sweeps=self.sweeps, scaled=free)
        if free:
            grid = replace(grid, scale=scale[..., 0].reshape(grid.scale.shape).to(grid.scale.dtype))
        return grid.with_integers(to_weight(layer.node, integers, grid.integers.shape))


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Sums over `count` positions, float64: x' x'^T and (x - x') x'^T (groups, inputs, inputs); of x - x' and x' alone.

    With `centered` they are taken around the means.
    """

    second: Tensor
    cross: Tensor
    moved: Tensor
    read: Tensor
    count: int
    centered: bool

    def seen(self, change: Tensor, near: Tensor) -> "Moments":
        """With the positions of `change`, x - x', and `near`, x', each (groups, inputs, positions)."""
        return replace(
            self,
            second=self.second + near @ near.mT,
            cross=self.cross + change @ near.mT,
            moved=self.moved + change.double().sum(dim=-1, keepdim=True),
            read=self.read + near.double().sum(dim=-1, keepdim=True),
            count=self.count + near.shape[-1],
        )

    def __add__(self, other: "Moments") -> "Moments":
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("second", "cross", "moved", "read")}
        return replace(self, count=self.count + other.count, **sums)

    @property
    def hessian(self) -> Tensor:
        return self.second - self.read @ self.read.mT / max(1, self.count) if self.centered else self.second

    @property
    def drift(self) -> Tensor:
        return self.cross - self.moved @ self.read.mT / max(1, self.count) if self.centered else self.cross


def _second_moments(layer: Layer, crossing: Crossing, twins: Twins) -> tuple[Moments, Moments]:
    """The moments of a layer's inputs, of one half of the samples and of the other.

    Around the means where the layer's bias is corrected.
    """
    shape = twins.weights[layer.weight].shape
    groups, _, inputs = to_rows(layer.node, twins.weights[layer.weight]).shape
    square, column = (torch.zeros(groups, inputs, size, dtype=torch.float64) for size in (inputs, 1))
    centered = layer.linear is not None
    first = Moments(second=square, cross=square, moved=column, read=column, count=0, centered=centered)
    second, origin = first, torch.zeros(())
    for exact, quantized in twins.inputs_of(layer, crossing):
        for ours, theirs in paired_columns(layer.node, exact, quantized, shape):
            if centered and not first.count:
                # Sums around a point near the mean lose no digits to it; any point gives the same in the end.
                origin = theirs.mean(dim=-1, keepdim=True)
            change, near = ours - theirs, theirs - origin
            # Samples come one after the other: the halves hold different ones.
            half = (near.shape[-1] + 1) // 2
            first = first.seen(change[..., :half], near[..., :half])
            second = second.seen(change[..., half:], near[..., half:])
        if first.count + second.count >= _POSITIONS_AN_INPUT * inputs:
            break
    return first, second


def drift_damping_of(rows: Tensor, halves: tuple[Moments, Moments], least: float) -> float:
    """The damping, `least` or a multiple, with which what one half of the samples says of the drift helps the other.

    Infinite where none does.
    """
    best, saved = math.inf, 0.0
    for damping in [factor * least for factor in _DRIFT_FACTORS]:
        error = 0.0
        for known, unseen in (halves, halves[::-1]):
            change = _followed(rows, known.hessian, known.drift, damping)
            error += float(((change @ unseen.hessian - 2 * rows @ unseen.drift) * change).sum())
        if error < saved:
            best, saved = damping, error
    return best


def gptq(
    rows: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    hessian: Tensor,
    drift: Tensor,
    *,
    bounds: tuple[int, int],
    damping: float,
) -> Tensor:
    """The integers of `rows` (groups, outputs, inputs), float64 whole numbers within `bounds`; nearest where H is zero.

    Weights that are exactly zero stay zero.

    `scale` and `zero_point` have the rows' shape. `hessian` = sum of x' x'^T and `drift` = sum of (x - x') x'^T are
    (groups, inputs, inputs); inputs x' that are always zero change nothing and are rounded to nearest.
    """
    return rounded_columns(rows_of(rows, zero_point, hessian, drift, bounds=bounds, damping=damping), scale)


def rows_of(
    rows: Tensor,
    zero_point: Tensor,
    hessian: Tensor,
    drift: Tensor,
    *,
    bounds: tuple[int, int],
    damping: float,
    drift_damping: float | None = None,
) -> Rows:
    """The rows of least squares for the float output, by `drift_damping`, weighed by the damped H; zeros stay."""
    change = _followed(rows, hessian, drift, damping if drift_damping is None else drift_damping)
    return Rows(
        aim=rows + change, hessian=_damped(hessian, damping), zero_point=zero_point, still=rows == 0, bounds=bounds
    )


def _followed(rows: Tensor, hessian: Tensor, drift: Tensor, damping: float) -> Tensor:
    """What rows change by to make up for inputs that changed."""
    if math.isinf(damping):
        return torch.zeros_like(rows)
    change: Tensor = torch.linalg.solve(_damped(hessian, damping), (rows @ drift).mT).mT
    return change


def _damped(hessian: Tensor, damping: float) -> Tensor:
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    # Without damping a singular H has no inverse: float64's resolution of it is added at least.
    extra = max(damping, 1e-9) * diagonal.mean(dim=-1, keepdim=True)
    return hessian + torch.diag_embed(torch.where(extra > 0, extra, 1.0).expand_as(diagonal))


def rounded_columns(problem: Rows, scale: Tensor) -> Tensor:
    """The integers of the rows on the grid of `scale`, column by column."""
    damped = problem.hessian
    order = torch.argsort(damped.diagonal(dim1=-2, dim2=-1), dim=-1, descending=True, stable=True)
    columns = order[:, None, :].expand_as(problem.aim)
    left, scale, zero_point, still = (
        part.gather(2, columns) for part in (problem.aim, scale, problem.zero_point, problem.still)
    )
    sorted_h = damped.gather(1, order[:, :, None].expand_as(damped)).gather(2, order[:, None, :].expand_as(damped))
    # The upper Cholesky factor U of H^-1 holds, row by row, [H^-1] of the columns that are left, over its diagonal.
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(sorted_h)), upper=True)
    integers = torch.zeros_like(left)
    inputs = left.shape[-1]
    for start in range(0, inputs, _BLOCK):
        end = min(start + _BLOCK, inputs)
        errors = torch.zeros_like(left[..., start:end])
        for column in range(start, end):
            weight, step, zero = (part[..., column] for part in (left, scale, zero_point))
            # A zero is meant: it stays, and what would have moved it is made up for by the others.
            nearest = ((weight / step).round() + zero).clamp(*problem.bounds)
            rounded = torch.where(still[..., column], zero, nearest)
            integers[..., column] = rounded
            error = (weight - (rounded - zero) * step) / upper[:, column, column, None]
            left[..., column:end] -= error[..., None] * upper[:, None, column, column:end]
            errors[..., column - start] = error
        left[..., end:] -= errors @ upper[:, start:end, end:]
    return torch.zeros_like(integers).scatter_(2, columns, integers)
