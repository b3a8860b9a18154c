"""A search for the recipe to ship: trials at rising rungs, the finalists on test data, and files that say it all."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from compressor.checks import as_folder, check_count, check_positive
from compressor.comparing.arms import free_name
from compressor.comparing.spreading import pool_of
from compressor.errors import RunFolderError, WorkloadError, WrongUseError
from compressor.identity.workload import identify
from compressor.machine import environment
from compressor.measuring.session_times import Times
from compressor.progress.events import Listener
from compressor.recipe.recipe import Recipe
from compressor.report.view import busy_sentence
from compressor.running.changes import changes
from compressor.running.executors.choosing import executor_of
from compressor.running.executors.protocol import Executor
from compressor.running.folder import MODEL_FILE, versions
from compressor.running.lock import refuse_files_of_others, writing_in
from compressor.running.pipeline import check_asked
from compressor.running.preflight import check_workload
from compressor.running.reference_base import without_base
from compressor.running.session import Session
from compressor.running.together.helping import refuse_teams
from compressor.searching.clock import Clock, Forecast
from compressor.searching.finals import finalists_of, finals_of, newest
from compressor.searching.ladder import Ladder
from compressor.searching.limits import Limits
from compressor.searching.memory import Memory
from compressor.searching.pages import DATA, PAGES, write_pages
from compressor.searching.result import SearchResult
from compressor.searching.rung import TRIALS
from compressor.searching.sampler import Random, Sampler
from compressor.searching.space import candidates_of, recipes_of, usual_recipes
from compressor.searching.trials import Trial, TrialFiles, in_one_time
from compressor.searching.words import told_of, why_of
from compressor.searching.working import TIMES, Withheld, Working, withheld
from compressor.storage import json_safe, read_sealed, write_atomic, write_sealed
from compressor.store.kept import Store, check_store
from compressor.target import Target
from compressor.workload import Workload

_ASKED, _SHARED = "asked.json", "shared"
BEST = "best.yaml"


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
    executor: Executor | str | None = None,
    workers: int | None = None,
    workload_from: Callable[[], Workload] | None = None,
) -> SearchResult:
    """Finds the recipe to ship among those of `space`, and writes it as best.yaml, with its model.onnx, into `out`.

    `space` is a recipe with sweeps, or several recipes, as objects, files or shipped names; without one it is what
    `compressor doctor` recommends for the model, in several amounts and forms. Their own budgets are left out: what
    counts is `max_drop`, how much worse the score may be on validation data (in points for metrics in [0, 1], else as a
    fraction of the reference's), `max_latency_ms` and `max_size_bytes`; None does not look.

    Successive halving: every structure with its training is trained for a part of its length, at most `trials` of them
    in the order of `sampler`; a part 1/`eta` (>= 2) of them, those that no other beats in drop, time and size, goes on
    to a training `eta` times as long, until the last of at most `rungs` is that of the recipe. Where nothing keeps the
    limits then, up to `eta` more are trained whole, those of the least drop first. Recipes that differ in their
    encoding alone are judged by the first of them, and the others are made in the end, where no other structure beats
    theirs; where time or bytes are limited all are tried, for the first rung tells which can fit. With `minutes` no
    trial begins that cannot end. The best, at most `finalists`, are timed again together and scored on test data, which
    nothing else reads. A search that was killed goes on where it was when called again with the same `out`, as does one
    that is given more minutes; limits may change from call to call, and cost no trial again.

    `executor` says where trials are worked, and `workers` how many at once, as in `compare`; workers are sent the
    workload, or make it themselves by `workload_from` (docs/scale.md).

    Raises RecipeError for a space that cannot be read or cannot work, WorkloadError for a workload without scores,
    WrongUseError where the minutes do not suffice for one trial, RunFolderError where `out` holds the search of another
    workload, or another program writes there, ExecutorError for workers that cannot be had, StageError where no trial
    gave a file.
    """
    target = target or Target()
    check_asked("search", workload, target)
    check_store(store)
    if sampler is not None and not hasattr(sampler, "listens"):
        raise WrongUseError(f"sampler is a Sampler, got {sampler!r}; write Random(seed=0) or Grid(), or leave it out")
    limits = Limits(max_drop=max_drop, max_latency_ms=max_latency_ms, max_size_bytes=max_size_bytes)
    check_count(finalists, "finalists counts the files that are scored on test data")
    check_count(eta, "eta is how many times longer each rung trains, and which part of the trials goes on", least=2)
    check_count(rungs, "rungs counts the lengths of training")
    if trials is not None:
        check_count(trials, "trials counts the recipes of the first rung", way_out="leave it out for all of the space")
    if minutes is not None:
        check_positive(minutes, "minutes is the time that the search may take", way_out="leave it out for no limit")
    _refuse_unscored(workload, limits)
    refuse_teams("a search", "spread its trials by workers= or executor= (--workers, --executor)")
    folder = as_folder(out, "out is the folder of the search")
    refuse_files_of_others(folder, DATA, (*PAGES, BEST, MODEL_FILE), keys={"schema_version", "trials", "why"})
    if executor is None or isinstance(executor, str):
        executor = executor_of(executor, workers=workers, progress=progress)
    with writing_in(folder):
        workload = check_workload(workload)
        _refuse_others(folder, workload, target)
        recipes = recipes_of(space) if space is not None else usual_recipes(folder, workload, target, progress=progress)
        candidates = {each.recipe.name: each for each in candidates_of(recipes)}
        seen = withheld(workload)
        with pool_of(
            executor, seen if workload_from is None else Withheld(source=workload_from), progress=progress
        ) as pool:
            found = Ladder(
                workload=workload,
                candidates=candidates,
                limits=limits,
                working=Working(
                    workload=seen,
                    folder=folder,
                    session=Session(store=store or Store(folder / _SHARED), times=Times(folder / TIMES)),
                    asked={"target": target},
                    progress=progress,
                    on_event=on_event,
                    pool=pool,
                ),
                memory=Memory(files=TrialFiles(folder / TRIALS), forecast=Forecast(workload=workload)),
                clock=Clock(total=math.inf if minutes is None else 60 * minutes),
                sampler=sampler or Random(),
                eta=eta,
            )
            found.go(most_rungs=rungs, trials=trials, finalists=finalists)
        result = _finished(found, minutes=minutes, finalists=finalists, target=target)
        write_pages(result, folder)
    return result


def _finished(found: Ladder, *, minutes: float | None, finalists: int, target: Target) -> SearchResult:
    """The finalists timed and scored on test data, the best of them written, and what there is to say."""
    chosen: dict[str, Trial] = {}
    for trial in finalists_of(found.made, found.limits, most=finalists):
        # A rung of one recipe may be called as another recipe is.
        chosen[free_name(trial.recipe_name, chosen)] = trial
    reports = {name: found.report(trial) for name, trial in chosen.items()}
    finals = finals_of(
        chosen,
        reports,
        {name: found.path(trial) for name, trial in chosen.items()},
        found.workload,
        limits=found.limits,
        target=target,
        times=found.working.session.times,
    )
    # All that is told is of the session in which the finalists were timed.
    made = in_one_time(found.made, finals.rows[0].latency_ms)
    tried = len({trial.candidate for trial in found.made})
    why, best = why_of(finals.rows, newest(made), found.limits, space=len(found.candidates), tried=tried)
    recipes = {name: replace(Recipe.loads(trial.recipe), name=name) for name, trial in chosen.items()}
    recipe = None
    folder = found.working.folder
    for path in (folder / BEST, folder / MODEL_FILE):
        path.unlink(missing_ok=True)
    if best is not None:
        recipe = replace(recipes[best], description=why)
        write_atomic(folder / MODEL_FILE, (found.path(chosen[best]) / MODEL_FILE).read_bytes())
        write_atomic(folder / BEST, recipe.dump())
    return SearchResult(
        workload=found.workload.name,
        why=why,
        recipe=recipe,
        model=None if recipe is None else folder / MODEL_FILE,
        rows=finals.rows,
        finalists=recipes,
        trials=tuple(made),
        space=len(found.candidates),
        told=tuple(told_of(found.made, minutes=minutes, set_aside=sorted(found.slow.names), not_begun=found.not_begun)),
        structure_seconds=found.slow.seconds,
        busy=busy_sentence(environment(target)) or "",
        p_values=finals.p_values,
        # Trials are shown validation data in the place of test data, so their reference is scored on those.
        validation_score=next(
            (one.reference.measurement.score for one in reports.values() if one.reference.measurement), None
        ),
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
