"""Results in notebooks and data frames: a short table in HTML, and rows of numbers for pandas."""

import csv
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from typing import Any

from compressor.errors import WrongUseError
from compressor.estimate import Estimate
from compressor.report.record import RunRecord
from compressor.report.view import COLUMNS, Row, outcome

# What fits beside code; the page of the report has the rest.
_SHOWN = ("score", "change", "latency", "speedup", "size")


def table_html(rows: Sequence[Row], outcomes: Sequence[str], *, title: str, caption: str) -> str:
    """`rows` as an HTML table without styles of its own, `caption` above it; everything in it is escaped."""
    columns = [column for column in _SHOWN if any(row.cells.get(column) for row in rows)]
    head = "".join(f"<th>{escape(text)}</th>" for text in (title, *(COLUMNS[column] for column in columns), ""))
    lines = []
    for row, last in zip(rows, outcomes, strict=True):
        cells = [row.cells.get(column) for column in columns]
        texts = ["" if cell is None else f"{cell.text} {cell.note}".strip() for cell in cells]
        cells_html = "".join(f"<td>{escape(text)}</td>" for text in (row.stage, *texts, last))
        lines.append(f"<tr>{cells_html}</tr>")
    return (
        f"<p><b>{escape(caption)}</b></p><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def outcomes(report: RunRecord) -> list[str]:
    """What became of each step, in words, and which of them ships."""
    told = [outcome(report, index) for index in range(len(report.steps))]
    return [", ".join(filter(None, [text, "ships" * (index == report.final)])) for index, text in enumerate(told)]


def step_rows(report: RunRecord) -> list[dict[str, Any]]:
    """A dict of plain numbers and texts for every step; an estimate is three of them, such as speedup, speedup_low."""
    return [
        {
            "stage": step.stage,
            "kept": step.kept,
            "ships": index == report.final,
            **flat({} if step.measurement is None else vars(step.measurement)),
            **flat({"drop": step.drop}),
            "seconds": step.seconds,
            "reason": step.reason,
        }
        for index, step in enumerate(report.steps)
    ]


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with three entries for each estimate: the value, and the ends of its interval as `_low` and `_high`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            found[name] = value
    return found


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """`rows` as CSV by RFC 4180, a line each below the names of all their values; None is an empty field."""
    # The row that has most first: an estimate that another lacks keeps its three columns together.
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    text = StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """`rows` as a pandas DataFrame. Raises WrongUseError where pandas is not installed."""
    try:
        import pandas as pd
    except ImportError as error:
        raise WrongUseError(
            f'to_frame needs pandas ({error}); pip install "torch-compressor[frame]" brings it along'
        ) from error
    return pd.DataFrame(list(rows))
