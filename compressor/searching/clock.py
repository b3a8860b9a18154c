"""The minutes of a search: what is left of them, and what a trial will take, so that none begins that cannot end."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from time import monotonic

from compressor.recipe.recipe import Recipe
from compressor.running.time_estimate import step_seconds, updates_of
from compressor.searching.space import prefixes
from compressor.searching.trials import Trial
from compressor.stage import Stage
from compressor.training.streams import said_length
from compressor.workload import Workload

# Of one stage besides training: exported, scored and timed. Large networks take longer, which trials then show.
_FILE_SECONDS = 4.0
# What machines and trainings scatter by: a trial may take so much longer than those before it did.
_CARE = 1.2


@dataclass(kw_only=True)
class Clock:
    """The seconds of a search: `total` of them (infinity: no limit), of which `spent` went in earlier sessions."""

    total: float = math.inf
    spent: float = 0.0
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = monotonic()

    @property
    def ends(self) -> bool:
        """Whether there is a limit."""
        return self.total < math.inf

    def left(self, *, part: float = 1.0) -> float:
        """The seconds that are left of this part of the total, below 0 where it is over."""
        return part * self.total - self.spent - (monotonic() - self._began)


@dataclass(kw_only=True)
class Forecast:
    """What a trial will take on this machine: its trainings by one step that is timed, and an allowance for each file.

    It is corrected by the trial that took longest for its forecast, of those that were told.
    """

    workload: Workload
    _step: float | None = None
    _ratios: list[float] = field(default_factory=list)

    def plain(self, recipe: Recipe, made: Collection[str]) -> float:
        """The seconds of a trial of `recipe`, uncorrected; stages whose `prefixes` are among `made` train nothing."""
        keys = prefixes(recipe)
        return sum(
            _FILE_SECONDS / 4 if key in made else self._of(stage)
            for key, stage in zip(keys, recipe.stages, strict=True)
        )

    def careful(self, seconds: float) -> float:
        """`seconds`, a plain forecast, as the trials that were told say, and a fifth more."""
        return _CARE * max(self._ratios, default=1.0) * seconds

    def told(self, trial: Trial) -> None:
        """Learns from a trial that made something itself."""
        if trial.predicted_seconds > 0 and trial.made_seconds > 0 and trial.ended:
            self._ratios.append(trial.seconds / trial.predicted_seconds)

    def _of(self, stage: Stage) -> float:
        if not getattr(stage, "trains", False):
            return _FILE_SECONDS
        if self._step is None:
            self._step = step_seconds(self.workload)
        updates = updates_of(stage, said_length(self.workload.train))
        # A length that is not known counts as a thousand updates, until a trial shows better.
        return _FILE_SECONDS + self._step * (1000 if updates is None else updates)
