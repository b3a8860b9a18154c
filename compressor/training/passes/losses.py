"""Passes over training data: the loss of batch after batch, for a training and for what looks ahead of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, Targets, judged_target
from compressor.outputs.finding import Found
from compressor.training.distributed.normalizing import normalized_together
from compressor.training.distributed.team import Team
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
    what batches count by in an update of several. Of a `team` each member computes a part of every batch.
    """

    model: nn.Module
    objective: Objective
    form: Form
    still: tuple[nn.Module, ...]
    rounds: Rounds
    kind: Found | None = None
    weighing: Weighing = field(default_factory=Weighing)
    team: Team | None = None

    def losses(
        self, epoch: int, view: int, computed_in: Callable[[], AbstractContextManager[object]]
    ) -> Iterator[tuple[int, Tensor, float]]:
        """(number, loss, what it counts) of every batch of an epoch that sees `view`, under whose seed this is called.

        What nothing can be learned from is left out, and said. Of a team the loss is that of this member's part, and
        counts nothing where that part alone has nothing to learn from.
        """
        train_mode_(self.model, self.still)
        for number, (read, wanted) in enumerate(self.rounds.read(epoch, view)):
            inputs, targets, in_parts = (read, wanted, False) if self.team is None else self.team.part(read, wanted)
            loss, why = self._loss(inputs, targets, Position(view=view, batch=number), computed_in, in_parts=in_parts)
            if self.team is not None and in_parts and not any(self.team.sums(not why)):
                self.rounds.stream.remark(why)
            elif not why and loss is not None:
                counts = self.weighing.weight(batch_size_of(inputs), targets)
                yield number, loss, counts if in_parts or self.team is None else counts / self.team.size
            elif in_parts:
                yield number, torch.zeros(()), 0.0
            else:
                self.rounds.stream.remark(why)

    def value(self, loss: Tensor, counts: float) -> float:
        """The loss of a batch, of which this member of a team has a part that `counts` so much."""
        if self.team is None:
            return float(loss.detach())
        total, weight = self.team.sums(float(loss.detach()) * counts, counts)
        return total / weight if self.weighing.divides and weight else total

    def _loss(
        self,
        inputs: Inputs,
        targets: Targets,
        position: Position,
        computed_in: Callable[[], AbstractContextManager[object]],
        *,
        in_parts: bool,
    ) -> tuple[Tensor | None, str]:
        """The loss of a batch, or why nothing can be learned from it."""
        placed, wanted = self.form.place(inputs), self.form.place_targets(targets)
        with ExitStack() as stack:
            if self.team is not None:
                stack.enter_context(self.team.own_draws(position.view, position.batch))
                if in_parts:
                    stack.enter_context(normalized_together(self.model, self.team))
            stack.enter_context(computed_in())
            loss = unless_lone(self.model, inputs, partial(self.objective, self.model, placed, wanted, position))
        if loss is None:
            return None, SKIPPED
        if not bool(loss.isfinite()) and self.kind is not None and self.kind.asked(judged_target(targets)) == 0:
            # A mean over nothing, such as that of CrossEntropyLoss where all labels are ignored.
            return None, f"batches without a label that counts are left out: their loss is {loss:g}"
        return loss, ""


def workload_loss(workload: Workload, form: Form) -> Objective:
    """The objective that is the workload's own loss."""

    def objective(model: nn.Module, inputs: Inputs, targets: Targets, _position: Position) -> Tensor:
        outputs = at_least_float32(predict(model, inputs))
        with form.exact():
            return workload.loss(outputs, targets)

    return objective
