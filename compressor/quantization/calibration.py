"""Ranges of a float graph's tensors over a stream of batches, in memory that does not grow with the stream.

Minimum, maximum and a histogram are all that is kept. A histogram's bins are powers of two wide; when a value falls
outside, the range doubles and bins merge in pairs, which is exact. So the counts are those that the final bins would
have had from the start, and any split of the same values into batches gives the same bits.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from compressor.runtime import feeds_of, open_session
from compressor.stage import StageError
from compressor.workload import batches_of

# Even, so that pairs merge; 4096 on either side of zero resolve a range to 1/2048 of its end or finer.
_BINS = 8192
# 2**-126 is the smallest normal float32: whatever lies below shares the bins next to zero.
_SMALLEST_EXPONENT = -126


@dataclass(frozen=True, kw_only=True)
class MinMax:
    """The whole range that calibration saw."""

    def range_of(self, observed: "Observed") -> tuple[float, float]:
        """(low, high), the extremes."""
        return observed.low, observed.high


@dataclass(frozen=True, kw_only=True)
class Percentile:
    """The range that holds `percent` (in (50, 100]) of the values; what is cut is cut half on either side."""

    percent: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            hint = f"; did you mean {self.percent * 100:g}?" if 0.5 < self.percent <= 1 else ""
            raise ValueError(f"percent is the share of values kept, in (50, 100], got {self.percent}{hint}")

    def range_of(self, observed: "Observed") -> tuple[float, float]:
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


Method = MinMax | Percentile


@dataclass(kw_only=True)
class Observed:
    """What one tensor's values were: extremes and, if `binned`, a histogram of `_BINS` bins over [-2**e, 2**e)."""

    binned: bool = True
    low: float = float("inf")
    high: float = float("-inf")
    exponent: int | None = None
    zeros: int = 0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, dtype=np.int64))

    def update(self, values: npt.NDArray[Any]) -> None:
        """Takes in more values. Raises ValueError at NaN and infinities."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("it produced NaN or infinite values")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.binned:
            self._count(values.reshape(-1), max(-low, high))

    def histogram(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """(counts, edges) of all values so far, one more edge than counts; empty when there were none but zeros."""
        if self.exponent is None:
            return np.zeros(0, dtype=np.int64), np.zeros(1)
        counts = self.counts.copy()
        counts[_BINS // 2] += self.zeros
        return counts, np.ldexp(np.arange(-_BINS // 2, _BINS // 2 + 1, dtype=np.float64), self._bin_exponent())

    def _bin_exponent(self) -> int:
        assert self.exponent is not None
        return self.exponent + 1 - (_BINS.bit_length() - 1)

    def _count(self, values: npt.NDArray[Any], largest: float) -> None:
        if largest == 0:
            # Zeros fit bins of any width, which is chosen when the first other value comes.
            self.zeros += values.size
            return
        # frexp's mantissa is in [0.5, 1): |values| < 2**needed, so that the largest has a bin too.
        needed = max(int(np.frexp(largest)[1]), _SMALLEST_EXPONENT)
        if self.exponent is None:
            self.exponent = needed
        while self.exponent < needed:
            self._double()
        # Scaling by a power of two is exact: in float32 where it can neither overflow nor underflow, else in float64.
        exact = np.float32 if values.dtype == np.float32 and -100 <= self.exponent <= 12 else np.float64
        index = np.multiply(values.astype(exact), exact(2.0 ** -self._bin_exponent()))
        self.counts += np.bincount(np.floor(index).astype(np.int32) + _BINS // 2, minlength=_BINS)

    def _double(self) -> None:
        assert self.exponent is not None
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self.counts[_BINS // 4 : 3 * _BINS // 4] = pairs
        self.exponent += 1


def observe_tensors(
    model: onnx.ModelProto, tensors: Sequence[str], data: Iterable[Any], *, binned: bool, threads: int = 1
) -> tuple[dict[str, Observed], int]:
    """What the named float tensors of `model` were over `data`, and how many samples that was.

    `data` yields batches as a workload's sets do. Raises StageError when it is empty or a tensor is not finite.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    outputs = {output.name for output in probe.graph.output} | {value.name for value in probe.graph.input}
    for name in tensors:
        if name not in outputs:
            probe.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(probe.SerializeToString(), threads=threads)
    input_names = [value.name for value in session.get_inputs()]
    observed = {name: Observed(binned=binned) for name in tensors}
    wanted = [name for name in tensors if name not in input_names]
    samples = 0
    for inputs, _ in batches_of(data):
        feeds = feeds_of(session, inputs)
        samples += len(next(iter(feeds.values())))
        values = dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else {}
        for name in tensors:
            try:
                observed[name].update(feeds[name] if name in feeds else values[name])
            except ValueError as error:
                raise StageError(
                    f"tensor {name!r} cannot be calibrated: {error}; check the model and the calibration data"
                ) from error
    if samples == 0:
        raise StageError("calibration data is empty; give the workload at least one batch of it")
    return observed, samples
