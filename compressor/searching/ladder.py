"""The rungs of a search, climbed one after the other: which trials are made, and what is left to do after the last."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compressor.errors import StageError, WrongUseError
from compressor.progress.bars import say
from compressor.recipe.recipe import Recipe
from compressor.report.numbers import counted, duration
from compressor.report.report import Report
from compressor.searching.clock import Clock
from compressor.searching.halving import beside_failed, going_on, leads_of, left_to_encode, nearest, rungs_of
from compressor.searching.limits import Limits
from compressor.searching.memory import Memory
from compressor.searching.prediction import TooSlow, too_slow
from compressor.searching.rung import TRIALS, Rung
from compressor.searching.sampler import Grid, Sampler
from compressor.searching.space import Candidate
from compressor.searching.trials import Trial, in_one_time
from compressor.searching.words import minutes_in_words
from compressor.searching.working import Working, arm_of
from compressor.workload import Workload

# Timing and scoring a finalist, and the pages.
_FINAL_SECONDS = 4.0


@dataclass(kw_only=True)
class Ladder:
    """A search on its way: what it was given, and the trials that it has made."""

    workload: Workload
    candidates: dict[str, Candidate]
    limits: Limits
    working: Working
    memory: Memory
    clock: Clock
    sampler: Sampler
    eta: int
    made: list[Trial] = field(default_factory=list)
    slow: TooSlow = field(default_factory=TooSlow)
    not_begun: list[str] = field(default_factory=list)
    _reports: dict[str, Report] = field(default_factory=dict)

    def go(self, *, most_rungs: int, trials: int | None, finalists: int) -> None:
        """Makes the trials of every rung, those on disk taken as they are."""
        self.clock.spent += self.memory.spent_seconds + finalists * _FINAL_SECONDS
        self.slow = too_slow(list(self.candidates.values()), self.workload, self.limits, self.working)
        going = [each for name, each in self.candidates.items() if name not in self.slow.names]
        fractions = rungs_of(going or list(self.candidates.values()), eta=self.eta, most=most_rungs)
        if going:
            self._refuse_short(going, fractions[0])
        found: dict[str, Trial] = {}
        # Every rung has its share of the time; what is left of it in the end goes to what had none.
        for shared in (True, False) if going else ():
            self.not_begun.clear()
            self._through_rungs(going, fractions, found, trials=trials, shared=shared)
            if not self.not_begun:
                break
        # What earlier calls made under other limits, or in fewer minutes, counts as well.
        for number, fraction in enumerate(fractions):
            texts = {each.at(fraction).dump() for each in self.candidates.values()} - found.keys()
            known = [trial for trial in self.memory.files if trial.ended and trial.recipe in texts]
            found |= {trial.recipe: replace(trial, rung=number) for trial in known}
        self.made = in_one_time(list(found.values()))
        if any(trial.ended for trial in self.made):
            return
        if not going:
            raise WrongUseError(
                f"no recipe of the space can be as fast as {self.limits.max_latency_ms:g} ms: by the latency table "
                "every one takes at least a fifth longer, however it is trained; raise the limit, or give a space that "
                "takes more away"
            )
        told = "; ".join(dict.fromkeys(f"{trial.recipe_name}: {trial.error}" for trial in self.made[:3]))
        all_failed = f"{counted(len(self.made), 'trial')} failed, and none gave a file. {told}"
        why = all_failed if self.made else "the time did not suffice for a trial"
        raise StageError(f"nothing came of the search: {why}; see to that, or give another space")

    def path(self, trial: Trial) -> Path:
        """The folder of the run of a trial."""
        return self.memory.files.path(trial.name)

    def report(self, trial: Trial) -> Report:
        """The report of the run of a trial, from disk where it was made in an earlier session."""
        if trial.name not in self._reports:
            # Every stage of it is on disk; what is made again is the report alone.
            self._reports[trial.name] = self.working.run(arm_of(Recipe.loads(trial.recipe), f"{TRIALS}/{trial.name}"))
        return self._reports[trial.name]

    def _through_rungs(
        self,
        going: Sequence[Candidate],
        fractions: Sequence[float],
        found: dict[str, Trial],
        *,
        trials: int | None,
        shared: bool,
    ) -> None:
        """Puts the trials of every rung, and of the encodings that are left in the end, into `found`, by recipe."""
        able = {each.recipe.name: each for each in going}
        last = len(fractions) - 1
        # With one rung every recipe is run as it is.
        trying = leads_of(going, self.limits) if last else list(going)
        encodings_wait = len(trying) < len(going)
        made: list[Trial] = []

        def ended() -> list[Trial]:
            return in_one_time([trial for trial in made if trial.ended])

        def climb(number: int, tried: Sequence[Candidate], share: float = 1.0, *, encoding: bool = False) -> None:
            rung = self._rung(
                tried, number, fractions, trials=trials, share=share, made_before=len(found), encoding=encoding
            )
            made.extend(rung)
            found.update({trial.recipe: trial for trial in rung})

        for number in range(len(fractions)):
            share = (number + 1) / (len(fractions) + encodings_wait) if shared else 1.0
            before = len(made)
            climb(number, trying, share)
            if others := beside_failed(made[before:], able, going):
                climb(number, others, share)
            here = in_one_time([trial for trial in made[before:] if trial.ended])
            trying = going_on(here, able, self.limits, eta=self.eta)
        # Those that were trained whole may keep no limit, where those that lose less would.
        for stem in nearest(ended(), able, self.limits, last=last)[: self.eta]:
            if not any(self.limits.excess(trial) == 0 for trial in ended()):
                climb(last, stem)
        if encodings_wait:
            left = left_to_encode(ended(), able, self.limits, last=last)
            for number in sorted(left, reverse=True):
                climb(number, left[number], encoding=True)

    def _rung(
        self,
        going: Sequence[Candidate],
        number: int,
        fractions: Sequence[float],
        *,
        made_before: int,
        trials: int | None = None,
        share: float = 1.0,
        encoding: bool = False,
    ) -> list[Trial]:
        """The trials of one rung, or of encodings that were left there; the first rung is in the sampler's order."""
        first = number == 0 and not encoding
        count = min(len(going), trials or len(going)) if first else len(going)
        label = "encodings" if encoding else f"rung {number + 1} of {len(fractions)}"
        length = f"trained for {fractions[number]:.0%} of their length"
        say(f"{label}: {counted(count, 'trial')}, {length}", shown=self._shown)
        rung = Rung(
            number=number,
            fraction=fractions[number],
            label=label,
            waiting=list(going),
            count=count,
            space=list(self.candidates.values()),
            sampler=self.sampler if first else Grid(),
            share=share,
            limits=self.limits,
            memory=self.memory,
            clock=self.clock,
            made_before=made_before,
            shown=self._shown,
        )
        rung.go(self.working)
        self._reports |= rung.reports
        self.not_begun += rung.not_begun
        return list(rung.trials.values())

    @property
    def _shown(self) -> bool:
        return self.working.progress

    def _refuse_short(self, going: Sequence[Candidate], fraction: float) -> None:
        """Raises WrongUseError where not even the shortest trial can end in time, and none has been made."""
        if not self.clock.ends or any(True for _ in self.memory.files):
            return
        needed = {each.recipe.name: self.memory.plain_seconds(each.at(fraction)) for each in going}
        name = min(needed, key=needed.__getitem__)
        whole = self.clock.total - self.clock.left() + self.memory.forecast.careful(needed[name])
        if whole > self.clock.total:
            raise WrongUseError(
                f"{minutes_in_words(self.clock.total / 60)} do not suffice for one trial: the shortest, {name}, and "
                f"the finalists' timing take about {duration(whole)} on this machine; give more minutes"
            )
