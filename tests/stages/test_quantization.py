"""Post-training quantization of exported graphs."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import compact_graph, kernels, serialize
from compressor.quantization.grids.activations import activation_grids
from compressor.quantization.grids.schemes import Asymmetric, PerChannel, PerTensor, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.other_cpus.portability import checked_cpus
from compressor.quantization.placement.forms import ByFamily, Dynamic, Static, WeightOnly
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.placement.static import place_static
from compressor.quantization.ranges.calibration import MinMax, Percentile
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages import *  # noqa: F403 - a representation may name any value object
from compressor.stages.quantization import Quantize
from compressor.target import Isa, Target
from compressor.workload import Workload
from workbench.cpu import exact_outputs
from workbench.onnx_graphs import calibrated_on, graph_of
from workbench.predictions import predict_all
from workbench.tiny import TinyResNet, make_workload

VNNI = Target(isa=Isa.X86_VNNI)


@pytest.fixture(scope="module")
def cnn(_trained_model: TinyResNet) -> tuple[OnnxModule, Workload]:
    """The trained residual CNN, exported once: the stage takes an ONNX module as it is."""
    workload = make_workload(copy.deepcopy(_trained_model))
    return OnnxModule(export_onnx(workload.model, workload).onnx_bytes), workload


def _quantize(stage: Quantize, module: OnnxModule, workload: Workload, target: Target = VNNI) -> tuple[bytes, dict]:
    context = Context(target=target)
    result = stage.apply(module, workload, context)
    return result.onnx_bytes, context.details


def _graph_module(nodes: list, weights: dict[str, np.ndarray], shape: list, outputs: int) -> OnnxModule:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return OnnxModule(model.SerializeToString())


def _recurrent(op: str, gates: int) -> tuple[OnnxModule, Workload]:
    """A recurrent layer of 16 units over (batch, 6, 8), and a linear layer on its last state."""
    generator = np.random.default_rng(0)
    state = 16

    def uniform(*shape: int) -> np.ndarray:
        return generator.uniform(-0.25, 0.25, shape).astype(np.float32)

    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    nodes = [
        helper.make_node("Transpose", ["input"], ["steps"], "steps", perm=[1, 0, 2]),
        helper.make_node(op, ["steps", "W", "R", "B"], ["", "last"], "rnn", hidden_size=state, **extra),
        helper.make_node("Squeeze", ["last", "zero"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "head"], ["output"], "head"),
    ]
    weights = {
        "W": uniform(1, gates * state, 8),
        "R": uniform(1, gates * state, state),
        "B": uniform(1, 2 * gates * state),
        "head": uniform(state, 4),
        "zero": np.array([0]),
    }
    module = _graph_module(nodes, weights, ["batch", 6, 8], 4)
    data = torch.randn(96, 6, 8), torch.arange(96) % 4
    return module, Workload.from_datasets(module, train=data, test=data, calibration_samples=32)


def _noise_db(reference: OnnxModule, quantized: bytes, workload: Workload) -> float:
    expected, _ = predict_all(reference.onnx_bytes, workload.validation)
    got, _ = predict_all(quantized, workload.validation)
    return sqnr_db(expected.numpy(), got.numpy())


def test_every_convolution_of_a_cnn_runs_on_integers(cnn) -> None:
    """13 convolutions and the linear layer become int8 kernels, nothing stays in float, outputs keep over 20 dB."""
    module, workload = cnn
    convolutions = sum(node.op_type == "Conv" for node in onnx.load_from_string(module.onnx_bytes).graph.node)
    quantized, details = _quantize(Quantize(), module, workload)
    running = kernels(quantized)
    assert running["QLinearConv"] == convolutions
    assert running["QGemm"] == 1
    assert running["QLinearGlobalAveragePool"] == 1
    assert running["DequantizeLinear"] == 0
    assert details["left_in_float"] == []
    assert details["quantized"] == convolutions + 1
    assert details["sqnr_db"] > 20
    assert _noise_db(module, quantized, workload) > 20


def test_quantized_file_is_compact_and_small(cnn) -> None:
    """The file is under a third of the float one and keeps the names of inputs, outputs and layers."""
    module, workload = cnn
    quantized, _ = _quantize(Quantize(), module, workload)
    graph = onnx.load_from_string(quantized).graph
    assert len(quantized) < len(module.onnx_bytes) / 3
    assert [value.name for value in graph.input] == ["input"]
    assert [value.name for value in graph.output] == ["output"]
    assert not graph.value_info
    assert "layer1.0.conv1" in {node.name for node in graph.node}


def test_compaction_changes_no_kernel_and_no_output(cnn) -> None:
    """Merging constants and shortening names leaves ONNX Runtime with the same work and the same bits."""
    module, workload = cnn
    quantized, _ = _quantize(Quantize(), module, workload)
    once = onnx.load_from_string(quantized)
    again = serialize(compact_graph(once))
    assert kernels(again) == kernels(quantized)
    assert torch.equal(predict_all(again, workload.validation)[0], predict_all(quantized, workload.validation)[0])


def test_the_same_model_gives_the_same_bytes(cnn) -> None:
    """Quantizing twice gives one and the same file."""
    module, workload = cnn
    assert _quantize(Quantize(), module, workload)[0] == _quantize(Quantize(), module, workload)[0]


@pytest.mark.parametrize(
    "stage",
    [
        Quantize(weights=Symmetric(granularity=PerTensor())),
        Quantize(weights=Asymmetric()),
        Quantize(activations=Symmetric()),
        Quantize(calibration=Percentile(percent=99.999)),
        Quantize(form=Static()),
    ],
)
def test_every_scheme_keeps_the_model(cnn, stage: Quantize) -> None:
    """Each combination of schemes and calibrations gives a model of over 15 dB with all 14 int8 kernels."""
    module, workload = cnn
    quantized, details = _quantize(stage, module, workload)
    assert details["left_in_float"] == []
    assert _noise_db(module, quantized, workload) > 15


def test_skip_leaves_layers_in_float_and_says_so(cnn) -> None:
    """A module path covers everything below it, a glob what it matches, and the report gives the pattern."""
    module, workload = cnn
    _, details = _quantize(Quantize(skip=("layer2.0", "lin*")), module, workload)
    left = {entry["node"]: entry["reason"] for entry in details["left_in_float"]}
    assert set(left) == {"layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut", "linear"}
    assert left["layer2.0.conv1"] == "skipped by the pattern 'layer2.0'"
    assert left["linear"] == "skipped by the pattern 'lin*'"


def test_skip_that_matches_nothing_is_refused(cnn) -> None:
    """A misspelt pattern does not pass silently."""
    with pytest.raises(StageError, match=r"skip \['layr1'\] matches no node; the nodes are conv1, "):
        _quantize(Quantize(skip=("layr1",)), *cnn)


def test_skipping_everything_is_an_error(cnn) -> None:
    """With nothing left to quantize the stage says so and why."""
    with pytest.raises(StageError, match=r"nothing to quantize: .* skipped by the pattern"):
        _quantize(Quantize(skip=("*",)), *cnn)


def test_quantizing_twice_is_refused(cnn) -> None:
    """A quantized model does not pass the stage again."""
    module, workload = cnn
    quantized, _ = _quantize(Quantize(), module, workload)
    with pytest.raises(StageError, match="quantized already"):
        _quantize(Quantize(), OnnxModule(quantized), workload)


def test_dynamic_convolutions_are_refused(cnn) -> None:
    """Dynamic() leaves convolutions in float, because they would run 4.5 times slower."""
    _, details = _quantize(Quantize(form=Dynamic()), *cnn)
    reasons = {entry["reason"] for entry in details["left_in_float"] if entry["op"] != "Gemm"}
    assert reasons == {"dynamic convolutions run 4.5 times slower than float; use ByFamily() or Static()"}
    assert details["integer_kernels"] == {"DynamicQuantizeMatMul": 1}


def test_activations_are_unsigned_on_x86_and_signed_on_arm(cnn) -> None:
    """The target decides the type of activations; weights are int8 on both."""
    for isa, kind in ((Isa.X86_VNNI, TensorProto.UINT8), (Isa.ARM_DOT, TensorProto.INT8)):
        quantized, _ = _quantize(Quantize(), *cnn, Target(isa=isa))
        graph = onnx.load_from_string(quantized).graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        zeros = {constants[node.input[2]].data_type for node in graph.node if node.op_type == "QuantizeLinear"}
        assert zeros == {kind}


def test_no_pair_of_products_saturates_on_any_x86(cnn) -> None:
    """Unless told otherwise the scales are such that nothing can saturate, and the file says that it was checked."""
    for isa in (Isa.X86_AVX2, Isa.X86_AVX512, Isa.X86_VNNI):
        quantized, details = _quantize(Quantize(), *cnn, Target(isa=isa))
        assert details["checked_cpus"]["products_that_may_saturate"] == []
        assert checked_cpus(quantized)["x86_avx2"].startswith("exact")
    for stage, target in ((Quantize(portable=None), VNNI), (Quantize(), Target(isa=Isa.ARM_DOT))):
        quantized, details = _quantize(stage, *cnn, target)
        assert "checked_cpus" not in details
        assert checked_cpus(quantized) == {}


def test_lstm_becomes_dynamic() -> None:
    """An LSTM runs as DynamicQuantizeLSTM, with its linear layer dynamic as well, and needs no calibration."""
    module, workload = _recurrent("LSTM", 4)
    quantized, details = _quantize(Quantize(), module, workload)
    assert details["integer_kernels"] == {"DynamicQuantizeLSTM": 1, "DynamicQuantizeMatMul": 1}
    assert details["left_in_float"] == []
    assert "calibration" not in details
    assert _noise_db(module, quantized, workload) > 30


def test_gru_keeps_float_arithmetic_on_8_bit_weights() -> None:
    """A GRU has no int8 kernel: its weights are stored in 8 bits, and the report says that it computes in float."""
    module, workload = _recurrent("GRU", 3)
    quantized, details = _quantize(Quantize(), module, workload)
    running = kernels(quantized)
    assert running["GRU"] == 1
    assert set(running) <= {"GRU", "Transpose", "Squeeze", "Gemm", "DynamicQuantizeMatMul"}
    assert [entry["node"] for entry in details["left_in_float"]] == ["rnn"]
    assert "no int8 kernel for GRU" in details["left_in_float"][0]["reason"]
    assert _noise_db(module, quantized, workload) > 30


def test_a_weight_that_two_layers_share_survives_dynamic_quantization() -> None:
    """Two MatMuls of one weight keep over 30 dB, and the file holds its integers once."""
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"], "first"),
        helper.make_node("Tanh", ["a"], ["b"], "tanh"),
        helper.make_node("MatMul", ["b", "w"], ["output"], "second"),
    ]
    module = _graph_module(nodes, {"w": weight}, ["batch", 64], 64)
    data = torch.randn(96, 64) / 16, torch.arange(96) % 64
    workload = Workload.from_datasets(module, train=data, test=data, calibration_samples=32)
    quantized, _ = _quantize(Quantize(form=Dynamic()), module, workload)
    assert _noise_db(module, quantized, workload) > 30
    assert len(quantized) < 2 * 64 * 64


def test_a_graph_without_weights_is_refused() -> None:
    """Nothing to quantize is an error, not a success."""
    module = _graph_module([helper.make_node("Relu", ["input"], ["output"], "relu")], {}, ["batch", 4], 4)
    data = torch.randn(96, 4), torch.arange(96) % 4
    workload = Workload.from_datasets(module, train=data, test=data, calibration_samples=32)
    with pytest.raises(StageError, match="nothing to quantize"):
        _quantize(Quantize(), module, workload)


def test_a_broken_model_is_refused(cnn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where quantization leaves noise instead of outputs, the stage raises with the ways out."""
    monkeypatch.setattr(MinMax, "range_of", lambda *_, **__: (0.0, 1e-3))
    with pytest.raises(
        StageError, match=r"are needed; calibrate by .* Percentile\(\) or MSE\(\) or leave .* with skip$"
    ):
        _quantize(Quantize(), *cnn)


@pytest.mark.parametrize(
    ("signed", "scheme", "removed"),
    [(False, Asymmetric(), True), (False, Symmetric(), True), (True, Asymmetric(), True), (True, Symmetric(), False)],
)
def test_relu_goes_only_where_saturation_does_its_work(*, signed: bool, scheme, removed: bool) -> None:
    """Integers whose lowest stands for 0 cut like a ReLU; signed symmetric ones reach below 0, so the ReLU stays."""
    weight = np.random.default_rng(0).normal(size=(8, 8, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["output"], "flat"),
    ]
    module = _graph_module(nodes, {"w": weight}, ["batch", 8, 4, 4], 8)
    ranges = {"input": (-4.0, 4.0), "a": (0.0, 9.0), "b": (0.0, 9.0), "c": (0.0, 3.0), "output": (0.0, 3.0)}
    graph = clean_graph(module.onnx_bytes)
    activations = activation_grids(ranges, scheme, signed=signed)
    weights = nearest_grids(graph, {"conv": Symmetric()})
    placed = place_static(graph, {"conv", "relu", "pool", "flat"}, activations, weights)
    assert ("Relu" not in {node.op_type for node in placed.graph.node}) is removed
    feeds = {"input": torch.randn(4, 8, 4, 4).numpy()}
    expected, got = (exact_outputs(model, feeds)[0] for model in (module.onnx_bytes, placed.SerializeToString()))
    assert sqnr_db(expected, got) > 25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": Symmetric(bits=9)}, r"weights can have 2 to 8 bits.*got bits=9"),
        ({"activations": Asymmetric(bits=12)}, r"activations can have 8 or 16 bits.*got bits=12"),
        ({"weights": Asymmetric(granularity=PerChannel())}, "per-channel weights must be Symmetric"),
        ({"activations": Asymmetric(granularity=PerChannel())}, "activations have one range a tensor"),
    ],
)
def test_what_has_no_kernel_is_refused_at_construction(arguments: dict, message: str) -> None:
    """A stage that could not run cannot be built; the message says what can."""
    with pytest.raises(ValueError, match=message):
        Quantize(**arguments)


def test_representation_rebuilds_the_stage() -> None:
    """eval(repr(stage)) is the stage."""
    stage = Quantize(calibration=Percentile(percent=99.9), form=ByFamily(), skip=("conv1",))
    assert eval(repr(stage)) == stage  # noqa: S307 - the representation is our own


@pytest.mark.parametrize("form", ["static", "weight only"])
def test_constants_that_only_a_branch_reads_stay(form: str) -> None:
    """What the graph inside of an If reads from outside is kept under its name, a twin of another constant, too."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(16, 4, 3, 3)).astype(np.float32)
    weights = {"w": weight, "two": np.array([2.0]), "also two": np.array([2.0]), "three": np.array([3.0])}

    def branch(name: str) -> onnx.GraphProto:
        result = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        inside = [
            helper.make_node("Mul", ["most", "also two"], [f"{name} product"], f"{name} product"),
            helper.make_node("Add", [f"{name} product", "three"], [name], name),
        ]
        return helper.make_graph(inside, name, [], [result])

    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], "conv"),
        helper.make_node("ReduceMax", ["input"], ["most"], "most", keepdims=0),
        helper.make_node("Greater", ["most", "two"], ["is"], "is"),
        helper.make_node("If", ["is"], ["b"], "if", then_branch=branch("then"), else_branch=branch("else")),
        helper.make_node("Mul", ["a", "b"], ["output"], "mul"),
    ]
    model = graph_of(nodes, weights, ["batch", 4, 8, 8], ["batch", 16, 6, 6])
    inputs = torch.rand(16, 4, 8, 8)
    settings = {"static": Quantize(), "weight only": Quantize(form=WeightOnly(), weights=Symmetric())}
    made = settings[form].apply(OnnxModule(serialize(model)), calibrated_on(inputs), Context(progress=False))
    expected = OnnxModule(serialize(model))(inputs)
    assert sqnr_db(expected.numpy(), made(inputs).numpy()) > 30
