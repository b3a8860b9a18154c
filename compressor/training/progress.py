"""How far a training has come: its epochs, its best state, and what a killed one needs to go on to the same bits."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import StorageError
from compressor.metrics import Metric
from compressor.notes.training import Epoch, Epochs, Trainings
from compressor.storage import require_space
from compressor.streams.own_state import Counters
from compressor.training.optimizers.averaging import Average
from compressor.training.passes.range_test import Found
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import (
    Saved,
    Tensors,
    capture,
    optimizer_state,
    read_snapshot,
    restore_,
    write_snapshot,
)


@dataclass(frozen=True, kw_only=True)
class EpochLog:
    """One epoch: mean training loss, validation score, the rate of its last batch, wall time with validation."""

    epoch: int
    loss: float
    score: float
    learning_rate: float
    seconds: float


@dataclass(kw_only=True)
class Progress:
    """What a resumed training needs to know besides the current weights.

    `before` and `best_rows` are the metric's rows of the validation samples, of the model before the training and
    of the best state; None where an output is no number, or where nobody asks. `gave_up_bfloat16` is why the inner
    layers went over to float32 on the way, "" while they did not. `counters` is what the loader of the training
    data has counted, `loss_tensors` and `loss_numbers` are what the loss keeps from call to call, `found` the
    optimizer that the training takes, `average` that of its weights where one is kept.
    """

    logs: list[EpochLog]
    best: Tensors
    before: Tensor | None = None
    best_rows: Tensor | None = None
    rate_scale: float = 1.0
    retries: int = 0
    gave_up_bfloat16: str = ""
    counters: Counters = field(default_factory=dict)
    loss_tensors: Tensors = field(default_factory=dict)
    loss_numbers: Counters = field(default_factory=dict)
    found: Found | None = None
    average: Average | None = None

    def is_done(self, epochs: int, patience: int | None, metric: Metric) -> bool:
        """Whether a training of so many `epochs` is over, or has gone on for `patience` of them without a better."""
        done = len(self.logs)
        return done >= epochs or bool(patience and done and done - 1 - first_best_epoch(self.logs, metric) >= patience)

    def require_space(self, path: Path, model: nn.Module, epochs: int) -> None:
        """Raises WriteError where the disk of `path` has no room for the snapshots of the `epochs` to come."""
        best = sum(tensor.nbytes for tensor in self.best.values())
        trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
        more = 2 if self.average is None else 3
        # The last one holds the best state alone, those before it the present one and what the optimizer keeps as well.
        require_space(path, best if epochs == 1 else more * best + trained)

    def save(
        self, path: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, *, done: bool
    ) -> None:
        """Puts it all at `path`; of a training that is `done`, from whose weights nothing goes on, its best state."""
        tensors = {f"best/{name}": tensor for name, tensor in self.best.items()}
        rows = {"rows/before": self.before, "rows/best": self.best_rows}
        tensors |= {name: tensor for name, tensor in rows.items() if tensor is not None}
        numbers: Saved = {}
        if not done:
            tensors |= {f"model/{name}": tensor for name, tensor in capture(model).items()}
            kept = optimizer_state(optimizer)
            tensors |= {f"optimizer/{name}": value for name, value in kept.items() if isinstance(value, Tensor)}
            numbers = {name: value for name, value in kept.items() if not isinstance(value, Tensor)}
            tensors |= {f"loss/{name}": tensor for name, tensor in self.loss_tensors.items()}
            if self.average is not None:
                tensors |= {f"average/{name}": tensor for name, tensor in self.average.tensors.items()}
        facts = {
            "found": None if self.found is None else self.found.to_facts(),
            "optimizer": numbers,
            "average_updates": 0 if self.average is None else self.average.updates,
            "settings": settings,
            "logs": [asdict(log) for log in self.logs],
            "rate_scale": self.rate_scale,
            "retries": self.retries,
            "gave_up_bfloat16": self.gave_up_bfloat16,
            "counters": self.counters,
            "loss": self.loss_numbers,
        }
        write_snapshot(path, tensors, facts)

    def resume_(
        self, path: Path, identified: dict[str, Any], model: nn.Module, settings: TrainingSettings
    ) -> tuple[str, Saved]:
        """Goes on from the snapshot at `path`: ("", the state of its optimizer).

        Where there is one of another training, why not in a sentence, and nothing.
        """
        if not path.exists():
            return "", {}
        try:
            tensors, facts = read_snapshot(path)
        except StorageError as error:
            return f"{error.sentence}; it is not continued", {}
        before = facts.get("settings", {})
        changed = sorted(key for key in {*before, *identified} if before.get(key) != identified.get(key))
        if changed:
            told = "; ".join(f"{key} was {before.get(key)!r}, is {identified.get(key)!r}" for key in changed)
            return f"the snapshot {path} is of another training and not continued: {told}", {}
        parts: dict[str, Tensors] = {"best": {}, "rows": {}, "model": {}, "optimizer": {}, "average": {}, "loss": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        self.best = parts["best"]
        self.before, self.best_rows = parts["rows"].get("before"), parts["rows"].get("best")
        self.logs = [EpochLog(**log) for log in facts["logs"]]
        self.rate_scale, self.retries = facts["rate_scale"], facts["retries"]
        self.gave_up_bfloat16, self.counters = facts["gave_up_bfloat16"], facts["counters"]
        self.loss_tensors, self.loss_numbers = parts["loss"], facts.get("loss", {})
        self.found = Found.from_facts(facts["found"], settings.optimizer)
        if settings.averaging is not None and parts["average"]:
            self.average = Average(keep=settings.averaging, tensors=parts["average"], updates=facts["average_updates"])
        if parts["model"]:
            restore_(model, parts["model"])
        return "", {**parts["optimizer"], **facts["optimizer"]}


def best_epoch(logs: list[EpochLog], metric: Metric) -> int:
    """The number of the epoch with the best validation score, the last of equals."""
    sign = 1 if metric.higher_is_better else -1
    return max(logs, key=lambda log: (sign * log.score, log.epoch)).epoch


def first_best_epoch(logs: list[EpochLog], metric: Metric) -> int:
    """The number of the epoch with the best validation score, the first of equals."""
    sign = 1 if metric.higher_is_better else -1
    return max(logs, key=lambda log: (sign * log.score, -log.epoch)).epoch


def epochs_note(logs: list[EpochLog], metric: Metric | None, details: Mapping[str, Any]) -> Epochs:
    """What the report is told of a training that kept the best epoch by `metric`, or the last one without.

    No epoch was kept of one that failed, as `details`, what was told of it so far, say.
    """
    told = Trainings.from_json(details)
    failed = told is not None and told.trainings[-1].failed
    best = None if metric is None or failed else best_epoch(logs, metric)
    return Epochs(epochs=tuple(Epoch(**asdict(log)) for log in logs), best_epoch=best)
