"""Bias correction: what rounding shifts in the mean goes into the biases."""

import copy
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.quantization.accuracy.bias_correction import BiasCorrection, clipped_normal_mean, constant_value
from compressor.quantization.accuracy.channel_scaling import read_weights, with_weights
from compressor.quantization.accuracy.channel_statistics import channel_statistics, output_sqnr_db
from compressor.quantization.accuracy.linear_layers import linear_layers, with_biases
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.placement.forms import Dynamic
from compressor.quantization.post_training import Prepared, prepare
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.workload import Workload
from workbench.onnx_graphs import calibrated_on, graph_of, with_branch
from workbench.tiny import TinyResNet, make_workload

QUIET = Context(progress=False)


def _rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stands for a quantizer: every matrix behind a DequantizeLinear of whole numbers, biases as they are."""
    placed = onnx.ModelProto.FromString(model.SerializeToString())
    matrices = [tensor for tensor in placed.graph.initializer if len(tensor.dims) > 1]
    ahead = []
    for tensor in matrices:
        integers = np.rint(numpy_helper.to_array(tensor)).astype(np.int8)
        tensor.CopyFrom(numpy_helper.from_array(integers, f"{tensor.name}_int8"))
        inputs, name = [tensor.name, "one"], tensor.name.removesuffix("_int8")
        ahead.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_float"], f"{name}_dq"))
    names = {f"{node.output[0].removesuffix('_float')}": node.output[0] for node in ahead}
    rest = [onnx.NodeProto.FromString(node.SerializeToString()) for node in placed.graph.node]
    for node in rest:
        node.input[:] = [names.get(name, name) for name in node.input]
    del placed.graph.node[:]
    placed.graph.node.extend([*ahead, *rest])
    placed.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.float32), "one"))
    return placed


@pytest.mark.parametrize("method", ["empirical", "analytic"])
def test_a_shift_by_hand(method: str) -> None:
    """Weights 1.4 and 0.8 round to 1 and 1: for inputs of mean 2 and 5 the bias gets 2 * 0.4 + 5 * -0.2 = -0.2."""
    model = graph_of(
        [helper.make_node("Gemm", ["input", "w", "b"], ["output"], "linear", transB=1)],
        {"w": np.array([[1.4, 0.8]]), "b": np.array([3.0])},
        ["n", 2],
        ["n", 1],
    )
    inputs = torch.tensor([[1.0, 4], [3, 4], [1, 6], [3, 6]])
    corrected, details = BiasCorrection(method=method).apply(model, _rounding, calibrated_on(inputs), QUIET)
    assert read_weights(corrected)["b"].item() == pytest.approx(2.8)
    assert details.kept is True
    assert details.sqnr_db_after > details.sqnr_db_before
    assert read_weights(model)["b"].item() == 3.0


@pytest.mark.parametrize("method", ["empirical", "analytic"])
def test_layers_without_a_bias_get_one(method: str) -> None:
    """A convolution without bias whose kernel 0.6 rounds to 1 shifts inputs of mean 5 by 2: its new bias is -2."""
    model = graph_of(
        [helper.make_node("Conv", ["input", "w"], ["output"], "conv")], {"w": np.full((1, 1, 1, 1), 0.6)},
        ["n", 1, 2, 2], ["n", 1, 2, 2],
    )  # fmt: skip
    inputs = torch.full((4, 1, 2, 2), 5.0) + torch.tensor([-1.0, -1, 1, 1]).reshape(4, 1, 1, 1)
    corrected, details = BiasCorrection(method=method).apply(model, _rounding, calibrated_on(inputs), QUIET)
    (node,) = corrected.graph.node
    assert read_weights(corrected)[node.input[2]].tolist() == pytest.approx([-2.0])
    assert details.layers == 1


def test_later_layers_see_corrected_ones() -> None:
    """Two layers of weight 0.6, rounded to 1, on inputs of mean 5: biases -2 and, from 3 on, -1.2; not -3.2 again."""
    nodes = [
        helper.make_node("Gemm", ["input", "w"], ["a"], "one"),
        helper.make_node("Gemm", ["a", "v"], ["output"], "two"),
    ]
    model = graph_of(nodes, {"w": np.array([[0.6]]), "v": np.array([[0.6]])}, ["n", 1], ["n", 1])
    inputs = torch.tensor([[4.0], [6.0]])
    corrected, _ = BiasCorrection(method="empirical").apply(model, _rounding, calibrated_on(inputs), QUIET)
    biases = {node.name: read_weights(corrected)[node.input[2]].item() for node in corrected.graph.node}
    assert biases == {"one": pytest.approx(-2), "two": pytest.approx(-1.2)}


def test_clipped_normal_means_by_hand() -> None:
    """A standard normal through ReLU has mean 1 / sqrt(2 pi); symmetric clipping keeps 0; without deviation, clip."""
    zero, one = np.zeros(1), np.ones(1)
    assert clipped_normal_mean(zero, one, 0, math.inf).item() == pytest.approx(1 / math.sqrt(2 * math.pi))
    assert clipped_normal_mean(zero, one, -2, 2).item() == pytest.approx(0)
    assert clipped_normal_mean(np.array([9.0]), np.zeros(1), 0, 6).item() == 6


@pytest.mark.parametrize(("mean", "deviation"), [(-3.0, 1.0), (1.0, 2.0), (5.5, 1.5), (40.0, 0.5)])
def test_clipped_normal_means_agree_with_sampling(mean: float, deviation: float) -> None:
    """The mean through ReLU6 is that of a million samples to within five standard errors."""
    draws = np.clip(np.random.default_rng(0).normal(mean, deviation, 1_000_000), 0, 6)
    found = clipped_normal_mean(np.array([mean]), np.array([deviation]), 0, 6).item()
    assert found == pytest.approx(draws.mean(), abs=5 * draws.std() / 1000 + 1e-9)


@pytest.fixture(scope="module")
def few_bits(_trained_model: TinyResNet) -> tuple[Prepared, Workload]:
    """A trained residual network with weights of 4 bits, where rounding shifts means."""
    workload = make_workload(copy.deepcopy(_trained_model))
    exported = export_onnx(workload.model, workload).onnx_bytes
    return prepare(exported, Quantize(weights=Symmetric(bits=4)), workload, QUIET), workload


def test_measured_means_of_every_layer_agree_afterwards(few_bits) -> None:
    """After the empirical correction no channel of any quantized layer is off by 2 % of its deviation on average."""
    prepared, workload = few_bits
    biased, layers = with_biases(prepared.graph, linear_layers(prepared.graph))
    stage = BiasCorrection(method="empirical", samples=64)
    corrected, missing = stage._empirical(biased, layers, prepared.place, workload, QUIET)
    assert missing == []

    def shift(graph: onnx.ModelProto) -> float:
        placed = prepared.place(graph)
        outputs = {node.name: node.output[0] for node in placed.graph.node}
        axes = {outputs[layer.name]: layer.output_axis for layer in layers}
        got = channel_statistics(placed, axes, workload.calibration, samples=64)
        want = channel_statistics(biased, {layer.output: layer.output_axis for layer in layers}, workload.calibration,
                                  samples=64)  # fmt: skip
        ratios = []
        for layer in layers:
            expected = want[layer.output]
            used = expected.deviation > 1e-6
            difference = got[outputs[layer.name]].mean - expected.mean
            ratios.append(np.abs(difference[used] / expected.deviation[used]).mean())
        return float(max(ratios))

    assert shift(biased) > 0.03
    assert shift(corrected) < 0.02


def test_outputs_of_few_bits_come_closer(few_bits) -> None:
    """The analytic correction gives a 4-bit network better outputs on validation data, which it has not seen."""
    prepared, workload = few_bits
    corrected, details = BiasCorrection(method="analytic", samples=64).apply(
        prepared.graph, prepared.place, workload, QUIET
    )
    assert details.missing == ()
    before, after = (
        output_sqnr_db(prepared.graph, prepared.place(graph), workload.validation, samples=64)
        for graph in (prepared.graph, corrected)
    )
    assert after > before


def test_a_correction_that_does_harm_is_not_kept(few_bits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where corrected outputs are further off, the graph comes back as it was, and the report says so."""
    prepared, workload = few_bits
    wrong = {name: value + 1 for name, value in read_weights(prepared.graph).items() if name.endswith("bias")}
    monkeypatch.setattr(BiasCorrection, "_analytic", lambda self, graph, *rest: (with_weights(graph, wrong), []))
    graph, details = BiasCorrection(method="analytic").apply(prepared.graph, prepared.place, workload, QUIET)
    assert graph is prepared.graph
    assert details.kept is False
    assert details.sqnr_db_after < details.sqnr_db_before


@pytest.mark.parametrize("method", ["empirical", "analytic"])
def test_matmuls_with_an_added_bias_are_corrected(method: str) -> None:
    """A MatMul with dynamic ranges and 4-bit weights gets its shift into the Add behind it, by either method."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["m"], "linear"),
        helper.make_node("Add", ["m", "b"], ["output"], "bias"),
    ]
    model = graph_of(nodes, {"w": generator.normal(size=(16, 8)), "b": np.zeros(8)}, ["n", 3, 16], ["n", 3, 8])
    workload = calibrated_on(torch.rand(64, 3, 16) + 1)
    prepared = prepare(model.SerializeToString(), Quantize(form=Dynamic(), weights=Symmetric(bits=4)), workload, QUIET)
    corrected, details = BiasCorrection(method=method).apply(prepared.graph, prepared.place, workload, QUIET)
    assert (details.layers, details.missing) == (1, ())
    assert details.sqnr_db_after > details.sqnr_db_before + 1
    assert np.abs(read_weights(corrected)["b"]).max() > 0


def test_constants_are_computed_and_others_are_not() -> None:
    """A weight behind DequantizeLinear is its float values; a tensor that depends on the input is no constant."""
    model = graph_of(
        [helper.make_node("Gemm", ["input", "w"], ["output"], "linear")], {"w": np.array([[1.4]])}, ["n", 1], ["n", 1]
    )
    placed = _rounding(model)
    assert constant_value(placed, "w_float") == np.array([[1.0]])
    assert constant_value(placed, "output") is None
    assert constant_value(model, "w") == np.array([[np.float32(1.4)]])
    folded = [helper.make_node("Neg", ["w"], ["turned"]), helper.make_node("Gemm", ["input", "turned"], ["output"])]
    model = graph_of(folded, {"w": np.array([[1.4]])}, ["n", 1], ["n", 1])
    assert constant_value(model, "turned") == np.array([[np.float32(-1.4)]])


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_dequantized_weight_is_what_onnx_runtime_gives(axis: int | None) -> None:
    """Integers, scale and zero point, one or one a channel on either axis, to the bit."""
    random = np.random.default_rng(0)
    count = () if axis is None else (3, 4)[axis]
    values = {
        "w": random.integers(-128, 128, size=(3, 4)).astype(np.int8),
        "scale": random.uniform(0.01, 1, size=count).astype(np.float32),
        "zero": random.integers(-5, 5, size=count).astype(np.int8),
    }
    settings = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", [*values], ["float"], "made", **settings),
        helper.make_node("Add", ["input", "float"], ["output"], "sum"),
    ]
    model = graph_of(nodes, values, [3, 4], [3, 4])
    given = open_session(model.SerializeToString()).run(None, {"input": np.zeros((3, 4), np.float32)})[0]
    np.testing.assert_array_equal(constant_value(model, "float"), given)


@pytest.mark.parametrize(
    ("op", "shape", "attributes"),
    [
        ("Conv", (4, 3, 3, 3), {}),
        ("Conv", (6, 1, 3, 3), {"group": 3}),
        ("ConvTranspose", (3, 4, 3, 3), {}),
        ("ConvTranspose", (3, 2, 2, 2), {"group": 3}),
        ("Gemm", (3, 5), {}),
        ("Gemm", (5, 3), {"transB": 1}),
    ],
)
def test_constant_inputs_through_a_layer_agree_with_onnx_runtime(op: str, shape: tuple, attributes: dict) -> None:
    """What a layer's weight makes of constant inputs is what ONNX Runtime computes away from the borders."""
    generator = np.random.default_rng(0)
    inputs, weight = np.array([1.0, -2, 3]), generator.normal(size=shape).astype(np.float32)
    image = op != "Gemm"
    node = helper.make_node(op, ["input", "w"], ["output"], "layer", **attributes)
    out = ["n", "c", "h", "v"] if image else ["n", "c"]
    model = graph_of([node], {"w": weight}, ["n", 3, 7, 7] if image else ["n", 3], out)
    (layer,) = linear_layers(model)
    field = np.broadcast_to(inputs.reshape(1, 3, 1, 1), (1, 3, 7, 7)) if image else inputs.reshape(1, 3)
    got = open_session(model.SerializeToString()).run(None, {"input": np.ascontiguousarray(field, dtype=np.float32)})[0]
    middle = got[0, :, got.shape[2] // 2, got.shape[3] // 2] if image else got[0]
    np.testing.assert_allclose(layer.applied(weight.astype(np.float64), inputs), middle, rtol=1e-4)


def test_float_graphs_have_nothing_to_correct() -> None:
    """Where nothing is quantized the stage refuses, instead of doing nothing."""
    model = graph_of(
        [helper.make_node("Gemm", ["input", "w"], ["output"], "linear")], {"w": np.array([[1.4]])}, ["n", 1], ["n", 1]
    )
    with pytest.raises(StageError, match="no bias to correct: no Conv, Gemm or MatMul with a bias is quantized"):
        BiasCorrection().apply(model, lambda graph: graph, calibrated_on(torch.ones(4, 1)), QUIET)


def test_unknown_methods_are_refused() -> None:
    """Anything but the two methods is refused with what was given."""
    with pytest.raises(ValueError, match="one of auto, empirical, analytic; got 'learned'"):
        BiasCorrection(method="learned")


def test_a_bias_that_a_branch_reads_is_left_alone() -> None:
    """Of two layers the one whose bias the inside of an If reads is not corrected."""
    ones = {"w1": np.eye(4), "b1": np.ones(4), "w2": np.eye(4), "b2": np.ones(4)}
    nodes = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["a"], "one"),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["output"], "two"),
    ]
    model = graph_of(nodes, ones, ["n", 4], ["n", 4])
    assert [layer.name for layer in linear_layers(model)] == ["one", "two"]
    assert [layer.name for layer in linear_layers(with_branch(model, "b1"))] == ["two"]
