"""Passes over training data: the loss of batch after batch, for a training and for what looks ahead of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.batches import Inputs, Targets
from compressor.training.freezing import train_mode_
from compressor.training.passes.rounds import Rounds
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
    """Passes of `model` over the data of `rounds`, in training mode but for what is `still`."""

    model: nn.Module
    objective: Objective
    form: Form
    still: tuple[nn.Module, ...]
    rounds: Rounds

    def losses(
        self, epoch: int, view: int, computed_in: Callable[[], AbstractContextManager[object]]
    ) -> Iterator[tuple[int, Tensor, int]]:
        """(number, loss, samples) of every batch of an epoch that sees `view`, under whose seed this is called."""
        train_mode_(self.model, self.still)
        normalised = any(isinstance(module, _BatchNorm) and module.training for module in self.model.modules())
        for number, (inputs, targets) in enumerate(self.rounds.read(epoch, view)):
            size = batch_size_of(inputs)
            # BatchNorm cannot normalise one sample in training mode.
            if normalised and size == 1:
                continue
            position = Position(view=view, batch=number)
            with computed_in():
                loss = self.objective(self.model, self.form.place(inputs), self.form.place_targets(targets), position)
            yield number, loss, size


def workload_loss(workload: Workload, form: Form) -> Objective:
    """The objective that is the workload's own loss."""

    def objective(model: nn.Module, inputs: Inputs, targets: Targets, _position: Position) -> Tensor:
        outputs = at_least_float32(predict(model, inputs))
        with form.exact():
            return workload.loss(outputs, targets)

    return objective
