"""What a search knows of the trials that were made: their files, what they take, and which beginnings fail."""

import math
from dataclasses import dataclass, field

from compressor.recipe.recipe import Recipe
from compressor.searching.clock import Forecast
from compressor.searching.space import prefixes
from compressor.searching.trials import Trial, TrialFiles


@dataclass(kw_only=True)
class Memory:
    """The trials in `files`, and what follows from them for those that are to come.

    What failed in an earlier call is tried again, once a call: it may have been the machine.
    """

    files: TrialFiles
    forecast: Forecast
    _worked: set[str] = field(default_factory=set)
    _broken: dict[str, str] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for trial in self.files:
            if trial.ended:
                self._learn(trial)

    def known(self, recipe: str) -> Trial | None:
        """The trial of the recipe with this text, None where it is to be made: never, or only failed before."""
        trial = self.files.get(recipe)
        return trial if trial is not None and (trial.ended or recipe in self._failed) else None

    @property
    def spent_seconds(self) -> float:
        """The seconds in which trials on disk were being made; those made side by side count once."""
        spent, until = 0.0, -math.inf
        for begun, ended in sorted((trial.ended_at - trial.seconds, trial.ended_at) for trial in self.files):
            spent += max(0.0, ended - max(begun, until))
            until = max(until, ended)
        return spent

    def keep(self, trial: Trial) -> None:
        """Puts a trial on disk, and learns from it."""
        self.files.add(trial)
        self._learn(trial)

    def plain_seconds(self, recipe: Recipe) -> float:
        """The plain forecast of a trial: what it shares with those that were made trains nothing."""
        return self.forecast.plain(recipe, self._worked)

    def failure_of(self, recipe: Recipe) -> str:
        """Why a recipe would fail: it begins with stages that failed in another one; "" where none is known."""
        return next((self._broken[key] for key in prefixes(recipe) if key in self._broken), "")

    def _learn(self, trial: Trial) -> None:
        if trial.ended:
            self._worked.update(trial.keys)
            self.forecast.told(trial)
            return
        self._failed.add(trial.recipe)
        if trial.failed_stage:
            self._broken[trial.keys[trial.failed_stage - 1]] = (
                f"its beginning is that of {trial.recipe_name}: {trial.error}"
            )
