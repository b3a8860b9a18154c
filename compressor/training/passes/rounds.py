"""How long a training is: cut into epochs, which are passes over the data or parts of so many steps.

Data without an end have no passes: with `steps` they are read on from epoch to epoch, and the model scored ten times.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from compressor.batches import Batch
from compressor.training.optimizers.choices import AdamW, Optimizer
from compressor.training.optimizers.schedules import BRIEF_RISE, Course, OneCycle
from compressor.training.settings import TrainingSettings
from compressor.training.streams import Stream, endless

_ENDLESS_ROUNDS = 10
# Updates of a training that is short.
SHORT = 256


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """The epochs of a training: `count` of them with `updates` each and `batches` to read, the last one `last`.

    `scheduled` epochs follow the schedule, what comes after them is its tail.
    """

    settings: TrainingSettings
    stream: Stream
    count: int
    scheduled: int
    batches: int
    updates: int
    last: int

    @classmethod
    def of(cls, settings: TrainingSettings, stream: Stream) -> "Rounds":
        """The epochs of a training by `settings`. Raises StageError for data without an end and no `steps`."""
        steps, accumulate, batches = settings.steps, settings.accumulate, stream.batches
        if steps is None:
            if batches is None:
                raise endless("the training data")
            updates = last = math.ceil(batches / accumulate)
            scheduled, count = settings.epochs, settings.epochs + settings.tail_epochs
        else:
            if batches is None:
                batches = math.ceil(steps / _ENDLESS_ROUNDS) * accumulate
            batches = min(batches, steps * accumulate)
            updates = math.ceil(batches / accumulate)
            scheduled = count = math.ceil(steps / updates)
            last = steps - (count - 1) * updates
        return cls(
            settings=settings,
            stream=stream,
            count=count,
            scheduled=scheduled,
            batches=batches,
            updates=updates,
            last=last,
        )

    @property
    def total(self) -> int:
        """How many updates there are in all."""
        return (self.count - 1) * self.updates + self.last

    @property
    def tail(self) -> int:
        """How many of them follow the schedule."""
        return (self.count - self.scheduled) * self.updates

    def course(self, optimizer: Optimizer) -> Course:
        """The schedule over these epochs, as it suits `optimizer`."""
        schedule = self.settings.schedule
        if (
            isinstance(schedule, OneCycle)
            and schedule.warm_up is None
            and isinstance(optimizer, AdamW)
            and self.total <= SHORT
        ):
            return Course(schedule=OneCycle(warm_up=BRIEF_RISE), updates=self.total)
        return Course(schedule=schedule, updates=self.total - self.tail)

    def updates_before(self, epoch: int) -> int:
        """How many updates the epochs before this one have; of the tail's, at least as many as the schedule has."""
        return epoch * self.updates

    def limit(self, epoch: int) -> int | None:
        """After how many updates an epoch ends; None where it is a pass over the data."""
        if self.settings.steps is None:
            return None
        return self.last if epoch == self.count - 1 else self.updates

    def read(self, epoch: int, view: int) -> Iterator[Batch]:
        """The batches of an epoch that is to see `view`, under whose seed this is called."""
        return self.stream.epoch(epoch, view, self.batches)

    def views(self, asked: int | None) -> int:
        """After how many epochs their data come again; data without an end never do."""
        return self.count if asked is None or self.stream.batches is None else asked
