"""What a range costs, from a histogram: the expected squared error and the information lost; and the range of least.

Values are taken for uniform within their bin. The squared rounding error of a unit grid is the square of a sawtooth,
whose integral from 0 to t is round(t) / 12 + (t - round(t))**3 / 3: so the error over a bin is exact, however wide the
bin is against the grid's step.
"""

import numpy as np
import numpy.typing as npt
import torch

from compressor.quantization.grids.schemes import Scheme, Symmetric, choose_affine, integer_bounds

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

# Fractions of the whole range that are tried first, then around the best.
_COARSE, _FINE = 40, 16
# Fractions below this cut so much that no distribution with a tail of use gains by it.
_SMALLEST_FRACTION = 0.02
# The error is an integral over each bin: 8 to 16 of them for a step of 8 bits are plenty.
_MOST_BINS = 2048
# Sides are improved in turns until neither moves, which takes one or two.
_ROUNDS = 3


def squared_errors(
    counts: Counts,
    edges: Floats,
    lows: Floats,
    highs: Floats,
    scheme: Scheme,
    *,
    signed: bool,
    cut_weight: float = 1.0,
) -> Floats:
    """The mean squared error of the values in a histogram for each of the ranges [low, high]; one per range.

    `counts` (bins,) lie between `edges` (bins + 1,), equally wide. The grids are those of `choose_affine`. What lies
    beyond the grid's ends counts `cut_weight` times.
    """
    scale, zero_point = choose_affine(torch.from_numpy(lows), torch.from_numpy(highs), scheme, signed=signed)
    bounds = integer_bounds(scheme.bits, signed=signed)
    step = scale.double().numpy()[:, None]
    bottom, top = ((bound - zero_point.double().numpy())[:, None] for bound in bounds)
    position = edges[None, :] / step
    inside = np.clip(position, bottom, top)
    nearest = np.rint(inside)
    # The integral of the squared error from 0: the sawtooth's inside the grid, that of a parabola beyond its ends.
    integral = nearest / 12 + (_cube(inside - nearest) + cut_weight * _cube(position - inside)) / 3
    weights = counts / (counts.sum() * (edges[1] - edges[0]))
    errors: Floats = (np.diff(integral, axis=1) @ weights) * step[:, 0] ** 3
    return errors


def best_range(
    counts: Counts, edges: Floats, extremes: tuple[float, float], scheme: Scheme, *, signed: bool
) -> tuple[float, float]:
    """The range within `extremes` of least `squared_errors`: on a grid of 2.5 % of the range, then of 0.3 %."""
    filled = np.flatnonzero(counts)
    counts, edges = counts[filled[0] : filled[-1] + 1], edges[filled[0] : filled[-1] + 2]
    while len(counts) > _MOST_BINS:
        counts, edges = _halved(counts, edges)
    low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)

    def best(shares: Floats, sides: str, share: tuple[float, float]) -> float:
        lows = low * (shares if "l" in sides else np.full_like(shares, share[0]))
        highs = high * (shares if "h" in sides else np.full_like(shares, share[1]))
        return float(shares[int(np.argmin(squared_errors(counts, edges, lows, highs, scheme, signed=signed)))])

    # The whole range comes first, so that it wins where all are equal.
    coarse = np.linspace(1, _SMALLEST_FRACTION, _COARSE)
    around = (coarse[0] - coarse[1]) * np.linspace(1, -1, _FINE + 1)
    share = (1.0, 1.0)
    # One share moves both ends of a symmetric grid, which spans the larger magnitude, and the only end of a one-sided.
    turns = ("l", "h") if low < 0 < high and not isinstance(scheme, Symmetric) else ("lh",)
    for _ in range(_ROUNDS):
        before = share
        for sides in turns:
            found = best(coarse, sides, share)
            found = best(np.clip(found + around, _SMALLEST_FRACTION, 1), sides, share)
            share = (found if "l" in sides else share[0], found if "h" in sides else share[1])
        if share == before or len(turns) == 1:
            break
    return _within(low * share[0], extremes), _within(high * share[1], extremes)


def _cube(values: Floats) -> Floats:
    # numpy's power takes twenty times as long as two products.
    return values * values * values


def _halved(counts: Counts, edges: Floats) -> tuple[Counts, Floats]:
    """The histogram in bins twice as wide."""
    if len(counts) % 2:
        counts, edges = np.append(counts, 0), np.append(edges, 2 * edges[-1] - edges[-2])
    return counts.reshape(-1, 2).sum(axis=1), edges[::2]


def information_loss(counts: Counts, kept: int, levels: int) -> float:
    """The Kullback-Leibler divergence, in nats, when magnitudes are cut after `kept` bins and rounded to `levels`.

    `counts` (bins,) of magnitudes from zero; `levels` <= `kept` <= bins. What is cut off counts in the last bin kept.
    Rounding spreads the mass of a level evenly over its bins that hold something. The first bin, where all zeros are,
    is taken for the second (as NVIDIA's calibrator does). Migacz 2017, slide 38. Infinite where the cut mass falls
    into a bin that was empty.
    """
    mass = counts.astype(np.float64)
    mass[0] = mass[1]
    inside = mass[:kept]
    reference = inside.copy()
    reference[-1] += mass[kept:].sum()
    filled = inside > 0
    level = np.arange(kept) * levels // kept
    total = np.bincount(level, weights=inside, minlength=levels)
    bins = np.bincount(level, weights=filled, minlength=levels)
    spread = np.where(filled, (total / np.maximum(bins, 1))[level], 0.0)
    if not reference.sum() or not spread.sum() or (reference[-1] > 0 and spread[-1] == 0):
        return float("inf")
    p, q = reference / reference.sum(), spread / spread.sum()
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / q[held])))


def _within(value: float, extremes: tuple[float, float]) -> float:
    return min(max(value, extremes[0]), extremes[1])
