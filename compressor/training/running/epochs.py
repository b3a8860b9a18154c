"""Epochs of a training, one after the other: how they go, which one is kept, and what each is when it is tried."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from time import perf_counter
from typing import Any

from torch import Tensor

from compressor.errors import StageError
from compressor.progress.bars import progress_bar
from compressor.training.agreement import Choice
from compressor.training.distributed.team import told_by_first
from compressor.training.held_values import Held
from compressor.training.loss_state import LossState
from compressor.training.optimizers.averaging import Average
from compressor.training.optimizers.choices import Known
from compressor.training.optimizers.stepping import DivergedError, Updates, check_finite
from compressor.training.passes.losses import Passes
from compressor.training.passes.threads import Threads
from compressor.training.progress import EpochLog, Progress, best_epoch
from compressor.training.replay import replayed
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import Saved, Tensors, capture, restore_, restore_optimizer_
from compressor.training.validation import validation_rows
from compressor.workload import Workload

MAX_RETRIES = 2


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """The epochs of one training, by `passes` over its data with the optimizer that `make` gives.

    With `keep_last` the last one is kept, else that which is best on validation (ties: the later).
    """

    passes: Passes
    workload: Workload
    choice: Choice
    settings: TrainingSettings
    make: Callable[[Known], Updates]
    seed: int
    views: int
    label: str
    shown: bool
    keep_last: bool
    held: Held
    threads: Threads
    bar: Any = None

    def is_done(self, progress: Progress) -> bool:
        return progress.is_done(self.passes.rounds.count, self.settings.patience, self.workload.metric)

    def rows(self) -> Tensor | None:
        """The metric's rows of the validation samples, of the model as it is now; None if an output is NaN."""
        return told_by_first(
            self.passes.team, lambda: validation_rows(self.passes.model, self.workload, self.choice.form)
        )

    def run_(
        self, progress: Progress, resumed: Saved | None = None, save: Callable[[Updates], None] = lambda _: None
    ) -> Updates:
        """Trains the epochs that `progress` lacks, keeps the best of all there, and calls `save` after each.

        Returns the updates by which it ended. Raises DivergedError where a number that is not finite comes back at
        rates that were halved.
        """
        model, rounds, averaging = self.passes.model, self.passes.rounds, self.settings.averaging
        assert progress.found is not None  # it is looked for before the first epoch
        updates = self.make(progress.found.optimizer)
        restore_optimizer_(updates.optimizer, resumed or {})
        if averaging is not None and progress.average is None:
            progress.average = Average.of(model, averaging)
        with progress_bar(
            total=rounds.count * rounds.batches,
            initial=len(progress.logs) * rounds.batches,
            desc=self.label,
            unit="batch",
            shown=self.shown,
        ) as bar:
            shown = replace(self, bar=bar)
            while not self.is_done(progress):
                epoch = len(progress.logs)
                try:
                    log, rows, averaged = shown.epoch_(updates, progress)
                except DivergedError:
                    restore_(model, progress.best)
                    if progress.retries == MAX_RETRIES:
                        raise
                    progress.retries, progress.rate_scale = progress.retries + 1, progress.rate_scale / 2
                    # Momentum points to where it diverged.
                    updates = self.make(progress.found.optimizer)
                    if averaging is not None:
                        progress.average = Average.of(model, averaging)
                    bar.update(epoch * rounds.batches - bar.n)
                    continue
                progress.logs.append(log)
                if self.keep_last or best_epoch(progress.logs, self.workload.metric) == epoch:
                    progress.best, progress.best_rows = averaged or capture(model), rows
                save(updates)
        return updates

    def tried(self, start: Progress, loss_state: LossState, optimizer: Known) -> float | None:
        """The best score of all these epochs by `optimizer` in place of that of `start`, which is before the first one.

        None where they do not converge. Everything is as before afterwards.
        """
        assert start.found is not None  # of which this is a variation
        progress = Progress(logs=[], best=start.best, found=replace(start.found, optimizer=optimizer))
        trying = replace(self, label=f"{self.label}, trying a rate of {optimizer.rate:.2g}")
        try:
            with loss_state.kept(), self.passes.rounds.stream.kept():
                trying.run_(progress)
        except DivergedError:
            return None
        finally:
            restore_(self.passes.model, start.best)
        return progress.logs[best_epoch(progress.logs, self.workload.metric)].score

    def epoch_(self, updates: Updates, progress: Progress) -> tuple[EpochLog, Tensor | None, Tensors | None]:
        """Trains one epoch and scores it: its log, the metric's rows, and the average where that is what has them.

        Raises DivergedError at the first number that is not finite.
        """
        started, epoch = perf_counter(), len(progress.logs)
        if epoch and self._in_bfloat16(progress):
            objection = told_by_first(
                self.passes.team,
                lambda: self.choice.still_agrees(self.passes.model, self.workload, self.seed).objection,
            )
            if objection:
                progress.gave_up_bfloat16 = f"float32 from epoch {epoch} on: {objection}"
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
        rows = self.rows()
        score = math.nan if rows is None else metric.aggregate(rows)
        return rows, check_finite(score, f"validation {metric.name} after epoch {epoch}")

    def _batches_(self, updates: Updates, progress: Progress) -> float:
        epoch, form, rounds = len(progress.logs), self.choice.form, self.passes.rounds
        score = f"{progress.logs[-1].score:.4f}" if progress.logs else "-"
        total, count, made, limit = 0.0, 0, 0, rounds.limit(epoch)
        assert progress.found is not None  # it is looked for before the first epoch
        course = rounds.course(progress.found.optimizer)

        def step_(add: Callable[[float, str], bool], batch: int) -> None:
            nonlocal made
            at = rounds.updates_before(epoch) + made
            if add(course.fraction(at) * progress.rate_scale, f"epoch {epoch}, batch {batch}"):
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
            value = check_finite(self.passes.value(loss, counts), f"loss in epoch {epoch}, batch {batch}")
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
