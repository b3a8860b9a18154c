"""Inputs without labels: targets are what the model itself gives for them, and scores say how far others agree."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_tensors
from compressor.errors import WorkloadError
from compressor.given.judging import Which, judged_by
from compressor.given.models import as_usual_model
from compressor.given.numbers import as_usual
from compressor.metrics import Metric
from compressor.runtime import OnnxModule
from compressor.scoring.agreement import decisions_of
from compressor.training.replay import kept_modes, replayed
from compressor.workload import Workload, predict

# Below this neither decisions nor the report mean anything.
FEWEST_SAMPLES = 20
# Samples whose outputs tell what they decide.
_LOOKED_AT = 256


def workload_of_inputs(
    model: nn.Module,
    inputs: Any,
    *,
    metric: str | Metric | None = None,
    judge: Which | None = None,
    test_fraction: float = 0.4,
    validation_fraction: float = 0.5,
    batch_size: int = 32,
    **settings: Any,
) -> Workload:
    """The workload of `inputs` without labels: targets are the outputs of `model` itself for them.

    `inputs` are tensors or arrays as the model takes them, a sample in every row, at least 20. The metric is
    "agreement" where outputs hold decisions and "relative" where they do not, unless given. `test_fraction` of the
    samples are for the report, and `validation_fraction` of the rest decides. `settings` are as for
    `Workload.from_datasets`. Raises WorkloadError where rows differ in number, or outputs in size from batch to batch.
    """
    given = as_usual(inputs)
    if isinstance(model, OnnxModule):
        given = model.in_rows(given)
    count = _rows_of(given)
    targets = answers(judged_by(as_usual_model(model), judge), given, count=count, batch_size=batch_size)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    first = round(count * (1 - test_fraction))
    train, test = ((_part_of(given, rows), targets[rows]) for rows in (order[:first], order[first:]))
    return Workload.from_datasets(
        model,
        train=train,
        test=test,
        metric=metric or metric_without_labels(targets),
        judge=judge,
        validation_fraction=validation_fraction,
        batch_size=batch_size,
        **settings,
    )


def metric_without_labels(targets: Tensor) -> str:
    """The name of the metric: "agreement" where outputs like `targets` hold decisions, else "relative"."""
    return "relative" if decisions_of(targets[:_LOOKED_AT]) is None else "agreement"


def answers(model: nn.Module, inputs: Inputs, *, count: int, batch_size: int) -> Tensor:
    """The judged outputs of `model` for the `count` samples of `inputs`, in eval mode; it is as before then."""
    with torch.no_grad(), kept_modes(model), replayed(0, 0):
        model.eval()
        rows = [
            predict(model, _part_of(inputs, torch.arange(start, min(start + batch_size, count))))
            for start in range(0, count, batch_size)
        ]
    if any(row.ndim != rows[0].ndim or row.shape[1:] != rows[0].shape[1:] for row in rows):
        raise WorkloadError("outputs for some inputs have another shape than for others; give inputs of one size")
    # Of type double in some files: a notice of numbers that are not the user's would puzzle.
    found: Tensor = as_usual(torch.cat(rows))
    if len(found) != count:
        raise WorkloadError(
            f"the judged output has {len(found)} rows for {count} samples, as outputs have that choose by value; name "
            "another one with judge="
        )
    return found


def _part_of(inputs: Inputs, rows: Tensor) -> Inputs:
    return map_tensors(inputs, lambda tensor: tensor[rows])


def _rows_of(inputs: Inputs) -> int:
    tensors = [*inputs.values()] if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    counts = sorted({len(tensor) for tensor in tensors})
    if len(counts) != 1:
        raise WorkloadError(f"inputs must have as many rows each, got {', '.join(map(str, counts))}")
    if counts[0] < FEWEST_SAMPLES:
        raise WorkloadError(
            f"{counts[0]} inputs, and at least {FEWEST_SAMPLES} are needed for calibration, decisions and the report; "
            "some hundred are better"
        )
    return counts[0]
