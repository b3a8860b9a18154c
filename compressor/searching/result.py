"""What a search gives: the recipe to ship and why, the finalists on test data, and every trial."""

from dataclasses import dataclass, field
from html import escape as html_escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.estimate import Estimate
from compressor.recipe.recipe import Recipe
from compressor.report.comparison import ComparisonRow, comparison_table, print_comparison
from compressor.report.notebook import frame, table_html
from compressor.searching.trials import Trial, trial_row
from compressor.storage import json_safe

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What `search` gives. `recipe` is the one to ship, None where none keeps the limits and gains anything.

    `why` says so in a sentence. `rows` are the reference and the finalists, scored on test data and timed together; the
    trials are judged on validation. `finalists` are their recipes by name. `model` is the file of `recipe`.
    `structure_seconds` went into knowing what is too slow before anything was trained. `validation_score` is the
    reference's on validation data, which the trials' compare with.
    """

    workload: str
    why: str
    recipe: Recipe | None
    model: Path | None
    rows: tuple[ComparisonRow, ...]
    finalists: dict[str, Recipe]
    trials: tuple[Trial, ...]
    space: int
    told: tuple[str, ...] = ()
    busy: str = ""
    structure_seconds: float = 0.0
    p_values: dict[tuple[str, str], float] = field(default_factory=dict)
    validation_score: Estimate | None = None

    @property
    def within_limits(self) -> bool:
        """Whether something was found that keeps the limits."""
        return any(row.budget_met for row in self.rows)

    @property
    def made_seconds(self) -> float:
        """The seconds of work on stages, without timing and scoring: what the search cost."""
        return self.structure_seconds + sum(trial.made_seconds for trial in self.trials)

    def __repr__(self) -> str:
        found = "nothing to ship" if self.recipe is None else self.recipe.name
        return f"<Search on {self.workload}: {found}, {len(self.trials)} trials of {self.space} recipes>"

    def _repr_html_(self) -> str:
        caption = f"{self.workload}: {self.why}"
        marks = ["★" if row.pareto else "" for row in self.rows]
        notes = "".join(f"<p>{html_escape(text)}</p>" for text in self.told)
        return table_html(comparison_table(self.rows), marks, title="recipe", caption=caption) + notes

    def to_frame(self) -> Any:
        """The trials as a pandas DataFrame, judged on validation.

        Estimates have three columns, such as `drop`, `drop_low` and `drop_high`. Raises WrongUseError where pandas is
        not installed; the extra `frame` brings it along.
        """
        return frame([trial_row(trial) for trial in self.trials])

    def to_json(self) -> dict[str, Any]:
        """The search as JSON values; intervals are {"value", "low", "high"}."""
        found: dict[str, Any] = json_safe(
            {
                "schema_version": SCHEMA_VERSION,
                "workload": self.workload,
                "why": self.why,
                "recipe": None if self.recipe is None else self.recipe.name,
                "told": self.told,
                "busy": self.busy,
                "space": self.space,
                "validation_score": None if self.validation_score is None else vars(self.validation_score),
                "minutes": round(self.made_seconds / 60, 3),
                "finalists": [
                    {
                        "name": row.name,
                        "score": vars(row.score),
                        "drop": None if row.drop is None else vars(row.drop),
                        "latency_ms": vars(row.latency_ms),
                        "speedup": vars(row.speedup),
                        "size_bytes": row.size_bytes,
                        "compressed_bytes": row.compressed_bytes,
                        "within_limits": row.budget_met,
                        "pareto": row.pareto,
                        "alike": row.alike,
                    }
                    for row in self.rows
                ],
                "p_values": [{"one": one, "other": other, "p": p} for (one, other), p in self.p_values.items()],
                "trials": [trial.to_json() for trial in self.trials],
            }
        )
        return found

    def print(self, console: "Console | None" = None) -> None:
        """Prints why, and the table of the finalists, to `console`, by default the terminal."""
        print_comparison(self.rows, console, busy=self.busy, told=self.told, concluded=[self.why])
