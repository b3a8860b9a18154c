"""How long a run will take, from one step of training and one pass forward on this machine, now."""

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import nn

from compressor.kept_state import private_copy
from compressor.report.numbers import duration
from compressor.stage import Stage, replacement, stage_name
from compressor.structure.calling.draws import kept_randomness
from compressor.training.passes.rate_trials import PARTS, tries_rates
from compressor.training.settings import TrainingSettings
from compressor.training.streams import said_length
from compressor.workload import Workload, first_batches, predict

# Export, scoring and timing of one file of a small network; large ones take longer.
_FILE_SECONDS = 10.0


def estimated(workload: Workload, stages: Sequence[Stage]) -> str:
    """What `stages` will take on this machine, in a sentence; trainings by one step that is timed, on a copy.

    What searches, ranks or calibrates is not in it: the sentence says so.
    """
    trained = [stage for stage in stages if getattr(stage, "trains", False)]
    student = next(filter(None, map(replacement, trained)), None)
    if student is not None:
        workload = replace(workload, model=student)
    files = len(stages) + 1
    rest = f"and about {duration(files * _FILE_SECONDS)} for {files} files to export, score and time"
    if not trained:
        return f"estimated on this machine: no training, {rest}"
    length = said_length(workload.train)
    step = step_seconds(workload)
    parts, total = [], 0.0
    for stage in trained:
        updates = updates_of(stage, length)
        if updates is None:
            parts.append(f"{stage_name(stage)} as long as its data, which say no length")
            continue
        total += updates * step
        parts.append(f"{stage_name(stage)} {updates} updates")
    unit = f"{1000 * step:.0f} ms" if step < 1 else f"{step:.1f} s"
    return (
        f"estimated on this machine: about {duration(total)} of training ({', '.join(parts)}, at {unit} each), {rest}; "
        "ranking, searches and teachers come on top"
    )


def updates_of(stage: Any, length: int | None) -> int | None:
    """How many updates a training makes, with those of its trials; None where its data say no length."""
    steps = getattr(stage, "steps", None)
    if steps is not None:
        return int(steps) * _times(stage, int(steps))
    if length is None:
        return None
    updates = length * (int(getattr(stage, "epochs", None) or 1) + int(getattr(stage, "tail_epochs", None) or 0))
    return updates * _times(stage, updates)


def _times(stage: Any, updates: int) -> int:
    """How often a training is run: trials of its rate come before it."""
    tries = isinstance(stage, TrainingSettings) and not getattr(stage, "keeps_last", False)
    return 1 + len(PARTS) if tries and tries_rates(stage, updates) else 1


def step_seconds(workload: Workload) -> float:
    """The seconds of one forward and backward pass on the first batch, the better of two."""
    model: nn.Module = private_copy(workload.model).train()
    best = float("inf")
    with kept_randomness(), torch.enable_grad():
        (inputs, targets), *_ = first_batches(workload.train, 1)
        for _ in range(2):
            started = perf_counter()
            loss = workload.loss(predict(model, inputs), targets)
            if loss.requires_grad:
                torch.autograd.backward(loss)
            best = min(best, perf_counter() - started)
    return best
