"""The files of a search: its JSON, a page for people, Markdown, and the recipes of the finalists."""

from dataclasses import replace
from pathlib import Path

from compressor.report.comparison import ComparisonRow, comparison_html, comparison_markdown, gain_in_words
from compressor.report.markdown import escape
from compressor.report.notebook import csv_text
from compressor.report.numbers import ScoreScale, counted, printable
from compressor.searching.finals import newest
from compressor.searching.front import ranks
from compressor.searching.limits import Limits
from compressor.searching.result import SearchResult
from compressor.searching.trials import Trial, trial_row
from compressor.storage import write_atomic, write_json

DATA = "search.json"
PAGES = ("search.html", "search.md", "search.csv")
RECIPES = "recipes"
_ON_VALIDATION = (
    "The picture and the table show the reference and every candidate's last trial as they score on validation data, "
    "which the search decides by."
)
_TIMED = (
    "Every trial was timed in turns with the reference when it was made; milliseconds are the reference's, as timed "
    "with the finalists, over the speed-up."
)


def write_pages(result: SearchResult, folder: Path) -> None:
    """search.json, .html, .md and .csv in `folder`, and a recipe for every finalist in `recipes/`."""
    write_json(folder / DATA, result.to_json())
    for name, recipe in result.finalists.items():
        write_atomic(folder / RECIPES / f"{name}.yaml", recipe.dump())
    title = f"{result.workload}: {counted(len(result.trials), 'trial')} of {counted(result.space, 'recipe')}"
    said = [result.why, *result.told]
    lines = "".join(f"- {escape(text)}\n" for text in filter(None, [*said, result.busy]))
    table = comparison_markdown(result.rows)
    write_atomic(folder / "search.md", f"# {title}\n\n{lines}\nThe finalists, on test data:\n\n{table}")
    base = result.rows[0]
    rows = [
        replace(base, score=result.validation_score or base.score, alike=""),
        *trial_rows(result.trials, base.scale),
    ]
    tested = [f"On test data: {printable(row.name)} is {gain_in_words(row, result.rows)}." for row in result.rows[1:]]
    page = comparison_html(
        rows,
        title,
        concluded=[result.why],
        told=[*result.told, *tested],
        busy=result.busy,
        about=(_ON_VALIDATION, _TIMED),
    )
    write_atomic(folder / "search.html", page)
    write_atomic(folder / "search.csv", csv_text([trial_row(trial) for trial in result.trials]))


def trial_rows(trials: tuple[Trial, ...], scale: ScoreScale) -> list[ComparisonRow]:
    """Every candidate's newest trial as a row, on validation, those marked that none of them beats."""
    known = newest(trials)
    points = [Limits(max_drop=None).point(trial) for trial in known]
    return [
        ComparisonRow(
            name=trial.recipe_name,
            score=trial.score,
            drop=trial.drop,
            latency_ms=trial.latency_ms,
            speedup=trial.speedup,
            size_bytes=trial.size_bytes,
            compressed_bytes=trial.compressed_bytes,
            packed_bytes=trial.packed_bytes,
            seconds=trial.made_seconds,
            pareto=rank == 0,
            report=f"trials/{trial.name}/report.html",
            scale=scale,
            recipe=trial.recipe,
            stages=trial.stages,
        )
        for trial, rank in zip(known, ranks(points), strict=True)
    ]
