"""One training loop for every stage that trains: fast, replayable to the bit, and safe to kill."""

import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from compressor.batches import Inputs
from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.notes.training import Epoch, Epochs
from compressor.stage import Context
from compressor.training.optimization import Cycle, check_schedule, optimizer_for, peak_rate
from compressor.training.precision import Form, at_least_float32
from compressor.training.replay import kept_modes, kept_randomness, replayed
from compressor.training.snapshots import (
    Tensors,
    capture,
    digest,
    optimizer_tensors,
    read_snapshot,
    restore_,
    restore_optimizer_,
    write_snapshot,
)
from compressor.workload import Workload, batch_size_of, batches_of, predict

MAX_GRADIENT_NORM = 5.0
MAX_RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class EpochLog:
    """One epoch: mean training loss, validation score, the rate of its last batch, wall time with validation."""

    epoch: int
    loss: float
    score: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in the replayable stream a batch stands: the same (view, batch) is the same batch, bit by bit."""

    view: int
    batch: int


# The loss of one batch. It is called under autocast; the model's output should become float32 before the arithmetic.
Objective = Callable[[nn.Module, Inputs, Tensor, Position], Tensor]

# What is done to the weights after every step, given its rate.
AfterStep = Callable[[float], None]


class _DivergedError(Exception):
    pass


@dataclass(kw_only=True)
class _Progress:
    """What a resumed training needs to know besides the current weights."""

    logs: list[EpochLog]
    best: Tensors
    rate_scale: float = 1.0
    retries: int = 0


def train(
    model: nn.Module,
    workload: Workload,
    *,
    epochs: int,
    learning_rate: float,
    context: Context,
    tail_epochs: int = 0,
    weight_decay: float = 5e-4,
    objective: Objective | None = None,
    views: int | None = None,
    label: str = "training",
    identity: str = "",
    after_step: AfterStep | None = None,
    keep_last: bool = False,
) -> list[EpochLog]:
    """The log of every epoch; `model` is trained in place and left at its best epoch by validation (ties: the later).

    `epochs` of one cycle up to `learning_rate` are followed by `tail_epochs` at a hundredth of it. Convolutional models
    are trained by SGD with Nesterov momentum; models with recurrent or LayerNorm layers, and those with neither
    convolution nor BatchNorm, by AdamW at a fiftieth of the rate. `objective` replaces `workload.loss`. With `views`,
    epoch e replays the batches of epoch e % views. What is frozen stays frozen. With `context.folder`, every epoch is
    saved there under `label`, and a killed run goes on to the same bits; `identity` names what else the result depends
    on: a snapshot of another identity is not continued, and why is shown. `after_step` runs after every step, without
    gradients; it must remember nothing, for a resumed training calls it from the middle. With `keep_last` the model is
    left at its last epoch, for trainings that aim at something that the score does not see.

    A loss or gradient that is not finite rolls back to the best epoch and halves the rate, at most twice. Raises
    StageError then, when everything is frozen, and when there is no batch to train on.
    """
    check_schedule(epochs=epochs, learning_rate=learning_rate, tail_epochs=tail_epochs, weight_decay=weight_decay)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise StageError(
            f"nothing to train: {type(model).__name__} has no parameter with requires_grad; unfreeze what may change"
        )
    form = Form.of(model)
    path = None if context.folder is None else context.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}.safetensors"
    total = epochs + tail_epochs
    with kept_randomness(), kept_modes(model), form.applied(model):
        batches = _length(workload.train, context.seed)
        settings = {
            "epochs": epochs,
            "tail_epochs": tail_epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "views": views,
            "batches": batches,
            "seed": context.seed,
            "identity": identity,
            "model": digest(model) if path else "",
        }
        optimizer = optimizer_for(model, weight_decay)
        progress = _Progress(logs=[], best=capture(model))
        if path is not None:
            refused = _resume_(path, settings, model, optimizer, progress)
            if refused and context.progress:
                tqdm.write(f"  {refused}", file=sys.stderr)
        with tqdm(
            total=total * batches,
            initial=len(progress.logs) * batches,
            desc=label,
            unit="batch",
            leave=False,
            disable=not context.progress,
        ) as bar:
            loop = _Loop(
                model=model,
                workload=workload,
                form=form,
                cycle=Cycle(epochs=epochs, batches=batches, peak=peak_rate(model, learning_rate)),
                objective=objective or _workload_loss(workload, form),
                seed=context.seed,
                views=views or total,
                bar=bar,
                after_step=after_step,
            )
            while (epoch := len(progress.logs)) < total:
                try:
                    log = loop.epoch_(optimizer, progress)
                except _DivergedError as trouble:
                    restore_(model, progress.best)
                    if progress.retries == MAX_RETRIES:
                        raise StageError(
                            f"{label} does not converge: {trouble}, after halving the rate {MAX_RETRIES} times to "
                            f"{loop.cycle.peak * progress.rate_scale:g}; set learning_rate below "
                            f"{learning_rate * progress.rate_scale:g} or look for bad values in the training data"
                        ) from trouble
                    progress.retries, progress.rate_scale = progress.retries + 1, progress.rate_scale / 2
                    # Momentum points to where it diverged.
                    optimizer = optimizer_for(model, weight_decay)
                    bar.update(epoch * batches - bar.n)
                    continue
                progress.logs.append(log)
                if keep_last or best_epoch(progress.logs, workload.metric) == epoch:
                    progress.best = capture(model)
                if path is not None:
                    _save(path, settings, model, optimizer, progress)
        restore_(model, progress.best)
    return progress.logs


def best_epoch(logs: list[EpochLog], metric: Metric) -> int:
    """The number of the epoch with the best validation score, the last of equals."""
    sign = 1 if metric.higher_is_better else -1
    return max(logs, key=lambda log: (sign * log.score, log.epoch)).epoch


def epochs_note(logs: list[EpochLog], metric: Metric | None = None) -> Epochs:
    """What the report is told of a training that kept the best epoch by `metric`, or the last one without."""
    best = None if metric is None else best_epoch(logs, metric)
    return Epochs(epochs=tuple(Epoch(**asdict(log)) for log in logs), best_epoch=best)


def validation_score(model: nn.Module, workload: Workload, form: Form) -> float:
    """The score of `model` on validation data, computed by torch in `form`; NaN if an output is NaN."""
    rows = []
    with kept_modes(model), torch.no_grad():
        model.eval()
        for inputs, targets in batches_of(workload.validation):
            outputs = form.predict(model, inputs).cpu()
            if bool(outputs.isnan().any()):
                return math.nan
            rows.append(workload.metric.rows(outputs, targets.cpu()))
    if not rows:
        raise StageError("the validation data has no batches, so no epoch can be chosen; give validation data")
    return workload.metric.aggregate(torch.cat(rows))


@dataclass(frozen=True, kw_only=True)
class _Loop:
    model: nn.Module
    workload: Workload
    form: Form
    cycle: Cycle
    objective: Objective
    seed: int
    views: int
    bar: Any
    after_step: AfterStep | None

    def epoch_(self, optimizer: torch.optim.Optimizer, progress: _Progress) -> EpochLog:
        """Trains one epoch and scores it. Raises _DivergedError at the first number that is not finite."""
        started, epoch = perf_counter(), len(progress.logs)
        with replayed(self.seed, epoch % self.views):
            loss = self._batches_(optimizer, progress)
        score = validation_score(self.model, self.workload, self.form)
        _check_finite(score, f"validation {self.workload.metric.name} after epoch {epoch}")
        return EpochLog(
            epoch=epoch,
            loss=loss,
            score=score,
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            seconds=perf_counter() - started,
        )

    def _batches_(self, optimizer: torch.optim.Optimizer, progress: _Progress) -> float:
        epoch = len(progress.logs)
        self.model.train()
        normalised = any(isinstance(module, _BatchNorm) for module in self.model.modules())
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        score = f"{progress.logs[-1].score:.4f}" if progress.logs else "-"
        total, count = 0.0, 0
        for batch, (inputs, targets) in enumerate(batches_of(self.workload.train)):
            self.bar.update()
            # BatchNorm cannot normalise one sample in training mode.
            if normalised and batch_size_of(inputs) == 1:
                continue
            for group in optimizer.param_groups:
                group["lr"] = self.cycle.rate(epoch, batch) * progress.rate_scale
            optimizer.zero_grad()
            position = Position(view=epoch % self.views, batch=batch)
            with self.form.autocast():
                loss = self.objective(self.model, self.form.place(inputs), targets.to(self.form.device), position)
            value = _check_finite(float(loss.detach()), f"loss in epoch {epoch}, batch {batch}")
            loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
            norm = nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            _check_finite(float(norm), f"gradient norm in epoch {epoch}, batch {batch}")
            optimizer.step()
            if self.after_step is not None:
                with torch.no_grad():
                    self.after_step(float(optimizer.param_groups[0]["lr"]))
            total, count = total + value, count + 1
            self.bar.set_postfix(loss=f"{total / count:.4f}", score=score, refresh=False)
        if not count:
            raise StageError(
                f"epoch {epoch} had no batch to train on; the training data must be iterable again and again, with "
                "batches of at least 2 samples for BatchNorm"
            )
        return total / count


def _check_finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise _DivergedError(f"{what} is {value}")
    return value


def _workload_loss(workload: Workload, form: Form) -> Objective:
    def objective(model: nn.Module, inputs: Inputs, targets: Tensor, _position: Position) -> Tensor:
        outputs = at_least_float32(predict(model, inputs))
        with form.exact():
            return workload.loss(outputs, targets)

    return objective


def _length(data: Iterable[Any], seed: int) -> int:
    try:
        return max(1, len(data))  # type: ignore[arg-type] # the except is for those without
    except TypeError:
        # A stream does not say how long it is, but the schedule must know.
        with replayed(seed, 0):
            return max(1, sum(1 for _ in data))


def _save(
    path: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, progress: _Progress
) -> None:
    tensors = {f"best/{name}": tensor for name, tensor in progress.best.items()}
    # The last snapshot marks the training as done: nothing goes on from its weights.
    if len(progress.logs) < settings["epochs"] + settings["tail_epochs"]:
        tensors |= {f"model/{name}": tensor for name, tensor in capture(model).items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer_tensors(optimizer).items()}
    facts = {
        "settings": settings,
        "logs": [asdict(log) for log in progress.logs],
        "rate_scale": progress.rate_scale,
        "retries": progress.retries,
    }
    write_snapshot(path, tensors, facts)


def _resume_(
    path: Path, settings: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, progress: _Progress
) -> str:
    """Goes on from the snapshot at `path`; why not, in a sentence, where there is one of another training."""
    if not path.exists():
        return ""
    tensors, facts = read_snapshot(path)
    before = facts.get("settings", {})
    changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if changed:
        told = "; ".join(f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in changed)
        return f"the snapshot {path} is of another training and not continued: {told}"
    parts: dict[str, Tensors] = {"best": {}, "model": {}, "optimizer": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    progress.best = parts["best"]
    progress.logs = [EpochLog(**log) for log in facts["logs"]]
    progress.rate_scale, progress.retries = facts["rate_scale"], facts["retries"]
    if parts["model"]:
        restore_(model, parts["model"])
        restore_optimizer_(optimizer, parts["optimizer"])
    return ""
