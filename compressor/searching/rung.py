"""One rung of a search: which trials it is made of, in which order they begin, and what came of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import time
from typing import Any

from compressor.comparing.arms import Arm
from compressor.comparing.spreading import apart
from compressor.comparing.working import Came
from compressor.progress.bars import progress_bar, say
from compressor.recipe.recipe import Recipe
from compressor.report.numbers import duration
from compressor.report.report import Report
from compressor.searching.clock import Clock
from compressor.searching.front import Point
from compressor.searching.limits import Limits
from compressor.searching.memory import Memory
from compressor.searching.sampler import Sampler
from compressor.searching.space import Candidate, prefixes
from compressor.searching.trials import Trial, folder_name, measured
from compressor.searching.working import Failed, Working, arm_of
from compressor.stage import stage_name

TRIALS = "trials"


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A trial that is to be made, or is under way: its recipe as text, and its plain forecast in seconds."""

    candidate: Candidate
    recipe: Recipe
    text: str
    arm: Arm
    seconds: float = 0.0


@dataclass(kw_only=True)
class Rung:
    """The trials of `number`, 0 for the first, each trained for `fraction` of its length; at most `count` of `waiting`.

    `sampler` asks for them in its order; those on disk are taken as they are. `share` is the part of the clock's time
    that must suffice. What has an end is in `trials`, by candidate in the order in which they were asked for; what
    there was no time for is in `not_begun`.
    """

    number: int
    fraction: float
    label: str
    waiting: list[Candidate]
    count: int
    space: Sequence[Candidate]
    sampler: Sampler
    share: float
    limits: Limits
    memory: Memory
    clock: Clock
    made_before: int
    shown: bool
    trials: dict[str, Trial] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    not_begun: list[str] = field(default_factory=list)
    _asked: list[str] = field(default_factory=list)
    _told: list[tuple[Candidate, Point]] = field(default_factory=list)
    _ready: list[_Run] = field(default_factory=list)
    _under_way: dict[str, _Run] = field(default_factory=dict)
    _bar: Any = None

    def go(self, working: Working) -> None:
        """Makes the trials."""
        with progress_bar(desc=self.label, unit="trial", total=self.count, shown=self.shown) as self._bar:
            for arm, end, seconds in working.ends(self._next):
                self._end(self._under_way.pop(arm.folder), end, seconds)
        self.trials = {name: self.trials[name] for name in self._asked if name in self.trials}

    def _next(self, running: Sequence[Arm]) -> Arm | None:
        """The next run to begin, one that begins unlike those under way; None where none is left that has time."""
        while True:
            # Who listens to what came of the trials is asked for one at a time, everyone else for all at once.
            while len(self._asked) < self.count and not (self.sampler.listens and self._ready):
                self._ask()
            if not self._ready:
                return None
            arm = apart([run.arm for run in self._ready], running)
            run = next(run for run in self._ready if run.arm is arm)
            self._ready.remove(run)
            if error := self.memory.failure_of(run.recipe):
                self._keep(run, seconds=0.0, error=error)
                continue
            plain = self.memory.plain_seconds(run.recipe)
            share = self.share if self.made_before or self.trials or running else 1.0
            # A rung has its share of the time; what is left of it goes to the next one.
            if self.memory.forecast.careful(plain) > self.clock.left(part=share):
                self.not_begun.append(run.recipe.name)
                self._bar.update()
                continue
            begun = self.made_before + len(self.trials) + len(running) + 1
            left = self.clock.left()
            say(
                f"trial {begun}: {run.recipe.name}" + (f", {duration(left)} left" if self.clock.ends else ""),
                shown=self.shown,
            )
            self._under_way[arm.folder] = replace(run, seconds=plain)
            return arm

    def _ask(self) -> None:
        candidate = self.sampler.next(self.waiting, self._told, self.space)
        self.waiting.remove(candidate)
        self._asked.append(candidate.recipe.name)
        recipe = candidate.at(self.fraction)
        text = recipe.dump()
        known = self.memory.known(text)
        if known is None:
            arm = arm_of(recipe, f"{TRIALS}/{folder_name(recipe.name, text)}")
            self._ready.append(_Run(candidate=candidate, recipe=recipe, text=text, arm=arm))
        else:
            # Another number of rungs may have come to it at another one.
            self._take(candidate, replace(known, rung=self.number))

    def _end(self, run: _Run, end: Came | Failed, seconds: float) -> None:
        if isinstance(end, Failed):
            self._keep(run, seconds=seconds, error=end.says, failed_stage=end.stage)
            say(f"  {run.recipe.name} failed: {end.says}", shown=self.shown)
            return
        made = sum(one.seconds for one in end.worked if one.how == "made")
        trial = self._keep(run, seconds=seconds, made_seconds=made, **measured(end.report))
        self.reports[trial.name] = end.report

    def _keep(self, run: _Run, **told: Any) -> Trial:
        trial = Trial(
            name=folder_name(run.recipe.name, run.text),
            candidate=run.candidate.recipe.name,
            rung=self.number,
            recipe=run.text,
            recipe_name=run.recipe.name,
            predicted_seconds=run.seconds,
            stages=tuple(map(stage_name, run.recipe.stages)),
            keys=tuple(prefixes(run.recipe)),
            ended_at=time(),
            **told,
        )
        self.memory.keep(trial)
        self._take(run.candidate, trial)
        return trial

    def _take(self, candidate: Candidate, trial: Trial) -> None:
        self.trials[candidate.recipe.name] = trial
        self._bar.update()
        if trial.ended:
            self._told.append((candidate, self.limits.point(trial)))
