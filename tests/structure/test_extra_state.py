"""What modules put into checkpoints besides tensors comes back as it was, or is refused before any work."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor import Context, load_checkpoint
from compressor.errors import StorageError, WorkloadError
from compressor.files.export import export_onnx
from compressor.metrics import Metric
from compressor.running.preflight import check_workload
from compressor.runtime import predict_batches
from compressor.stages import FineTune, PruneChannels
from compressor.structure.checkpoint import WEIGHTS_FILE, save_checkpoint
from compressor.structure.extra_state import extra_states
from compressor.training.optimizers.averaging import Average
from compressor.training.precision import Float32
from compressor.training.snapshots import capture, digest, restore_
from workbench.same_data import same_data, three_classes


class Scale(nn.Module):
    """A factor that stands in the checkpoint beside the tensors."""

    def __init__(self, state: Any = 1.0) -> None:
        super().__init__()
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        return x * self.state["factor"] if isinstance(self.state, dict) else x

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if isinstance(state, dict) and "factor" not in state:
            raise KeyError("factor")
        self.state = state


class Silent(nn.Module):
    """Gives a state and takes none back."""

    def get_extra_state(self) -> Any:
        return 1


def net(state: Any = None) -> nn.Sequential:
    made = Scale({"factor": 2.0, "seen": [1, 2], "name": "a", "on": True} if state is None else state)
    return nn.Sequential(nn.Linear(4, 8), made, nn.Linear(8, 3)).eval()


@pytest.mark.parametrize(
    "state",
    [None, 3, "text", [1.5, None], True, torch.arange(3), torch.tensor(2.5), {"factor": -1.0, "nested": {"a": []}}],
)
def test_states_come_back_with_the_pruned_weights(state: Any, tmp_path: Path) -> None:
    """The factory's state is another one; what the pruned model computes is what the loaded one computes."""
    model = net(state)
    work, context = three_classes(model, 4), Context(progress=False, details={}, plan=[])
    check_workload(work, [PruneChannels(remove=0.3), FineTune(epochs=1)])
    small = PruneChannels(remove=0.3, align=1).apply(net(state), work, context)
    assert small[0].out_features < 8
    save_checkpoint(tmp_path, small, context.plan)
    loaded = load_checkpoint(tmp_path, lambda: net(0))
    found, wanted = loaded[1].state, small[1].state
    assert type(found) is type(wanted)
    assert torch.equal(found, wanted) if isinstance(wanted, Tensor) else found == wanted
    torch.testing.assert_close(loaded(work.example_inputs), small(work.example_inputs), rtol=0, atol=0)


def test_a_state_that_is_a_weight_too_is_stored_for_itself(tmp_path: Path) -> None:
    """Shared memory ties weights; a state comes back as a tensor of its own."""
    model = net(0)
    model[1].state = model[0].weight.data
    save_checkpoint(tmp_path, model, [])
    loaded = load_checkpoint(tmp_path, lambda: net(0))
    assert torch.equal(loaded[1].state, model[0].weight)
    assert torch.equal(loaded[0].weight, model[0].weight)


@pytest.mark.parametrize("state", [(1, 2), {1: "a"}, {"a", "b"}, b"bytes", float("nan"), object(), [torch.ones(1)]])
def test_what_json_does_not_give_back_is_refused_before_any_work(state: Any) -> None:
    """Tuples, numbers as keys, sets, bytes and objects would need pickle, or come back as something else."""
    with pytest.raises(WorkloadError) as caught:
        check_workload(three_classes(net(state), 4))
    assert str(caught.value).startswith("the extra state of '1' (Scale) must be a tensor or what JSON gives back")
    assert f"got {type(state).__name__}" in str(caught.value)


def test_a_module_that_takes_no_state_back_is_refused_before_any_work() -> None:
    """It could be saved, and never loaded."""
    with pytest.raises(WorkloadError, match=r"'0' \(Silent\) gives extra state and cannot take it back; add set_extra"):
        check_workload(three_classes(nn.Sequential(Silent(), *net()), 4))


def test_another_models_states_are_refused(tmp_path: Path) -> None:
    """A factory without the module, with one more, or whose module does not take the state."""
    save_checkpoint(tmp_path, net(), [])
    assert "extra_state" in (tmp_path / WEIGHTS_FILE).read_bytes()[:4000].decode(errors="ignore")
    with pytest.raises(StorageError, match=r"has extra state of \['1._extra_state'\], and Sequential wants \[\]"):
        load_checkpoint(tmp_path, lambda: nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.Linear(8, 3)))
    two = lambda: nn.Sequential(nn.Linear(4, 8), Scale(), nn.Linear(8, 3), Scale())  # noqa: E731 - a factory
    with pytest.raises(StorageError, match=r"wants \['1._extra_state', '3._extra_state'\]"):
        load_checkpoint(tmp_path, two)
    save_checkpoint(tmp_path, net({"other": 1}), [])
    with pytest.raises(StorageError, match=r"does not take the extra state .* back \(KeyError: 'factor'\)"):
        load_checkpoint(tmp_path, net)


def test_models_without_extra_state_are_stored_as_before(tmp_path: Path) -> None:
    """Nothing is added to the files of models that have none."""
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    assert extra_states(plain) == {}
    save_checkpoint(tmp_path, plain, [])
    assert b"extra_state" not in (tmp_path / WEIGHTS_FILE).read_bytes()


def test_a_model_with_extra_state_is_exported() -> None:
    """The file computes with the state; it is no weight that the file would have to hold."""
    model = net()
    exported = export_onnx(model, three_classes(model, 4))
    inputs = torch.randn(5, 4)
    ((found, _),) = predict_batches(exported.onnx_bytes, [(inputs, torch.zeros(5))])
    torch.testing.assert_close(found, model(inputs).detach(), rtol=1e-4, atol=1e-5)


class Counting(nn.Module):
    """Counts its calls in training; what it knows is no tensor, or one."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.calls = torch.zeros(1) if kind is Tensor else {"calls": 0}

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(self.calls, dict):
            self.calls["calls"] += 1
        elif self.training:
            self.calls += 1
        return x

    def get_extra_state(self) -> Any:
        return self.calls

    def set_extra_state(self, state: Any) -> None:
        self.calls = state


def falling() -> Metric:
    """One score for every time that it is asked: the epoch after the start is the best one."""
    scores = iter([0.0, 0.9, 0.5, 0.1])
    return Metric(name="told", per_sample=lambda outputs, _: torch.full((len(outputs),), next(scores)))


@pytest.mark.parametrize("kind", [dict, Tensor])
def test_training_ends_with_the_extra_state_of_its_best_epoch(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best is the first of three epochs, of two batches each; the weights beside it were put back before, too."""
    model = nn.Sequential(nn.Linear(4, 8), Counting(kind), nn.Linear(8, 3)).eval()
    data = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(2)]
    workload = dataclasses.replace(same_data(model, data, data[0][0][:2], metric=falling()), validation=data[:1])
    # Formats are compared with calls of their own.
    trained = FineTune(epochs=3, tail_epochs=0, precision=Float32()).apply(
        model, workload, Context(progress=False, details={})
    )
    calls = trained[1].calls
    assert float(calls if kind is Tensor else calls["calls"]) == 2


def test_an_average_of_weights_has_the_extra_state_of_now() -> None:
    """It is no number to be averaged: the state that stands in with the averaged weights is the model's own."""
    model = net({"factor": 1.0})
    average = Average.of(model, 0.9)
    model[1].state = {"factor": 3.0}
    average.update_(model)
    model[1].state = {"factor": 4.0}
    with average.stands_in(model):
        assert model[1].state == {"factor": 3.0}
    assert model[1].state == {"factor": 4.0}


def test_what_identifies_a_model_has_its_extra_state() -> None:
    """A snapshot of a model with another state is not continued, and a stage that changes it alone changes a model."""
    assert digest(net({"factor": 1.0})) != digest(net({"factor": 2.0}))
    model = net({"factor": 1.0})
    before = capture(model)
    model[1].state["factor"] = 5.0
    restore_(model, before)
    assert model[1].state == {"factor": 1.0}
