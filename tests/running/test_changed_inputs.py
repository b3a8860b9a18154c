"""A run that is begun again after any change of any input never gives out the old result."""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from compressor import Pipeline, Workload
from compressor.errors import RunFolderError
from compressor.running import applying
from compressor.stages import Distill

INPUTS = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS[:, 0] > 0).long()


class WorkedError(BaseException):
    """A stage was worked anew."""


def net(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def loader(targets=TARGETS, inputs=INPUTS, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(inputs, targets), **{"batch_size": 16, "shuffle": True, **options})


def workload(**changes: Any) -> Workload:
    made = Workload.from_datasets(net(), train=(INPUTS, TARGETS), test=(INPUTS, TARGETS), batch_size=16)
    return dataclasses.replace(made, **{"train": loader(), "validation": loader(shuffle=False), **changes})


def stage(**changes: Any) -> Distill:
    return Distill(**{"epochs": 1, "tail_epochs": 0, "teacher": net(5, 8), **changes})


def run(out: Path, given: Workload, stages: Any = None, *, accept_changes: bool = False) -> Any:
    pipeline = Pipeline(stages or [stage()])
    return pipeline.run(given, out=out, progress=False, accept_changes=accept_changes)


def relabelled(place: int) -> torch.Tensor:
    targets = TARGETS.clone()
    targets[place] = 1 - targets[place]
    return targets


def with_metric(**changes: Any) -> Workload:
    made = workload()
    return dataclasses.replace(made, metric=dataclasses.replace(made.metric, **changes))


def changed_in_place() -> Workload:
    made = workload(train=loader(inputs=INPUTS.clone()))
    made.train.dataset.tensors[0][-1] += 1
    return made


CHANGES: dict[str, tuple[Callable[[], Workload], Callable[[], Any], str]] = {
    "model": (lambda: workload(model=net(1)), stage, "model"),
    "one training label": (lambda: workload(train=loader(relabelled(95))), stage, "train"),
    "a training sample in place": (changed_in_place, stage, "train"),
    "training batches": (lambda: workload(train=loader(batch_size=8)), stage, "train"),
    "calibration": (lambda: workload(calibration=loader(shuffle=False, inputs=INPUTS * 2)), stage, "calibration"),
    "a late validation label": (
        lambda: workload(validation=loader(relabelled(95), shuffle=False)),
        stage,
        "validation",
    ),
    "a late test label": (lambda: workload(test=loader(relabelled(95), shuffle=False)), stage, "test"),
    "loss": (lambda: workload(loss=lambda outputs, targets: -F.cross_entropy(outputs, targets)), stage, "loss"),
    "weights of the loss": (lambda: workload(loss=nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))), stage, "loss"),
    "metric": (lambda: with_metric(per_sample=lambda o, t: (o.argmin(1) == t).double()), stage, "metric"),
    "direction of the metric": (lambda: with_metric(higher_is_better=False), stage, "metric"),
    "example": (lambda: workload(example_inputs=INPUTS[2:4]), stage, "example_inputs"),
    "teacher": (workload, lambda: stage(teacher=net(6, 8)), r"stage_inputs\.0\.distill\.teacher"),
    "parameter": (workload, lambda: stage(temperature=2.0), r"stages\.0\.distill\.temperature"),
}


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run(out, workload())
    return out


@pytest.fixture
def finished(finished_once, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run; whatever works anew raises WorkedError."""

    def refuse(*_, **__):
        raise WorkedError

    monkeypatch.setattr(applying, "export_onnx", refuse)
    return Path(shutil.copytree(finished_once, tmp_path / "run"))


def test_the_same_inputs_made_anew_are_taken_from_disk(finished) -> None:
    """Nothing changed, so nothing is worked: the test of changes below can fail."""
    run(finished, workload())


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_by_name_and_worked_anew_where_accepted(finished, change: str) -> None:
    """The refusal says which input is another; accepted, what depends on it is made again."""
    make, make_stage, named = CHANGES[change]
    with pytest.raises(
        RunFolderError, match=rf"holds a run of something else:\n  {named}: was [^\n]+, is [^\n]+\ngive"
    ):
        run(finished, make(), [make_stage()])
    with pytest.raises(WorkedError):
        run(finished, make(), [make_stage()], accept_changes=True)


def test_what_cannot_be_known_is_worked_anew_with_a_notice(finished) -> None:
    """A loss that holds what nobody can look into is no change, and no reason to take the stage from disk."""
    view = memoryview(b"1")
    unknown = workload(loss=lambda outputs, targets: F.cross_entropy(outputs, targets) * len(view))
    with pytest.raises(RunFolderError, match=r"loss: was .*not known: it holds builtins\.memoryview"):
        run(finished, unknown)
    for accept_changes in (True, False):
        with pytest.raises(WorkedError):
            run(finished, unknown, accept_changes=accept_changes)


def weights(result: Any) -> list[np.ndarray]:
    return [onnx.numpy_helper.to_array(entry) for entry in onnx.load(result.artifact.path).graph.initializer]


def test_an_accepted_change_gives_what_a_fresh_folder_gives(finished_once, tmp_path) -> None:
    """The labels are turned round: nothing of the first run is left, and what need not be made again is kept."""
    out = Path(shutil.copytree(finished_once, tmp_path / "run"))
    before = weights(run(out, workload()))
    reference = (out / "stages/00-reference/outcome.json").read_bytes()
    other = workload(train=loader(1 - TARGETS))
    after = weights(run(out, copy.deepcopy(other), accept_changes=True))
    fresh = weights(run(tmp_path / "fresh", copy.deepcopy(other)))
    assert all(np.array_equal(one, two) for one, two in zip(after, fresh, strict=True))
    assert not all(np.array_equal(one, two) for one, two in zip(after, before, strict=True))
    assert (out / "stages/00-reference/outcome.json").read_bytes() == reference
    for name in ("model.onnx", "weights.safetensors", "plan.json"):
        assert (out / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
