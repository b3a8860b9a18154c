"""Several compressed files side by side: one table, and score against latency and size with the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compressor.estimate import Estimate
from compressor.report.explorer import SORTED, Mark, explorer
from compressor.report.html import templates
from compressor.report.numbers import (
    ScoreScale,
    claim,
    decimals_for,
    duration,
    interval,
    printable,
    ratio_interval,
    signed,
    size,
    smaller,
    times,
)
from compressor.report.scatter import HEIGHT, WIDTH, Panel, Point, panel
from compressor.report.text import markdown_table, print_rows
from compressor.report.view import COLUMNS, Cell, Row, change_decimals, speed

if TYPE_CHECKING:
    from rich.console import Console


# Of more points in one picture those on the front have names.
_ALL_NAMED = 40
# More names in a sentence are read by nobody.
_SOME = 10
# What a comparison says of its numbers: on which data, and when they were taken.
ABOUT = (
    "Scores are on test data.",
    (
        "Where several recipes are compared, all files, of many those on the front, were timed again, each in turns "
        "with the reference, one after another in one session; milliseconds are the reference's over the speed-up. "
        "Their own reports have the times of their own runs."
    ),
)
ALIKE = "Scores that share a letter cannot be told apart (paired tests, Holm's correction, 5 %)."


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One compressed file among others, or the reference they came from.

    `drop` is how much worse its score is than the reference's, None for the reference itself. `seconds` is what its
    making took. `pareto` says that no other row beats it (`pareto_front`). `report` is where its own report lies, a
    path relative to the comparison's page. `scale` says how the score is to be read; all rows share one.
    `budget_met` is None where nothing is known of a budget. Scores of rows that share a letter in `alike` cannot be
    told apart; "" where that was not tested. `control` is the kind of a row that is there to compare with, "" for
    recipes. The score is the mean over `seeds` runs. `packed_bytes` is what `compressor pack` makes of the file, None
    where that is not known. `recipe` is the YAML text of what was run, `stages` are its stages by name, and `course`
    tells of the file after each of them.
    """

    name: str
    score: Estimate
    drop: Estimate | None
    latency_ms: Estimate
    speedup: Estimate
    size_bytes: int
    compressed_bytes: int
    seconds: float
    pareto: bool
    report: str | None
    scale: ScoreScale = field(default_factory=ScoreScale)
    budget_met: bool | None = None
    alike: str = ""
    control: str = ""
    seeds: int = 1
    packed_bytes: int | None = None
    recipe: str = ""
    stages: tuple[str, ...] = ()
    course: tuple[Mark, ...] = ()


def pareto_front(points: Sequence[tuple[float, float, float]]) -> list[bool]:
    """For each (latency, size, score): whether no other is at least as good in all three and better in one.

    Latency and size are better where smaller, the score where larger: give errors with a minus sign.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def conclusions(rows: Sequence[ComparisonRow]) -> list[str]:
    """What to ship, in sentences: the fastest file whose budget is met, and which ones cannot be told apart from it.

    Two files cannot be told apart in speed where their intervals overlap; the smallest of them is then the one named.
    """
    made = _made(rows)
    if not made:
        return []
    if all(row.budget_met is False for row in made):
        return [f"Ship none of them yet: {_names(made)} missed the budget. Ease it, or try other recipes."]
    best = best_of(rows)
    if best is None:
        return ["Ship the reference: no recipe gave a file that is faster or smaller."]
    gains = _gains(rows)
    equals = _as_fast(gains)
    told = [f"Ship {printable(best.name)}: {gain_in_words(best, rows)}."]
    others = [row for row in equals if row is not best]
    if others:
        told.append(
            f"Its speed cannot be told apart from that of {_names(others)} (the intervals overlap); its file is the "
            "smallest of them."
            if all(row.size_bytes > best.size_bytes for row in others)
            else f"Its speed cannot be told apart from that of {_names(others)} (the intervals overlap)."
        )
    near = [row for row in gains if row is not best and _alike(row, best)]
    if near and best.scale.scored:
        name = printable(best.scale.name)
        told.append(f"On these test data its {name} cannot be told apart from that of {_names(near)}.")
    missed = [row for row in made if row.budget_met is False]
    if missed:
        told.append(f"{_names(missed)} missed the budget.")
    return told


def best_of(rows: Sequence[ComparisonRow]) -> ComparisonRow | None:
    """The file to ship: the smallest of those that are as fast as the fastest; None where none gains anything."""
    return min(_as_fast(_gains(rows)), key=lambda row: row.size_bytes, default=None)


def is_reference(row: ComparisonRow) -> bool:
    """Whether a row is the model before compression: the only one whose speed-up is 1 without any uncertainty."""
    return row.drop is None and row.speedup == Estimate(1.0, 1.0, 1.0)


def _made(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    return [row for row in rows if not is_reference(row) and not row.control]


def _gains(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """What is within its budget and faster or smaller than the reference."""
    allowed = [row for row in _made(rows) if row.budget_met is not False]
    return [row for row in allowed if claim(row.speedup) == "faster" or _is_smaller(row, rows)]


def _as_fast(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Those whose speed cannot be told apart from that of the fastest."""
    fastest = max(rows, key=lambda row: row.speedup.value, default=None)
    return [row for row in rows if fastest is not None and _meet(row.speedup, fastest.speedup)]


def _alike(one: ComparisonRow, other: ComparisonRow) -> bool:
    """Whether two scores cannot be told apart: by the test, where there was one, else where their intervals meet."""
    if one.alike and other.alike:
        return bool(set(one.alike.split()) & set(other.alike.split()))
    return _meet(one.score, other.score)


def _meet(one: Estimate, other: Estimate) -> bool:
    return one.high >= other.low and other.high >= one.low


def _is_smaller(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> bool:
    base = next((one for one in rows if is_reference(one)), None)
    return base is not None and row.size_bytes < base.size_bytes


def gain_in_words(row: ComparisonRow, rows: Sequence[ComparisonRow]) -> str:
    """The row in words: "6.1x faster [5.9, 6.3], 11.8x smaller, accuracy -0.5 points, within its budget"."""
    base = next((one for one in rows if is_reference(one)), None)
    parts = [speed(row.speedup)]
    if base is not None:
        parts.append(smaller(base.size_bytes, row.size_bytes))
    if row.drop is not None and row.scale.scored:
        change = row.scale.change(row.drop)
        places = change_decimals(change)
        told = f"{signed(change.value, places)}{row.scale.change_unit} {interval(change, places)}".strip()
        parts.append(f"{printable(row.scale.name)} {told}")
    return ", ".join([*parts, *(["within its budget"] if row.budget_met else [])])


def _names(rows: Sequence[ComparisonRow]) -> str:
    names = [printable(row.name) for row in rows]
    if len(names) > _SOME:
        names = [*names[: _SOME - 2], f"{len(names) - _SOME + 2} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def print_comparison(
    rows: Sequence[ComparisonRow],
    console: "Console | None" = None,
    *,
    busy: str = "",
    told: Sequence[str] = (),
    concluded: Sequence[str] | None = None,
) -> None:
    """Prints what to ship and the table to `console`, by default the terminal; a star marks the Pareto front.

    `busy` is a sentence about the machine, "" for none; `told` are sentences that follow on what to ship, and
    `concluded` says that in the place of `conclusions`.
    """
    from rich.console import Console as Terminal

    console = console or Terminal()
    for text in [*(conclusions(rows) if concluded is None else concluded), *told]:
        console.print(text, markup=False, highlight=False)
    if busy:
        console.print(busy, style="yellow", markup=False, highlight=False)
    if not rows:
        return
    console.print()
    star = "*" if console.options.ascii_only else "★"
    print_rows(console, comparison_table(rows), [star if row.pareto else " " for row in rows], title="  recipe")
    console.print(f"\n{star} on the Pareto front: no other is as fast, as small and as good at once.", markup=False)
    if any(row.alike for row in rows):
        console.print(ALIKE, markup=False, highlight=False)


def comparison_markdown(rows: Sequence[ComparisonRow]) -> str:
    """The table in Markdown; a star marks the Pareto front, names link to the reports."""
    outcomes = [
        " ".join(filter(None, ["★" if row.pareto else "", f"[report]({_link(row.report)})" if row.report else ""]))
        for row in rows
    ]
    note = "★: on the Pareto front, no other is as fast, as small and as good at once. Brackets are 95 % intervals."
    if any(row.alike for row in rows):
        note += f" {ALIKE}"
    return f"{markdown_table(comparison_table(rows), outcomes, title='recipe')}\n\n{note}\n"


def comparison_html(
    rows: Sequence[ComparisonRow],
    title: str,
    failures: Sequence[str] = (),
    *,
    busy: str = "",
    told: Sequence[str] = (),
    concluded: Sequence[str] | None = None,
    about: Sequence[str] = ABOUT,
) -> str:
    """One page with the picture and the table, without other files or network; everything in it is escaped.

    What to ship comes first. `failures` are sentences about recipes that gave no row; they stand below the table.
    `busy` is a sentence about the machine, "" for none; `told` are sentences that follow on what to ship, and
    `concluded` says that in the place of `conclusions`. `about` are the notes on which data and when was measured.
    """
    table = comparison_table(rows)
    links = [None if row.report is None else _link(row.report) for row in rows]
    first = next((index for index, row in enumerate(rows) if is_reference(row)), None)
    columns = [column for column in COLUMNS if column != "stage" and any(row.cells.get(column) for row in table)]
    return (
        templates()
        .get_template("comparison.html.j2")
        .render(
            title=printable(title),
            conclusions=[*map(printable, conclusions(rows) if concluded is None else concluded), *map(printable, told)],
            busy=busy,
            decibels=bool(rows) and rows[0].scale.decibels,
            panels=_panels(rows),
            rows=list(zip(table, rows, strict=True)),
            links=links,
            explorer=explorer(rows, table, links, first) if rows else None,
            sorted=SORTED,
            columns={column: COLUMNS[column] for column in columns},
            failures=[printable(text) for text in failures],
            about=about,
            alike=ALIKE if any(row.alike for row in rows) else "",
        )
    )


def comparison_svg(rows: Sequence[ComparisonRow]) -> str:
    """The two scatter plots as one SVG file: score against latency, and against the file's size."""
    template = templates().get_template("comparison.svg.j2")
    return template.render(panels=_panels(rows), width=WIDTH, height=HEIGHT)


def _beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    no_worse = one[0] <= other[0] and one[1] <= other[1] and one[2] >= other[2]
    return no_worse and one != other


def comparison_table(rows: Sequence[ComparisonRow]) -> list[Row]:
    """The rows as text, with the same digits down each column."""
    if not rows:
        return []
    scale = rows[0].scale
    digits = scale.score_decimals(row.score for row in rows)
    ms = decimals_for((row.latency_ms.value for row in rows), digits=3)
    base = next((row for row in rows if is_reference(row)), None)
    largest = max(row.size_bytes for row in rows)
    return [
        Row(
            stage=printable(row.name),
            state="reference" if row is base else "kept",
            reason="",
            ships=False,
            cells=_cells(row, base, scale, digits=digits, ms=ms, largest=largest),
        )
        for row in rows
    ]


def _cells(
    row: ComparisonRow, base: ComparisonRow | None, scale: ScoreScale, *, digits: int, ms: int, largest: int
) -> dict[str, Cell]:
    cells = {
        "score": Cell(
            text=scale.score(row.score.value, digits),
            note=" ".join(filter(None, [scale.bounds(row.score, digits), row.alike.replace(" ", "")])),
        ),
        "latency": Cell(text=f"{row.latency_ms.value:.{ms}f} ms", note=interval(row.latency_ms, ms)),
        "size": Cell(text=size(row.size_bytes, reference=largest)),
        "zstd": Cell(text=size(row.compressed_bytes, reference=largest)),
    }
    if row.packed_bytes is not None:
        cells["packed"] = Cell(text=size(row.packed_bytes, reference=largest))
    if row is base:
        return cells
    verdict = claim(row.speedup)
    tone = {"faster": "good", "slower": "bad"}.get(verdict, "")
    mark = "~" if verdict == "same" else ""
    cells["speedup"] = Cell(text=mark + times(row.speedup.value), note=ratio_interval(row.speedup), tone=tone)
    cells["seconds"] = Cell(text=duration(row.seconds))
    if row.drop is not None and scale.scored:
        change = scale.change(row.drop)
        places = change_decimals(change)
        unit = " pt" if scale.bounded else " %"
        cells["change"] = Cell(text=signed(change.value, places) + unit, note=interval(change, places))
    if base is not None:
        cells["size"] = Cell(text=cells["size"].text, note=smaller(base.size_bytes, row.size_bytes))
        cells["zstd"] = Cell(text=cells["zstd"].text, note=smaller(base.compressed_bytes, row.compressed_bytes))
        if base.packed_bytes is not None and row.packed_bytes is not None:
            cells["packed"] = Cell(text=cells["packed"].text, note=smaller(base.packed_bytes, row.packed_bytes))
    return cells


def _panels(rows: Sequence[ComparisonRow]) -> list[Panel]:
    if not rows:
        return []
    scale = rows[0].scale
    factor = 100.0 if scale.bounded else 1.0
    unit, unit_name = (2**20, "MiB") if max(row.size_bytes for row in rows) >= 10 * 2**20 else (2**10, "KiB")
    name = f"{printable(scale.name).capitalize()}{', %,' if scale.bounded else ''}"

    def points(of: str) -> list[Point]:
        placed = []
        for row, text in zip(rows, comparison_table(rows), strict=True):
            time, file = row.latency_ms, row.size_bytes / unit
            title = ", ".join(f"{cell.text} {cell.note}".strip() for cell in text.cells.values())
            placed.append(
                Point(
                    name=row.name,
                    x=(time.value, time.low, time.high) if of == "latency" else (file, file, file),
                    y=(factor * row.score.value, factor * row.score.low, factor * row.score.high),
                    best=row.pareto,
                    named=len(rows) <= _ALL_NAMED or row.pareto or row is rows[0],
                    title=f"{printable(row.name)}: {title}",
                )
            )
        return placed

    return [
        panel(
            f"{name} against {what}{'' if scale.higher_is_better else ' (turned over: up is better)'}",
            points(of),
            x_title=x_title,
            y_label=lambda value: f"{value:.4g}",
            up=scale.higher_is_better,
        )
        for of, what, x_title in (
            ("latency", "latency", "latency, ms a call"),
            ("size", "file size", f"file, {unit_name}"),
        )
    ]


def _link(path: str) -> str:
    """A relative path as a link that can be nothing else: no scheme, nothing that ends it early."""
    from urllib.parse import quote

    return "./" + quote(path.replace("\\", "/").lstrip("/"), safe="/")
