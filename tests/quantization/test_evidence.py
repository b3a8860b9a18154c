"""The first form that holds and is faster is taken; what does not hold makes room for the next."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from compressor.errors import StageError, WriteError
from compressor.estimate import Estimate
from compressor.files import opening
from compressor.files.opening import note_given
from compressor.measuring.scores import score_rows
from compressor.measuring.timing import Timing
from compressor.metrics import Metric
from compressor.quantization import evidence, quantizer
from compressor.quantization.choice import give_back
from compressor.quantization.choice.spare import Spare
from compressor.quantization.evidence import by_evidence
from compressor.quantization.other_cpus.pair_safety import safe_grids
from compressor.quantization.other_cpus.portability import integer_nodes
from compressor.quantization.placement.forms import ByEvidence, ByFamily
from compressor.quantization.post_training import Prepared, finish
from compressor.quantization.quantizer import calibrated
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.workload import Workload
from workbench.onnx_graphs import graph_of

SHAPE = 24


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Times by the order in which files come, 2x the speed of float where nothing else is said.

    Of layers, those named in "slow" are slower in integers.
    """
    said: dict[str, Any] = {"speeds": [], "calls": 0, "slow": []}

    def timed(candidate: bytes, reference: bytes, inputs: Any, **_: Any) -> Timing:
        speeds = said["speeds"]
        value = speeds[said["calls"]] if said["calls"] < len(speeds) else 2.0
        said["calls"] += 1
        one = Estimate(1.0, 1.0, 1.0)
        return Timing(reference_ms=one, candidate_ms=one, speedup=Estimate(value, 0.97 * value, 1.03 * value))

    def layer_ms(file: bytes, graph: onnx.ModelProto, inputs: Any, **_: Any) -> dict[str, float]:
        integers = b"QuantizeLinear" in file
        return {node.name: 2.0 if integers and node.name in said["slow"] else 1.0 for node in graph.graph.node}

    for module in (evidence, give_back):
        monkeypatch.setattr(module, "time_interleaved", timed)
    monkeypatch.setattr(give_back, "layer_ms", layer_ms)
    return said


def _network(*, loud: bool) -> bytes:
    """Two layers, between which values are cut or, with `loud`, raised to the fifth power and bounded."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(SHAPE, SHAPE)) / 5 for name in ("first", "last")}
    power = [
        helper.make_node("Mul", ["product", "product"], ["square"], "squared"),
        helper.make_node("Mul", ["square", "square"], ["fourth"], "doubled"),
        helper.make_node("Mul", ["fourth", "product"], ["fifth"], "raised"),
        helper.make_node("Tanh", ["fifth"], ["between"], "bounded"),
    ]
    nodes = [
        helper.make_node("MatMul", ["input", "first"], ["product"], "front"),
        *(power if loud else [helper.make_node("Relu", ["product"], ["between"], "cut")]),
        helper.make_node("MatMul", ["between", "last"], ["output"], "head"),
    ]
    return graph_of(nodes, weights, ["batch", SHAPE], ["batch", SHAPE]).SerializeToString()


def _workload(exported: bytes, metric: Metric | str = "accuracy") -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, SHAPE, generator=generator) * 3
    targets = torch.from_numpy(open_session(exported).run(None, {"input": inputs.numpy()})[0]).argmax(dim=1)
    data = inputs, targets
    return Workload.from_datasets(nn.Identity(), train=data, validation=data, test=data, metric=metric, batch_size=64)


def _made(exported: bytes, workload: Workload, **settings: Any) -> tuple[bytes, dict[str, Any]]:
    context = Context(progress=False)
    stage = Quantize(form=ByEvidence(**settings))
    return by_evidence(exported, stage, workload, context), context.details


def test_what_holds_and_is_faster_at_once_is_all_that_is_tried(clock: dict[str, Any]) -> None:
    """A plain network is quantized once and timed once."""
    exported = _network(loud=False)
    _, details = _made(exported, _workload(exported), max_drop=0.05)
    assert details["chosen_form"] == "static"
    assert [(entry["form"], entry["kept"]) for entry in details["candidates"]] == [("static", True)]
    assert clock["calls"] == 1


def test_what_loses_too_much_is_tried_with_its_harm_in_float(clock: dict[str, Any]) -> None:
    """Fifth powers break the first attempt; spared, the file keeps its decisions and still has an integer layer."""
    exported = _network(loud=True)
    workload = _workload(exported)
    file, details = _made(exported, workload, max_drop=0.02)
    first, second = details["candidates"][:2]
    assert "too little, wanted are 10 dB" in first["why"]
    assert details["chosen_form"] == second["form"] == "static, harmful signals spared"
    assert second["integer_kernels"]
    assert second["sqnr_db"] > 10
    assert details["given_back"]
    assert second["drop"]["value"] <= 0.02
    rows = [score_rows(each, workload.test, workload.metric).mean() for each in (exported, file)]
    assert rows[0] - rows[1] <= 0.02


def test_the_search_for_harm_is_given_the_weights_that_ship() -> None:
    """Scales that grow for CPUs that saturate have grown before the search, and grow no more behind it."""
    exported, seen = _network(loud=True), list[Prepared]()
    settings, workload, context = Quantize(), _workload(exported), Context(progress=False)

    def kept(prepared: Prepared, *_: Any) -> Prepared:
        seen.append(prepared)
        return prepared

    with pytest.raises(StageError, match="broke the model"):
        quantizer.quantized_file(exported, settings, workload, context, spare=kept)
    (given,) = seen
    usual = calibrated(exported, settings, workload, context).weights
    safe, shipped = (safe_grids(given.graph, weights, integer_nodes(given)) for weights in (given.weights, usual))
    for name, grid in given.weights.items():
        assert torch.equal(grid.scale, safe[name].scale)
        assert torch.equal(grid.integers, shipped[name].integers)


def test_what_does_not_hold_is_no_file(clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms that lose too much, or compute what another one did, are refused before a file is written and checked."""
    written: list[float] = []

    def counted(*arguments: Any, **settings: Any) -> bytes:
        written.append(1)
        return finish(*arguments, **settings)

    monkeypatch.setattr(quantizer, "finish", counted)
    exported = _network(loud=True)
    _, details = _made(exported, _workload(exported), max_drop=0.02)
    assert [entry["kept"] for entry in details["candidates"]] == [False, True]
    assert len(written) == 1
    written.clear()
    clock["speeds"] = [0.5] * 9
    exported = _network(loud=False)
    with pytest.raises(StageError, match="the same file as static"):
        _made(exported, _workload(exported), max_drop=0.05)
    assert len(written) == 3


def test_what_is_larger_than_the_given_file_is_not_called_smaller(
    clock: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a file may make it larger, and less of that is no smaller file."""
    monkeypatch.setattr(opening, "_given", {})
    exported = _network(loud=False)
    clock["speeds"] = [0.5, 0.99, 1.0]
    (tmp_path / "sparse.onnx").write_bytes(b"small")
    note_given(exported, tmp_path / "sparse.onnx")
    _, details = _made(exported, _workload(exported), max_drop=0.05)
    kept = next(entry for entry in details["candidates"] if entry["kept"])
    assert kept["why"].startswith("smaller than the given file as it was read, not than it is, and not proved faster: ")


def test_of_forms_that_hold_the_fastest_is_taken_and_ties_go_to_the_smallest(clock: dict[str, Any]) -> None:
    """Where the first is slower than float the others are tried; of two that tie the smaller file ships."""
    exported = _network(loud=False)
    clock["speeds"] = [0.5, 0.99, 1.0]
    file, details = _made(exported, _workload(exported), max_drop=0.05)
    names = [entry["form"] for entry in details["candidates"]]
    again = "static, slow layers in float"
    assert names == ["static", again, "dynamic products, float convolutions", "weights alone"]
    assert details["candidates"].pop(1)["why"] == "the same file as static"
    sizes = {entry["form"]: entry["size_bytes"] for entry in details["candidates"]}
    tied = names[2:]
    assert details["chosen_form"] == min(tied, key=sizes.__getitem__)
    assert len(file) == min(sizes[name] for name in tied)
    kept = next(entry for entry in details["candidates"] if entry["kept"])
    assert kept["why"].startswith("smaller, and not proved faster: ")
    assert all(" of its size; " in entry["why"] for entry in details["candidates"] if not entry["kept"])


@pytest.mark.parametrize("loud", [False, True])
def test_slow_layers_go_back_to_float_where_what_holds_is_no_faster(
    clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, loud: bool
) -> None:
    """The first layer is slower in integers: with it in float the file is faster, also where signals are spared.

    What to spare is searched for once.
    """
    exported, searches, spare = _network(loud=loud), [], Spare.apply

    def counted(*args: Any) -> Any:
        searches.append(args)
        return spare(*args)

    monkeypatch.setattr(Spare, "apply", counted)
    clock |= {"slow": ["front"], "speeds": [0.5, 1.2, 1.2]}
    _, details = _made(exported, _workload(exported), max_drop=0.05)
    label = "static, harmful signals spared" if loud else "static"
    assert details["chosen_form"] == f"{label}, slow layers in float"
    assert [entry["node"] for entry in details["given_back"] if entry["why"].startswith("slower")] == ["front"]
    assert any(not entry["why"].startswith("slower") for entry in details["given_back"]) == loud
    assert clock["calls"] == 3
    assert len(searches) == loud


def test_forms_that_begin_alike_are_calibrated_once(clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The static form, the same with its harm in float and with slow layers in float share one; others need theirs."""
    asked: list[Any] = []

    def counted(exported: bytes, settings: Any, *rest: Any) -> Any:
        asked.append(settings)
        return calibrated(exported, settings, *rest)

    monkeypatch.setattr(evidence, "calibrated", counted)
    clock["speeds"] = [0.5] * 20
    exported = _network(loud=True)
    with pytest.raises(StageError, match="the float file is the best"):
        _made(exported, _workload(exported), max_drop=0.02)
    assert [type(each.form).__name__ for each in asked] == ["ByFamily", "Dynamic", "WeightOnly"]


def test_nothing_ships_that_is_slower_or_no_smaller(clock: dict[str, Any]) -> None:
    """Three forms at half the speed of float: the float file stays, and every form's reason is told."""
    exported = _network(loud=False)
    clock["speeds"] = [0.5, 0.5, 0.5]
    with pytest.raises(
        StageError, match=r"the float file is the best there is: static: 0\.50x .* weights alone: 0\.50x"
    ):
        _made(exported, _workload(exported), max_drop=0.05)


@pytest.mark.parametrize(("speed", "ships"), [(1.05, False), (1.3, True)])
def test_a_larger_file_ships_only_where_it_is_a_good_deal_faster(
    clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch, speed: float, *, ships: bool
) -> None:
    """A file that computes the same in more bytes: five percent of time do not pay for it, thirty do."""
    exported = _network(loud=False)
    model = onnx.load_from_string(exported)
    helper.set_model_props(model, {"weight": "x" * len(exported)})
    monkeypatch.setattr(evidence, "quantized_file", lambda *_, **__: model.SerializeToString())
    clock["speeds"] = [speed] * 4
    if ships:
        file, details = _made(exported, _workload(exported), max_drop=0.05)
        assert details["chosen_form"] == "static"
        assert len(file) > len(exported)
    else:
        with pytest.raises(
            StageError, match=r"the float file is the best there is: static: 1\.05x .* 2\.\d+ of its size"
        ):
            _made(exported, _workload(exported), max_drop=0.05)


def test_nothing_ships_that_does_not_hold(clock: dict[str, Any]) -> None:
    """No form of eight bits keeps 150 dB: each says what it keeps, and no time is taken."""
    exported = _network(loud=False)
    with pytest.raises(StageError, match=r"static: 'output' keeps \d+\.\d dB.*: too little, wanted are 150 dB"):
        _made(exported, _workload(exported), max_drop=None, min_sqnr_db=150.0)
    assert clock["calls"] == 0


def test_other_outputs_count(clock: dict[str, Any]) -> None:
    """A second output that eight bits break refuses the first form, though the metric never reads it."""
    model = onnx.load_from_string(_network(loud=True))
    model.graph.output.append(helper.make_tensor_value_info("fifth", onnx.TensorProto.FLOAT, ["batch", SHAPE]))
    exported = model.SerializeToString()
    unread = Metric(name="nothing", per_sample=lambda outputs, _: torch.ones(len(outputs)))
    workload = replace(_workload(exported), metric=unread)
    _, details = _made(exported, workload, min_sqnr_db=40.0)
    assert "keep" in details["candidates"][0]["why"]
    kept = next(entry for entry in details["candidates"] if entry["kept"])
    assert kept["sqnr_db"] >= 40


def test_a_product_with_a_vector_stays_in_float_and_the_rest_is_integers(clock: dict[str, Any]) -> None:
    """One layer that no kernel takes is told with its reason; before, it ended the search for all forms."""
    model = onnx.load_from_string(_network(loud=False))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(SHAPE, np.float32), "vector"))
    model.graph.node.append(helper.make_node("MatMul", ["output", "vector"], ["sum"], "summed"))
    model.graph.output.append(helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, ["batch"]))
    exported = model.SerializeToString()
    _, details = _made(exported, _workload(exported), max_drop=0.05)
    assert details["chosen_form"] == "static"
    (left,) = details["left_in_float"]
    assert left["node"] == "summed"
    assert "its weight is a vector" in left["reason"]


_NOT_VALID = (
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMulIntegerToFloat node. "
    "Name:'head' Status Message: /source/quantize.cc:97 Status Base::Compute(Context*) IsSupported(shape) was false. "
    "MatmulInteger : b zero point is not valid"
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (IndexError("Dimension out of range"), "it fails (IndexError: Dimension out of range)"),
        (
            RuntimeError(_NOT_VALID),
            "it fails (RuntimeError: MatMulIntegerToFloat node 'head': MatmulInteger : b zero point is not valid)",
        ),
    ],
)
def test_a_form_that_fails_unforeseen_makes_room_for_the_next(
    clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """Whatever the static forms fail by is told as their reason, and dynamic products are tried and taken."""
    monkeypatch.setattr(evidence, "calibrated", _failing(evidence.calibrated, error, forms=(ByFamily,)))
    exported = _network(loud=False)
    _, details = _made(exported, _workload(exported), max_drop=0.05)
    assert details["candidates"][0]["why"] == reason
    assert details["chosen_form"] == "dynamic products, float convolutions"


@pytest.mark.parametrize("error", [MemoryError("none left"), WriteError("the disk is full"), KeyboardInterrupt()])
def test_what_no_form_can_help_ends_the_search(
    clock: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """No memory, no disk, and whoever stops it: the next form would not do better, and is not tried."""
    monkeypatch.setattr(evidence, "calibrated", _failing(evidence.calibrated, error, forms=(ByFamily,)))
    exported = _network(loud=False)
    with pytest.raises(type(error)):
        _made(exported, _workload(exported), max_drop=0.05)
    assert clock["calls"] == 0


def _failing(made: Any, error: BaseException, *, forms: tuple[type, ...]) -> Any:
    """`made`, which raises `error` for settings of these `forms`."""

    def failing(exported: bytes, settings: Any, *rest: Any) -> Prepared:
        if isinstance(settings.form, forms):
            raise error
        return made(exported, settings, *rest)

    return failing


def test_representation_rebuilds_the_choice_and_bad_limits_are_refused() -> None:
    """eval(repr(x)) == x, for reports; limits are checked where they are given."""
    assert eval(repr(ByEvidence(max_drop=None))) == ByEvidence(max_drop=None)  # noqa: S307
    with pytest.raises(ValueError, match="ratio in decibels, above 0; got 0"):
        ByEvidence(min_sqnr_db=0)
    with pytest.raises(ValueError, match=r"did you mean 0\.5\?"):
        ByEvidence(max_drop=50)
