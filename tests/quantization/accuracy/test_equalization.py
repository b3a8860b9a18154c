"""Rescaling of channels between layers: cross-layer equalization and SmoothQuant keep the float function."""

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.quantization.accuracy.channel_scaling import Slot, read_weights, rescale_
from compressor.quantization.accuracy.channel_statistics import channel_statistics, output_sqnr_db
from compressor.quantization.accuracy.channel_tracing import scaling_groups
from compressor.quantization.accuracy.equalization import CrossLayerEqualization, absorb_, absorbable
from compressor.quantization.accuracy.smoothing import SmoothQuant, smoothing_scale
from compressor.quantization.grids.schemes import PerTensor, Symmetric
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.post_training import prepare
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.workload import Workload
from workbench.onnx_graphs import calibrated_on, graph_of, with_branch
from workbench.tiny import TinyResNet, make_workload

QUIET = Context(progress=False)


def _run(model: onnx.ModelProto, inputs: torch.Tensor) -> np.ndarray:
    return open_session(model.SerializeToString()).run(None, {"input": inputs.numpy()})[0]


def _mlp(first: list, second: list, between: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """Input -> first -> ReLU (or `between`, from `a` to `b`) -> second; weights are (inputs, outputs)."""
    nodes = [
        helper.make_node("Gemm", ["input", "w1", "b1"], ["a"], "one"),
        *(between or [helper.make_node("Relu", ["a"], ["b"], "relu")]),
        helper.make_node("Gemm", ["b", "w2", "b2"], ["output"], "two"),
    ]
    weights = {"w1": np.array(first), "w2": np.array(second), "six": np.array(6.0), "zero": np.array(0.0)}
    weights |= {"b1": np.ones(len(first[0])), "b2": np.zeros(len(second[0]))}
    used = {name for node in nodes for name in node.input}
    sizes = len(first), len(second[0])
    return graph_of(nodes, {k: v for k, v in weights.items() if k in used}, ["n", sizes[0]], ["n", sizes[1]])


def test_two_layers_get_the_same_ranges() -> None:
    """Channel maxima 8 and 2 in front, 2 and 8 behind: both scales make them sqrt(8 * 2) = 4, and the bias follows."""
    model = _mlp([[8.0, 2.0]], [[2.0], [8.0]])
    inputs = torch.linspace(-1, 1, 8).reshape(8, 1)
    equalized, details = CrossLayerEqualization(deviations=None).apply(model, calibrated_on(inputs), QUIET)
    weights = read_weights(equalized)
    np.testing.assert_allclose(weights["w1"], [[4, 4]], rtol=1e-6)
    np.testing.assert_allclose(weights["w2"], [[4], [4]], rtol=1e-6)
    np.testing.assert_allclose(weights["b1"], [0.5, 2], rtol=1e-6)
    np.testing.assert_allclose(_run(equalized, inputs), _run(model, inputs), rtol=1e-5)
    assert details.layers == 1
    assert details.spread_before == 1.6  # 8 over the median of 8 and 2, in both layers
    assert details.spread_after == 1.0


def test_channels_without_weights_keep_their_scale() -> None:
    """A channel that nothing makes or nothing reads stays as it is: a scale of 0 or infinity would break the other."""
    model = _mlp([[0.0, 8.0, 3.0]], [[5.0], [2.0], [0.0]])
    equalized, _ = CrossLayerEqualization(deviations=None).apply(model, calibrated_on(torch.ones(4, 1)), QUIET)
    weights = read_weights(equalized)
    np.testing.assert_allclose(weights["w1"], [[0, 4, 3]], rtol=1e-6)
    np.testing.assert_allclose(weights["w2"], [[5], [4], [0]], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    depth=st.integers(1, 2),
    between=st.sampled_from(["Relu", "LeakyRelu", "MaxPool", "AveragePool", "Add"]),
    seed=st.integers(0, 1000),
)
def test_any_scale_of_a_group_keeps_the_function(groups: int, depth: int, between: str, seed: int) -> None:
    """Whatever positive scales its channels get, a plain, grouped or depthwise convolution behind gives the same."""
    generator = np.random.default_rng(seed)
    extra = {"kernel_shape": [2, 2], "strides": [2, 2]} if "Pool" in between else {}
    second = ["offset"] if between == "Add" else []
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["a"], "one", pads=[1, 1, 1, 1]),
        helper.make_node(between, ["a", *second], ["b"], "between", **extra),
        helper.make_node("Conv", ["b", "w2"], ["c"], "two", group=groups),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        helper.make_node("Gemm", ["d", "w3"], ["output"], "three", transB=1),
    ]
    side = 4 if "Pool" in between else 8
    weights = {
        "w1": generator.normal(size=(4, 3, 3, 3)),
        "b1": generator.normal(size=4),
        "w2": generator.normal(size=(4 * depth, 4 // groups, 1, 1)),
        "w3": generator.normal(size=(2, 4 * depth * side * side)),
    }
    if second:
        weights["offset"] = generator.normal(size=(1, 4, 1, 1))
    model = graph_of(nodes, weights, [2, 3, 8, 8], [2, 2])
    found = scaling_groups(model)
    assert [(group.sources, group.readers) for group in found] == [(["one"], ["two"]), (["two"], ["three"])]
    values = read_weights(model)
    for group in found:
        rescale_(values, group, generator.uniform(0.1, 10, group.channels))
    scaled = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in scaled.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    inputs = torch.from_numpy(generator.normal(size=(2, 3, 8, 8)).astype(np.float32))
    expected = _run(model, inputs)
    np.testing.assert_allclose(_run(scaled, inputs), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax", "Tanh"])
def test_what_is_not_homogeneous_locks(op: str) -> None:
    """Between layers with a Sigmoid, Softmax or Tanh no channel can be rescaled, and the stage says so."""
    model = _mlp([[8.0, 2.0]], [[2.0], [8.0]], [helper.make_node(op, ["a"], ["b"], "between")])
    assert scaling_groups(model) == []
    with pytest.raises(StageError, match="nothing to equalize: no channel leads from one Conv, Gemm or MatMul to"):
        CrossLayerEqualization().apply(model, calibrated_on(torch.ones(4, 1)), QUIET)


def test_a_second_reader_locks() -> None:
    """A channel that the graph's output shows as well, next to the layer that reads it, keeps its scale."""
    model = _mlp([[8.0, 2.0]], [[2.0], [8.0]])
    model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 2]))
    assert scaling_groups(model) == []


@pytest.fixture(scope="module")
def residual(_trained_model: TinyResNet) -> tuple[onnx.ModelProto, Workload]:
    """The clean graph of a trained residual network."""
    workload = make_workload(copy.deepcopy(_trained_model))
    return clean_graph(export_onnx(workload.model, workload).onnx_bytes), workload


def test_a_residual_network_keeps_its_function(residual) -> None:
    """Equalizing within the blocks of a trained network changes outputs by less than 1e-5 of their size."""
    graph, workload = residual
    equalized, details = CrossLayerEqualization().apply(graph, workload, QUIET)
    assert details.layers == 5  # the first convolution of every block; the residual sums stay
    inputs, _ = next(iter(workload.validation))
    expected = _run(graph, inputs)
    np.testing.assert_allclose(_run(equalized, inputs), expected, atol=1e-5 * np.abs(expected).max())
    again, _ = CrossLayerEqualization().apply(graph, workload, QUIET)
    assert again.SerializeToString(deterministic=True) == equalized.SerializeToString(deterministic=True)


def test_unequal_channels_are_rescued(residual) -> None:
    """The same function with channels up to 64 times apart loses 8-bit per-tensor quality; equalized, it is back."""
    graph, workload = residual
    values = read_weights(graph)
    factors = np.random.default_rng(0)
    for group in scaling_groups(graph):
        rescale_(values, group, 2.0 ** factors.uniform(-3, 3, group.channels))
    unequal = onnx.ModelProto.FromString(graph.SerializeToString())
    for tensor in unequal.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(values[tensor.name]), tensor.name))
    equalized, _ = CrossLayerEqualization().apply(unequal, workload, QUIET)
    stage = Quantize(weights=Symmetric(granularity=PerTensor()))

    def quality(model: onnx.ModelProto) -> float:
        placed = prepare(model.SerializeToString(), stage, workload, QUIET).place()
        return output_sqnr_db(graph, placed, workload.calibration, samples=64)

    assert quality(equalized) > quality(unequal) + 5


def _clipped(first: list, second: list) -> onnx.ModelProto:
    return _mlp(first, second, [helper.make_node("Clip", ["a", "zero", "six"], ["b"], "relu6")])


def test_a_bound_that_never_binds_becomes_relu() -> None:
    """ReLU6 whose inputs reach 5 changes nothing as ReLU: it goes, and both layers are equalized."""
    model = _clipped([[4.0, 1.0]], [[1.0], [4.0]])
    inputs = torch.linspace(-1, 1, 8).reshape(8, 1)
    equalized, details = CrossLayerEqualization(deviations=None).apply(model, calibrated_on(inputs), QUIET)
    assert details.unclipped == ("relu6",)
    assert [node.op_type for node in equalized.graph.node] == ["Gemm", "Relu", "Gemm"]
    np.testing.assert_allclose(read_weights(equalized)["w1"], [[2, 2]], rtol=1e-6)
    np.testing.assert_allclose(_run(equalized, inputs), _run(model, inputs), rtol=1e-5)


def test_a_bound_that_binds_keeps_its_layer_as_it_is() -> None:
    """ReLU6 whose inputs reach 9 stays, and so do the weights around it, instead of a wrong function."""
    model = _clipped([[8.0, 1.0]], [[1.0], [4.0]])
    with pytest.raises(StageError, match="nothing to equalize"):
        CrossLayerEqualization(deviations=None).apply(
            model, calibrated_on(torch.linspace(-1, 1, 8).reshape(8, 1)), QUIET
        )


def test_kept_bounds_get_scales_below_them() -> None:
    """Where ReLU6 must stay, scaled channels reach at most 6 / 1.1 in calibration, so that it never cuts them."""
    model = _clipped([[1.0, 4.0]], [[4.0], [1.0]])
    inputs = torch.linspace(-1, 1, 8).reshape(8, 1)
    # Identical outputs count as 200 dB: 201 keeps the bound.
    stage = CrossLayerEqualization(deviations=None, least_sqnr_db=201)
    equalized, details = stage.apply(model, calibrated_on(inputs), QUIET)
    assert details.unclipped == ()
    np.testing.assert_allclose(_run(equalized, inputs), _run(model, inputs), rtol=1e-5)
    seen = channel_statistics(equalized, {"a": 1}, calibrated_on(inputs).calibration, samples=8)["a"]
    # Channels reach 2 and 5; scales of 1/2 and 2 would give 4 and 2.5, both below 5.45: no common factor is needed.
    np.testing.assert_allclose(seen.high, [4, 2.5], rtol=1e-5)


def test_absorbed_biases_keep_the_function() -> None:
    """C = (1, 0) leaves the first bias and returns as W2 c = 2 in the second: the same outputs above c."""
    model = _mlp([[1.0, 1.0]], [[2.0], [3.0]])
    (entry,) = absorbable(model)
    weights = read_weights(model)
    before = {name: value.copy() for name, value in weights.items()}
    absorb_(weights, entry, np.array([1.0, 0.0]))
    np.testing.assert_allclose(weights["b1"], [0, 1])
    np.testing.assert_allclose(weights["b2"], [2])
    assert before["b1"].tolist() == [1, 1]
    inputs = torch.rand(8, 1)  # positive: both channels stay above their share
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in changed.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    np.testing.assert_allclose(_run(changed, inputs), _run(model, inputs), rtol=1e-6)


def test_absorption_narrows_high_channels() -> None:
    """A channel around 10 with deviation 1 gives 7 of its bias away; the outputs keep the asked 50 dB."""
    model = _mlp([[1.0]], [[1.0]])
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.array([10.0], dtype=np.float32), "b1"))
    assert model.graph.initializer[2].name == "b1"
    inputs = torch.linspace(-1.7, 1.7, 64).reshape(64, 1)  # uniform: deviation 1
    equalized, details = CrossLayerEqualization().apply(model, calibrated_on(inputs), QUIET)
    weights = read_weights(equalized)
    assert details.absorbed_channels == 1
    assert float(weights["b1"][0]) == pytest.approx(3.0, abs=0.05)
    np.testing.assert_allclose(_run(equalized, inputs), _run(model, inputs), rtol=1e-5)


def test_padded_readers_absorb_nothing() -> None:
    """A convolution that pads with zeros cannot take a bias over: its border would come out wrong."""
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "v", "c"], ["output"], "two", pads=[1, 1, 1, 1]),
    ]
    weights = {"w": np.ones((1, 1, 1, 1)), "b": np.ones(1), "v": np.ones((1, 1, 3, 3)), "c": np.ones(1)}
    assert absorbable(graph_of(nodes, weights, [1, 1, 4, 4], [1, 1, 4, 4])) == []


def test_extremes_of_a_grouped_reader() -> None:
    """Two groups of two: channel 1 is read by the first group's rows alone, at most 4 in magnitude."""
    weight = np.array([[1.0, -4], [2, 3], [5, 6], [-7, 8]]).reshape(4, 2, 1, 1)
    slot = Slot(initializer="w", shape=(2, 2, 2, 1, 1), axes=(0, 2))
    assert slot.extremes(weight).tolist() == [2, 4, 7, 8]
    assert slot.scaled(weight, np.array([1.0, 10, 1, 1]))[:, :, 0, 0].tolist() == [[1, -40], [2, 30], [5, 6], [-7, 8]]


def test_smoothing_scales_by_hand() -> None:
    """Alpha 0.5: sqrt(16 / 4) = 2; alpha 1: 16; alpha 0: 1 / 4; a channel that never fires keeps 1."""
    activations, weights = np.array([16.0, 0.0]), np.array([4.0, 1.0])
    assert smoothing_scale(activations, weights, 0.5).tolist() == [2, 1]
    assert smoothing_scale(activations, weights, 1.0).tolist() == [16, 1]
    assert smoothing_scale(activations, weights, 0.0).tolist() == [0.25, 1]


def _normalized(readers: int) -> onnx.ModelProto:
    """LayerNormalization with an outlier channel, read by `readers` MatMuls and, for two, by a residual sum."""
    generator = np.random.default_rng(0)
    nodes = [
        helper.make_node("LayerNormalization", ["input", "gain", "shift"], ["n"], "norm", axis=-1),
        helper.make_node("MatMul", ["n", "w"], ["output" if readers == 1 else "m"], "linear"),
    ]
    if readers == 2:
        nodes.append(helper.make_node("Add", ["m", "n"], ["output"], "residual"))
    gain = np.ones(8)
    gain[3] = 50
    weights = {"gain": gain, "shift": np.zeros(8), "w": generator.normal(size=(8, 8))}
    return graph_of(nodes, weights, ["n", 4, 8], ["n", 4, 8])


@pytest.mark.parametrize("readers", [1, 2])
def test_smoothing_keeps_the_function_and_levels_the_outlier(readers: int) -> None:
    """An outlier of 50 times shrinks below 10 in what the MatMul reads; its outputs move by less than 1e-5."""
    model, inputs = _normalized(readers), torch.randn(64, 4, 8)
    smoothed, details = SmoothQuant(insert=readers == 2).apply(model, calibrated_on(inputs), QUIET)
    expected = _run(model, inputs)
    np.testing.assert_allclose(_run(smoothed, inputs), expected, atol=1e-5 * np.abs(expected).max())
    read = next(node.input[0] for node in smoothed.graph.node if node.name == "linear")
    for graph, tensor, least, most in ((model, "n", 20, 100), (smoothed, read, 1, 10)):
        seen = channel_statistics(graph, {tensor: 2}, calibrated_on(inputs).calibration, samples=64)[tensor]
        largest = np.maximum(seen.high, -seen.low)
        assert least < largest.max() / np.median(largest) < most
    assert (details.smoothed if readers == 1 else details.smoothed_by_mul) == ("linear",)
    assert sum(node.op_type == "Mul" for node in smoothed.graph.node) == readers - 1


def test_smoothing_needs_leave_to_add_operators() -> None:
    """Where the residual reads the normalization too, nothing is inserted unless asked for; the error says how."""
    with pytest.raises(StageError, match=r"nothing to smooth: .*SmoothQuant\(insert=True\)"):
        SmoothQuant().apply(_normalized(2), calibrated_on(torch.randn(8, 4, 8)), QUIET)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmoothQuant(alpha=50), r"alpha .* in \[0, 1\]; got 50"),
        (lambda: SmoothQuant(samples=0), "samples is the number of samples that are looked at, at least 1; got 0"),
        (lambda: CrossLayerEqualization(sweeps=0), "sweeps is a count, at least 1; got 0"),
        (
            lambda: CrossLayerEqualization(deviations=-1.0),
            "deviations under the mean are absorbed, at least 0; got -1.0; None absorbs nothing",
        ),
    ],
)
def test_settings_out_of_range_are_refused(build, message: str) -> None:
    """Values that mean nothing are refused where they enter, with the value."""
    with pytest.raises(ValueError, match=message):
        build()


def test_statistics_do_not_depend_on_the_split_into_batches() -> None:
    """Mean 2.5, deviation sqrt(1.25) of 1, 2, 3, 4, whatever the batches, and of the samples asked for alone."""
    model = _mlp([[1.0]], [[1.0]])
    for batch_size in (1, 3, 5):
        data = torch.tensor([[1.0], [2.0], [3.0], [4.0], [50.0]]), torch.zeros(5)
        batches = [(data[0][i : i + batch_size], data[1][i : i + batch_size]) for i in range(0, 5, batch_size)]
        seen = channel_statistics(model, {"input": 1}, batches, samples=4)["input"]
        assert (seen.low.item(), seen.high.item(), seen.mean.item()) == (1, 4, 2.5)
        assert seen.deviation.item() == pytest.approx(1.25**0.5)


def test_statistics_refuse_what_is_not_finite() -> None:
    """NaN in a tensor is named instead of spreading into scales."""
    with pytest.raises(StageError, match="tensor 'a' holds NaN or infinite values"):
        channel_statistics(
            _mlp([[1.0]], [[1.0]]), {"a": 1}, [(torch.tensor([[float("nan")]]), torch.zeros(1))], samples=1
        )


@pytest.mark.parametrize("name", ["w1", "w2", "b"])
def test_what_a_branch_reads_is_not_rescaled(name: str) -> None:
    """Weights, and channels between two layers, that the inside of an If reads too keep their scale."""
    model = _mlp([[8.0, 2.0]], [[2.0], [8.0]])
    assert len(scaling_groups(model)) == 1
    assert scaling_groups(with_branch(model, name)) == []


def test_no_bias_is_absorbed_past_a_branch() -> None:
    """The bias in front of a ReLU stays where an If reads what the ReLU gives."""
    model = _mlp([[8.0, 2.0]], [[2.0], [8.0]])
    assert len(absorbable(model)) == 1
    assert absorbable(with_branch(model, "b")) == []
