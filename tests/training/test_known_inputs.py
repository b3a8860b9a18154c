"""A training outside of a run goes on with its own snapshot alone: of the same loss, optimizer and data, by content."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.identity.workload import knowing
from compressor.metrics import Metric
from compressor.stage import Context
from compressor.stages import Distill, FineTune, QuantizationAwareTraining, SparseTraining
from compressor.training.optimizers.choices import SGD, OwnOptimizer
from compressor.workload import Workload
from workbench.same_data import same_data

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(24, 6, generator=GENERATOR)
TARGETS = (INPUTS[:, 0] > 0).long() + (INPUTS[:, 1] > 0.5).long()


def batches(*, last: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    """Four batches; `last` is a factor on the inputs of the last one."""
    found = [(INPUTS[start : start + 6], TARGETS[start : start + 6]) for start in range(0, 24, 6)]
    return [*found[:3], (last * found[3][0], found[3][1])]


def scaled(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Losses of equal code that hold another number."""
    return lambda outputs, targets: factor * F.cross_entropy(outputs, targets)


def factory(momentum: float) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda groups: torch.optim.SGD(groups, momentum=momentum)


def workload(data: Any = None, loss: Any = None, **more: Any) -> Workload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return same_data(model, data or batches(), INPUTS[:2], loss=loss or scaled(1.0), **more)


def trained(stage: Any, given: Workload, folder: Path | None) -> tuple[list[Tensor], int]:
    """The weights after the stage, and how many batches its loss saw."""
    calls = []
    context = Context(progress=False, folder=folder)
    if folder is not None:
        folder.mkdir(exist_ok=True)
    model = nn.Module.train(copy.deepcopy(given.model))
    handle = model.register_forward_pre_hook(lambda module, _: calls.append(1) if module.training else None)
    found = stage.apply(model, given, context)
    handle.remove()
    return [parameter.detach() for parameter in found.parameters()], len(calls)


OWN = FineTune(epochs=2, optimizer=OwnOptimizer(factory=factory(0.5), rate=0.05))
STAGES = [OWN, Distill(epochs=2, optimizer=SGD(rate=0.05), views=1), SparseTraining(epochs=2, optimizer=SGD(rate=0.05))]
OTHERS: dict[str, Callable[[], Workload]] = {
    "a loss that holds another number": lambda: workload(loss=scaled(0.25)),
    "another last batch": lambda: workload(batches(last=2.0)),
    "another metric": lambda: replace(
        workload(),
        metric=Metric(name="accuracy", per_sample=lambda o, t: (o.argmin(dim=1) == t).float(), bounded=True),
    ),
}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize("changed", OTHERS)
def test_a_snapshot_of_other_inputs_is_not_continued(stage: Any, changed: str, tmp_path: Path) -> None:
    """What ends up in the model is what a training without any snapshot gives."""
    trained(stage, workload(), tmp_path / "kept")
    expected, all_batches = trained(stage, OTHERS[changed](), None)
    found, count = trained(stage, OTHERS[changed](), tmp_path / "kept")
    assert count == all_batches > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_factory_that_holds_another_number_is_another(tmp_path: Path) -> None:
    """Equal code by its bytes, another momentum in its closure."""
    trained(OWN, workload(), tmp_path / "kept")
    other = replace(OWN, optimizer=OwnOptimizer(factory=factory(0.9), rate=0.05))
    assert trained(other, workload(), tmp_path / "kept")[1] == trained(other, workload(), None)[1] > 0


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_a_snapshot_of_the_same_inputs_is_continued(stage: Any, tmp_path: Path) -> None:
    """Made anew from the same data and code, it is known: nothing is trained again."""
    first, count = trained(stage, workload(), tmp_path / "kept")
    again, after = trained(stage, workload(), tmp_path / "kept")
    # Two epochs of four batches; what looks ahead of a penalty runs again.
    assert count - after >= 8 > after
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_an_integer_training_knows_its_inputs_too(tmp_path: Path) -> None:
    """Another loss, other integers than those of the snapshot."""
    stage = QuantizationAwareTraining(epochs=1, soft_weight=0.0)
    trained(stage, workload(), tmp_path / "kept")
    expected, _ = trained(stage, workload(loss=scaled(9.0)), None)
    found, _ = trained(stage, workload(loss=scaled(9.0)), tmp_path / "kept")
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class Unsized:
    """Batches without a length, whose passes are counted."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(batches())


def test_what_a_run_has_told_is_not_read_again(tmp_path: Path) -> None:
    """A context that knows its inputs is taken as it is, and so is one that keeps nothing."""
    told = Context(progress=False, folder=tmp_path, known={"run": "abc"})
    assert knowing(told, workload(), OWN) is told
    bare = Context(progress=False)
    assert knowing(bare, workload(), OWN) is bare
    endless = Unsized()
    found = knowing(Context(progress=False, folder=tmp_path), workload(endless), OWN)
    assert endless.passes == 0
    assert sorted(found.known) == ["loss", "metric", "others", "stage"]
