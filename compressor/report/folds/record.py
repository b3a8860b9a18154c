"""What a cross-validation found, as data: a row for each fold, and what they say together."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from compressor.errors import FoldsError, StorageError
from compressor.estimate import Estimate
from compressor.intervals import mean_over_folds
from compressor.report.numbers import ScoreScale
from compressor.storage import json_safe

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FoldRow:
    """One fold: what its reference and the file made of it score on the samples that test.

    `tested` counts these, `rest` those that trained and decided; `split` is a digest of which they are. `drop` is how
    much worse the file scores, sample by sample, 0 where nothing was kept and None where the reference's score is no
    base for it. `kept` says that at least one stage was. `report` is where the fold's own report lies, a path relative
    to the page of the folds.
    """

    name: str
    tested: int
    rest: int
    split: str
    reference: Estimate
    score: Estimate
    drop: Estimate | None
    speedup: Estimate
    size_bytes: int
    reference_bytes: int
    seconds: float
    budget_met: bool
    kept: bool
    report: str

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The row of its JSON object. Raises KeyError, TypeError or ValueError for other values."""
        estimates: dict[str, Any] = {name: Estimate(**value[name]) for name in ("reference", "score", "speedup")}
        drop = None if value["drop"] is None else Estimate(**value["drop"])
        rest = {name: value[name] for name in cls.__dataclass_fields__ if name not in {*estimates, "drop"}}
        return cls(**estimates, drop=drop, **rest)


@dataclass(frozen=True, kw_only=True)
class FoldsRecord:
    """A cross-validation as data. `rows` are the folds, those of the first repeat before those of the second.

    `workload` is as `describe_workload` gives it. `given` says that one reference stood in all folds. `budgeted` says
    that there was a budget. All means over folds have the interval of Nadeau and Bengio 2003.
    """

    workload: dict[str, Any]
    folds: int
    repeats: int
    seed: int
    given: bool
    budgeted: bool
    stages: tuple[str, ...]
    rows: tuple[FoldRow, ...]

    @property
    def scale(self) -> ScoreScale:
        """How scores are to be read."""
        return ScoreScale.of(self.workload)

    @property
    def reference(self) -> Estimate:
        """The mean score of the references."""
        return self._mean_score([row.reference.value for row in self.rows])

    @property
    def score(self) -> Estimate:
        """The mean score of the files."""
        return self._mean_score([row.score.value for row in self.rows])

    @property
    def drop(self) -> Estimate | None:
        """How much worse files score than their own references, the mean of the folds; None without a base for it."""
        drops = [row.drop.value for row in self.rows if row.drop is not None]
        return self._mean(drops) if len(drops) == len(self.rows) and all(map(math.isfinite, drops)) else None

    @property
    def budgets_met(self) -> int:
        """In how many folds the budget is met."""
        return sum(row.budget_met for row in self.rows)

    def difference(self, other: "FoldsRecord") -> Estimate:
        """How much worse the files of this one score than those of `other` in the same folds, with its interval.

        In points of a bounded metric, else as a fraction of the other's score. Raises FoldsError where the two are of
        other folds or another metric, and where a score of `other` is no base.
        """
        if [row.split for row in self.rows] != [row.split for row in other.rows] or self.scale != other.scale:
            raise FoldsError(
                "two cross-validations are compared fold by fold, and these have other samples in their folds, or "
                "another metric; run both with the same data, folds, repeats and seed"
            )
        pairs = zip(self.rows, other.rows, strict=True)
        drops = [self.scale.plain_drop(theirs.score.value, own.score.value) for own, theirs in pairs]
        values = [drop.value for drop in drops if drop is not None]
        if len(values) < len(drops):
            raise FoldsError("the other's score is 0 in a fold, and no fraction of that can be told")
        return self._mean(values)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; means have their interval and the standard deviation over the folds."""
        found: dict[str, Any] = json_safe(
            {
                "schema_version": SCHEMA_VERSION,
                "workload": self.workload,
                "folds": self.folds,
                "repeats": self.repeats,
                "seed": self.seed,
                "reference": "given" if self.given else "anew",
                "budgeted": self.budgeted,
                "stages": list(self.stages),
                "means": {
                    "reference": self._told(self.reference, [row.reference.value for row in self.rows]),
                    "score": self._told(self.score, [row.score.value for row in self.rows]),
                    "drop": self._told(self.drop, [row.drop.value for row in self.rows if row.drop is not None]),
                    "speedup": self._told(
                        self._mean([row.speedup.value for row in self.rows]), [row.speedup.value for row in self.rows]
                    ),
                },
                "rows": [asdict(row) for row in self.rows],
            }
        )
        return found

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The record of `to_json`. Raises StorageError for another layout."""
        schema = value.get("schema_version") if isinstance(value, Mapping) else None
        if schema != SCHEMA_VERSION:
            raise StorageError(
                f"this version reads cross-validations of schema_version {SCHEMA_VERSION}, got {schema!r}; run it again"
            )
        try:
            return cls(
                workload=dict(value["workload"]),
                folds=int(value["folds"]),
                repeats=int(value["repeats"]),
                seed=int(value["seed"]),
                given=value["reference"] == "given",
                budgeted=bool(value["budgeted"]),
                stages=tuple(value["stages"]),
                rows=tuple(map(FoldRow.from_json, value["rows"])),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"this is no cross-validation that this version wrote: {error}; run it again") from error

    def _mean(self, values: Sequence[float]) -> Estimate:
        count = len(self.rows)
        tested, rest = (sum(getattr(row, name) for row in self.rows) / count for name in ("tested", "rest"))
        return mean_over_folds(values, tested=tested, rest=rest)

    def _mean_score(self, values: Sequence[float]) -> Estimate:
        """The mean of scores; its interval, as of Student's t, ends where scores do: no accuracy is above 1."""
        mean = self._mean(values)
        if not self.scale.bounded:
            return mean
        return Estimate(mean.value, max(mean.low, 0.0), min(mean.high, 1.0))

    def _told(self, mean: Estimate | None, values: Sequence[float]) -> dict[str, float] | None:
        return None if mean is None else {**vars(mean), "deviation": deviation(values)}


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of at least two values, as of a sample."""
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
