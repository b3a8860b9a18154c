"""One training loop for every stage that trains: fast, replayable to the bit, and safe to kill."""

import math
import re
from dataclasses import asdict, replace
from functools import partial

from torch import nn

from compressor.errors import StageError
from compressor.notes.training import Training, Trainings
from compressor.progress.bars import say
from compressor.progress.events import EpochFinished, emit
from compressor.stage import Context
from compressor.structure.calling.draws import kept_randomness
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.training.agreement import Choice, choose
from compressor.training.distributed.team import Team, present_team
from compressor.training.freezing import freezing, frozen_names, still_modules
from compressor.training.held_values import Held, HeldValues, clustered_names
from compressor.training.held_zeros import HeldZeros, held_names, held_parameters
from compressor.training.loss_state import LossState
from compressor.training.optimizers.choices import Known, OwnOptimizer
from compressor.training.optimizers.dense_gradients import dense_gradients
from compressor.training.optimizers.groups import optimizer_for
from compressor.training.optimizers.stepping import AfterStep, DivergedError, Updates
from compressor.training.passes.losses import Objective, Passes, workload_loss
from compressor.training.passes.range_test import found_for
from compressor.training.passes.rate_trials import best_of, tries_rates
from compressor.training.passes.rounds import Rounds
from compressor.training.passes.threads import Threads
from compressor.training.passes.weighing import Weighing, weighing_of
from compressor.training.progress import EpochLog, Progress
from compressor.training.replay import kept_modes
from compressor.training.running.epochs import MAX_RETRIES, Epochs
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import Saved, capture, digest, restore_
from compressor.training.streams import Stream
from compressor.training.validation import Comparison, compare
from compressor.workload import Workload

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

    Where torchrun has started this process as one of several, each computes a part of every batch
    (`training.distributed`); rank 0 alone reads and writes snapshots, which a team of another size continues.

    A loss or gradient that is not finite rolls back to the best epoch and halves the rate, at most twice. Raises
    StageError then, when everything is frozen, and when there is no batch to train on.
    """
    part = model if student is None else student
    empty_caches_(part, workload.example_inputs)
    loss_state = LossState.of(workload.loss)
    with loss_state.kept():
        choice = choose(model, workload, settings.precision, seed=context.seed)
    form = choice.form
    team = present_team()
    path = None
    if context.folder is not None and (team is None or team.leads):
        path = context.folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}.safetensors"
    stream = Stream.of(workload.train, context.seed, counted=settings.steps is None)
    rounds, threads = Rounds.of(settings, stream), Threads(pauses=team is None or team.leads)
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
        still = still_modules(part, context.began_with(workload), settings.freeze)
        frozen = (*frozen_names(part, still), *_of_loss(of_loss))
        plan = [*context.plan_before, *context.plan]
        zeros = held_parameters(part, held_names(plan))
        clustered = held_parameters(part, clustered_names(plan))
        held = Held(HeldZeros([*zeros.values()]), HeldValues([*clustered.values()]))
        weighing = Weighing()
        if settings.accumulate > 1 or team is not None:
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
            team=team,
        )
        if team is not None:
            restore_(model, team.told(partial(capture, model)))
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
            if refused:
                say(f"  {refused}", shown=context.progress)
        if team is not None:
            progress, resumed, now = team.told(lambda: (progress, resumed, capture(model)))
            restore_(model, now)
        if path is not None or team is not None:
            stream.go_on_(progress.counters)
            loss_state.restore_(progress.loss_tensors, progress.loss_numbers)
        if path is not None and not progress.is_done(rounds.count, settings.patience, workload.metric):
            progress.require_space(path, model, rounds.count - len(progress.logs))
        epochs = Epochs(
            passes=passes,
            workload=workload,
            choice=choice,
            settings=settings,
            make=partial(_updates, model, settings, held, after_step, divides=weighing.divides, team=team),
            seed=context.seed,
            views=rounds.views(views),
            label=label,
            shown=context.progress,
            keep_last=keep_last,
            held=held,
            threads=threads,
        )
        if not (progress.logs or keep_last):
            progress.before = epochs.rows()
        if progress.found is None:
            with loss_state.kept(), stream.kept():
                progress.found = found_for(part, passes, settings, seed=context.seed)
            if tries_rates(settings, rounds.total) and not keep_last:
                tried = partial(epochs.tried, progress, loss_state)
                progress.found = best_of(progress.found, tried, workload.metric)

        def save(updates: Updates) -> None:
            emit(EpochFinished(training=label, **asdict(progress.logs[-1])))
            if path is not None:
                progress.counters = stream.counters()
                progress.loss_tensors, progress.loss_numbers = loss_state.tensors(), loss_state.numbers()
                progress.save(path, identified, model, updates.optimizer, done=epochs.is_done(progress))

        try:
            updates = epochs.run_(progress, resumed, save)
        except DivergedError as trouble:
            optimizer = progress.found.optimizer
            rate = optimizer.rate * progress.rate_scale
            raise StageError(
                f"{label} does not converge: {trouble}, after halving the rate {MAX_RETRIES} times to "
                f"{rate:g}; set optimizer to {type(optimizer).__name__} with a rate below "
                f"{rate:g} or look for bad values in the training data"
            ) from trouble
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
    settings: TrainingSettings,
    held: Held,
    after_step: AfterStep | None,
    choice: Known,
    *,
    divides: bool,
    team: Team | None,
) -> Updates:
    optimizer = optimizer_for(model, choice, weight_decay=settings.weight_decay, layer_rates=settings.layer_rates)
    return Updates(
        optimizer=optimizer,
        clip=settings.clip,
        accumulate=settings.accumulate,
        divides=divides,
        team=team,
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
