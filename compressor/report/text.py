"""Reports as text: the table in the terminal and the Markdown page."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from compressor.report.asked import asked_and_got, ranking_of_blocks
from compressor.report.details import given_back, kept_outputs, left_out, locked_layers, unreached_layers
from compressor.report.evaluations.besides import besides_lines
from compressor.report.markdown import bullets, code, escape, facts, fenced, headed, titled
from compressor.report.numbers import DECIBEL_SCALE, ScoreScale, duration, printable, shorten
from compressor.report.record import RunRecord, Step
from compressor.report.scores import criteria, removals
from compressor.report.sections import IN_MARKDOWN, Section
from compressor.report.sensitivity import widths_summary
from compressor.report.snippets import netron, snippets
from compressor.report.use import Interface
from compressor.report.view import (
    COLUMNS,
    DROPPED_FIRST,
    Cell,
    Row,
    budget_lines,
    budget_verdict,
    busy_sentence,
    recipe_yaml,
    summary,
    table,
    total_seconds,
)

_MARKS = {"reference": "•", "kept": "✓", "for_now": "…", "no_gain": "~", "rolled_back": "✗", "skipped": "✗"}
_ASCII_MARKS = {"reference": "-", "kept": "+", "for_now": ".", "no_gain": "~", "rolled_back": "x", "skipped": "x"}
_TONES = {"good": "green", "bad": "red", "warn": "yellow", "": ""}
_GAP = 2
_SHORTEST_NAME = 16
# A terminal shows the first groups, and their scores where names still have room beside them.
_MOST_GROUPS = 12
_WIDTH_FOR_SCORES = 70
_NOTE = (
    "Intervals are 95 %. Scores are of the exported file on test data; a speed-up is the ratio of interleaved "
    "runs against the reference's file in ONNX Runtime, and `~` marks one whose interval contains 1: no "
    "difference was measured. zstd is the same file compressed, packed what `compressor pack` makes of it."
)


def print_report(report: RunRecord, console: Console | None = None) -> None:
    """Prints the table of steps, the warnings and the summary; columns that do not fit are left out."""
    console = console or Console()
    marks = _ASCII_MARKS if console.options.ascii_only else _MARKS
    rows = table(report)
    print_rows(console, rows, [marks[row.state] for row in rows])
    console.print()
    for index, step in enumerate(report.steps):
        if step.kept and index:
            _print_removed(console, step)
            _print_widths(console, step)
            _print_besides(console, step, ScoreScale.of(report.workload))
    for warning in report.warnings:
        console.print(Text(f"warning: {printable(warning)}", style="yellow"))
    if busy_sentence(report.environment):
        console.print(Text(busy_sentence(report.environment), style="yellow"))
    console.print(Text(summary(report), style="bold"))
    if ScoreScale.of(report.workload).decibels:
        console.print(Text(DECIBEL_SCALE, style="dim"))
    verdict = budget_verdict(report)
    console.print(
        Text(f"{verdict} {duration(total_seconds(report))} in all.", style="" if report.budget_met else "red")
    )
    _print_use(console, report)


def _print_use(console: Console, report: RunRecord) -> None:
    """Prints how the file is used: what it takes and gives, and where programs for it stand."""
    interface = Interface.from_json(report.use, report.artifact)
    if interface is None:
        return
    console.print(Text("\nUse it", style="bold"))
    for name, told in interface.facts():
        console.print(Padding(Text(f"{name}: {told}"), (0, 0, 0, 2)))
    names = ", ".join(snippet.language for snippet in snippets(interface))
    console.print(Padding(Text(f"programs that run it ({names}): report.md, under Use it"), (0, 0, 0, 2)))
    console.print(Padding(Text(f"to look at its graph: {netron(interface)}"), (0, 0, 0, 2)))


def _print_removed(console: Console, step: Step) -> None:
    """Prints which groups a step narrowed, with the scores on both sides of the border, and what it left alone."""
    rows, asked = removals(step), [*asked_and_got(step), *filter(None, [ranking_of_blocks(step)])]
    if asked:
        console.print(Text(printable(f"{step.stage}: asked and got"), style="bold"), no_wrap=True, overflow="ellipsis")
        for told in asked:
            console.print(Padding(Text(told), (0, 0, 0, 2)))
        if not rows:
            console.print()
    if not rows:
        return
    arrow = "->" if console.options.ascii_only else "→"
    title = f"{step.stage} removed" + (f", by {criteria(step)}" if criteria(step) else "")
    console.print(Text(printable(title), style="bold"), no_wrap=True, overflow="ellipsis")
    shown = [("group", "units", "lowest kept", "highest removed")] + [
        (row.layer, f"{row.before} {arrow} {row.after}", row.kept_from, row.removed_to) for row in rows[:_MOST_GROUPS]
    ]
    scored = any(row.kept_from or row.removed_to for row in rows) and console.width >= _WIDTH_FOR_SCORES
    columns = [1, 2, 3] if scored else [1]
    widths = {column: max(cell_len(line[column]) for line in shown) for column in columns}
    others = sum(width + _GAP for width in widths.values())
    name = max(8, min(max(cell_len(line[0]) for line in shown), console.width - others))
    for number, line in enumerate(shown):
        cells = "".join(" " * _GAP + f"{line[column]:>{width}}" for column, width in widths.items())
        _line(console, Text(set_cell_size(shorten(line[0], name), name) + cells), "" if number else "dim")
    if len(rows) > _MOST_GROUPS:
        console.print(Text(f"... and {len(rows) - _MOST_GROUPS} more groups: see the report's page", style="dim"))
    for layer in unreached_layers(step):
        console.print(Padding(Text(f"{layer.layer}: {layer.danger}", style="yellow"), (0, 0, 0, 2)))
    for lock in locked_layers(step):
        names = ", ".join(lock.names[:3]) + (f" and {len(lock.names) - 3} more" if len(lock.names) > 3 else "")
        console.print(Padding(Text(f"left alone: {names}: {lock.reason}", style="dim"), (0, 0, 0, 2)))
    console.print()


def _print_widths(console: Console, step: Step) -> None:
    """Prints how many layers got each width, what went back to float, and what each of several outputs keeps."""
    lines = [f"weights: {widths_summary(step)}"] if widths_summary(step) else []
    lines += [f"output {kept}" for kept in kept_outputs(step)]
    lines += left_out(step)
    gone = [layer.node for layer in given_back(step)]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        lines.append(f"given back to float: {', '.join(gone[:3])}{more}")
    if lines:
        console.print(Text(printable(step.stage), style="bold"), no_wrap=True, overflow="ellipsis")
        for line in lines:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        console.print()


def _print_besides(console: Console, step: Step, scale: ScoreScale) -> None:
    """Prints what the file of a step was asked besides its score."""
    lines = besides_lines(step, scale)
    if lines:
        console.print(Text(printable(f"{step.stage}: besides the score"), style="bold"))
        for line in lines:
            console.print(Padding(Text(printable(line)), (0, 0, 0, 2)))
        console.print()


def print_rows(console: Console, rows: Sequence[Row], marks: Sequence[str], *, title: str = "stage") -> None:
    """Prints `rows` with their marks in front; columns that do not fit the width are left out."""
    columns = _fitting(rows, console.width)
    widths = {column: _width(rows, column) for column in columns}
    # On narrow screens the stage's name gives way: numbers that are cut would lie.
    others = sum(widths.values()) - widths["stage"] + _GAP * (len(columns) - 1)
    widths["stage"] = max(8, min(widths["stage"], console.width - others))
    header = {column: Cell(text=text) for column, text in {**COLUMNS, "stage": title}.items()}
    _line(console, _columns(header, widths, "text"), "bold")
    for row, mark in zip(rows, marks, strict=True):
        undone = row.state in {"rolled_back", "skipped"}
        cells = {**row.cells, "stage": Cell(text=f"{mark} {row.stage}", note="  ships" if row.ships else "")}
        for part in ("text", "note"):
            text = _columns(cells, widths, part)
            if text.plain.strip():
                _line(console, text, "dim" if undone or part == "note" else "")
        told = [row.outcome] if row.state == "for_now" else []
        if row.reason and (undone or row.state == "no_gain"):
            told = [f"{row.outcome}: {row.reason}"]
        for line in told:
            console.print(Padding(Text(line, style="dim italic"), (0, 0, 0, 2)))


def _last_cell(row: Row) -> str:
    """What became of a row, as Markdown."""
    outcome = "" if row.state == "reference" else escape(row.outcome)
    return ", ".join(filter(None, [outcome, "**ships**" if row.ships else ""]))


def markdown_table(rows: Sequence[Row], outcomes: Sequence[str], *, title: str = "stage") -> str:
    """`rows` as a Markdown table; the last column is what became of each, which may hold markup."""
    columns = [column for column in COLUMNS if column == "stage" or any(row.cells.get(column) for row in rows)]
    lines = [
        "| " + " | ".join({**COLUMNS, "stage": title}[column] for column in columns) + " | |",
        "|" + "|".join("---" if column == "stage" else "--:" for column in columns) + "|---|",
    ]
    for row, last in zip(rows, outcomes, strict=True):
        cells = {**row.cells, "stage": Cell(text=row.stage)}
        texts = [escape(f"{cell.text} {cell.note}".strip()) for cell in (cells.get(name, Cell()) for name in columns)]
        lines.append("| " + " | ".join([*texts, last]) + " |")
    return "\n".join(lines)


def markdown(report: RunRecord) -> str:
    """The report as a Markdown page: table, what went and what stayed, environment, warnings."""
    data, rows = report.to_json(), table(report)
    parts = [
        f"# Compression report: {escape(str(report.workload.get('name', 'model')))}",
        f"**{escape(summary(report))}**",
        budget_verdict(report),
        headed("Warnings", bullets(filter(None, [*report.warnings, busy_sentence(report.environment)]))),
        headed("Stage by stage", markdown_table(rows, [_last_cell(row) for row in rows])),
        headed("Reasons", bullets(f"{step.stage}: {step.reason}" for step in report.steps[1:] if step.reason)),
        *(headed(section.heading, _told(section, report)) for section in IN_MARKDOWN),
        headed("Budget", bullets(budget_lines(report.budget, ScoreScale.of(report.workload)))),
        headed("Recipe", fenced(recipe_yaml(report), "yaml")),
        headed("Target", facts(data["target"])),
        headed("Environment", facts(data["environment"])),
        _NOTE,
        headed("Use it", _use(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(report: RunRecord) -> str:
    """What the file takes and gives, and a program for every language."""
    interface = Interface.from_json(report.use, report.artifact)
    if interface is None:
        return ""
    parts = [
        "\n".join(f"- **{escape(name)}**: {escape(told)}" for name, told in interface.facts()),
        f"To look at the graph: {code(netron(interface))}",
    ]
    for snippet in snippets(interface):
        parts += [f"### {snippet.language}", f"{escape(snippet.before)}:", fenced(snippet.code, snippet.fence)]
    return "\n\n".join(parts)


def _fitting(rows: Sequence[Row], available: int) -> list[str]:
    columns = [column for column in COLUMNS if column == "stage" or any(row.cells.get(column) for row in rows)]
    # A long name is cut sooner than a score is left out.
    name = min(_width(rows, "stage"), max(_SHORTEST_NAME, available // 3))
    for column in DROPPED_FIRST:
        others = sum(_width(rows, other) + _GAP for other in columns if other != "stage")
        if name + others <= available:
            break
        columns = [name for name in columns if name != column]
    return columns


def _width(rows: Sequence[Row], column: str) -> int:
    if column == "stage":
        return max(cell_len(row.stage) + 2 for row in rows)
    cells = [row.cells.get(column, Cell()) for row in rows]
    return max(cell_len(COLUMNS[column]), *(max(cell_len(cell.text), cell_len(cell.note)) for cell in cells))


def _columns(cells: dict[str, Cell], widths: dict[str, int], part: str) -> Text:
    line = Text()
    for column, width in widths.items():
        cell = cells.get(column, Cell())
        text = cell.text if part == "text" else cell.note
        if column == "stage":
            line.append(set_cell_size(text, width))
        else:
            line.append(" " * (_GAP + width - cell_len(text)))
            line.append(text, style=_TONES[cell.tone] if part == "text" else "")
    return line


def _line(console: Console, text: Text, style: str) -> None:
    if style:
        text.stylize_before(style)
    console.print(text, no_wrap=True, overflow="crop", crop=True)


def _told(section: Section, report: RunRecord) -> str:
    scale = ScoreScale.of(report.workload)
    return "\n\n".join(filter(None, (titled(step, section.text(step, scale)) for step in report.steps)))
