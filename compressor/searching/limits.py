"""What the recipe that is looked for has to keep: accuracy, milliseconds, bytes."""

import math
from dataclasses import dataclass

from compressor.checks import check_max_drop, check_positive
from compressor.report.numbers import counted, size
from compressor.searching.front import Point
from compressor.searching.trials import Trial


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a search; None does not look.

    `max_drop` is how much worse than the reference the score may become on validation, in points for metrics in [0, 1]
    (0.01 is one point of accuracy), else as a fraction of the reference's score. `max_latency_ms` is of one call,
    `max_size_bytes` of model.onnx.
    """

    max_drop: float | None = 0.01
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        check_max_drop(self.max_drop)
        for name in ("max_latency_ms", "max_size_bytes"):
            value = getattr(self, name)
            if value is not None:
                check_positive(value, f"{name} is a limit of the file", way_out="leave it out to set no such limit")

    @property
    def of_files(self) -> bool:
        """Whether time or bytes are limited, which no training changes."""
        return self.max_latency_ms is not None or self.max_size_bytes is not None

    def point(self, trial: Trial) -> Point:
        """What a trial is judged by, drop, time and bytes; a drop within the limit is as good as any other.

        The time is a part of the reference's, in turns with which it was taken: milliseconds of two moments on one
        machine do not compare.
        """
        least = -math.inf if self.max_drop is None else self.max_drop
        return (max(trial.drop.value, least), 1.0 / trial.speedup.value, float(trial.size_bytes))

    def out_of_reach(self, trial: Trial) -> bool:
        """Whether its file is too slow or too large, which no training changes; times count where they are certain.

        Give trials `in_one_time`.
        """
        slow = self.max_latency_ms is not None and trial.latency_ms.low > self.max_latency_ms
        return slow or (self.max_size_bytes is not None and trial.size_bytes > self.max_size_bytes)

    def excess(self, trial: Trial, *, latency_ms: float | None = None) -> float:
        """By what part of a limit the trial is beyond the one that it misses by most, 0 within all.

        `latency_ms` is another time of its file, where one was taken.
        """
        return max(0.0, *(over for over, _ in self._missed(trial, latency_ms)))

    def missed(self, trial: Trial, *, latency_ms: float | None = None) -> list[str]:
        """The limits that a trial does not keep, in words."""
        return [text for over, text in self._missed(trial, latency_ms) if over > 0]

    def words(self) -> str:
        """The limits in words, "" where there are none."""
        parts = []
        if self.max_drop is not None:
            parts.append(f"a drop of {self.max_drop:g}")
        if self.max_latency_ms is not None:
            parts.append(f"{self.max_latency_ms:g} ms")
        if self.max_size_bytes is not None:
            parts.append(_size(self.max_size_bytes))
        return ", ".join(parts)

    def _missed(self, trial: Trial, latency_ms: float | None) -> list[tuple[float, str]]:
        found = [(0.0, "")]
        if self.max_drop is not None:
            over = trial.drop.value - self.max_drop
            told = f"a drop of {trial.drop.value:.4f} where {self.max_drop:g} is allowed"
            # A limit of no drop at all is missed by parts of a tenth of a point.
            found.append((over / max(self.max_drop, 0.001), told))
        if self.max_latency_ms is not None:
            taken = trial.latency_ms.value if latency_ms is None else latency_ms
            found.append((taken / self.max_latency_ms - 1, f"{taken:.3f} ms where {self.max_latency_ms:g} are allowed"))
        if self.max_size_bytes is not None:
            told = f"{_size(trial.size_bytes)} where {_size(self.max_size_bytes)} are allowed"
            found.append((trial.size_bytes / self.max_size_bytes - 1, told))
        return found


def _size(count: int) -> str:
    """Bytes in words; so few that they would read as 0.00 KiB as bytes."""
    return size(count) if count >= 100 else counted(count, "byte")
