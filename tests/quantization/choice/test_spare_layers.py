"""Layers with ranges of every call: those that do harm stay in float, the fewest with which the file is good enough."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.measuring.timing import Timing
from compressor.notes.quantization import GivenBack
from compressor.quantization import evidence
from compressor.quantization.choice.spare_layers import SpareLayers, _groups
from compressor.quantization.evidence import by_evidence
from compressor.quantization.placement.forms import ByEvidence, Dynamic
from compressor.quantization.post_training import Prepared
from compressor.quantization.quantizer import calibrated
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.workload import Workload
from workbench.onnx_graphs import graph_of

WIDTH, LAYERS = 24, ("front", "middle", "head")


def network() -> bytes:
    """Three linear layers around a LayerNorm; the first one's input has a number that is huge and weighs nothing.

    The range of every call is that number's, so that all others are rounded to a few steps.
    """
    random = np.random.default_rng(0)
    weights = {f"{name}_w": random.normal(size=(WIDTH, WIDTH)) / 5 for name in LAYERS}
    weights["front_w"][0] = 0
    weights |= {"scale": np.ones(WIDTH), "shift": np.zeros(WIDTH)}
    nodes = [
        helper.make_node("MatMul", ["input", "front_w"], ["a"], "front"),
        helper.make_node("LayerNormalization", ["a", "scale", "shift"], ["b"], "norm"),
        helper.make_node("MatMul", ["b", "middle_w"], ["c"], "middle"),
        helper.make_node("Relu", ["c"], ["d"], "cut"),
        helper.make_node("MatMul", ["d", "head_w"], ["output"], "head"),
    ]
    return graph_of(nodes, weights, ["batch", WIDTH], ["batch", WIDTH]).SerializeToString()


def workload(exported: bytes) -> Workload:
    inputs = torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(0))
    inputs[:, 0] = 1000.0
    targets = torch.from_numpy(open_session(exported).run(None, {"input": inputs.numpy()})[0]).argmax(dim=1)
    data = inputs, targets
    return Workload.from_datasets(nn.Identity(), train=data, validation=data, test=data, batch_size=64)


@pytest.fixture(scope="module")
def dynamic() -> tuple[Prepared, Workload]:
    exported = network()
    data = workload(exported)
    return calibrated(exported, Quantize(form=Dynamic()), data, Context(progress=False)), data


def integer_layers(file: bytes) -> set[str]:
    """The layers of the file whose product is one of integers."""
    names = [node.name for node in onnx.load_from_string(file).graph.node if node.op_type != "MatMul"]
    floats = [node.name for node in onnx.load_from_string(file).graph.node if node.op_type == "MatMul"]
    return {layer for layer in LAYERS if any(layer in name for name in names) and layer not in floats}


def test_the_layer_that_does_harm_goes_first(dynamic: tuple[Prepared, Workload]) -> None:
    """One layer in float is enough where it is the one that the huge number reaches, and the note says so."""
    prepared, data = dynamic
    seen: list[set[str]] = []

    def missed(file: bytes) -> str:
        seen.append(integer_layers(file))
        return "front is on integers" if "front" in seen[-1] else ""

    spared = SpareLayers(missed=missed).apply(prepared, Quantize().activations, data)
    assert seen == [{"middle", "head"}]
    assert set(spared.placement.dynamic) == {"middle", "head"}
    note = GivenBack.from_json(spared.details)
    assert note is not None
    assert [each.node for each in note.given_back] == ["front"]
    assert note.given_back[0].numbers["sqnr_db_alone"] < 10


def test_no_more_layers_than_are_needed_and_one_at_least_on_integers(dynamic: tuple[Prepared, Workload]) -> None:
    """What holds with two in float is not given back; what never holds is refused with the reason."""
    prepared, data = dynamic
    spared = SpareLayers(missed=lambda file: "" if len(integer_layers(file)) < 2 else "two are too many").apply(
        prepared, Quantize().activations, data
    )
    assert len(spared.placement.dynamic) == 1
    with pytest.raises(StageError, match="with 2 of 3 in float, never good enough"):
        SpareLayers(missed=lambda _: "never good enough").apply(prepared, Quantize().activations, data)


def test_what_went_too_much_is_halved_back() -> None:
    """Of five layers three have to go: one, two and four are tried, then three."""
    random = np.random.default_rng(0)
    names = [f"layer{number}" for number in range(5)]
    weights = {f"{name}_w": random.normal(size=(WIDTH, WIDTH)) / 5 for name in names}
    wires = ["input", "a", "b", "c", "d", "output"]
    nodes = [
        helper.make_node("MatMul", [wires[at], f"{name}_w"], [wires[at + 1]], name) for at, name in enumerate(names)
    ]
    exported = graph_of(nodes, weights, ["batch", WIDTH], ["batch", WIDTH]).SerializeToString()
    data = workload(exported)
    prepared = calibrated(exported, Quantize(form=Dynamic()), data, Context(progress=False))
    tried: list[int] = []

    def missed(file: bytes) -> str:
        floats = [node.name for node in onnx.load_from_string(file).graph.node if node.op_type == "MatMul"]
        tried.append(len(floats))
        return "" if len(floats) >= 3 else "too few"

    spared = SpareLayers(missed=missed).apply(prepared, Quantize().activations, data)
    assert tried == [1, 2, 4, 3]
    assert len(spared.placement.dynamic) == 2


def test_deep_networks_go_by_neighbours(dynamic: tuple[Prepared, Workload], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three layers in two groups at most are one of two and one."""
    monkeypatch.setattr("compressor.quantization.choice.spare_layers._MOST_GROUPS", 2)
    assert _groups(dynamic[0]) == [("front", "middle"), ("head",)]


def test_the_search_for_a_form_spares_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer's layers have ranges of every call: the second attempt has the harmful one in float, and holds."""

    def timed(*_: Any, **__: Any) -> Timing:
        one = Estimate(1.0, 1.0, 1.0)
        return Timing(reference_ms=one, candidate_ms=one, speedup=Estimate(2.0, 1.9, 2.1))

    monkeypatch.setattr(evidence, "time_interleaved", timed)
    exported, context = network(), Context(progress=False)
    stage = Quantize(form=ByEvidence(max_drop=0.05))
    by_evidence(exported, stage, workload(exported), context)
    first, second = context.details["candidates"][:2]
    assert first["form"] == "static"
    assert not first["kept"]
    assert second["form"] == context.details["chosen_form"] == "harmful layers in float"
    assert [each["node"] for each in context.details["given_back"]] == ["front"]
