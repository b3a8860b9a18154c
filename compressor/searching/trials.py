"""Trials of a search: a recipe that was run, and what came of it, each a file of its own; the files are the truth."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from compressor.errors import StorageError
from compressor.estimate import Estimate
from compressor.measuring.timing import in_time_of
from compressor.report.notebook import flat
from compressor.report.report import Report
from compressor.storage import json_safe, read_sealed, sha256, write_sealed

_ESTIMATES = ("score", "drop", "latency_ms", "speedup")
_NONE = Estimate(math.nan, -math.inf, math.inf)


class TrialWarning(UserWarning):
    """A file of a trial that cannot be used; the trial is made again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A recipe at one rung, run and measured on validation; `error` says why where it was not.

    `name` is its folder, `candidate` the recipe of the space that it is of, `recipe` the YAML text of what was run, and
    `recipe_name` the name in it. `seconds` is the wall time that it took, to the moment `ended_at`, in seconds since
    1970; `predicted_seconds` is the plain forecast of it, and `made_seconds` the work on stages that it did not share.
    `failed_stage` is the place of the stage that failed, 1 for the first. `stages` are those of the recipe by name, and
    `keys` their `prefixes`.
    """

    name: str
    candidate: str
    rung: int
    recipe: str
    recipe_name: str
    seconds: float
    ended_at: float = 0.0
    predicted_seconds: float = 0.0
    made_seconds: float = 0.0
    error: str = ""
    failed_stage: int | None = None
    score: Estimate = _NONE
    drop: Estimate = _NONE
    latency_ms: Estimate = _NONE
    speedup: Estimate = _NONE
    size_bytes: int = 0
    compressed_bytes: int = 0
    packed_bytes: int | None = None
    stages: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it gave a file."""
        return not self.error

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values; intervals are {"value", "low", "high"}, None where it failed."""
        found = {name: vars(value) if isinstance(value, Estimate) else value for name, value in vars(self).items()}
        return {name: None if self.error and name in _ESTIMATES else json_safe(value) for name, value in found.items()}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Trial":
        """The trial that `to_json` wrote. Raises TypeError, ValueError or KeyError for anything else."""
        values = dict(saved)
        for name in _ESTIMATES:
            values[name] = _NONE if values.get(name) is None else Estimate(**values[name])
        for name in ("stages", "keys"):
            values[name] = tuple(values[name])
        return cls(**values)


def trial_row(trial: Trial) -> dict[str, Any]:
    """A trial as plain values, one a column: estimates are three, stages words."""
    words = {name: " ".join(getattr(trial, name)) for name in ("stages", "keys")}
    return {**flat(vars(trial)), **words}


def in_one_time(trials: Sequence[Trial], reference_ms: Estimate | None = None) -> list[Trial]:
    """The trials as if all had been timed in one session, in which the reference took `reference_ms`.

    Each was timed in turns with the reference, by default at the median of what that took in all of them; its own
    milliseconds are those over its speed-up. What else the machine did in one of them changes neither.
    """
    known = [trial.latency_ms.value * trial.speedup.value for trial in trials if trial.ended]
    if not known:
        return list(trials)
    time = reference_ms or Estimate(*[median(known)] * 3)
    return [replace(trial, latency_ms=in_time_of(time, trial.speedup)) if trial.ended else trial for trial in trials]


def measured(report: Report) -> dict[str, Any]:
    """The fields of a trial that a run's report tells, judged on validation."""
    step = report.steps[report.final]
    measurement = step.measurement
    assert measurement is not None  # only a step with a file can be final
    told = step.validation
    drop = told.get("drop")
    if drop is None and report.final:
        # The reference's error is no base for a fraction: the error itself is what it has become worse by.
        drop = told["score"]
    found: dict[str, Any] = {
        "score": Estimate(**told["score"]),
        # The reference itself, where no stage was kept, has none.
        "drop": Estimate(0.0, 0.0, 0.0) if drop is None else Estimate(**drop),
        "latency_ms": measurement.latency_ms,
        "speedup": measurement.speedup,
        "size_bytes": measurement.size_bytes,
        "compressed_bytes": measurement.compressed_bytes,
        "packed_bytes": measurement.packed_bytes,
    }
    if not all(math.isfinite(found[name].value) for name in _ESTIMATES):
        return {"error": f"its numbers are not finite: score {found['score'].value}, drop {found['drop'].value}"}
    return found


class TrialFiles:
    """The trials in `folder`, by the recipe that was run; what is damaged counts as not tried, and is told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Trial] = {}
        for path in sorted(folder.glob("*.json")):
            try:
                trial = Trial.from_json(read_sealed(path, way_out="the trial is made again"))
            except (StorageError, TypeError, ValueError, KeyError) as error:
                warnings.warn(f"{path} tells of no trial ({error}); it is made again", TrialWarning, stacklevel=2)
            else:
                self._known[trial.recipe] = trial

    def __iter__(self) -> Iterator[Trial]:
        return iter(self._known.values())

    def get(self, recipe: str) -> Trial | None:
        """The trial of the recipe with this text, None where it was not made."""
        return self._known.get(recipe)

    def path(self, name: str) -> Path:
        """The folder of the run of a trial."""
        return self.folder / name

    def add(self, trial: Trial) -> None:
        """Puts a trial on disk, whole or not at all."""
        write_sealed(self.folder / f"{trial.name}.json", trial.to_json())
        self._known[trial.recipe] = trial


def folder_name(name: str, recipe: str) -> str:
    """A folder for the trial of a recipe called `name`: readable, and another one for every other recipe."""
    return f"{name[:60]}-{sha256(recipe.encode())[:8]}"
