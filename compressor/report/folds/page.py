"""A cross-validation in words, as a table in the terminal and in Markdown, and as one HTML page."""

from typing import TYPE_CHECKING

from compressor.estimate import Estimate
from compressor.report.folds.record import FoldRow, FoldsRecord, deviation
from compressor.report.html import templates
from compressor.report.markdown import escape
from compressor.report.numbers import (
    ScoreScale,
    claim,
    drop_tone,
    duration,
    interval,
    printable,
    ratio_interval,
    signed,
    size,
    smaller,
    times,
)
from compressor.report.text import markdown_table, print_rows
from compressor.report.view import COLUMNS, Cell, Row, change_decimals

if TYPE_CHECKING:
    from rich.console import Console

METHOD = (
    "Every fold tests on samples that neither trained nor decided anything in it. Brackets of single folds are 95 % "
    "intervals of their own samples; those of the means are of Nadeau and Bengio (2003): folds share the samples that "
    "make their models, so the variance of a mean is (1/J + n2/n1) S², for J folds that test n2 samples beside n1 "
    "others."
)
_ANEW = "Each fold has a reference of its own, trained without the samples that the fold tests on."
_GIVEN = (
    "One reference stood in all folds, and folds part the samples that it was not trained on: this speaks of that one "
    "model, not of training it anew."
)


def conclusions(record: FoldsRecord) -> list[str]:
    """What the folds say together, in sentences."""
    scale, drop = record.scale, record.drop
    digits = scale.score_decimals([record.reference, record.score])
    name = printable(scale.name)
    before, after = (scale.score(score.value, digits) for score in (record.reference, record.score))
    told = [f"{_folds(record)}: {name} {after} on average, {before} before."]
    if drop is not None:
        change = scale.change(drop)
        places = change_decimals(change)
        amount = f"{signed(change.value, places)}{scale.change_unit} {interval(change, places)}".strip()
        told.append(f"The change is {amount}: {_verdict(drop)}.")
    unchanged = sum(not row.kept for row in record.rows)
    if unchanged:
        told.append(f"In {unchanged} of {len(record.rows)} folds no stage was kept: the file is the reference.")
    if record.budgeted:
        told.append(f"The budget is met in {record.budgets_met} of {len(record.rows)} folds.")
    return [*told, _GIVEN if record.given else _ANEW]


def _verdict(drop: Estimate) -> str:
    if not drop.excludes(0):
        return "not to be told apart from none"
    return "worse than chance explains" if drop.value > 0 else "better than chance explains"


def _folds(record: FoldsRecord) -> str:
    return f"{record.folds} folds" + (f", parted in {record.repeats} ways" if record.repeats > 1 else "")


def table(record: FoldsRecord) -> list[Row]:
    """A row for each fold, then their mean and their standard deviation."""
    scale = record.scale
    digits = scale.score_decimals([estimate for row in record.rows for estimate in (row.reference, row.score)])
    return [*(_row(row, scale, digits) for row in record.rows), _mean(record, digits), _deviation(record, digits)]


def _row(row: FoldRow, scale: ScoreScale, digits: int) -> Row:
    verdict = claim(row.speedup)
    cells = {
        "score": Cell(text=scale.score(row.score.value, digits), note=_before(scale, row.reference.value, digits)),
        "speedup": Cell(
            text=("~" if verdict == "same" else "") + times(row.speedup.value),
            note=ratio_interval(row.speedup),
            tone={"faster": "good", "slower": "bad"}.get(verdict, ""),
        ),
        "size": Cell(text=size(row.size_bytes), note=smaller(row.reference_bytes, row.size_bytes)),
        "seconds": Cell(text=duration(row.seconds)),
    }
    if row.drop is not None:
        cells["change"] = _change(scale, row.drop)
    return Row(stage=printable(row.name), state="kept", reason="", ships=False, cells=cells)


def _mean(record: FoldsRecord, digits: int) -> Row:
    scale, count = record.scale, len(record.rows)
    cells = {
        "score": Cell(
            text=scale.score(record.score.value, digits), note=_before(scale, record.reference.value, digits)
        ),
        "speedup": Cell(text=times(sum(row.speedup.value for row in record.rows) / count)),
        "size": Cell(text=size(round(sum(row.size_bytes for row in record.rows) / count))),
        "seconds": Cell(text=duration(sum(row.seconds for row in record.rows)), note="in all"),
    }
    if record.drop is not None:
        cells["change"] = _change(scale, record.drop)
    return Row(stage="mean", state="kept", reason="", ships=False, cells=cells)


def _deviation(record: FoldsRecord, digits: int) -> Row:
    scale, rows = record.scale, record.rows
    factor = 100 if scale.bounded else 1

    def shown(values: list[float]) -> str:
        return f"{factor * deviation(values):.{max(digits, 1)}f}"

    cells = {
        "score": Cell(
            text=shown([row.score.value for row in rows]), note=f"before {shown([row.reference.value for row in rows])}"
        ),
        "speedup": Cell(text=f"{deviation([row.speedup.value for row in rows]):.2f}"),
    }
    if record.drop is not None:
        change = scale.change(record.drop)
        spread = 100 * deviation([row.drop.value for row in rows if row.drop is not None])
        cells["change"] = Cell(text=f"{spread:.{change_decimals(change)}f}")
    return Row(stage="deviation", state="kept", reason="", ships=False, cells=cells)


def _before(scale: ScoreScale, reference: float, digits: int) -> str:
    return f"before {scale.score(reference, digits)}"


def _change(scale: ScoreScale, drop: Estimate) -> Cell:
    change = scale.change(drop)
    places = change_decimals(change)
    unit = " pt" if scale.bounded else " %"
    return Cell(text=signed(change.value, places) + unit, note=interval(change, places), tone=drop_tone(drop))


def print_folds(record: FoldsRecord, console: "Console | None" = None) -> None:
    """Prints what the folds say together and the table to `console`, by default the terminal."""
    from rich.console import Console as Terminal

    console = console or Terminal()
    rows = table(record)
    print_rows(console, rows, [" "] * len(rows), title="  fold")
    console.print()
    for text in conclusions(record):
        console.print(text, markup=False, highlight=False)


def folds_title(record: FoldsRecord) -> str:
    """What the page is called."""
    return f"{record.workload.get('name', 'model')}: {' + '.join(record.stages)} in {_folds(record)}"


def folds_markdown(record: FoldsRecord) -> str:
    """The cross-validation as a Markdown page; folds link to their reports."""
    links = [f"[report](./{row.report})" for row in record.rows]
    first = "".join(f"- {escape(text)}\n" for text in conclusions(record))
    rows = markdown_table(table(record), [*links, "", ""], title="fold")
    return f"# {escape(folds_title(record))}\n\n{first}\n{rows}\n\n{METHOD}\n"


def folds_html(record: FoldsRecord) -> str:
    """The cross-validation as one page that needs no other file and no network; everything in it is escaped."""
    rows = table(record)
    columns = [column for column in COLUMNS if column != "stage" and any(row.cells.get(column) for row in rows)]
    return (
        templates()
        .get_template("folds.html.j2")
        .render(
            title=printable(folds_title(record)),
            conclusions=conclusions(record),
            rows=rows,
            links=[*(f"./{row.report}" for row in record.rows), None, None],
            columns={column: COLUMNS[column] for column in columns},
            method=METHOD,
        )
    )
