"""What the outputs of one file keep of another's: every output, and every channel of those that have channels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.batches import Inputs
from compressor.files.graphs import parse
from compressor.measuring.output_channels import output_channels
from compressor.notes.quantization import KeptOutput
from compressor.runtime import calls, judged_output, open_session
from compressor.scoring.decibels import MOST_DB, Sums, decibels

Array = NDArray[np.float64]
# Of every call that a batch takes the values of all outputs.
Outputs = Sequence[Sequence[Any]]


def fidelity(reference: bytes, onnx_bytes: bytes, batches: Iterable[Inputs]) -> tuple[KeptOutput, ...]:
    """What each output of the file `onnx_bytes` keeps of the file `reference` on `batches` of inputs, in its order.

    Signal and noise are powers: of what an output is off its mean over all batches, and of the difference. Channels
    whose values vary by rounding alone, and probabilities that never reach 0.02, have no decibels of their own.
    """
    return Fidelity(reference).kept(onnx_bytes, batches)


class Fidelity:
    """`fidelity` to one file, whose outputs on batches that are held are computed once for all that is compared."""

    def __init__(self, reference: bytes) -> None:
        self._session = open_session(reference)
        self._axes = output_channels(parse(reference))
        self._held: list[tuple[Inputs, Outputs]] = []

    def hold(self, batches: Iterable[Inputs]) -> None:
        """Holds `batches` and the file's outputs on them, which `kept` compares where it is given no others."""
        self._held = [(inputs, self._outputs(inputs)) for inputs in batches]

    def kept(self, onnx_bytes: bytes, batches: Iterable[Inputs] | None = None) -> tuple[KeptOutput, ...]:
        """What each output of the file `onnx_bytes` keeps on `batches`, by default on those that are held."""
        after = open_session(onnx_bytes)
        names, given = ([value.name for value in session.get_outputs()] for session in (self._session, after))
        sums = {name: _Sums(axis=self._axes.get(name)) for name in names}
        pairs = self._held if batches is None else ((inputs, self._outputs(inputs)) for inputs in batches)
        for inputs, expected in pairs:
            for theirs, ours in zip(expected, calls(after, inputs), strict=True):
                found = dict(zip(given, ours.outputs, strict=True))
                for name, wanted in zip(names, theirs, strict=True):
                    sums[name].add(np.asarray(wanted), np.asarray(found[name]))
        judged = judged_output(self._session)
        return tuple(entry.told(name, judged=name == judged) for name, entry in sums.items())

    def _outputs(self, inputs: Inputs) -> Outputs:
        return [call.outputs for call in calls(self._session, inputs)]


def sqnr_db(reference: NDArray[Any], output: NDArray[Any]) -> float:
    """Signal to quantization noise in decibels: 10 log10 of the power of `reference` over that of the difference."""
    return decibels(*powers(reference, output))


def powers(reference: NDArray[Any], output: NDArray[Any]) -> tuple[float, float]:
    """(the power of `reference`, that of the difference), both where `reference` is finite.

    What it masks, infinities and NaN, is no noise where `output` has the same, and infinite noise where it does not.
    """
    alive = np.isfinite(reference)
    if not np.array_equal(reference[~alive], output[~alive], equal_nan=True) or not np.isfinite(output[alive]).all():
        return 0.0, float("inf")
    wanted, found = (np.where(alive, values, 0).astype(np.float64) for values in (reference, output))
    return float(np.square(wanted).sum()), float(np.square(wanted - found).sum())


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
        if not np.array_equal(alive, np.isfinite(ours)) or not np.array_equal(
            rows[~alive], ours[~alive], equal_nan=True
        ):
            self.why = "has NaN or infinities where the float file has none or others, or the other way round"
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
        self.noise += np.square(np.where(alive, rows, 0.0) - np.where(alive, ours, 0.0)).sum(axis=1)
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
        sums = Sums(
            count=self.count,
            center=self.center,
            first=self.first,
            second=self.second,
            noise=self.noise,
            low=self.low,
            high=self.high,
        )
        channel, channel_db = sums.worst_channel() or (None, None)
        return KeptOutput(output=name, judged=judged, db=sums.whole_db(), channel=channel, channel_db=channel_db)


def _means(rows: Array, alive: NDArray[np.bool_]) -> Array:
    counted = np.maximum(alive.sum(axis=1), 1)
    means: Array = np.where(alive, rows, 0.0).sum(axis=1) / counted
    return means
