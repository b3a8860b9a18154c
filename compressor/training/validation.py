"""The score of a model on validation data while it is trained: in float32, as the file that ships computes it."""

import math

import torch
from torch import Tensor, nn

from compressor.errors import StageError
from compressor.training.precision import Form
from compressor.training.replay import kept_modes
from compressor.workload import Workload, batches_of


def validation_rows(model: nn.Module, workload: Workload, form: Form) -> Tensor | None:
    """The metric's row of every validation sample, computed by torch in `form`; None if an output is NaN."""
    rows = []
    with kept_modes(model), torch.no_grad():
        model.eval()
        for inputs, targets in batches_of(workload.validation):
            outputs = form.predict(model, inputs).cpu()
            if bool(outputs.isnan().any()):
                return None
            rows.append(workload.metric.rows(outputs, targets.cpu()))
    if not rows:
        raise StageError("the validation data has no batches, so no epoch can be chosen; give validation data")
    return torch.cat(rows)


def validation_score(model: nn.Module, workload: Workload, form: Form) -> float:
    """The score of `model` on validation data, computed by torch in `form`; NaN if an output is NaN."""
    rows = validation_rows(model, workload, form)
    return math.nan if rows is None else workload.metric.aggregate(rows)
