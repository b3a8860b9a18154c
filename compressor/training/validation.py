"""The score of a model on validation data while it is trained: in float32, as the file that ships computes it.

A training has to beat the model that it began with, on the same samples; what does not is undone.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import judged_target
from compressor.budget import describe_drop
from compressor.errors import StageError
from compressor.intervals import paired_drop
from compressor.metrics import Metric
from compressor.progress.bars import progress_bar
from compressor.training.precision import Form
from compressor.training.replay import kept_modes, replayed
from compressor.training.streams import said_length
from compressor.workload import Workload, batches_of


class Joined:
    """Validation data of two parts, one after the other; `part` says in a pass which of them the last batch was of."""

    def __init__(self, first: Iterable[Any], second: Iterable[Any]) -> None:
        self.first, self.second, self.part = first, second, 0

    def __iter__(self) -> Iterator[Any]:
        for part, data in enumerate((self.first, self.second)):
            self.part = part
            yield from data

    def __len__(self) -> int:
        """How many batches both have. Raises TypeError where one does not say."""
        return len(self.first) + len(self.second)  # type: ignore[arg-type] # list() and others take the TypeError for an answer


def with_part(rows: Tensor, part: int) -> Tensor:
    """A metric's `rows`, (batch,) or (batch, k), with the part that they are of in one more column, or in two."""
    columns = rows[:, None] if rows.ndim == 1 else rows
    return torch.cat([columns, torch.full_like(columns[:, :1], part).expand(-1, rows.ndim)], dim=1)


def of_parts(metric: Metric) -> Metric:
    """`metric` of rows that say their part: the mean of the parts' scores, however many samples each has.

    A part whose score is no number, as no label in it is asked for, counts for nothing where another has one.
    """

    def aggregate(rows: Tensor) -> float:
        own = rows[:, 0] if rows.shape[1] == 2 else rows[:, :-2]
        scores = [metric.aggregate(own[rows[:, -1] == part]) for part in torch.unique(rows[:, -1])]
        told = [score for score in scores if math.isfinite(score)] or scores
        return math.fsum(told) / len(told)

    return replace(metric, aggregate=aggregate, proportion=False)


def validation_rows(model: nn.Module, workload: Workload, form: Form) -> Tensor | None:
    """The metric's row of every validation sample, computed by torch in `form`; None if an output is NaN.

    The samples come in the same order every time, in shuffled data too: their rows can be paired.
    """
    rows, data = [], workload.validation
    with kept_modes(model), replayed(0, 0), torch.no_grad():
        model.eval()
        for inputs, targets in progress_bar(batches_of(data), desc="validation", unit="batch", total=said_length(data)):
            outputs = form.predict(model, inputs).cpu()
            if bool(outputs.isnan().any()):
                return None
            found = workload.metric.rows(outputs, judged_target(targets).cpu())
            rows.append(with_part(found, data.part) if isinstance(data, Joined) else found)
    if not rows:
        raise StageError("the validation data has no batches, so no epoch can be chosen; give validation data")
    return workload.metric.together(rows)


def validation_score(model: nn.Module, workload: Workload, form: Form) -> float:
    """The score of `model` on validation data, computed by torch in `form`; NaN if an output is NaN."""
    rows = validation_rows(model, workload, form)
    return math.nan if rows is None else workload.metric.aggregate(rows)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A training's best epoch against the model before it, on validation: their scores, and the difference in words."""

    before: float
    best: float
    failed: bool
    says: str


def compare(before: Tensor | None, best: Tensor | None, metric: Metric, *, seed: int) -> Comparison | None:
    """What a training achieved, from the metric's rows before it and of its best epoch; it failed where that is worse.

    Equal scores are no failure: where all is right already, there is nothing to win. None where the model before had no
    score to compare with, which any number beats.
    """
    if before is None or best is None or not math.isfinite(metric.aggregate(before)):
        return None
    drop = paired_drop(best, before, metric, seed=seed)
    failed, change = drop.value > 0, f"validation {describe_drop(drop, metric)}"
    return Comparison(
        before=metric.aggregate(before),
        best=metric.aggregate(best),
        failed=failed,
        says=f"no epoch was better than the model before it, at best {change}: that model is kept"
        if failed
        else change,
    )
