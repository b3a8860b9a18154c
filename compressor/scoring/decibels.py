"""How much of a signal is left beside noise, in decibels: of the whole and of its worst channel, each around its mean.

Decibels are 10 log10 of the power of the signal over the power of the difference. A mean counts in neither: what an
output is off its mean is what tells one sample from another.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Beyond what float32 can tell apart; JSON has no infinity.
MOST_DB = 200.0
# What does not vary by more than this share of its largest value varies by float32's rounding.
_ROUNDING = 1e-6
# A channel of probabilities that never come this far is one of a class that the data do not hold.
_ABSENT = 0.02

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over the values of every channel of a signal, (channels,) each: how many, of the values off a `center`, of
    their squares, of the squared differences, and the lowest and highest value.
    """

    count: Array
    center: Array
    first: Array
    second: Array
    noise: Array
    low: Array
    high: Array

    def whole_db(self) -> float:
        """The decibels of all channels together, around one mean; a constant counts by its own size."""
        known = self.count > 0
        if not known.any():
            return MOST_DB
        mean = self.center + self.first / np.maximum(self.count, 1)
        total = float((self.count * mean).sum() / self.count.sum())
        signal = float((self._varied() + self.count * (mean - total) ** 2).sum())
        floor, noise = float(self.count.sum() * (_ROUNDING * self._largest()) ** 2), float(self.noise.sum())
        if signal <= floor < noise:
            signal = float((self.count * mean**2).sum())
        return reported_db(decibels(signal, noise))

    def worst_channel(self) -> tuple[int, float] | None:
        """(the channel that keeps least, its decibels around its own mean); None where there is but one.

        Channels whose values vary by rounding alone, and probabilities that never come to 0.02, are left out.
        """
        varied = self._varied()
        absent = (self.low >= 0) & (self.high <= 1) & (self.high - self.low < _ABSENT)
        looked = (self.count > 0) & (varied > self.count * (_ROUNDING * self._largest()) ** 2) & ~absent
        if len(self.count) < 2 or not looked.any():
            return None
        each = {place: decibels(varied[place], self.noise[place]) for place in np.flatnonzero(looked).tolist()}
        worst = min(each, key=each.__getitem__)
        return worst, reported_db(each[worst])

    def _varied(self) -> Array:
        varied: Array = np.maximum(self.second - self.first**2 / np.maximum(self.count, 1), 0.0)
        return varied

    def _largest(self) -> float:
        known = self.count > 0
        return float(np.maximum(np.abs(self.low[known]), np.abs(self.high[known])).max(initial=0.0))


def reported_db(value: float) -> float:
    """A ratio in decibels as reports write it: two decimals, at most 200 and at least -200."""
    return round(max(-MOST_DB, min(value, MOST_DB)), 2)


def decibels(signal: float, noise: float) -> float:
    """10 log10 of the power `signal` over the power `noise` (both >= 0), infinite without noise."""
    if noise == 0:
        return float("inf")
    if not np.isfinite(noise):
        return float("-inf")
    return 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


def noise_share(value: float) -> float:
    """The power of the noise as a share of the signal's, of so many decibels; 0 at 200 and more."""
    return 0.0 if value >= MOST_DB else float(10 ** (-value / 10))
