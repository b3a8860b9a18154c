"""Multiply-accumulates with milliseconds in step: the choice sees what products alone do not."""

import copy

import onnx
import pytest
import torch
from torch import nn

from compressor.estimate import Estimate
from compressor.measuring.timing import Timing
from compressor.pruning.choice import goals
from compressor.pruning.choice.targets import Macs
from compressor.pruning.ranking.criteria import L1
from compressor.pruning.ranking.scope import Isomorphic, PerLayer
from compressor.stage import Context
from compressor.stages import PruneChannels
from compressor.workload import Workload
from workbench import structure_clock


def workload() -> Workload:
    """Two hidden layers of 16; half of the first one's units are small, those of the second are all alike."""
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        model[0].weight[::2] *= 0.01
        model[2].weight.copy_(model[2].weight.sign())
    data = torch.randn(32, 16), torch.arange(32) % 4
    return Workload.from_datasets(model, train=data, test=data, batch_size=16, calibration_samples=16, name="mlp")


class LastLayerTable(structure_clock.CountingTable):
    """A table by which the layer that makes the output takes all of the time, and what its input is wide."""

    def milliseconds(self, operators, precision: str = "float32") -> list[float]:
        return [operator.inputs / 16 if operator.outputs == 4 else 1e-9 for operator in operators]


@pytest.fixture
def _last_layer_takes_all_time(monkeypatch: pytest.MonkeyPatch) -> None:
    structure_clock.install(monkeypatch)
    monkeypatch.setattr(goals, "LatencyTable", LastLayerTable)


def pruned_with(target: Macs) -> tuple[nn.Module, dict]:
    torch.manual_seed(0)
    task, context = workload(), Context(seed=0, progress=False)
    pruned = PruneChannels(target=target, criterion=L1(), align=1).apply(copy.deepcopy(task.model), task, context)
    return pruned, context.details


def prune(target: Macs) -> tuple[nn.Module, dict]:
    pruned, details = pruned_with(target)
    return pruned, details["target"]


@pytest.mark.usefixtures("_last_layer_takes_all_time")
def test_time_that_products_do_not_show_is_taken_along() -> None:
    """By products the small units go and the layer that takes the time stays 16 wide; asked for efficiency, it goes."""
    by_count, _ = prune(Macs(0.6))
    assert by_count[4].in_features == 16
    pruned, told = prune(Macs(0.6, efficiency=0.9))
    macs = sum(layer.in_features * layer.out_features for layer in pruned if isinstance(layer, nn.Linear))
    assert macs <= 0.6 * (256 + 256 + 64)
    share = macs / (256 + 256 + 64)
    assert 0.9 * pruned[4].in_features / 16 <= share
    assert told["efficiency"]["asked"] == 0.9
    for form in ("float32", "int8"):
        assert told["efficiency"][form]["predicted"] == pytest.approx(share / (pruned[4].in_features / 16), rel=1e-3)
        # The clock of the test counts products: by it every network is as efficient as it is small.
        assert told["efficiency"][form]["measured"] == pytest.approx(1.0, rel=1e-3)


def test_what_cannot_be_had_is_approached_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time does not go down with any width, products still do, and the report says how far behind time stays."""
    structure_clock.install(monkeypatch)

    class ConstantTable(structure_clock.CountingTable):
        def milliseconds(self, operators, precision: str = "float32") -> list[float]:
            return [1.0 for _ in operators]

    monkeypatch.setattr(goals, "LatencyTable", ConstantTable)
    _, told = prune(Macs(0.5, efficiency=0.95))
    assert told["fraction_of_reference"] <= 0.5
    assert told["efficiency"]["int8"]["predicted"] == pytest.approx(told["fraction_of_reference"], rel=1e-3)


def test_one_form_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the forms that are named are timed and told of."""
    clock = structure_clock.install(monkeypatch)
    _, told = prune(Macs(0.6, efficiency=0.9, forms=("float32",)))
    assert "int8" not in told["efficiency"]
    assert len(clock.timed) == 2


@pytest.mark.usefixtures("_last_layer_takes_all_time")
@pytest.mark.parametrize("scope", [PerLayer(), Isomorphic()])
def test_the_efficiency_that_is_predicted_is_that_of_the_widths_taken(scope: PerLayer | Isomorphic) -> None:
    """Also where a scope sets the widths and no efficiency is chosen for: by the table, products over last inputs."""
    torch.manual_seed(0)
    task, context = workload(), Context(seed=0, progress=False)
    stage = PruneChannels(target=Macs(0.6, efficiency=0.9, forms=("float32",)), scope=scope, criterion=L1(), align=1)
    pruned = stage.apply(copy.deepcopy(task.model), task, context)
    told = context.details["target"]
    assert told["fraction_of_reference"] <= 0.6
    wanted = told["fraction_of_reference"] / (pruned[4].in_features / 16)
    assert told["efficiency"]["float32"]["predicted"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("slow", [False, True])
def test_a_form_that_falls_short_is_chosen_for_once_more(monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    """Where a network takes longer than its table says, a second choice makes up for it; else the first one stays.

    By the table half of the time is that of the products and half that of the last layer's inputs. On the clock it is
    all that of the inputs, or, `slow`, every narrowed network takes twice the time.
    """

    class Table(structure_clock.CountingTable):
        def milliseconds(self, operators, precision: str = "float32") -> list[float]:
            return [operator.macs / 1152 + (operator.inputs / 32) * (operator.outputs == 4) for operator in operators]

    def time(candidate: bytes, _reference: bytes, _inputs, **_settings) -> Timing:
        width = last_inputs(candidate)
        ms = 2.0 if slow and width < 16 else width / 16
        return Timing(
            reference_ms=Estimate(1, 1, 1), candidate_ms=Estimate(ms, ms, ms), speedup=Estimate(1 / ms, 1 / ms, 1 / ms)
        )

    structure_clock.install(monkeypatch)
    monkeypatch.setattr(goals, "LatencyTable", Table)
    monkeypatch.setattr(goals, "time_interleaved", time)
    pruned, details = pruned_with(Macs(0.6, efficiency=0.9))
    told = details["target"]
    if slow:
        assert told["efficiency"]["int8"]["measured"] == pytest.approx(told["fraction_of_reference"] / 2, rel=1e-3)
        assert details["second_choice"]["efficiency"]["int8"]["measured"] < told["efficiency"]["int8"]["measured"]
        return
    before = details["first_choice"]["efficiency"]["int8"]
    assert before["measured"] < 0.87
    assert before["predicted"] >= 0.9
    assert told["efficiency"]["int8"]["measured"] == pytest.approx(
        told["fraction_of_reference"] / (pruned[4].in_features / 16), rel=1e-3
    )
    assert told["efficiency"]["int8"]["measured"] >= 0.9


def last_inputs(file: bytes) -> int:
    """The inputs of the last layer, which has four outputs, of an ONNX file."""
    shapes = [tuple(tensor.dims) for tensor in onnx.load_from_string(file).graph.initializer]
    return next(max(shape) for shape in shapes if len(shape) == 2 and 4 in shape)
