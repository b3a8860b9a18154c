"""What one tensor's values were, over a stream of any length, in memory that does not grow.

Minimum, maximum, their moving averages and a histogram are all that is kept. A histogram's bins are powers of two wide;
when a value falls outside, the range doubles and bins merge in pairs, which is exact. So the counts are those that the
final bins would have had from the start, and any split of the same values into batches gives the same bits.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

# Even, so that pairs merge; 4096 on either side of zero resolve a range to 1/2048 of its end or finer.
BINS = 8192
# 2**-126 is the smallest normal float32: whatever lies below shares the bins next to zero.
_SMALLEST_EXPONENT = -126
# Values that are counted at once: what is made of them on the way stays in a core's second-level cache.
_CHUNK = 1 << 17


@dataclass(kw_only=True)
class Observed:
    """Extremes; if `binned`, a histogram of `BINS` bins over [-2**e, 2**e); with `averaging`, averaged extremes.

    `averaging` is the weight of every new sample's extremes in (0, 1], in the order in which samples come.
    """

    binned: bool = True
    averaging: float | None = None
    low: float = float("inf")
    high: float = float("-inf")
    average_low: float = float("nan")
    average_high: float = float("nan")
    exponent: int | None = None
    zeros: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    infinite: bool = False
    missing: bool = False

    @property
    def empty(self) -> bool:
        """Whether no value has come yet."""
        return self.low > self.high

    def update(self, values: npt.NDArray[Any]) -> None:
        """Takes in more values, those of one sample where extremes are averaged.

        Infinite values are left out, and `infinite` says that there were some: masks have them. So is NaN, and
        `missing` says so: it marks values that are not there.
        """
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if math.isnan(low) or math.isnan(high):
            self.missing = True
            self.update(values[~np.isnan(values)])
            return
        if math.isinf(low) or math.isinf(high):
            self.infinite = True
            self.update(values[np.isfinite(values)])
            return
        if self.averaging is not None:
            first = self.empty
            self.average_low = low if first else self.average_low + self.averaging * (low - self.average_low)
            self.average_high = high if first else self.average_high + self.averaging * (high - self.average_high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.binned:
            self._count(values.reshape(-1), low, high)

    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """(counts, edges) of all values so far, one more edge than counts; empty when there were none but zeros."""
        if self.exponent is None:
            return np.zeros(0, dtype=np.int64), np.zeros(1)
        counts = self.counts.copy()
        counts[BINS // 2] += self.zeros
        return counts, np.ldexp(np.arange(-BINS // 2, BINS // 2 + 1, dtype=np.float64), self._bin_exponent())

    def _bin_exponent(self) -> int:
        assert self.exponent is not None
        return self.exponent + 1 - (BINS.bit_length() - 1)

    def _count(self, values: npt.NDArray[Any], low: float, high: float) -> None:
        largest = max(-low, high)
        if largest == 0:
            # Zeros fit bins of any width, which is chosen when the first other value comes.
            self.zeros += values.size
            return
        # frexp's mantissa is in [0.5, 1): |values| < 2**needed, so that the largest has a bin too.
        needed = max(math.frexp(largest)[1], _SMALLEST_EXPONENT)
        if self.exponent is None:
            self.exponent, self.counts = needed, np.zeros(BINS, dtype=np.int64)
        while self.exponent < needed:
            self._double()
        # Scaling by a power of two is exact: in float32 where it can neither overflow nor underflow, else in float64.
        exact = np.float32 if values.dtype == np.float32 and -100 <= self.exponent <= 12 else np.float64
        factor: npt.NDArray[Any] = np.array(2.0 ** -self._bin_exponent(), dtype=exact)
        # Truncation is floor for what is not negative, and half of the bins suffice.
        negative = low < 0
        first, bins = (0, BINS) if negative else (BINS // 2, BINS // 2)
        counts = torch.from_numpy(self.counts[first:])
        for start in range(0, values.size, _CHUNK):
            scaled: npt.NDArray[Any] = values[start : start + _CHUNK].astype(exact, copy=False) * factor
            if negative:
                np.floor(scaled, out=scaled)
                scaled += BINS // 2
            # torch counts 32-bit integers without widening them: twice as fast as numpy.bincount.
            counts += torch.bincount(torch.from_numpy(scaled.astype(np.int32)), minlength=bins)

    def _double(self) -> None:
        assert self.exponent is not None
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.exponent += 1
