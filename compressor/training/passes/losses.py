"""Passes over training data: the loss of batch after batch, for a training and for what looks ahead of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from compressor.batches import Inputs, Targets, judged_target
from compressor.outputs.finding import Found
from compressor.training.freezing import train_mode_
from compressor.training.passes.lone import SKIPPED, unless_lone
from compressor.training.passes.rounds import Rounds
from compressor.training.passes.weighing import Weighing
from compressor.training.precision import Form, at_least_float32
from compressor.workload import Workload, batch_size_of, predict


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in the replayable stream a batch stands: the same (view, batch) is the same batch, bit by bit."""

    view: int
    batch: int


# The loss of one batch. It is called under autocast; the model's output should become float32 before the arithmetic.
Objective = Callable[[nn.Module, Inputs, Targets, Position], Tensor]


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes of `model` over the data of `rounds`, in training mode but for what is `still`.

    `kind` is what the judged output says, where that is known: it tells batches that have no label. `weighing` says
    what batches count by in an update of several.
    """

    model: nn.Module
    objective: Objective
    form: Form
    still: tuple[nn.Module, ...]
    rounds: Rounds
    kind: Found | None = None
    weighing: Weighing = field(default_factory=Weighing)

    def losses(
        self, epoch: int, view: int, computed_in: Callable[[], AbstractContextManager[object]]
    ) -> Iterator[tuple[int, Tensor, float]]:
        """(number, loss, what it counts) of every batch of an epoch that sees `view`, under whose seed this is called.

        What nothing can be learned from is left out, and said.
        """
        train_mode_(self.model, self.still)
        for number, (inputs, targets) in enumerate(self.rounds.read(epoch, view)):
            position = Position(view=view, batch=number)
            placed, wanted = self.form.place(inputs), self.form.place_targets(targets)
            with computed_in():
                loss = unless_lone(self.model, inputs, partial(self.objective, self.model, placed, wanted, position))
            if loss is None:
                self.rounds.stream.remark(SKIPPED)
            elif not bool(loss.isfinite()) and self.kind is not None and self.kind.asked(judged_target(targets)) == 0:
                # A mean over nothing, such as that of CrossEntropyLoss where all labels are ignored.
                self.rounds.stream.remark(f"batches without a label that counts are left out: their loss is {loss:g}")
            else:
                yield number, loss, self.weighing.weight(batch_size_of(inputs), targets)


def workload_loss(workload: Workload, form: Form) -> Objective:
    """The objective that is the workload's own loss."""

    def objective(model: nn.Module, inputs: Inputs, targets: Targets, _position: Position) -> Tensor:
        outputs = at_least_float32(predict(model, inputs))
        with form.exact():
            return workload.loss(outputs, targets)

    return objective
