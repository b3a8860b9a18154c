"""A run's record with four ways to read it: terminal, Markdown, JSON and HTML."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.report.html import html
from compressor.report.notebook import frame, outcomes, step_rows, table_html
from compressor.report.record import RunRecord
from compressor.report.text import markdown, print_report
from compressor.report.view import summary, table
from compressor.storage import write_atomic, write_json

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Report(RunRecord):
    """A whole run: the record, and the record as people read it."""

    def __repr__(self) -> str:
        return f"<Report of {self.workload.get('name', 'a model')}: {summary(self)}>"

    def _repr_html_(self) -> str:
        return table_html(table(self), outcomes(self), title="stage", caption=summary(self))

    def to_frame(self) -> Any:
        """The steps as a pandas DataFrame, a row each: name, what became of it, and every number that was measured.

        Estimates have three columns, such as `speedup`, `speedup_low` and `speedup_high`. Raises WrongUseError where
        pandas is not installed; the extra `frame` brings it along.
        """
        return frame(step_rows(self))

    def to_markdown(self) -> str:
        """The report as a Markdown page."""
        return markdown(self)

    def to_html(self) -> str:
        """The report as one HTML page that needs no other file and no network."""
        return html(self)

    def print(self, console: "Console | None" = None) -> None:
        """Prints the table of steps and the summary to `console`, by default the terminal."""
        print_report(self, console)


def write_report(report: Report, folder: Path) -> None:
    """Writes report.json, report.md and report.html into `folder`, each whole or not at all."""
    write_json(folder / "report.json", report.to_json())
    write_atomic(folder / "report.md", report.to_markdown())
    write_atomic(folder / "report.html", report.to_html())
