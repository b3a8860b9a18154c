"""Several recipes on one workload, each run and resumed like a single one: one table and one picture of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape as html_escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.estimate import Estimate
from compressor.machine import environment
from compressor.measuring.timing import Timing, time_interleaved
from compressor.progress.bars import say
from compressor.progress.events import Listener
from compressor.recipe.recipe import Recipe
from compressor.report.comparison import (
    ComparisonRow,
    comparison_html,
    comparison_markdown,
    comparison_svg,
    comparison_table,
    conclusions,
    pareto_front,
    print_comparison,
)
from compressor.report.markdown import escape
from compressor.report.notebook import flat, frame, table_html
from compressor.report.numbers import ScoreScale
from compressor.report.record import Step
from compressor.report.report import Report
from compressor.report.view import busy_sentence
from compressor.running.folder import MODEL_FILE, refuse_files_of_others
from compressor.running.pipeline import Pipeline
from compressor.running.preflight import check_workload
from compressor.stage import stage_name
from compressor.storage import json_safe, write_atomic, write_json
from compressor.target import Target
from compressor.workload import Workload, resize_batch

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1
_DATA = "comparison.json"
_PAGES = ("comparison.md", "comparison.html", "comparison.svg")
REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `compare` gives. `rows` begin with the reference; `reports` and `failures` (error texts) are by name.

    `busy` is a sentence where the machine was, "" else.
    """

    workload: str
    rows: tuple[ComparisonRow, ...]
    reports: dict[str, Report]
    failures: dict[str, str]
    busy: str = ""

    def __repr__(self) -> str:
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Comparison on {self.workload} of {', '.join(self.reports) or 'nothing'}{failed}>"

    def _repr_html_(self) -> str:
        caption = f"{self.workload}: {len(self.reports)} recipes; ★ no other is as fast, as small and as good at once"
        failed = "".join(f"<p>{html_escape(f'{name} failed: {error}')}</p>" for name, error in self.failures.items())
        marks = ["★" if row.pareto else "" for row in self.rows]
        return table_html(comparison_table(self.rows), marks, title="recipe", caption=caption) + failed

    def to_frame(self) -> Any:
        """The rows as a pandas DataFrame, the reference first.

        Estimates have three columns, such as `speedup`, `speedup_low` and `speedup_high`. Raises WrongUseError where
        pandas is not installed; the extra `frame` brings it along.
        """
        return frame([{name: value for name, value in flat(vars(row)).items() if name != "scale"} for row in self.rows])

    @property
    def any_budget_met(self) -> bool:
        """Whether at least one recipe met its budget."""
        return any(report.budget_met for report in self.reports.values())

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
                "seconds": row.seconds,
                "pareto": row.pareto,
                "report": row.report,
                "budget_met": self.reports[row.name].budget_met if row.name in self.reports else None,
            }
            for row in self.rows
        ]
        found: dict[str, Any] = json_safe(
            {
                "schema_version": SCHEMA_VERSION,
                "workload": self.workload,
                "conclusions": conclusions(self.rows),
                "busy": self.busy,
                "rows": rows,
                "failures": self.failures,
            }
        )
        return found

    def print(self, console: "Console | None" = None) -> None:
        """Prints what to ship and the table to `console`, by default the terminal."""
        print_comparison(self.rows, console, busy=self.busy)


def compare(
    recipes: Sequence[Recipe | str | Path | Pipeline],
    workload: Workload,
    *,
    out: Path | str,
    target: Target | None = None,
    seed: int | None = None,
    progress: bool = True,
    accept_changes: bool = False,
    on_event: Listener | None = None,
) -> Comparison:
    """Runs every recipe into `out/<its name>` and writes comparison.json, .md, .html and .svg into `out`.

    Recipes may be given as objects, files, or names of shipped ones; pipelines take part as well. `seed` and
    `target` default to the recipes' own; `on_event` is told of every run; all must be measured under the same load.
    A recipe that fails is listed with its error and the others go on; a killed comparison goes on where it was when
    called again. Raises RecipeError for a recipe that cannot be read, WorkloadError for a workload that cannot
    work.
    """
    if not recipes:
        raise ValueError("compare needs at least one recipe, such as 'int8'")
    plans = _named([Recipe.load(entry) if isinstance(entry, str | Path) else entry for entry in recipes])
    target = target or _common_target(list(plans.values()))
    check_workload(workload)
    folder = Path(out)
    refuse_files_of_others(folder, _DATA, _PAGES, keys={"schema_version", "rows", "failures"})
    reports: dict[str, Report] = {}
    failures: dict[str, str] = {}
    # An order of stages that cannot work is refused before any recipe has taken hours.
    pipelines = {name: Pipeline.from_recipe(plan) if isinstance(plan, Recipe) else plan for name, plan in plans.items()}
    for number, (name, plan) in enumerate(plans.items(), start=1):
        say(f"recipe {number} of {len(plans)}: {name}", shown=progress)
        own_seed = plan.seed if isinstance(plan, Recipe) else 0
        try:
            result = pipelines[name].run(
                workload,
                target=target,
                out=folder / name,
                seed=own_seed if seed is None else seed,
                progress=progress,
                accept_changes=accept_changes,
                on_event=on_event,
            )
        except Exception as error:  # noqa: BLE001  # a user's stage may raise anything, and the others must go on
            failures[name] = f"{type(error).__name__}: {error}"
        else:
            reports[name] = result.report
    timings = _timed_together(folder, list(reports), workload, target)
    busy = [environment(target), *(report.environment for report in reports.values() if not timings)]
    comparison = Comparison(
        workload=workload.name,
        rows=_rows(reports, timings),
        reports=reports,
        failures=failures,
        busy=next(filter(None, map(busy_sentence, busy)), ""),
    )
    _write(comparison, folder)
    return comparison


def _named(plans: Sequence[Recipe | Pipeline]) -> dict[str, Recipe | Pipeline]:
    """The plans by names that differ, as each has a folder of its own."""
    named: dict[str, Recipe | Pipeline] = {}
    for plan in plans:
        name = plan.name if isinstance(plan, Recipe) else "-".join(map(stage_name, plan.stages))[:80]
        count = 1
        while (unique := name if count == 1 else f"{name}-{count}") in named or unique == REFERENCE:
            count += 1
        named[unique] = plan
    return named


def _common_target(plans: Sequence[Recipe | Pipeline]) -> Target:
    targets = {plan.target() for plan in plans if isinstance(plan, Recipe)} or {Target()}
    if len(targets) > 1:
        loads = ", ".join(sorted(f"batch_size={one.batch_size} threads={one.threads}" for one in targets))
        raise ValueError(
            f"the recipes ask for different loads ({loads}), whose times cannot be compared; "
            "give one for all (target=Target(...), --batch-size, --threads)"
        )
    return targets.pop()


def _timed_together(folder: Path, names: Sequence[str], workload: Workload, target: Target) -> dict[str, Timing]:
    """The files of the recipes against the reference's, timed one after another in this session.

    Each run has timed its own file, maybe on another day: only times of one session compare. Nothing for one recipe.
    """
    files = {name: folder / name / MODEL_FILE for name in names}
    references = [folder / name / "stages" / "00-reference" / MODEL_FILE for name in names]
    if len(files) < 2 or not all(path.is_file() for path in [*files.values(), *references]):
        return {}
    inputs = resize_batch(workload.example_inputs, target.batch_size)
    reference = references[0].read_bytes()
    return {
        name: time_interleaved(path.read_bytes(), reference, inputs, threads=target.threads)
        for name, path in files.items()
    }


def _rows(reports: dict[str, Report], timings: dict[str, Timing]) -> tuple[ComparisonRow, ...]:
    """The reference and every final file, with those marked that no other beats in every respect."""
    rows = [_row(name, report, report.final) for name, report in reports.items()]
    rows = [_retimed(row, timings[row.name]) if row.name in timings else row for row in rows]
    rows = [row if reports[row.name].final else _as_the_reference(row, rows, timings) for row in rows]
    if reports:
        # The reference is the same model in every run; the first run's timing stands for it.
        name = next(iter(reports))
        first = _row(REFERENCE, reports[name], 0)
        latency = timings[name].reference_ms if name in timings else first.latency_ms
        unchanged = Estimate(1.0, 1.0, 1.0)
        rows.insert(
            0,
            replace(first, drop=None, latency_ms=latency, speedup=unchanged, seconds=0.0, report=None, budget_met=None),
        )
    # Errors are better where smaller: with a minus sign, as scores.
    goodness = [row.score.value if row.scale.higher_is_better else -row.score.value for row in rows]
    points = [(row.latency_ms.value, row.size_bytes, good) for row, good in zip(rows, goodness, strict=True)]
    return tuple(replace(row, pareto=pareto) for row, pareto in zip(rows, pareto_front(points), strict=True))


def _as_the_reference(
    row: ComparisonRow, rows: Sequence[ComparisonRow], timings: Mapping[str, Timing]
) -> ComparisonRow:
    """The row of a run that kept nothing: its file is the reference, and another time of it would be noise."""
    first = rows[0].name
    latency = timings[first].reference_ms if first in timings else row.latency_ms
    return replace(row, drop=Estimate(0.0, 0.0, 0.0), latency_ms=latency, speedup=Estimate(1.0, 1.0, 1.0))


def _retimed(row: ComparisonRow, timing: Timing) -> ComparisonRow:
    return replace(row, latency_ms=timing.candidate_ms, speedup=timing.speedup)


def _row(name: str, report: Report, index: int) -> ComparisonRow:
    step = report.steps[index]
    measurement = step.measurement
    assert measurement is not None  # only a step with a file can be final
    return ComparisonRow(
        name=name,
        score=measurement.score,
        drop=step.drop or _validation_drop(step),
        latency_ms=measurement.latency_ms,
        speedup=measurement.speedup,
        size_bytes=measurement.size_bytes,
        compressed_bytes=measurement.compressed_bytes,
        seconds=sum(done.seconds for done in report.steps),
        pareto=False,
        report=f"{name}/report.html",
        scale=ScoreScale.of(report.workload),
        # Without a budget nothing can be within it.
        budget_met=report.budget_met if report.budget is not None or not report.budget_met else None,
    )


def _validation_drop(step: Step) -> Estimate | None:
    drop = step.validation.get("drop")
    return None if drop is None else Estimate(drop["value"], drop["low"], drop["high"])


def _interval(estimate: Estimate | None) -> dict[str, float] | None:
    return None if estimate is None else {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _write(comparison: Comparison, folder: Path) -> None:
    title = f"{comparison.workload}: {len(comparison.reports)} recipes compared"
    failed = [f"{name} failed: {_one_line(error)}" for name, error in comparison.failures.items()]
    notes = "".join(f"- {text}\n" for text in failed)
    first = "".join(
        f"- {text}\n" for text in filter(None, [*map(escape, conclusions(comparison.rows)), comparison.busy])
    )
    write_json(folder / _DATA, comparison.to_json())
    write_atomic(
        folder / "comparison.md",
        f"# {title}\n\n{first}\n{comparison_markdown(comparison.rows)}\n{notes}".rstrip() + "\n",
    )
    write_atomic(folder / "comparison.html", comparison_html(comparison.rows, title, failed, busy=comparison.busy))
    write_atomic(folder / "comparison.svg", comparison_svg(comparison.rows))


def _one_line(text: str) -> str:
    return " ".join(text.split())
