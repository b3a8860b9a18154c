"""Which range of a tensor its integers should span, from what calibration saw of it.

A narrow range cuts the tails off, a wide one rounds coarsely. Min-max, moving average and percentile look at the values
alone; entropy (Migacz 2017, "8-bit inference with TensorRT", GTC S7310) at the information that is left; MSE (Nagel et
al. 2021, arXiv:2106.08295, equation 11; Banner et al. 2019, arXiv:1810.05723) at the squared error. All come from one
histogram. `Auto` compares them by the error that they cause.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from compressor.checks import check_count, check_fraction
from compressor.quantization.grids.schemes import Scheme, Symmetric
from compressor.quantization.ranges.costs import best_range, information_loss, squared_errors
from compressor.quantization.ranges.histogram import Observed

# Bins over which the divergence is computed (Migacz 2017): with more, bins of the tail hold single values.
_ENTROPY_BINS = 2048
# Measured on ResNet-20 (signal to noise at the outputs, validation images): 1 32.62, 2 32.76, 4 32.74, 8 32.58 dB.
_CUT_WEIGHT = 4.0
# Thresholds that are tried, evenly spaced: one in 16 bins.
_THRESHOLD_STEP = 16


def _check_samples(samples: int | None) -> None:
    if samples is not None:
        check_count(samples, "samples is how many of the calibration set are run", way_out="None runs all")


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """The whole range that the first `samples` of the calibration set span (None: all of them, 4096 at most)."""

    binned: ClassVar[bool] = False
    averaging: ClassVar[float | None] = None
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def range_of(
        self,
        observed: Observed,
        scheme: Scheme,  # noqa: ARG002  # for the methods that weigh rounding against cutting
        *,
        signed: bool,  # noqa: ARG002  # the same
    ) -> tuple[float, float]:
        """(low, high), the extremes."""
        return observed.low, observed.high


@dataclass(frozen=True, kw_only=True)
class MovingAverage:
    """The exponential moving average of every sample's extremes, in the order of the calibration set.

    `averaging` is the weight of each new sample, in (0, 1]. Averages are over single samples, so that batches do not
    matter; `samples` as in `MinMax`. Jacob et al. 2018, arXiv:1712.05877, section 3.1.
    """

    binned: ClassVar[bool] = False
    averaging: float = 0.01
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        check_fraction(self.averaging, "averaging is the weight of each new sample", within="(0, 1]")

    def range_of(
        self,
        observed: Observed,
        scheme: Scheme,  # noqa: ARG002  # for the methods that weigh rounding against cutting
        *,
        signed: bool,  # noqa: ARG002  # the same
    ) -> tuple[float, float]:
        """(low, high), the averages. Raises ValueError where none were kept."""
        if observed.averaging is None:
            raise ValueError("moving averages were not kept; observe with Observed(averaging=...)")
        return observed.average_low, observed.average_high


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The range that holds `percent` (in (50, 100]) of the values; what is cut is cut half on either side.

    `samples` as in `MinMax`.
    """

    binned: ClassVar[bool] = True
    averaging: ClassVar[float | None] = None
    percent: float = 99.99
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        if not 50 < self.percent <= 100:
            hint = f"; did you mean {self.percent * 100:g}?" if 0.5 < self.percent <= 1 else ""
            raise ValueError(f"percent is the share of values kept, in (50, 100], got {self.percent}{hint}")

    def range_of(
        self,
        observed: Observed,
        scheme: Scheme,  # noqa: ARG002  # for the methods that weigh rounding against cutting
        *,
        signed: bool,  # noqa: ARG002  # the same
    ) -> tuple[float, float]:
        """(low, high), to the width of a bin and never wider than the extremes."""
        counts, edges = observed.histogram()
        if not counts.size:
            return observed.low, observed.high
        cut = counts.sum() * (100 - self.percent) / 200
        below = np.cumsum(counts)
        above = np.cumsum(counts[::-1])[::-1]
        low = float(edges[int(np.argmax(below > cut))])
        high = float(edges[len(counts) - int(np.argmax(above[::-1] > cut))])
        return max(low, observed.low), min(high, observed.high)


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the values' own.

    One threshold on the magnitude cuts both sides: [max(low, -t), min(high, t)]. Signed values have 2**(bits - 1)
    levels of magnitude; where nothing is negative and integers are unsigned, 2**bits. Exact zeros, which every grid
    represents, do not count. Migacz 2017; `samples` as in `MinMax`. Beyond 11 bits there is nothing to trade, and the
    range is the whole one.
    """

    binned: ClassVar[bool] = True
    averaging: ClassVar[float | None] = None
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def range_of(self, observed: Observed, scheme: Scheme, *, signed: bool) -> tuple[float, float]:
        """(low, high), to the width of a bin and never wider than the extremes."""
        magnitudes, width = _magnitudes(observed)
        one_sided = observed.low >= 0 or observed.high <= 0
        # A symmetric signed grid spends half of its integers on the empty side.
        folded = one_sided and not (isinstance(scheme, Symmetric) and (signed or observed.low < 0))
        levels = 2 ** (scheme.bits if folded else scheme.bits - 1)
        if len(magnitudes) <= levels:
            return observed.low, observed.high
        thresholds = np.arange(len(magnitudes), levels - 1, -_THRESHOLD_STEP)
        losses = [information_loss(magnitudes, int(threshold), levels) for threshold in thresholds]
        limit = float(thresholds[int(np.argmin(losses))]) * width
        return max(observed.low, -limit), min(observed.high, limit)


@dataclass(frozen=True, kw_only=True)
class MSE:
    """The range with the least expected squared error of quantizing and cutting, each side of its own where it may be.

    Values are taken for uniform within their bin of the histogram, and the grid is the one that the file will have, so
    that the error is the exact integral. `samples` as in `MinMax`.
    """

    binned: ClassVar[bool] = True
    averaging: ClassVar[float | None] = None
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)

    def range_of(self, observed: Observed, scheme: Scheme, *, signed: bool) -> tuple[float, float]:
        """(low, high), never wider than the extremes."""
        counts, edges = observed.histogram()
        if not counts.size:
            return observed.low, observed.high
        return best_range(counts, edges, (observed.low, observed.high), scheme, signed=signed)


Candidate = MinMax | MovingAverage | Percentile | Entropy | MSE


@dataclass(frozen=True, kw_only=True)
class Auto:
    """For every tensor the candidate range with the least expected error, if the network's outputs agree.

    Candidates are min-max, percentile (99.999 and 99.99 %), entropy and MSE. The error is the expected squared error
    over the histogram, where what is cut off counts four times: rounding errors average out, cut-off ones share their
    sign and add up from tensor to tensor. The mix is then compared with every candidate used for all tensors at once,
    by the squared error at the network's outputs with all tensors rounded, over the first `judged` samples of the
    calibration set; the best is taken. `samples`, for the histograms, as in `MinMax`.
    """

    binned: ClassVar[bool] = True
    averaging: ClassVar[float | None] = None
    candidates: ClassVar[tuple[Candidate, ...]] = (
        MinMax(),
        Percentile(percent=99.999),
        Percentile(),
        Entropy(),
        MSE(),
    )
    judged: int = 256
    samples: int | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples)
        check_count(self.judged, "judged is how many samples every candidate is run on")

    def range_of(self, observed: Observed, scheme: Scheme, *, signed: bool) -> tuple[float, float]:
        """(low, high) of the candidate with the least error; the first where several have it."""
        counts, edges = observed.histogram()
        ranges = [method.range_of(observed, scheme, signed=signed) for method in self.candidates]
        if not counts.size:
            return ranges[0]
        lows, highs = np.array(ranges).T
        errors = squared_errors(counts, edges, lows, highs, scheme, signed=signed, cut_weight=_CUT_WEIGHT)
        return ranges[int(np.argmin(errors))]


Method = Candidate | Auto


def _magnitudes(observed: Observed) -> tuple[npt.NDArray[np.int64], float]:
    """(counts of |value| over equal bins from 0 to the largest, their width); at most `_ENTROPY_BINS` bins."""
    counts, edges = observed.histogram()
    if not counts.size:
        return counts, 0.0
    half = len(counts) // 2
    folded = counts[half:] + counts[:half][::-1]
    folded = folded[: int(np.flatnonzero(folded)[-1]) + 1]
    width = float(edges[half + 1])
    while len(folded) > _ENTROPY_BINS:
        folded = np.pad(folded, (0, len(folded) % 2)).reshape(-1, 2).sum(axis=1)
        width *= 2
    return folded, width
