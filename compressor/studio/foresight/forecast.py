"""From the losses of single changes to the drop of many together, with an interval that such forecasts have kept to.

What each change costs by itself adds up badly: the sum only puts choices in order. The curve from sums to drops is the
monotone one of least squares (pool adjacent violators: Barlow, Bartholomew, Bremner and Brunk 1972, "Statistical
Inference under Order Restrictions", section 1.2), and how far drops lie from it is taken from choices that were
measured and left out of the curve in turn (conformal prediction: Vovk, Gammerman and Shafer 2005, "Algorithmic Learning
in a Random World"; sets that grow with a factor on the sum: Gupta, Kuchibhotla and Ramdas 2022, Pattern Recognition
127, section 2).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from compressor.estimate import Estimate

# How much of what is forecast lies in the interval.
COVERED = 0.9
# The two-sided quantile of the normal distribution for it.
_Z = 1.6448536269514722
# The factors on a sum that are tried, as exponents of e; the last one stands for all that is larger.
_WIDENINGS = np.linspace(0.0, 4.0, 161)


@dataclass(frozen=True, kw_only=True)
class Observed:
    """A choice that was measured: the `loss` that its changes have one by one, added up, and the `drop` of the score.

    `error` is the standard error of the drop, which comes from so many samples.
    """

    loss: float
    drop: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What choices will lose, by their sums of losses: `singles` are single changes, `probes` choices of several.

    Both shape the curve; by the probes alone, each left out of the curve in turn, it is known how far drops lie from
    it. It holds for choices like them.
    """

    singles: tuple[Observed, ...]
    probes: tuple[Observed, ...]
    curve: "Curve" = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", Curve((*self.singles, *self.probes)))

    @property
    def has_interval(self) -> bool:
        """Whether there are probes enough for an interval that covers `COVERED`."""
        return _rank(len(self.probes)) <= len(self.probes)

    def drop(self, loss: float) -> Estimate:
        """The drop of a choice with that sum, in the metric's own units, with its 90 % interval.

        For new samples, as many as the probes were measured on. Without probes enough value and interval are one.
        """
        value = self.curve.drop(loss)
        if not self.has_interval:
            return Estimate(value, value, value)
        error = self.curve.error(loss)
        low, high = _reach(self.curve, loss, error, self.widening)
        noise = _Z * error
        return Estimate(value, value - math.hypot(value - low, noise), value + math.hypot(high - value, noise))

    @cached_property
    def widening(self) -> float:
        """By which factor, as an exponent of e, sums have to be off for `COVERED` of the probes to lie within."""
        needed = []
        for place, probe in enumerate(self.probes):
            others = Curve((*self.singles, *self.probes[:place], *self.probes[place + 1 :]))
            needed.append(_needed(others, probe))
        return sorted(needed)[min(_rank(len(needed)), len(needed)) - 1] if needed else 0.0


class Curve:
    """The monotone curve from sums of losses to drops through (0, 0), and the standard errors along it."""

    def __init__(self, observed: Sequence[Observed]) -> None:
        rows = sorted(observed, key=lambda each: each.loss)
        losses = [0.0, *(max(0.0, each.loss) for each in rows)]
        # The whole model loses nothing: a point as heavy as all the others.
        drops, weights = [0.0, *(each.drop for each in rows)], [float(max(1, len(rows))), *(1.0 for _ in rows)]
        self._losses, self._drops = _monotone(losses, drops, weights)
        self._at = np.log1p(np.array(losses[1:] or [0.0]))
        self._errors = np.array([each.error for each in rows] or [0.0])

    def drop(self, loss: float) -> float:
        """The drop at a sum of losses; beyond the largest one that was measured it stays as it is there."""
        return float(np.interp(max(0.0, loss), self._losses, self._drops))

    def error(self, loss: float) -> float:
        """The standard error of a drop that is measured there: the mean of those nearest to it."""
        nearest = np.argsort(np.abs(self._at - math.log1p(max(0.0, loss))), kind="stable")[:5]
        return float(self._errors[nearest].mean())


def _reach(curve: Curve, loss: float, error: float, widening: float) -> tuple[float, float]:
    """The lowest and the highest drop for sums that are off by so much, and drops that are off by their error."""
    off = (1 + widening) * error
    return curve.drop(loss * math.exp(-widening)) - off, curve.drop(loss * math.exp(widening)) + off


def _needed(curve: Curve, probe: Observed) -> float:
    error = curve.error(probe.loss)
    for widening in _WIDENINGS.tolist():
        low, high = _reach(curve, probe.loss, error, widening)
        if low <= probe.drop <= high:
            return float(widening)
    return float(_WIDENINGS[-1])


def _rank(count: int) -> int:
    """Which of `count` values, the least first, a new one stays below with the probability `COVERED`."""
    return math.ceil((count + 1) * COVERED)


def _monotone(
    at: Sequence[float], values: Sequence[float], weights: Sequence[float]
) -> tuple[list[float], list[float]]:
    """The corners of the rising curve of least squares: pools of neighbours, each at its mean place."""
    pools: list[tuple[float, float, float]] = []  # weight, mean of the places, mean of the values
    for place, value, weight in zip(at, values, weights, strict=True):
        pool = (weight, place, value)
        while pools and pools[-1][2] >= pool[2]:
            pool = _merged(pools.pop(), pool)
        pools.append(pool)
    if pools[0][1] > 0:
        pools.insert(0, (1.0, 0.0, pools[0][2]))
    return [pool[1] for pool in pools], [pool[2] for pool in pools]


def _merged(one: tuple[float, float, float], other: tuple[float, float, float]) -> tuple[float, float, float]:
    weight = one[0] + other[0]
    return weight, (one[0] * one[1] + other[0] * other[1]) / weight, (one[0] * one[2] + other[0] * other[2]) / weight
