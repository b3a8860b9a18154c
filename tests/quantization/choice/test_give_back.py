"""Layers that lose more than they bring go back to float, each with its reason."""

import copy
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.files.export import export_onnx
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.choice import give_back
from compressor.quantization.choice.give_back import GiveBack, trials
from compressor.quantization.choice.layer_times import islands, slower_groups
from compressor.quantization.choice.sensitivity import first_inputs, noise_db, output_values
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.placement.forms import Dynamic
from compressor.quantization.post_training import Prepared, prepare
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.workload import Workload
from workbench.tiny import TinyResNet, make_workload

QUIET = Context(progress=False)


@pytest.fixture(scope="module")
def workload(_trained_model: TinyResNet) -> Workload:
    return make_workload(copy.deepcopy(_trained_model))


@pytest.fixture(scope="module")
def exported(workload: Workload) -> bytes:
    return export_onnx(workload.model, workload).onnx_bytes


@pytest.fixture(scope="module")
def prepared(workload: Workload, exported: bytes) -> Prepared:
    return prepare(exported, Quantize(), workload, QUIET)


def spoiled(prepared: Prepared, *names: str) -> Prepared:
    """`prepared` with the channels of some layers in each other's place."""
    weights = dict(prepared.weights)
    for node in prepared.graph.graph.node:
        if node.name in names:
            grid = weights[node.input[1]]
            weights[node.input[1]] = grid.with_integers(grid.integers.roll(1, 0))
    return replace(prepared, weights=weights)


def timed(monkeypatch: pytest.MonkeyPatch, slow: dict[str, float], gains: dict[int, float]) -> list[int]:
    """How many layers each timed file has back in float: a list that fills.

    Every layer takes 1 ms in float and 0.5 in integers, those of `slow` so many; a file is `gains` times faster with so
    many layers more in float.
    """
    tried: list[int] = []

    def layer_ms(file: bytes, graph, inputs, *, threads: int) -> dict[str, float]:
        integer = kernels(file)["QLinearConv"] > 0
        return {node.name: slow.get(node.name, 0.5) if integer else 1.0 for node in graph.graph.node}

    def time_interleaved(candidate: bytes, reference: bytes, inputs, **_) -> SimpleNamespace:
        back = kernels(reference)["QLinearConv"] - kernels(candidate)["QLinearConv"]
        tried.append(back)
        gain = gains.get(back, 0.9)
        return SimpleNamespace(speedup=Estimate(gain, gain - 0.05, gain + 0.05))

    monkeypatch.setattr(give_back, "layer_ms", layer_ms)
    monkeypatch.setattr(give_back, "time_interleaved", time_interleaved)
    return tried


def test_slower_layers_come_in_the_order_of_their_loss() -> None:
    """Layer b loses 0.3 ms, a 0.1; c gains, d was not measured in float, e is none of the layers."""
    float_ms = {"a": 0.1, "b": 0.1, "c": 0.3, "e": 0.1}
    integer_ms = {"a": 0.2, "b": 0.4, "c": 0.2, "d": 0.5, "e": 0.9}
    found = slower_groups(float_ms, integer_ms, [("a",), ("b",), ("c",), ("d",)])
    assert list(found.items()) == [(("b",), (0.1, 0.4)), (("a",), (0.1, 0.2))]


def test_groups_are_slower_by_their_sums() -> None:
    """Layers b and c take 0.6 ms in integers and 0.4 in float, a and c gain together, d's time is unknown."""
    float_ms = {"a": 0.4, "b": 0.1, "c": 0.3}
    integer_ms = {"a": 0.2, "b": 0.4, "c": 0.2, "d": 0.5}
    found = slower_groups(float_ms, integer_ms, [("a", "c"), ("b", "c"), ("b", "d")])
    assert {names: pytest.approx(times) for names, times in found.items()} == {("b", "c"): (0.4, 0.6)}


def test_trials_halve() -> None:
    """Of five slower layers all are tried, then 3, 2 and 1, always those that lose most."""
    five = [(name,) for name in "abcde"]
    assert trials(five) == [five, five[:3], five[:2], five[:1]]
    assert trials([]) == []


def test_islands_lie_between_conversions(prepared: Prepared) -> None:
    """A residual block hangs together over its sum; two layers with a float one between them do not."""
    layers = prepared.placement.static
    assert islands(prepared.graph, prepared.static, layers) == [layers]
    left = {"conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.1.conv1", "linear"}
    few = prepared.without(dict.fromkeys(set(layers) - left, "float"))
    assert islands(few.graph, few.static, few.placement.static) == [
        ("conv1", "layer1.0.conv1", "layer1.0.conv2"),
        ("layer2.1.conv1",),
        ("linear",),
    ]


def test_branches_are_one_island_with_what_they_read() -> None:
    """Both heads of a network with two outputs hang on its trunk, however long the first one is."""
    reads = {"trunk": ("image", "t"), "a": ("t", "u"), "b": ("u", "v"), "head": ("t", "w")}
    graph = onnx.ModelProto()
    graph.graph.node.extend(helper.make_node("Conv", [one], [other], name) for name, (one, other) in reads.items())
    assert islands(graph, set(reads), set(reads)) == [tuple(reads)]
    assert islands(graph, {"a", "b", "head"}, {"a", "head"}) == [("a", "head")]
    assert islands(graph, {"trunk", "b"}, set(reads)) == [("trunk",), ("b",)]


def test_islands_go_back_whole(prepared: Prepared, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer pays 0.6 ms more for the conversion, the second gains 0.3: only together do they go back.

    Alone, the first would hand the conversion on to the second, and nothing would be gained.
    """
    names = ("layer2.1.conv1", "layer2.1.conv2")
    few = prepared.without(dict.fromkeys(set(prepared.placement.static) - {"conv1", *names}, "float"))
    assert names in islands(few.graph, few.static, few.placement.static)
    tried = timed(monkeypatch, {names[0]: 1.6, names[1]: 0.7}, {1: 0.97, 2: 1.3})
    found = GiveBack(max_drop=None).apply(few, workload, QUIET)
    assert tried == [2]
    assert found.placement.static == ("conv1",)
    assert [entry["node"] for entry in found.details["given_back"]] == list(names)
    why = "slower: 2.3000 ms in integers with its conversions, 2.0000 ms in float for 2 layers between conversions"
    assert all(entry["why"].startswith(why) for entry in found.details["given_back"])


def test_what_goes_back_has_no_integers(prepared: Prepared) -> None:
    """A layer in float again has no grid, so that nothing is learned for it and nothing is stored."""
    weights = {node.name: node.input[1] for node in prepared.graph.graph.node if len(node.input) > 1}
    left = prepared.without({"conv1": "tried"})
    assert set(prepared.weights) - set(left.weights) == {weights["conv1"]}
    half = prepared.without({"conv1": "tried"}, float16=["conv1"])
    assert half.placement.float16 == ("conv1",)
    assert half.without({"conv1": "again"}).placement.float16 == ()


def test_slower_layers_go_back_where_the_file_gains(
    prepared: Prepared, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two together make the file slower, the slowest alone makes it faster: it goes back, with its numbers."""
    tried = timed(monkeypatch, {"layer1.0.conv1": 3.0, "layer1.0.conv2": 2.0}, {1: 1.2, 2: 0.8})
    found = GiveBack(max_drop=None).apply(prepared, workload, QUIET)
    assert tried == [2, 1, 1]  # and the other one again, whose gain comes true as well
    assert set(prepared.placement.static) - set(found.placement.static) == {"layer1.0.conv1", "layer1.0.conv2"}
    first = found.details["given_back"][0]
    assert first["node"] == "layer1.0.conv1"
    assert first["numbers"] == {"float_ms": 1.0, "integer_ms": 3.0}
    assert first["why"].startswith("slower: 3.0000 ms in integers with its conversions, 1.0000 ms in float; the file")
    assert found.placement.left["layer1.0.conv1"] == "given back: its integer form is slower"
    assert [entry["kept"] for entry in found.details["give_back"]["tried"]] == [False, True, True]


def test_nothing_goes_back_without_proof(
    prepared: Prepared, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interval that contains 1 is no gain: the profile alone decides nothing."""
    timed(monkeypatch, {"conv1": 3.0}, {1: 1.04})
    found = GiveBack(max_drop=None).apply(prepared, workload, QUIET)
    assert found.placement.static == prepared.placement.static
    assert found.details["given_back"] == []
    assert [entry["kept"] for entry in found.details["give_back"]["tried"]] == [False]


def test_gains_that_no_timing_could_prove_are_not_timed(
    prepared: Prepared, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer whose profile says that a thousandth of the file's time could be won stays as it is, untimed."""
    tried = timed(monkeypatch, {"conv1": 1.01}, {1: 1.2})
    found = GiveBack(max_drop=None).apply(prepared, workload, QUIET)
    assert tried == []
    assert found.placement.static == prepared.placement.static


def test_the_layer_that_costs_the_accuracy_goes_back(prepared: Prepared, workload: Workload) -> None:
    """With one layer's integers spoiled, this one goes back and no other, and the score is there again."""
    broken = spoiled(prepared, "layer2.1.conv1")
    found = GiveBack(slower=False).apply(broken, workload, QUIET)
    assert [entry["node"] for entry in found.details["given_back"]] == ["layer2.1.conv1"]
    (row,) = found.details["given_back"]
    assert row["numbers"]["sqnr_db_without"] > row["numbers"]["sqnr_db"] + 10
    told = found.details["give_back"]
    assert told["before"]["drop"]["value"] > 0.01
    assert told["tried"][-1]["drop"]["value"] <= 0.01
    assert told["before"]["missed"].startswith("validation accuracy fell")
    assert "layer2.1.conv1" not in found.placement.static
    assert found.placement.left["layer2.1.conv1"] == "given back: it costs too much accuracy"


def test_as_few_as_it_takes_go_back(prepared: Prepared, workload: Workload) -> None:
    """Three spoiled layers: 1, 2 and 4 are tried, then 3, which is enough."""
    names = {"layer2.1.conv1", "layer1.0.conv1", "layer2.2.conv2"}
    found = GiveBack(max_drop=None, min_sqnr_db=20.0, slower=False).apply(spoiled(prepared, *names), workload, QUIET)
    assert {entry["node"] for entry in found.details["given_back"]} == names
    assert [len(entry["nodes"]) for entry in found.details["give_back"]["tried"]] == [1, 2, 4, 3]
    assert found.details["give_back"]["tried"][-1]["sqnr_db"] >= 20.0


def test_nothing_goes_back_where_the_goal_is_met(prepared: Prepared, workload: Workload) -> None:
    """Eight bits lose nothing here: every layer stays, and the drop stands in the details."""
    found = GiveBack(slower=False).apply(prepared, workload, QUIET)
    assert found.placement == prepared.placement
    assert found.details["given_back"] == []
    assert found.details["give_back"]["before"]["drop"]["value"] <= 0.01


def test_goals_out_of_reach_are_refused(prepared: Prepared, workload: Workload) -> None:
    """No choice of layers leaves 150 dB, and the message says what was reached and what helps."""
    with pytest.raises(StageError, match=r"the outputs keep .* dB, wanted are 150, and so it does with one layer left"):
        GiveBack(max_drop=None, min_sqnr_db=150.0, slower=False).apply(prepared, workload, QUIET)
    alone = prepared.without(dict.fromkeys(set(prepared.placement.static) - {"conv1"}, "float"))
    with pytest.raises(StageError, match="one quantized layer is all there is; train with QuantizationAwareTraining"):
        GiveBack(max_drop=None, min_sqnr_db=150.0, slower=False).apply(alone, workload, QUIET)


def test_dynamic_layers_go_back_as_well(workload: Workload, exported: bytes) -> None:
    """What is quantized at every call counts among the layers: of one there is nothing to give back."""
    dynamic = prepare(exported, Quantize(form=Dynamic()), workload, QUIET)
    assert dynamic.placement.dynamic == ("linear",)
    with pytest.raises(StageError, match="nothing would be left to quantize"):
        dynamic.without({"linear": "tried"})
    with pytest.raises(StageError, match="one quantized layer is all there is"):
        GiveBack(max_drop=None, min_sqnr_db=150.0, slower=False).apply(dynamic, workload, QUIET)


def test_a_layer_in_float_again_has_its_own_bias(workload: Workload, exported: bytes) -> None:
    """Biases are corrected for what stays in integers: the correction is made again for every candidate."""
    prepared = prepare(exported, Quantize(weights=Symmetric(bits=4)), workload, QUIET)
    asked: list[int] = []

    def correct(candidate: Prepared) -> Prepared:
        asked.append(len(candidate.placement.static))
        graph, _ = BiasCorrection(samples=32).apply(candidate.graph, candidate.place, workload, QUIET)
        return replace(candidate, graph=graph)

    batches = first_inputs(workload.calibration, 32)
    reference, quantized = (output_values(file, batches) for file in (exported, serialize(correct(prepared).place())))
    asked.clear()
    goal = noise_db(reference, quantized) + 1.0
    found = GiveBack(max_drop=None, min_sqnr_db=goal, slower=False, samples=32).apply(
        prepared, workload, QUIET, correct=correct
    )
    back = [entry["node"] for entry in found.details["given_back"]]
    assert back
    assert asked[:2] == [len(prepared.placement.static), len(prepared.placement.static) - 1]
    again = correct(prepared.without(dict.fromkeys(back, "float")))
    images = [torch.randn(4, 3, 8, 8)]
    first, second = (output_values(serialize(one.place()), images) for one in (found, again))
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": 1.0}, "max_drop is a fraction (0.01 is one point of accuracy), in [0, 1); got 1.0"),
        ({"min_sqnr_db": 0.0}, "min_sqnr_db is a ratio in decibels, above 0; got 0.0"),
        ({"max_drop": None, "slower": False}, "look at nothing; set one, or leave GiveBack out"),
        ({"samples": 0}, "samples counts calibration samples, at least 1; got 0"),
    ],
)
def test_settings_are_checked(settings: dict, message: str) -> None:
    """What makes no sense is refused with the value that was given."""
    with pytest.raises(ValueError, match=re.escape(message)):
        GiveBack(**settings)


def test_the_settings_are_written_as_they_are_read() -> None:
    """eval(repr(x)) == x."""
    settings = GiveBack(max_drop=0.02, min_sqnr_db=25.0)
    assert eval(repr(settings)) == settings  # noqa: S307 - our own text


def test_the_stage_gives_back_and_says_so(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Quantize: the layer runs in float in the file, and the coverage names the reason."""
    timed(monkeypatch, {"layer1.0.conv1": 3.0}, {1: 1.2})
    context = Context(progress=False)
    Quantize(give_back=GiveBack()).apply(workload.model, workload, context)
    left = {entry["node"]: entry["reason"] for entry in context.details["left_in_float"]}
    assert left == {"layer1.0.conv1": "given back: its integer form is slower"}
