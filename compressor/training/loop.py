"""One training loop for every stage that trains: fast, replayable to the bit, and safe to kill."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from compressor.batches import Inputs, Targets
from compressor.errors import StageError
from compressor.notes.training import Training, Trainings
from compressor.stage import Context
from compressor.structure.calling.draws import kept_randomness
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.training.agreement import Choice, choose
from compressor.training.dense_gradients import dense_gradients
from compressor.training.freezing import freezing, frozen_names, still_modules, train_mode_
from compressor.training.held_values import Held, HeldValues, clustered_names
from compressor.training.held_zeros import HeldZeros, held_names, held_parameters
from compressor.training.optimization import Cycle, check_schedule, optimizer_for, peak_rate
from compressor.training.precision import AutoPrecision, Form, Precision, at_least_float32
from compressor.training.progress import EpochLog, Progress, best_epoch
from compressor.training.replay import kept_modes, replayed
from compressor.training.snapshots import capture, digest, restore_
from compressor.training.streams import Stream, endless
from compressor.training.validation import Comparison, compare, validation_rows
from compressor.workload import Workload, batch_size_of, predict

MAX_GRADIENT_NORM = 5.0
MAX_RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in the replayable stream a batch stands: the same (view, batch) is the same batch, bit by bit."""

    view: int
    batch: int


# The loss of one batch. It is called under autocast; the model's output should become float32 before the arithmetic.
Objective = Callable[[nn.Module, Inputs, Targets, Position], Tensor]

# What is done to the weights after every step, given its rate.
AfterStep = Callable[[float], None]


class _DivergedError(Exception):
    pass


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
    precision: Precision = AutoPrecision(),  # noqa: B008 - it is frozen and holds nothing
    freeze: tuple[str, ...] = (),
    student: nn.Module | None = None,
) -> list[EpochLog]:
    """The log of every epoch; `model` is trained in place and left at its best epoch by validation (ties: the later).

    Where even that one scores below the model before the training, the model is left as it was, and the report told
    that the training failed.

    `epochs` of one cycle up to `learning_rate` are followed by `tail_epochs` at a hundredth of it. Convolutional models
    are trained by SGD with Nesterov momentum; models with recurrent or LayerNorm layers, and those with neither
    convolution nor BatchNorm, by AdamW at a fiftieth of the rate. `objective` replaces `workload.loss`. With `views`,
    epoch e replays the batches of epoch e % views. With `context.folder`, every epoch is saved there under `label`, and
    a killed run goes on to the same bits; `identity` names what else the result depends on: a snapshot of another
    identity is not continued, and why is shown. `after_step` runs after every step, without gradients; it must remember
    nothing, for a resumed training calls it from the middle. With `keep_last` the model is left at its last epoch, for
    trainings that aim at something that the score does not see. `precision` says what the inner layers are computed in;
    where that is bfloat16, every epoch begins with a look at whether a batch still agrees in both formats, and goes
    over to float32 for good where it does not. The report is told.

    What is frozen, by `requires_grad` or by the globs `freeze`, stays as it is, and so do modules that the user put
    into eval mode by themselves (`training.freezing` says which). `student` is the part of `model` that stands for the
    workload's model where that is not all of it. Zeros that the plan holds (`training.held_zeros`) stay zero, and so
    does what `after_step` adds to them; weights that share a value by the plan (`training.held_values`) stay equal.

    A loss or gradient that is not finite rolls back to the best epoch and halves the rate, at most twice. Raises
    StageError then, when everything is frozen, and when there is no batch to train on.
    """
    check_schedule(epochs=epochs, learning_rate=learning_rate, tail_epochs=tail_epochs, weight_decay=weight_decay)
    part = model if student is None else student
    empty_caches_(part, workload.example_inputs)
    choice = choose(model, workload, precision, seed=context.seed)
    form = choice.form
    path = None if context.folder is None else context.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}.safetensors"
    total = epochs + tail_epochs
    stream = Stream.of(workload.train, context.seed)
    batches = stream.batches
    if batches is None:
        raise endless("the training data")
    with (
        freezing(part, freeze),
        kept_randomness(),
        kept_modes(model),
        form.applied(model),
        stream.kept(),
        dense_gradients(model),
    ):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise StageError(
                f"nothing to train: all parameters of {type(part).__name__} are frozen; unfreeze what may change "
                "(requires_grad), and leave it out of freeze"
            )
        still = still_modules(part, workload.model, freeze)
        frozen = frozen_names(part, still)
        plan = [*context.plan_before, *context.plan]
        held = held_parameters(part, held_names(plan))
        clustered = held_parameters(part, clustered_names(plan))
        kept = Held(HeldZeros([*held.values()]), HeldValues([*clustered.values()]))
        settings = {
            "epochs": epochs,
            "tail_epochs": tail_epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "views": views,
            "batches": batches,
            "data": stream.begins,
            "seed": context.seed,
            "identity": identity,
            "precision": repr(precision),
            "frozen": list(frozen),
            "held_zeros": list(held),
            "held_values": list(clustered),
            "model": digest(model) if path else "",
        }
        optimizer = optimizer_for(model, weight_decay)
        start = capture(model)
        progress = Progress(logs=[], best=start)
        if path is not None:
            refused = progress.resume_(path, settings, model, optimizer)
            stream.go_on_(progress.counters)
            if refused and context.progress:
                tqdm.write(f"  {refused}", file=sys.stderr)
            if len(progress.logs) < total:
                progress.require_space(path, model, total - len(progress.logs))
        if not (progress.logs or keep_last):
            progress.before = validation_rows(model, workload, form)
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
                still=tuple(still.values()),
                stream=stream,
                choice=choice,
                cycle=Cycle(epochs=epochs, batches=batches, peak=peak_rate(model, learning_rate)),
                objective=objective or _workload_loss(workload, form),
                seed=context.seed,
                views=views or total,
                bar=bar,
                after_step=after_step,
                held=kept,
            )
            while (epoch := len(progress.logs)) < total:
                try:
                    log, rows = loop.epoch_(optimizer, progress)
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
                    progress.best, progress.best_rows = capture(model), rows
                if path is not None:
                    progress.counters = stream.counters()
                    progress.save(path, settings, model, optimizer, done=len(progress.logs) == total)
        found = compare(progress.before, progress.best_rows, workload.metric, seed=context.seed)
        restore_(model, start if found is not None and found.failed else progress.best)
    before = Trainings.from_json(context.details)
    told = _told(label, choice, progress, found, frozen=frozen, remarks=stream.remarks)
    context.tell(Trainings(trainings=(*(before.trainings if before else ()), told)))
    return progress.logs


def _told(
    label: str,
    choice: Choice,
    progress: Progress,
    found: Comparison | None,
    *,
    frozen: tuple[str, ...],
    remarks: list[str],
) -> Training:
    decibels = choice.decibels
    return Training(
        training=label,
        inner_layers="bfloat16" if choice.form.bfloat16 else "float32",
        why="; ".join(filter(None, [choice.why, progress.gave_up_bfloat16])),
        signal_to_noise_db=decibels if decibels is not None and math.isfinite(decibels) else None,
        frozen=frozen,
        data="; ".join(remarks) or None,
        **({} if found is None else asdict(found)),
    )


@dataclass(frozen=True, kw_only=True)
class _Loop:
    model: nn.Module
    workload: Workload
    stream: Stream
    still: tuple[nn.Module, ...]
    choice: Choice
    cycle: Cycle
    objective: Objective
    seed: int
    views: int
    bar: Any
    after_step: AfterStep | None
    held: Held

    def epoch_(self, optimizer: torch.optim.Optimizer, progress: Progress) -> tuple[EpochLog, Tensor | None]:
        """Trains one epoch and scores it: its log and the metric's rows.

        Raises _DivergedError at the first number that is not finite.
        """
        started, epoch = perf_counter(), len(progress.logs)
        if epoch and self._in_bfloat16(progress):
            found = self.choice.still_agrees(self.model, self.workload, self.seed)
            if found.objection:
                progress.gave_up_bfloat16 = f"float32 from epoch {epoch} on: {found.objection}"
        with replayed(self.seed, epoch % self.views):
            loss = self._batches_(optimizer, progress)
        rows = validation_rows(self.model, self.workload, self.choice.form)
        score = math.nan if rows is None else self.workload.metric.aggregate(rows)
        _check_finite(score, f"validation {self.workload.metric.name} after epoch {epoch}")
        log = EpochLog(
            epoch=epoch,
            loss=loss,
            score=score,
            learning_rate=float(optimizer.param_groups[0]["lr"]),
            seconds=perf_counter() - started,
        )
        return log, rows

    def _batches_(self, optimizer: torch.optim.Optimizer, progress: Progress) -> float:
        epoch, form = len(progress.logs), self.choice.form
        context = form.autocast if self._in_bfloat16(progress) else form.exact
        train_mode_(self.model, self.still)
        self.held.read()
        normalised = any(isinstance(module, _BatchNorm) and module.training for module in self.model.modules())
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        score = f"{progress.logs[-1].score:.4f}" if progress.logs else "-"
        total, count = 0.0, 0
        passing = self.stream.epoch(epoch, epoch % self.views, self.cycle.batches)
        for batch, (inputs, targets) in enumerate(passing):
            self.bar.update()
            # BatchNorm cannot normalise one sample in training mode.
            if normalised and batch_size_of(inputs) == 1:
                continue
            for group in optimizer.param_groups:
                group["lr"] = self.cycle.rate(epoch, batch) * progress.rate_scale
            optimizer.zero_grad()
            position = Position(view=epoch % self.views, batch=batch)
            with context():
                loss = self.objective(self.model, form.place(inputs), form.place_targets(targets), position)
            value = _check_finite(float(loss.detach()), f"loss in epoch {epoch}, batch {batch}")
            loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
            self.held.even_gradients_()
            norm = nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            _check_finite(float(norm), f"gradient norm in epoch {epoch}, batch {batch}")
            optimizer.step()
            self.held.restore_()
            if self.after_step is not None:
                with torch.no_grad():
                    self.after_step(float(optimizer.param_groups[0]["lr"]))
                self.held.read()
            total, count = total + value, count + 1
            self.bar.set_postfix(loss=f"{total / count:.4f}", score=score, refresh=False)
        if not count:
            raise StageError(
                f"epoch {epoch} had no batch to train on; the training data must be iterable again and again, with "
                "batches of at least 2 samples for BatchNorm"
            )
        return total / count

    def _in_bfloat16(self, progress: Progress) -> bool:
        return self.choice.form.bfloat16 and not progress.gave_up_bfloat16


def _check_finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise _DivergedError(f"{what} is {value}")
    return value


def _workload_loss(workload: Workload, form: Form) -> Objective:
    def objective(model: nn.Module, inputs: Inputs, targets: Targets, _position: Position) -> Tensor:
        outputs = at_least_float32(predict(model, inputs))
        with form.exact():
            return workload.loss(outputs, targets)

    return objective
