"""Several recipes on one workload, each run and resumed like a single one: one table and one picture of them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape as html_escape
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from compressor.checks import as_folder, check_count
from compressor.comparing.arms import (
    DATA,
    PAGES,
    REFERENCE,
    SHARED,
    TIMES,
    Controls,
    arms_of,
    common_target,
    controls_beside,
    named,
)
from compressor.comparing.rows import rows_of, with_letters
from compressor.comparing.runs import Runs, reference_in
from compressor.comparing.sharing import Cost, cost_of
from compressor.comparing.significance import told_apart
from compressor.comparing.spreading import pool_of
from compressor.comparing.timing import timed_together
from compressor.comparing.words import alike_sentences, control_sentences
from compressor.errors import RecipeError
from compressor.estimate import Estimate
from compressor.machine import environment
from compressor.measuring.scores import FileScores
from compressor.measuring.session_times import Times
from compressor.measuring.timing import Timing
from compressor.progress.events import Listener
from compressor.recipe.recipe import Recipe
from compressor.report.comparison import (
    ComparisonRow,
    comparison_html,
    comparison_markdown,
    comparison_svg,
    comparison_table,
    conclusions,
    print_comparison,
)
from compressor.report.markdown import escape
from compressor.report.notebook import csv_text, flat, frame, table_html
from compressor.report.numbers import counted
from compressor.report.report import Report
from compressor.report.view import busy_sentence
from compressor.running.executors.choosing import executor_of
from compressor.running.executors.protocol import Executor
from compressor.running.folder import MODEL_FILE
from compressor.running.lock import refuse_files_of_others, writing_in
from compressor.running.pipeline import Pipeline, check_asked
from compressor.running.preflight import check_workload
from compressor.running.session import Session
from compressor.running.together.helping import refuse_teams
from compressor.storage import json_safe, write_atomic, write_json
from compressor.store.kept import Store, check_store
from compressor.target import Target
from compressor.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
# Every pair of so many is tested, and every file timed again; of more, those on the front and what they are told from.
_ALL_PAIRS = 40


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` gives. `rows` begin with the reference; `reports` and `failures` (error texts) are by name.

    `busy` is a sentence where the machine was, "" else. `cost` says what was shared, `told` what else there is to say:
    of controls, of what is alike. `p_values` are those of pairs of rows, corrected by Holm for their number. `controls`
    are the rows that recipes are compared with, by recipe and by kind ("training only", "random structure").
    """

    workload: str
    rows: tuple[ComparisonRow, ...]
    reports: dict[str, Report]
    failures: dict[str, str]
    busy: str = ""
    cost: Cost | None = None
    told: tuple[str, ...] = ()
    p_values: dict[tuple[str, str], float] = field(default_factory=dict)
    controls: dict[str, dict[str, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Comparison on {self.workload} of {', '.join(self.reports) or 'nothing'}{failed}>"

    def _repr_html_(self) -> str:
        count = counted(len(self.reports), "recipe")
        caption = f"{self.workload}: {count}; ★ no other is as fast, as small and as good at once"
        failed = "".join(f"<p>{html_escape(f'{name} failed: {error}')}</p>" for name, error in self.failures.items())
        marks = ["★" if row.pareto else "" for row in self.rows]
        return table_html(comparison_table(self.rows), marks, title="recipe", caption=caption) + failed

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame, the reference first.

        Estimates have three columns, such as `speedup`, `speedup_low` and `speedup_high`. Raises WrongUseError where
        pandas is not installed; the extra `frame` brings it along.
        """
        return frame(self._flat_rows())

    def to_csv(self) -> str:
        """The same as CSV: a line a row, estimates in three columns."""
        return csv_text(self._flat_rows())

    @property
    def any_budget_met(self) -> bool:
        """Whether at least one recipe met its budget, under all of its seeds."""
        return any(self._met(row) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON values; intervals are {"value", "low", "high"}."""
        rows = [
            {
                "name": row.name,
                "score": _interval(row.score),
                "drop": _interval(row.drop),
                "latency_ms": _interval(row.latency_ms),
                "speedup": _interval(row.speedup),
                "size_bytes": row.size_bytes,
                "compressed_bytes": row.compressed_bytes,
                "packed_bytes": row.packed_bytes,
                "stages": row.stages,
                "seconds": row.seconds,
                "pareto": row.pareto,
                "alike": row.alike,
                "control": row.control,
                "controls": self.controls.get(row.name, {}),
                "seeds": row.seeds,
                "report": row.report,
                "budget_met": self._met(row),
            }
            for row in self.rows
        ]
        found: dict[str, Any] = json_safe(
            {
                "schema_version": SCHEMA_VERSION,
                "workload": self.workload,
                "conclusions": [*conclusions(self.rows), *self.told],
                "busy": self.busy,
                "rows": rows,
                "failures": self.failures,
                "cost": None if self.cost is None else self.cost.to_json(),
                "p_values": [{"one": one, "other": other, "p": p} for (one, other), p in self.p_values.items()],
            }
        )
        return found

    def _met(self, row: ComparisonRow) -> bool | None:
        """Whether a recipe met its budget, as one without any did; None for the reference and the controls."""
        return row.budget_met is not False if row.name in self.reports else None

    def _flat_rows(self) -> list[dict[str, Any]]:
        left_out = {"scale", "course", "recipe"}
        found = [{name: value for name, value in flat(vars(row)).items() if name not in left_out} for row in self.rows]
        return [{**row, "stages": " ".join(row["stages"])} for row in found]

    def print(self, console: "Console | None" = None) -> None:
        """Prints what to ship and the table to `console`, by default the terminal."""
        print_comparison(self.rows, console, busy=self.busy, told=self.told)


def compare(
    recipes: Iterable[Recipe | str | Path | Pipeline],
    workload: Workload,
    *,
    out: Path | str,
    target: Target | None = None,
    seed: int | None = None,
    seeds: int = 1,
    controls: bool = True,
    progress: bool = True,
    accept_changes: bool = False,
    on_event: Listener | None = None,
    store: Store | None = None,
    executor: Executor | str | None = None,
    workers: int | None = None,
    workload_from: Callable[[], Workload] | None = None,
) -> Comparison:
    """Runs every recipe into `out/<its name>` and writes comparison.json, .html, .csv, .md and .svg into `out`.

    Recipes may be given as objects, files, or names of shipped ones; pipelines take part as well. A file with sweeps
    (`remove: {sweep: [0.3, 0.5]}`) gives every recipe that they make. `seed` and `target` default to the recipes' own;
    `on_event` is told of every run; all must be measured under the same load. Stages that several recipes begin with
    are made once, by way of `store`, by default one in `out`.

    With `seeds` above 1 each recipe is run under as many seeds, and its row tells the mean. With `controls` every
    recipe that takes structure away has two runs beside it, which equal recipes share: its training alone, and a random
    choice of as much.
    A recipe that fails is listed with its error and the others go on; a killed comparison goes on where it was when
    called again. `executor` says where runs are worked, by name as the command line does ("local", "dask:local",
    "tcp://...", "ray:local", "ray://..."), and `workers` how many at once; without both, one after the other in this
    process. Workers are sent the workload, or make it themselves by `workload_from` (docs/scale.md). Raises RecipeError
    for a recipe that cannot be read or cannot work, WorkloadError for a workload that cannot work, ExecutorError for
    workers that cannot be had, RunFolderError where another program writes in `out`.
    """
    if isinstance(recipes, str | Path | Recipe | Pipeline):
        raise TypeError(f"compare takes a list of recipes, got {recipes!r} alone; write [{recipes!r}]")
    if not isinstance(recipes, Iterable):
        raise TypeError(f"compare takes a list of recipes, then a workload; got {recipes!r} in the place of recipes")
    recipes = list(recipes)
    for entry in recipes:
        if not isinstance(entry, str | Path | Recipe | Pipeline):
            raise TypeError(
                f"compare takes recipes: names, files, Recipe or Pipeline objects; got a {type(entry).__name__}; for "
                "stages, write Pipeline([...])"
            )
    if not recipes:
        raise RecipeError(["compare needs at least one recipe, such as 'int8'"])
    refuse_teams("a comparison", "spread its runs by workers= or executor= (--workers, --executor)")
    check_count(seeds, "seeds counts the runs of every recipe")
    check_asked("compare", workload, target, 0 if seed is None else seed)
    check_store(store)
    plans = named(
        [plan for entry in recipes for plan in (Recipe.load_all(entry) if isinstance(entry, str | Path) else [entry])]
    )
    target = target or common_target(list(plans.values()))
    checked = check_workload(workload)
    folder = as_folder(out, "out is the folder of the comparison")
    refuse_files_of_others(folder, DATA, PAGES, keys={"schema_version", "rows", "failures"})
    # An order of stages that cannot work is refused before any recipe has taken hours.
    arms = arms_of(plans, seed=seed, seeds=seeds)
    if executor is None or isinstance(executor, str):
        executor = executor_of(executor, workers=workers, progress=progress)
    with writing_in(folder):
        session = Session(store=store or Store(folder / SHARED), times=Times(folder / TIMES))
        asked = {"target": target, "accept_changes": accept_changes}
        runs = Runs(
            workload=workload, folder=folder, session=session, asked=asked, progress=progress, on_event=on_event
        )
        with pool_of(executor, workload_from or workload, progress=progress) as pool:
            runs.run(arms, pool)
            failed = runs.failures()
            ended = [arm for arm in arms if arm.row not in failed] if controls else []
            beside = controls_beside(ended, seeds=seeds)
            runs.run(beside.arms, pool)
        comparison = _compared(runs, beside, checked, target, seeds=seeds)
        _write(comparison, folder)
    return comparison


def _compared(runs: Runs, beside: Controls, workload: Workload, target: Target, *, seeds: int) -> Comparison:
    """What came of the runs: their files timed together, and compared sample by sample."""
    session = runs.session
    kinds = {arm.row: arm.control for arm in beside.arms}
    reports = runs.reports()
    timings = _timed_together(runs.folder, rows_of(reports, {}, kinds), workload, target, session.times)
    rows = rows_of(reports, timings, kinds)
    p_values = _p_values(rows, runs, beside, workload)
    rows = with_letters(rows, p_values)
    cost = cost_of(session.worked)
    failures = runs.failures()
    first = {name: each[0] for name, each in reports.items()}
    busy = [environment(target), *(report.environment for report in first.values() if not timings)]
    failed = [f"{name}, {kinds[name]}, failed: {_one_line(error)}" for name, error in failures.items() if name in kinds]
    return Comparison(
        workload=workload.name,
        rows=rows,
        reports={name: report for name, report in first.items() if name not in kinds},
        failures={name: error for name, error in failures.items() if name not in kinds},
        busy=_timed_beside(timings) or next(filter(None, map(busy_sentence, busy)), ""),
        cost=cost,
        told=(
            *alike_sentences(rows, p_values, seeds=seeds),
            *control_sentences(rows, p_values, beside.rows),
            *failed,
            *cost.sentences(),
        ),
        p_values=p_values,
        controls={name: {kind: row for kind, row in of.items() if row in reports} for name, of in beside.rows.items()},
    )


def _p_values(
    rows: Sequence[ComparisonRow], runs: Runs, beside: Controls, workload: Workload
) -> dict[tuple[str, str], float]:
    """The corrected p values: of every pair of the reference and the recipes, and of each recipe and its controls.

    Of many recipes those on the front are tested, and corrected for all, for the front is made of their scores.
    """
    if not workload.metric.scored:
        return {}
    recipes = [row.name for row in rows if not row.control]
    shown = recipes if len(recipes) <= _ALL_PAIRS else [row.name for row in rows if row.name == REFERENCE or row.pareto]
    names = [*shown, *dict.fromkeys(name for each in shown for name in beside.rows.get(each, {}).values())]
    scores = FileScores(workload, seed=0, known=runs.rows())
    reference = runs.reference()
    files = {
        name: [] if reference is None else [reference] if name == REFERENCE else runs.files(name) for name in names
    }
    tensors: dict[str, list[Tensor]] = {
        name: [scores.rows(file, "test") for file in found] for name, found in files.items() if found
    }
    own = [(name, control) for name in recipes for control in beside.rows.get(name, {}).values()]
    tested = [pair for pair in [*combinations(shown, 2), *own] if set(pair) <= tensors.keys()]
    return told_apart(tensors, workload.metric, pairs=tested, among=math.comb(len(recipes), 2) + len(own))


def _timed_together(
    folder: Path, rows: Sequence[ComparisonRow], workload: Workload, target: Target, times: Times
) -> dict[str, Timing]:
    """The files of the recipes against the reference's, timed one after another in this session.

    Of many rows those of the front: the others are beaten anyway. Nothing for one recipe.
    """
    names = [row.name for row in rows if row.name != REFERENCE and (row.pareto or len(rows) <= _ALL_PAIRS)]
    paths = {name: folder / name / MODEL_FILE for name in names}
    references = [reference_in(folder / name) for name in names]
    if len(rows) < 3 or not names or not all(path.is_file() for path in [*paths.values(), *references]):
        return {}
    files = {name: path.read_bytes() for name, path in paths.items()}
    return timed_together(files, references[0].read_bytes(), workload, target, times)


def _timed_beside(timings: Mapping[str, Timing]) -> str:
    met = dict.fromkeys(timing.met for timing in timings.values() if timing.met)
    return f"Timed beside {'; '.join(met)}: a quieter machine tells more." if met else ""


def _interval(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _write(comparison: Comparison, folder: Path) -> None:
    title = f"{comparison.workload}: {counted(len(comparison.reports), 'recipe')} compared"
    failed = [f"{name} failed: {_one_line(error)}" for name, error in comparison.failures.items()]
    notes = "".join(f"- {text}\n" for text in failed)
    first = "".join(
        f"- {text}\n"
        for text in filter(None, [*map(escape, [*conclusions(comparison.rows), *comparison.told]), comparison.busy])
    )
    write_json(folder / DATA, comparison.to_json())
    write_atomic(
        folder / "comparison.md",
        f"# {title}\n\n{first}\n{comparison_markdown(comparison.rows)}\n{notes}".rstrip() + "\n",
    )
    page = comparison_html(comparison.rows, title, failed, busy=comparison.busy, told=comparison.told)
    write_atomic(folder / "comparison.html", page)
    write_atomic(folder / "comparison.csv", comparison.to_csv())
    write_atomic(folder / "comparison.svg", comparison_svg(comparison.rows))


def _one_line(text: str) -> str:
    return " ".join(text.split())
