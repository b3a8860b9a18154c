"""Models that are wrapped, compiled, in half precision or elsewhere become plain ones, in a copy, and it is told."""

import warnings
from functools import partial

import pytest
import torch
from torch import nn

from compressor.errors import WorkloadError
from compressor.given.models import as_usual_model
from compressor.given.notices import WorkloadWarning
from compressor.running.preflight import check_workload
from compressor.workload import Workload

DATA = (torch.randn(40, 4), torch.arange(40) % 2)


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def test_a_plain_model_is_taken_as_it_is():
    """Without a copy and without a word."""
    model = Net()
    assert as_usual_model(model) is model


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (nn.DataParallel, "taken out of DataParallel"),
        (partial(torch.compile, backend="eager"), "taken out of OptimizedModule"),
        (
            lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
            "out of DataParallel, and taken out of OptimizedModule",
        ),
        (torch.optim.swa_utils.AveragedModel, "taken out of AveragedModel"),
    ],
)
def test_wrappers_are_taken_off(wrap, says):
    """The layers are the model's own, and checks before work pass."""
    with pytest.warns(WorkloadWarning, match=says):
        workload = Workload.from_datasets(wrap(Net()), train=DATA, test=DATA)
    assert list(workload.model.state_dict()) == list(Net().state_dict())
    check_workload(workload)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32_in_a_copy(kind):
    """Values are those that the type held; the model that was given keeps it."""
    model = Net().to(kind)
    with pytest.warns(WorkloadWarning, match=f"converted from {str(kind).removeprefix('torch.')} to float32"):
        own = as_usual_model(model)
    assert {parameter.dtype for parameter in own.parameters()} == {torch.float32}
    assert own[1].num_batches_tracked.dtype == torch.int64
    assert torch.equal(own[0].weight, model[0].weight.float())
    assert model[0].weight.dtype == kind


def test_a_model_compiled_in_place_is_taken_without_that():
    """model.compile() leaves its class; the copy has forgotten it."""
    model = Net()
    model.compile(backend="eager")
    with pytest.warns(WorkloadWarning, match="without what compile"):
        own = as_usual_model(model)
    assert own._compiled_call_impl is None
    assert model._compiled_call_impl is not None


def test_a_model_elsewhere_goes_to_the_cpu(monkeypatch):
    """Where no GPU is at hand a parameter claims to be on one: the copy is moved, and the place is named."""

    class Elsewhere(Net):
        moved = False

        def parameters(self):
            place = "cpu" if Elsewhere.moved else "cuda"
            return iter([type("Fake", (), {"device": torch.device(place), "is_floating_point": lambda _: False})()])

        def cpu(self):
            Elsewhere.moved = True
            return super().cpu()

    with pytest.warns(WorkloadWarning, match="copied from cuda to the CPU"):
        own = as_usual_model(Elsewhere())
    assert Elsewhere.moved
    assert isinstance(own, Elsewhere)


def test_training_mode_is_no_hindrance():
    """What is scored is the model in eval mode; the mode of the one that was given stays."""
    model = Net().train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workload = Workload.from_datasets(model, train=DATA, test=DATA)
        check_workload(workload)
    assert model.training
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("model", "says"), [(Net, r"got its class; make one of it"), ({"a": 1}, "got dict; load the weights into one")]
)
def test_what_is_no_module_is_refused(model, says):
    """A class and a state dict are the usual mistakes."""
    with pytest.raises(WorkloadError, match=says):
        Workload.from_datasets(model, train=DATA, test=DATA)
