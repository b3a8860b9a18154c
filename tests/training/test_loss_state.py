"""Losses that keep something from call to call: a training begins with what was given, and goes on after a kill."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.metrics import Metric
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages import Distill, FineTune
from compressor.training.loss_state import LossState
from compressor.training.optimizers.choices import SGD, AutoOptimizer
from compressor.training.optimizers.schedules import Constant
from compressor.training.precision import Float32
from compressor.training.running.epochs import Epochs
from compressor.workload import Workload
from workbench.comparison import same_weights
from workbench.same_data import same_data

INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0.5).long()
# Every epoch scores the same, so that the last one is kept.
FLAT = Metric(name="flat", per_sample=lambda outputs, _: torch.zeros(len(outputs)), bounded=False)
AS_SAID = {"schedule": Constant(), "clip": None, "weight_decay": 0.0, "tail_epochs": 0, "precision": Float32()}


class Centred(nn.Module):
    """Takes away a running mean of the outputs, in a buffer, as losses without labels do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.centre.mul_(0.9).add_(0.1 * outputs.detach().mean(dim=0))
        return F.cross_entropy(outputs - self.centre, targets)


class Assigned:
    """The same, in an attribute that is another tensor each time."""

    def __init__(self) -> None:
        self.centre = torch.zeros(3)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.centre = 0.9 * self.centre + 0.1 * outputs.detach().mean(dim=0)
        return F.cross_entropy(outputs - self.centre, targets)


class Warming(nn.Module):
    """Grows over its first calls, which it counts in a number of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        return F.cross_entropy(outputs, targets) * min(1.0, self.calls / 20)


class Calls:
    def __init__(self) -> None:
        self.count = 0.0


def counted() -> Callable[[Tensor, Tensor], Tensor]:
    """Grows over its first calls, which the function counts in an object that it closes over."""
    calls = Calls()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.count += 1.0
        return F.cross_entropy(outputs, targets) * min(1.0, calls.count / 20)

    return loss


def within() -> Callable[[Tensor, Tensor], Tensor]:
    """A function that closes over a module with a running mean."""
    inner = nn.ModuleList([Centred()])
    return lambda outputs, targets: 2 * inner[0](outputs, targets)


LOSSES = {"buffer": Centred, "attribute": Assigned, "number": Warming, "closure": counted, "module inside": within}


def workload_of(loss: Any) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    return same_data(model, Batches((INPUTS, LABELS), batch_size=8), INPUTS[:2], loss=loss, metric=FLAT)


def by_hand(workload: Workload, loss: Any, *, epochs: int) -> nn.Module:
    model = copy.deepcopy(workload.model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    for _ in range(epochs):
        for inputs, targets in zip(INPUTS.split(8), LABELS.split(8), strict=True):
            optimizer.zero_grad()
            loss(model(inputs), targets).backward()
            optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_from_the_state_in_which_it_was_given(name: str) -> None:
    """As a loop by hand does, though it was tried before, and twice the same; it is as before afterwards."""
    loss = LOSSES[name]()
    before = LossState.of(loss)
    tensors, numbers = before.tensors(), before.numbers()
    assert tensors or numbers
    workload = check_workload(workload_of(loss), [FineTune()])
    wanted = by_hand(workload, LOSSES[name](), epochs=2)
    for _ in range(2):
        model = FineTune(epochs=2, optimizer=SGD(rate=0.05), **AS_SAID).apply(
            copy.deepcopy(workload.model), workload, Context(progress=False)
        )
        for ours, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
        after = LossState.of(loss)
        assert after.numbers() == numbers
        assert all(torch.equal(tensor, tensors[key]) for key, tensor in after.tensors().items())


@pytest.mark.parametrize("optimizer", [SGD(rate=0.05), AutoOptimizer()])
@pytest.mark.parametrize("name", LOSSES)
def test_a_killed_training_goes_on_with_what_its_loss_kept(
    name: str, optimizer: Any, tmp_path: Path, monkeypatch
) -> None:
    """To the same bits, in a process whose loss has kept nothing yet; a range test leaves nothing in it."""
    stage = FineTune(epochs=5, optimizer=optimizer, **AS_SAID)
    workload = workload_of(LOSSES[name]())
    steady = stage.apply(copy.deepcopy(workload.model), workload, Context(progress=False))
    context, scored = Context(progress=False, folder=tmp_path), Epochs._scored

    def dying(self: Any, epoch: int) -> Any:
        if epoch == 2:
            raise KeyboardInterrupt
        return scored(self, epoch)

    monkeypatch.setattr(Epochs, "_scored", dying)
    with pytest.raises(KeyboardInterrupt):
        stage.apply(copy.deepcopy(workload.model), workload_of(LOSSES[name]()), context)
    monkeypatch.undo()
    resumed = stage.apply(copy.deepcopy(workload.model), workload_of(LOSSES[name]()), context)
    assert same_weights(resumed, steady)


def test_large_tensors_are_data_and_shared_ones_stay_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that a loss holds are not copied; a tensor that others hold too is written back into, not exchanged."""
    loss = Centred()
    held = loss.centre
    state = LossState.of(loss)
    with state.kept():
        loss(torch.ones(2, 3), torch.tensor([0, 1]))
        assert held.sum() > 0
    assert loss.centre is held
    assert held.sum() == 0
    monkeypatch.setattr("compressor.training.loss_state._MOST", 2)
    assert not state.tensors()


class LearntCentres(nn.Module):
    """Wen et al. 2016: the distance to the centre of one's class, of centres that want gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
        self.scale = nn.Linear(3, 3, bias=False)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (self.scale(outputs) - self.centres[targets]).square().mean()


def within(loss: nn.Module) -> Any:
    """A function that holds the loss in its closure."""
    return lambda outputs, targets: 2 * loss(outputs, targets)


def wide() -> nn.Module:
    """A loss with more parameters than a report wants to name."""
    loss = LearntCentres()
    loss.scale = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    return loss


@pytest.mark.parametrize(
    ("make", "wrap", "told"),
    [
        (LearntCentres, lambda loss: loss, ["centres of the loss", "scale.weight of the loss"]),
        (LearntCentres, within, ["loss.centres of the loss", "loss.scale.weight of the loss"]),
        (wide, lambda loss: loss, ["centres of the loss", "scale.0.weight of the loss", "scale.0.bias of the loss"]),
    ],
)
@pytest.mark.parametrize("stage", [FineTune(), Distill()], ids=["fine_tune", "distill"])
def test_parameters_of_a_loss_stay_and_keep_no_gradients(make: Any, wrap: Any, told: list[str], stage: Any) -> None:
    """Outside of a run nothing refuses them: they are as they were, want gradients again, have none, and are named."""
    torch.manual_seed(0)
    loss = make()
    before = [parameter.detach().clone() for parameter in loss.parameters()]
    inputs = torch.randn(24, 4)
    data = Batches((inputs, torch.arange(24) % 3), batch_size=8)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    workload = same_data(model, data, inputs[:2], loss=wrap(loss), metric=FLAT)
    context = Context(progress=False)
    trained = stage.apply(copy.deepcopy(model), workload, context)
    assert not all(torch.equal(one, two) for one, two in zip(trained.parameters(), model.parameters(), strict=True))
    for parameter, value in zip(loss.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad
        assert parameter.grad is None
    frozen = context.details["trainings"][0]["frozen"]
    assert frozen[: len(told)] == told
