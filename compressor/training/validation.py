"""The score of a model on validation data while it is trained: in float32, as the file that ships computes it.

A training has to beat the model that it began with, on the same samples; what does not is undone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.batches import judged_target
from compressor.budget import describe_drop
from compressor.errors import StageError
from compressor.intervals import paired_drop
from compressor.metrics import Metric
from compressor.training.precision import Form
from compressor.training.replay import kept_modes, replayed
from compressor.workload import Workload, batches_of


def validation_rows(model: nn.Module, workload: Workload, form: Form) -> Tensor | None:
    """The metric's row of every validation sample, computed by torch in `form`; None if an output is NaN.

    The samples come in the same order every time, in shuffled data too: their rows can be paired.
    """
    rows = []
    with kept_modes(model), replayed(0, 0), torch.no_grad():
        model.eval()
        for inputs, targets in batches_of(workload.validation):
            outputs = form.predict(model, inputs).cpu()
            if bool(outputs.isnan().any()):
                return None
            rows.append(workload.metric.rows(outputs, judged_target(targets).cpu()))
    if not rows:
        raise StageError("the validation data has no batches, so no epoch can be chosen; give validation data")
    return torch.cat(rows)


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
