"""What the outputs of one file keep of another's: every output, and every channel of those that have channels."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.batches import Inputs
from compressor.files.graphs import parse
from compressor.measuring.output_channels import output_channels
from compressor.notes.quantization import MOST_DB, KeptOutput
from compressor.runtime import feeds_of, judged_output, open_session

# What does not vary by more than this share of its largest value varies by float32's rounding.
_ROUNDING = 1e-6
# A channel of probabilities that never come this far is one of a class that the data do not hold.
_ABSENT = 0.02

Array = NDArray[np.float64]


def fidelity(reference: bytes, onnx_bytes: bytes, batches: Iterable[Inputs]) -> tuple[KeptOutput, ...]:
    """What each output of the file `onnx_bytes` keeps of the file `reference` on `batches` of inputs, in its order.

    Signal and noise are powers: of what an output is off its mean over all batches, and of the difference. Channels
    whose values vary by rounding alone, and probabilities that never reach 0.02, have no decibels of their own.
    """
    before, after = open_session(reference), open_session(onnx_bytes)
    names = [value.name for value in before.get_outputs()]
    axes = output_channels(parse(reference))
    sums = {name: _Sums(axis=axes.get(name)) for name in names}
    for inputs in batches:
        feeds = feeds_of(before, inputs)
        for name, wanted, found in zip(names, before.run(names, feeds), after.run(names, feeds), strict=True):
            sums[name].add(np.asarray(wanted), np.asarray(found))
    judged = judged_output(before)
    return tuple(entry.told(name, judged=name == judged) for name, entry in sums.items())


def sqnr_db(reference: NDArray[Any], output: NDArray[Any]) -> float:
    """Signal to quantization noise in decibels: 10 log10 of the power of `reference` over that of the difference."""
    signal = float(np.square(reference, dtype=np.float64).sum())
    return decibels(signal, float(np.square(reference.astype(np.float64) - output).sum()))


def reported_db(value: float) -> float:
    """A ratio in decibels as reports write it: two decimals, at most 200 and at least -200."""
    return round(max(-MOST_DB, min(value, MOST_DB)), 2)


def decibels(signal: float, noise: float) -> float:
    """10 log10 of the power `signal` over the power `noise` (both >= 0); infinite without any noise."""
    if noise == 0:
        return float("inf")
    return 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny) / noise))


@dataclass(kw_only=True)
class _Sums:
    """Sums over batches of one output, for every channel on `axis`, for all of it as one where that is None."""

    axis: int | None
    count: Array = field(default_factory=lambda: np.zeros(0))
    center: Array = field(default_factory=lambda: np.zeros(0))
    first: Array = field(default_factory=lambda: np.zeros(0))
    second: Array = field(default_factory=lambda: np.zeros(0))
    noise: Array = field(default_factory=lambda: np.zeros(0))
    low: Array = field(default_factory=lambda: np.zeros(0))
    high: Array = field(default_factory=lambda: np.zeros(0))
    equal: int = 0
    numbers: int = 0
    whole: bool = False
    why: str = ""

    def add(self, wanted: NDArray[Any], found: NDArray[Any]) -> None:
        if self.why or wanted.size == 0:
            return
        if wanted.shape != found.shape:
            # What is selected by value, as boxes are, may be more or fewer.
            self.why = f"has the shape {found.shape} where the float file gives {wanted.shape}"
            return
        if wanted.dtype.kind != "f":
            self.whole = True
            self.equal, self.numbers = self.equal + int((wanted == found).sum()), self.numbers + wanted.size
            return
        rows, ours = self._rows(wanted), self._rows(found)
        alive = np.isfinite(rows)
        if not np.array_equal(alive, np.isfinite(ours)):
            self.why = "has NaN or infinities where the float file has none, or the other way round"
            return
        if not self.count.size:
            self.center = _means(rows, alive)
            self.count, self.first, self.second, self.noise = (np.zeros(len(rows)) for _ in range(4))
            self.low, self.high = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
        if len(rows) != len(self.count):
            self.why = f"has {len(rows)} channels in one batch and {len(self.count)} in another"
            return
        off = np.where(alive, rows - self.center[:, None], 0.0)
        self.count += alive.sum(axis=1)
        self.first += off.sum(axis=1)
        self.second += np.square(off).sum(axis=1)
        self.noise += np.square(np.where(alive, rows - ours, 0.0)).sum(axis=1)
        self.low = np.minimum(self.low, np.where(alive, rows, np.inf).min(axis=1))
        self.high = np.maximum(self.high, np.where(alive, rows, -np.inf).max(axis=1))

    def _rows(self, values: NDArray[Any]) -> Array:
        wide = values.astype(np.float64)
        if self.axis is None or wide.ndim <= self.axis:
            return wide.reshape(1, -1)
        return np.moveaxis(wide, self.axis, 0).reshape(wide.shape[self.axis], -1)

    def told(self, name: str, *, judged: bool) -> KeptOutput:
        if self.why:
            broken = "NaN" in self.why
            return KeptOutput(output=name, judged=judged, db=-MOST_DB if broken else None, why=self.why)
        if self.whole:
            return KeptOutput(output=name, judged=judged, equal=self.equal / self.numbers)
        if not self.count.sum():
            return KeptOutput(output=name, judged=judged, why="has no numbers on these data")
        known = self.count > 0
        count = np.maximum(self.count, 1)
        mean = self.center + self.first / count
        varied = np.maximum(self.second - self.first**2 / count, 0.0)
        total = float((self.count * mean).sum() / self.count.sum())
        signal = float((varied + self.count * (mean - total) ** 2).sum())
        largest = float(np.maximum(np.abs(self.low[known]), np.abs(self.high[known])).max())
        noise = float(self.noise.sum())
        floor = self.count.sum() * (_ROUNDING * largest) ** 2
        if signal <= floor and noise > floor:
            # A constant: what it is off counts against its own size.
            signal = float((self.count * mean**2).sum())
        told = KeptOutput(output=name, judged=judged, db=reported_db(decibels(signal, noise)))
        if len(self.count) < 2:
            return told
        within = (self.low >= 0) & (self.high <= 1)
        looked = (
            known & (varied > self.count * (_ROUNDING * largest) ** 2) & ~(within & (self.high - self.low < _ABSENT))
        )
        if not looked.any():
            return told
        each = {place: decibels(varied[place], self.noise[place]) for place in np.flatnonzero(looked).tolist()}
        worst = min(each, key=each.__getitem__)
        return KeptOutput(output=name, judged=judged, db=told.db, channel=worst, channel_db=reported_db(each[worst]))


def _means(rows: Array, alive: NDArray[np.bool_]) -> Array:
    counted = np.maximum(alive.sum(axis=1), 1)
    means: Array = np.where(alive, rows, 0.0).sum(axis=1) / counted
    return means
