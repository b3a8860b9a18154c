"""One training loop for every stage that trains: fast, replayable to the bit, and safe to kill."""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from compressor.errors import StageError
from compressor.notes.training import Training, Trainings
from compressor.stage import Context
from compressor.structure.calling.draws import kept_randomness
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.training.agreement import Choice, choose
from compressor.training.freezing import freezing, frozen_names, still_modules
from compressor.training.held_values import Held, HeldValues, clustered_names
from compressor.training.held_zeros import HeldZeros, held_names, held_parameters
from compressor.training.loss_state import LossState
from compressor.training.optimizers.averaging import Average
from compressor.training.optimizers.choices import Known, OwnOptimizer
from compressor.training.optimizers.dense_gradients import dense_gradients
from compressor.training.optimizers.groups import optimizer_for
from compressor.training.optimizers.schedules import Course
from compressor.training.optimizers.stepping import AfterStep, DivergedError, Updates, check_finite
from compressor.training.passes.losses import Objective, Passes, workload_loss
from compressor.training.passes.range_test import found_for
from compressor.training.passes.rounds import Rounds
from compressor.training.passes.threads import Threads
from compressor.training.passes.weighing import Weighing, weighing_of
from compressor.training.progress import EpochLog, Progress, best_epoch
from compressor.training.replay import kept_modes, replayed
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import Saved, Tensors, capture, digest, restore_, restore_optimizer_
from compressor.training.streams import Stream
from compressor.training.validation import Comparison, compare, validation_rows
from compressor.workload import Workload

MAX_RETRIES = 2
# How many parameters of a loss are named.
_NAMED = 4


def train(
    model: nn.Module,
    workload: Workload,
    settings: TrainingSettings,
    *,
    context: Context,
    objective: Objective | None = None,
    views: int | None = None,
    label: str = "training",
    identity: str = "",
    after_step: AfterStep | None = None,
    keep_last: bool = False,
    student: nn.Module | None = None,
) -> list[EpochLog]:
    """The log of every epoch; `model` is trained in place and left at its best epoch by validation (ties: the later).

    Where even that one scores below the model before the training, the model is left as it was, and the report told
    that the training failed. `settings` say for how long, at which rate, in which number format, and what stays as it
    is; the report is told what was used.

    `objective` replaces `workload.loss`. With `views`, epoch e replays the batches of epoch e % views. With
    `context.folder`, every epoch is saved there under `label`, and a killed run goes on to the same bits; `identity`
    names what else the result depends on: a snapshot of another identity is not continued, and why is shown.
    `after_step` runs after every update, without gradients, and is given its rate as a fraction of the peak; it must
    remember nothing, for a resumed training calls it from the middle. With `keep_last` the model is left at its last
    epoch, for trainings that aim at something that the score does not see. Where the inner layers are computed in
    bfloat16, every epoch begins with a look at whether a batch still agrees in both formats, and goes over to float32
    for good where it does not.

    What is frozen, by `requires_grad` or by the settings, stays as it is, and so do modules that the user put into eval
    mode by themselves (`training.freezing` says which). `student` is the part of `model` that stands for the workload's
    model where that is not all of it. Zeros that the plan holds (`training.held_zeros`) stay zero, and so does what
    `after_step` adds to them; weights that share a value by the plan (`training.held_values`) stay equal.

    A loss or gradient that is not finite rolls back to the best epoch and halves the rate, at most twice. Raises
    StageError then, when everything is frozen, and when there is no batch to train on.
    """
    part = model if student is None else student
    empty_caches_(part, workload.example_inputs)
    loss_state = LossState.of(workload.loss)
    with loss_state.kept():
        choice = choose(model, workload, settings.precision, seed=context.seed)
    form = choice.form
    path = None if context.folder is None else context.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}.safetensors"
    stream = Stream.of(workload.train, context.seed, counted=settings.steps is None)
    rounds, threads = Rounds.of(settings, stream), Threads()
    with (
        threads.kept(),
        freezing(part, settings.freeze),
        kept_randomness(),
        kept_modes(model),
        form.applied(model),
        stream.kept(),
        loss_state.kept(),
        loss_state.frozen(model, workload.model) as of_loss,
        dense_gradients(model),
    ):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise StageError(
                f"nothing to train: all parameters of {type(part).__name__} are frozen; unfreeze what may change "
                "(requires_grad), and leave it out of freeze"
            )
        still = still_modules(part, workload.model, settings.freeze)
        frozen = (*frozen_names(part, still), *_of_loss(of_loss))
        plan = [*context.plan_before, *context.plan]
        zeros = held_parameters(part, held_names(plan))
        clustered = held_parameters(part, clustered_names(plan))
        held = Held(HeldZeros([*zeros.values()]), HeldValues([*clustered.values()]))
        weighing = Weighing()
        if settings.accumulate > 1:
            with loss_state.kept():
                weighing = weighing_of(part, workload, form, seed=context.seed)
            if weighing.remark:
                stream.remark(weighing.remark)
        passes = Passes(
            model=model,
            objective=objective or workload_loss(workload, form),
            form=form,
            still=tuple(still.values()),
            rounds=rounds,
            kind=workload.output,
            weighing=weighing,
        )
        identified = {
            **settings.told(),
            "views": views,
            "batches": rounds.batches,
            "data": stream.begins,
            "seed": context.seed,
            "identity": identity,
            **{f"content of {name}": text for name, text in context.known.items()},
            "frozen": list(frozen),
            "held_zeros": list(zeros),
            "held_values": list(clustered),
            "model": digest(model) if path else "",
        }
        start = capture(model)
        progress = Progress(logs=[], best=start)
        resumed: Saved = {}
        if path is not None:
            refused, resumed = progress.resume_(path, identified, model, settings)
            stream.go_on_(progress.counters)
            loss_state.restore_(progress.loss_tensors, progress.loss_numbers)
            if refused and context.progress:
                tqdm.write(f"  {refused}", file=sys.stderr)
            if not progress.is_done(rounds.count, settings.patience, workload.metric):
                progress.require_space(path, model, rounds.count - len(progress.logs))
        if not (progress.logs or keep_last):
            progress.before = validation_rows(model, workload, form)
        if progress.found is None:
            with loss_state.kept():
                progress.found = found_for(part, passes, settings, seed=context.seed)
        make = partial(_updates, model, progress.found.optimizer, settings, held, after_step, divides=weighing.divides)
        updates = make()
        restore_optimizer_(updates.optimizer, resumed)
        if settings.averaging is not None and progress.average is None:
            progress.average = Average.of(model, settings.averaging)
        with tqdm(
            total=rounds.count * rounds.batches,
            initial=len(progress.logs) * rounds.batches,
            desc=label,
            unit="batch",
            leave=False,
            disable=not context.progress,
        ) as bar:
            loop = _Loop(
                passes=passes,
                workload=workload,
                choice=choice,
                course=rounds.course(),
                seed=context.seed,
                views=rounds.views(views),
                bar=bar,
                held=held,
                threads=threads,
            )
            while not progress.is_done(rounds.count, settings.patience, workload.metric):
                epoch = len(progress.logs)
                try:
                    log, rows, averaged = loop.epoch_(updates, progress)
                except DivergedError as trouble:
                    restore_(model, progress.best)
                    rate = progress.found.optimizer.rate * progress.rate_scale
                    if progress.retries == MAX_RETRIES:
                        raise StageError(
                            f"{label} does not converge: {trouble}, after halving the rate {MAX_RETRIES} times to "
                            f"{rate:g}; set optimizer to {type(progress.found.optimizer).__name__} with a rate below "
                            f"{rate:g} or look for bad values in the training data"
                        ) from trouble
                    progress.retries, progress.rate_scale = progress.retries + 1, progress.rate_scale / 2
                    # Momentum points to where it diverged.
                    updates = make()
                    if settings.averaging is not None:
                        progress.average = Average.of(model, settings.averaging)
                    bar.update(epoch * rounds.batches - bar.n)
                    continue
                progress.logs.append(log)
                if keep_last or best_epoch(progress.logs, workload.metric) == epoch:
                    progress.best, progress.best_rows = averaged or capture(model), rows
                if path is not None:
                    done = progress.is_done(rounds.count, settings.patience, workload.metric)
                    progress.counters = stream.counters()
                    progress.loss_tensors, progress.loss_numbers = loss_state.tensors(), loss_state.numbers()
                    progress.save(path, identified, model, updates.optimizer, done=done)
        came = compare(progress.before, progress.best_rows, workload.metric, seed=context.seed)
        restore_(model, start if came is not None and came.failed else progress.best)
    before = Trainings.from_json(context.details)
    told = _told(
        label, choice, progress, came, frozen=frozen, remarks=stream.remarks, others=_other_rates(updates, settings)
    )
    told = replace(told, threads=threads.told)
    context.tell(Trainings(trainings=(*(before.trainings if before else ()), told)))
    return progress.logs


def _updates(
    model: nn.Module,
    choice: Known,
    settings: TrainingSettings,
    held: Held,
    after_step: AfterStep | None,
    *,
    divides: bool,
) -> Updates:
    optimizer = optimizer_for(model, choice, weight_decay=settings.weight_decay, layer_rates=settings.layer_rates)
    return Updates(
        optimizer=optimizer,
        clip=settings.clip,
        accumulate=settings.accumulate,
        divides=divides,
        before_step=held.even_gradients_,
        after_step=held.after(after_step),
    )


def _of_loss(names: tuple[str, ...]) -> tuple[str, ...]:
    """What is told of the parameters of a loss, which may hold a whole network."""
    more = len(names) - _NAMED
    shown = tuple(f"{name} of the loss" for name in names[:_NAMED])
    return (*shown, f"{more} more of the loss") if more > 0 else shown


def _other_rates(updates: Updates, settings: TrainingSettings) -> str:
    """What is to be said of a factory that gave its groups other rates than it was given."""
    if not isinstance(settings.optimizer, OwnOptimizer):
        return ""
    given = {settings.optimizer.rate * factor for factor in (1.0, *(factor for _, factor in settings.layer_rates))}
    other = sorted(set(updates.peaks) - given)
    return f"; its factory takes {', '.join(f'{rate:g}' for rate in other)} in its place" if other else ""


def _told(
    label: str,
    choice: Choice,
    progress: Progress,
    found: Comparison | None,
    *,
    frozen: tuple[str, ...],
    remarks: list[str],
    others: str,
) -> Training:
    decibels = choice.decibels
    assert progress.found is not None  # it is looked for before the first epoch
    halved = f"; halved {progress.retries} times, where it diverged" if progress.retries else ""
    rate_from = progress.found.why + others + halved
    return Training(
        training=label,
        optimizer=str(progress.found.optimizer),
        rate=progress.found.optimizer.rate * progress.rate_scale,
        rate_from=rate_from,
        inner_layers="bfloat16" if choice.form.bfloat16 else "float32",
        why="; ".join(filter(None, [choice.why, progress.gave_up_bfloat16])),
        signal_to_noise_db=decibels if decibels is not None and math.isfinite(decibels) else None,
        frozen=frozen,
        data="; ".join(remarks) or None,
        **({} if found is None else asdict(found)),
    )


@dataclass(frozen=True, kw_only=True)
class _Loop:
    passes: Passes
    workload: Workload
    choice: Choice
    course: Course
    seed: int
    views: int
    bar: Any
    held: Held
    threads: Threads

    def epoch_(self, updates: Updates, progress: Progress) -> tuple[EpochLog, Tensor | None, Tensors | None]:
        """Trains one epoch and scores it: its log, the metric's rows, and the average where that is what has them.

        Raises DivergedError at the first number that is not finite.
        """
        started, epoch = perf_counter(), len(progress.logs)
        if epoch and self._in_bfloat16(progress):
            found = self.choice.still_agrees(self.passes.model, self.workload, self.seed)
            if found.objection:
                progress.gave_up_bfloat16 = f"float32 from epoch {epoch} on: {found.objection}"
        with replayed(self.seed, epoch % self.views):
            loss = self._batches_(updates, progress)
            updates.rest_()
            self.held.restore_()
        rows, score = self._scored(epoch)
        averaged = None
        if progress.average is not None:
            with progress.average.stands_in(self.passes.model):
                average_rows, average_score = self._scored(epoch)
            if average_score > score if self.workload.metric.higher_is_better else average_score < score:
                rows, score, averaged = average_rows, average_score, progress.average.copy()
        log = EpochLog(
            epoch=epoch, loss=loss, score=score, learning_rate=updates.rate, seconds=perf_counter() - started
        )
        return log, rows, averaged

    def _scored(self, epoch: int) -> tuple[Tensor | None, float]:
        metric = self.workload.metric
        rows = validation_rows(self.passes.model, self.workload, self.choice.form)
        score = math.nan if rows is None else metric.aggregate(rows)
        return rows, check_finite(score, f"validation {metric.name} after epoch {epoch}")

    def _batches_(self, updates: Updates, progress: Progress) -> float:
        epoch, form, rounds = len(progress.logs), self.choice.form, self.passes.rounds
        score = f"{progress.logs[-1].score:.4f}" if progress.logs else "-"
        total, count, made, limit = 0.0, 0, 0, rounds.limit(epoch)

        def step_(add: Callable[[float, str], bool], batch: int) -> None:
            nonlocal made
            at = rounds.updates_before(epoch) + made
            if add(self.course.fraction(at) * progress.rate_scale, f"epoch {epoch}, batch {batch}"):
                made += 1
                if progress.average is not None:
                    progress.average.update_(self.passes.model)

        updates.forget_()
        self.held.read()
        updates.learn_()
        batch = 0
        computed_in = form.autocast if self._in_bfloat16(progress) else form.exact
        losses = self.passes.losses(epoch, epoch % self.views, computed_in)
        for batch, loss, counts in self.threads.over(losses, itemgetter(2)):
            self.bar.update()
            value = check_finite(float(loss.detach()), f"loss in epoch {epoch}, batch {batch}")
            step_(partial(updates.add_, loss, counts), batch)
            total, count = total + value, count + 1
            self.bar.set_postfix(loss=f"{total / count:.4f}", score=score, refresh=False)
            if made == limit:
                break
        step_(updates.step_, batch)
        if not count:
            raise StageError(
                f"epoch {epoch} had no batch to train on{self._left_out()}; the training data must be iterable again "
                "and again, with batches of at least 2 samples for BatchNorm, and labels that count"
            )
        return total / count

    def _left_out(self) -> str:
        remarks = self.passes.rounds.stream.remarks
        return f" ({'; '.join(remarks)})" if remarks else ""

    def _in_bfloat16(self, progress: Progress) -> bool:
        return self.choice.form.bfloat16 and not progress.gave_up_bfloat16
