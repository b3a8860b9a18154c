"""A search for the recipe to ship: trials at rising rungs, the finalists on test data, and files that say it all."""

import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from compressor.checks import check_count, check_positive
from compressor.errors import CompressorError, RunFolderError, StageError, WorkloadError, WrongUseError
from compressor.identity.workload import identify
from compressor.machine import environment
from compressor.measuring.session_times import Times
from compressor.progress.bars import progress_bar, say
from compressor.progress.events import Listener
from compressor.recipe.recipe import Recipe
from compressor.report.numbers import duration
from compressor.report.report import Report
from compressor.report.view import busy_sentence
from compressor.running.changes import changes
from compressor.running.failures import ends_the_run
from compressor.running.folder import MODEL_FILE, refuse_files_of_others, versions
from compressor.running.lock import FolderLock
from compressor.running.pipeline import Pipeline, PipelineWarning
from compressor.running.preflight import check_workload
from compressor.running.reference_base import without_base
from compressor.running.session import Session
from compressor.searching.clock import Clock, Forecast
from compressor.searching.finals import finalists_of, finals_of, newest
from compressor.searching.front import Point
from compressor.searching.halving import going_on, rungs_of
from compressor.searching.limits import Limits
from compressor.searching.pages import DATA, PAGES, write_pages
from compressor.searching.prediction import TooSlow, too_slow
from compressor.searching.result import SearchResult
from compressor.searching.sampler import Random, Sampler
from compressor.searching.space import Candidate, candidates_of, prefixes, recipes_of, usual_recipes
from compressor.searching.trials import Trial, TrialFiles, folder_name, measured
from compressor.searching.words import told_of, why_of
from compressor.stage import stage_name
from compressor.storage import json_safe, read_sealed, write_atomic, write_sealed
from compressor.store.kept import Store
from compressor.target import Target
from compressor.workload import Workload

_ASKED, _TIMES, _SHARED, _TRIALS = "asked.json", "times.json", "shared", "trials"
BEST = "best.yaml"
# Timing and scoring a finalist, and the pages.
_FINAL_SECONDS = 4.0


def search(
    workload: Workload,
    space: Recipe | str | Path | Sequence[Recipe | str | Path] | None = None,
    *,
    out: Path | str,
    max_drop: float | None = 0.01,
    max_latency_ms: float | None = None,
    max_size_bytes: int | None = None,
    minutes: float | None = None,
    trials: int | None = None,
    finalists: int = 5,
    eta: int = 3,
    rungs: int = 3,
    sampler: Sampler | None = None,
    target: Target | None = None,
    progress: bool = True,
    on_event: Listener | None = None,
    store: Store | None = None,
) -> SearchResult:
    """Finds the recipe to ship among those of `space`, and writes it as best.yaml, with its model.onnx, into `out`.

    `space` is a recipe with sweeps, or several recipes, as objects, files or shipped names; without one it is what
    `compressor doctor` recommends for the model, in several amounts and forms. Their own budgets are left out: what
    counts is `max_drop`, how much worse the score may be on validation data (in points for metrics in [0, 1], else as a
    fraction of the reference's), `max_latency_ms` and `max_size_bytes`; None does not look.

    Successive halving: every candidate is trained for a part of its length, at most `trials` of them in the order of
    `sampler`; a part 1/`eta` (>= 2) of them, those that no other beats in drop, time and size, goes on to a training
    `eta` times as long, until the last of at most `rungs` is that of the recipe. With `minutes` no trial begins that
    cannot end. The best, at most `finalists`, are timed again together and scored on test data, which nothing else
    reads. A search that was killed goes on where it was when called again with the same `out`, as does one that is
    given more minutes; limits may change from call to call, and cost no trial again.

    Raises RecipeError for a space that cannot be read or cannot work, WorkloadError for a workload without scores,
    WrongUseError where the minutes do not suffice for one trial, RunFolderError where `out` holds the search of another
    workload, StageError where no trial gave a file.
    """
    limits = Limits(max_drop=max_drop, max_latency_ms=max_latency_ms, max_size_bytes=max_size_bytes)
    check_count(finalists, "finalists counts the files that are scored on test data")
    check_count(eta, "eta is how many times longer each rung trains, and which part of the trials goes on", least=2)
    check_count(rungs, "rungs counts the lengths of training")
    if trials is not None:
        check_count(trials, "trials counts the recipes of the first rung", way_out="leave it out for all of the space")
    if minutes is not None:
        check_positive(minutes, "minutes is the time that the search may take", way_out="leave it out for no limit")
    _refuse_unscored(workload, limits)
    folder = Path(out)
    target = target or Target()
    refuse_files_of_others(folder, DATA, (*PAGES, BEST, MODEL_FILE), keys={"schema_version", "trials", "why"})
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be a folder: {error.strerror}; give another one") from error
    with FolderLock(folder):
        workload = check_workload(workload)
        _refuse_others(folder, workload, target)
        recipes = recipes_of(space) if space is not None else usual_recipes(folder, workload, target, progress=progress)
        found = _Search(
            workload=workload,
            # What trials are judged by, and all that they see: the test data is for the finalists.
            withheld=replace(workload, test=workload.validation),
            candidates={each.recipe.name: each for each in candidates_of(recipes)},
            limits=limits,
            folder=folder,
            files=TrialFiles(folder / _TRIALS),
            session=Session(store=store or Store(folder / _SHARED), times=Times(folder / _TIMES)),
            asked={"target": target, "progress": progress, "on_event": on_event},
            clock=Clock(total=math.inf if minutes is None else 60 * minutes),
            forecast=Forecast(workload=workload),
            sampler=sampler or Random(),
            eta=eta,
        )
        found.go(most_rungs=rungs, trials=trials, finalists=finalists)
        result = _finished(found, minutes=minutes, finalists=finalists, target=target)
        write_pages(result, folder)
    return result


@dataclass(kw_only=True)
class _Search:
    """A search on its way: what it was given, and the trials that it has made."""

    workload: Workload
    withheld: Workload
    candidates: dict[str, Candidate]
    limits: Limits
    folder: Path
    files: TrialFiles
    session: Session
    asked: dict[str, Any]
    clock: Clock
    forecast: Forecast
    sampler: Sampler
    eta: int
    made: list[Trial] = field(default_factory=list)
    slow: TooSlow = field(default_factory=TooSlow)
    not_begun: list[str] = field(default_factory=list)
    _reports: dict[str, Report] = field(default_factory=dict)
    _worked: set[str] = field(default_factory=set)
    _broken: dict[str, str] = field(default_factory=dict)

    def go(self, *, most_rungs: int, trials: int | None, finalists: int) -> None:
        """Makes the trials of every rung, those on disk taken as they are."""
        for trial in self.files:
            self.clock.spent += trial.seconds
            self._learn(trial)
        self.clock.spent += finalists * _FINAL_SECONDS
        going = list(self.candidates.values())
        slow = too_slow(going, self.withheld, self.limits, self.session, self.asked, folder=self.folder / "structures")
        self.slow = slow
        going = [each for each in going if each.recipe.name not in slow.names]
        if not going:
            raise WrongUseError(
                f"no recipe of the space can be as fast as {self.limits.max_latency_ms:g} ms: by the latency table "
                "every one takes at least a fifth longer, however it is trained; raise the limit, or give a space that "
                "takes more away"
            )
        fractions = rungs_of(going, eta=self.eta, most=most_rungs)
        self._refuse_short(going, fractions[0])
        # Every rung has its share of the time; what is left of it in the end goes to what had none.
        for shared in (True, False):
            self.not_begun.clear()
            able = going
            for number in range(len(fractions)):
                ended = self._rung(able, number, fractions, trials=trials, shared=shared)
                able = going_on(ended, self.candidates, self.limits, eta=self.eta)
            if not self.not_begun:
                break
        # What earlier calls made under other limits, or in fewer minutes, counts as well.
        texts = {each.at(fraction).dump() for each in self.candidates.values() for fraction in fractions}
        known = {trial.recipe for trial in self.made}
        self.made += [trial for trial in self.files if trial.recipe in texts - known]
        if not any(trial.ended for trial in self.made):
            told = "; ".join(dict.fromkeys(f"{trial.recipe_name}: {trial.error}" for trial in self.made[:3]))
            why = f"all {len(self.made)} trials failed. {told}" if self.made else "the time did not suffice for a trial"
            raise StageError(f"nothing came of the search: {why}; see to that, or give another space")

    def report(self, trial: Trial) -> Report:
        """The report of the run of a trial, from disk where it was made in an earlier session."""
        if trial.name not in self._reports:
            # Every stage of it is on disk; what is made again is the report alone.
            self._reports[trial.name] = self._run(Recipe.loads(trial.recipe), self.files.path(trial.name))
        return self._reports[trial.name]

    def _rung(
        self, going: Sequence[Candidate], number: int, fractions: Sequence[float], *, trials: int | None, shared: bool
    ) -> list[Trial]:
        """The trials of one rung that gave a file; the first is in the order of the sampler."""
        first = number == 0
        waiting = list(going)
        told: list[tuple[Candidate, Point]] = []
        found: list[Trial] = []
        count = min(len(waiting), trials or len(waiting)) if first else len(waiting)
        label = f"rung {number + 1} of {len(fractions)}"
        say(f"{label}: {count} trials, trained for {fractions[number]:.0%} of their length", shown=self._shown)
        with progress_bar(desc=label, unit="trial", total=count, shown=self._shown) as bar:
            for _ in range(count):
                candidate = self.sampler.next(waiting, told, list(self.candidates.values())) if first else waiting[0]
                waiting.remove(candidate)
                trial = self._trial(candidate, number, fractions, (number + 1) / len(fractions) if shared else 1.0)
                bar.update()
                if trial is not None and trial.ended:
                    found.append(trial)
                    told.append((candidate, self.limits.point(trial)))
        return found

    @property
    def _shown(self) -> bool:
        return bool(self.asked["progress"])

    def _trial(self, candidate: Candidate, rung: int, fractions: Sequence[float], share: float) -> Trial | None:
        """The trial of a candidate at a rung: as on disk, or made now; None where there is no time for it."""
        recipe = candidate.at(fractions[rung])
        text = recipe.dump()
        known = self.files.get(text)
        if known is None:
            plain = self.forecast.plain(recipe, self._worked)
            needed = self.forecast.careful(plain)
            # A rung has its share of the time; what is left of it goes to the next one.
            if needed > self.clock.left(part=share if self.made else 1.0):
                self.not_begun.append(recipe.name)
                return None
            known = self._broken_trial(candidate, recipe, text, rung) or self._made(
                candidate, recipe, text, rung, plain=plain
            )
        if known not in self.made:
            self.made.append(known)
        return known

    def _made(self, candidate: Candidate, recipe: Recipe, text: str, rung: int, *, plain: float) -> Trial:
        name = folder_name(recipe.name, text)
        left = self.clock.left()
        more = "" if left == math.inf else f", {duration(left)} left"
        say(f"trial {len(self.made) + 1}: {recipe.name}{more}", shown=self._shown)
        before, started = len(self.session.worked), perf_counter()
        told: dict[str, Any]
        try:
            report = self._run(recipe, self.files.path(name))
        except CompressorError as error:
            if ends_the_run(error):
                raise
            told = {"error": error.sentence, "failed_stage": error.stage_number}
        else:
            self._reports[name] = report
            told = measured(report)
        trial = self._trial_of(
            candidate,
            recipe,
            text,
            rung,
            seconds=perf_counter() - started,
            predicted_seconds=plain,
            made_seconds=sum(one.seconds for one in self.session.worked[before:] if one.how == "made"),
            **told,
        )
        self.files.add(trial)
        self._learn(trial)
        if not trial.ended:
            say(f"  failed: {trial.error}", shown=self._shown)
        return trial

    def _run(self, recipe: Recipe, folder: Path) -> Report:
        """One recipe run on what is not withheld: the one place where trials are worked."""
        with warnings.catch_warnings():
            # What is doubtful in an order of stages was said of the space.
            warnings.simplefilter("ignore", PipelineWarning)
            pipeline = Pipeline.from_recipe(recipe)
        ended = pipeline.run(self.withheld, out=folder, seed=recipe.seed, session=self.session, **self.asked)
        return ended.report

    def _broken_trial(self, candidate: Candidate, recipe: Recipe, text: str, rung: int) -> Trial | None:
        """The failure of a trial that begins with stages which failed in another one: they would do so again."""
        error = next((self._broken[key] for key in prefixes(recipe) if key in self._broken), None)
        if error is None:
            return None
        trial = self._trial_of(candidate, recipe, text, rung, seconds=0.0, error=error)
        self.files.add(trial)
        return trial

    @staticmethod
    def _trial_of(candidate: Candidate, recipe: Recipe, text: str, rung: int, **told: Any) -> Trial:
        return Trial(
            name=folder_name(recipe.name, text),
            candidate=candidate.recipe.name,
            rung=rung,
            recipe=text,
            recipe_name=recipe.name,
            stages=tuple(map(stage_name, recipe.stages)),
            keys=tuple(prefixes(recipe)),
            **told,
        )

    def _learn(self, trial: Trial) -> None:
        if trial.ended:
            self._worked.update(trial.keys)
            self.forecast.told(trial)
        elif trial.failed_stage:
            self._broken[trial.keys[trial.failed_stage - 1]] = (
                f"its beginning is that of {trial.recipe_name}: {trial.error}"
            )

    def _refuse_short(self, going: Sequence[Candidate], fraction: float) -> None:
        """Raises WrongUseError where not even the shortest trial can end in time, and none has been made."""
        if self.clock.total == math.inf or any(True for _ in self.files):
            return
        needed = {each.recipe.name: self.forecast.plain(each.at(fraction), set()) for each in going}
        name = min(needed, key=needed.__getitem__)
        whole = self.clock.total - self.clock.left() + self.forecast.careful(needed[name])
        if whole > self.clock.total:
            raise WrongUseError(
                f"{self.clock.total / 60:g} minutes do not suffice for one trial: the shortest, {name}, and the "
                f"finalists' timing take about {duration(whole)} on this machine; give more minutes"
            )


def _finished(found: _Search, *, minutes: float | None, finalists: int, target: Target) -> SearchResult:
    """The finalists timed and scored on test data, the best of them written, and what there is to say."""
    chosen = {trial.recipe_name: trial for trial in finalists_of(found.made, found.limits, most=finalists)}
    finals = finals_of(
        chosen,
        {name: found.report(trial) for name, trial in chosen.items()},
        {name: found.files.path(trial.name) for name, trial in chosen.items()},
        found.workload,
        limits=found.limits,
        target=target,
        times=found.session.times,
    )
    tried = len({trial.candidate for trial in found.made})
    why, best = why_of(finals.rows, newest(found.made), found.limits, space=len(found.candidates), tried=tried)
    recipes = {name: Recipe.loads(trial.recipe) for name, trial in chosen.items()}
    recipe = None
    for path in (found.folder / BEST, found.folder / MODEL_FILE):
        path.unlink(missing_ok=True)
    if best is not None:
        trial = chosen[best]
        recipe = replace(recipes[best], description=why)
        write_atomic(found.folder / BEST, recipe.dump())
        shutil.copyfile(found.files.path(trial.name) / MODEL_FILE, found.folder / MODEL_FILE)
    return SearchResult(
        workload=found.workload.name,
        why=why,
        recipe=recipe,
        model=None if recipe is None else found.folder / MODEL_FILE,
        rows=finals.rows,
        finalists=recipes,
        trials=tuple(found.made),
        space=len(found.candidates),
        told=tuple(told_of(found.made, minutes=minutes, set_aside=sorted(found.slow.names), not_begun=found.not_begun)),
        structure_seconds=found.slow.seconds,
        busy=busy_sentence(environment(target)) or "",
        p_values=finals.p_values,
    )


def _refuse_unscored(workload: Workload, limits: Limits) -> None:
    if not workload.metric.scored:
        raise WorkloadError(
            "a search compares scores, and this workload has none: give data to score on, such as model.onnx:data.npz"
        )
    baseless = without_base(workload)
    if baseless and limits.max_drop is not None:
        raise WorkloadError(f"{baseless}. max_drop=None does not look at the drop")


def _refuse_others(folder: Path, workload: Workload, target: Target) -> None:
    """Notes what the search is about. Raises RunFolderError, key by key, where the folder is about something else."""
    path = folder / _ASKED
    told = {name: entry for name, entry in identify(workload, ()).told.items() if name != "stage_inputs"}
    load = {"batch_size": target.batch_size, "threads": target.threads, "isa": target.isa.value}
    asked = json_safe({"workload": workload.name, "target": load, "versions": versions(), **told})
    way_out = "give another folder, or delete this one"
    if path.exists():
        lines = list(changes(read_sealed(path, way_out=way_out), asked))
        if lines:
            shown = "\n".join(f"  {line}" for line in lines)
            raise RunFolderError(f"{folder} holds a search of something else:\n{shown}\n{way_out}")
    write_sealed(path, asked)
