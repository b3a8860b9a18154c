"""Weights that no x86 CPU saturates, and what a file says of the CPUs it was checked for."""

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.files.export import export_onnx
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.other_cpus.cpu_emulation import SaturatingModel
from compressor.quantization.other_cpus.pair_safety import repaired_grids, safe_grids
from compressor.quantization.other_cpus.portability import (
    METADATA_KEY,
    Portable,
    SafePairs,
    SevenBits,
    check_cpus,
    checked_cpus,
    emulated_outputs,
    integer_nodes,
    made_portable,
    saturation_report,
    seven_bit_nodes,
    with_checked_cpus,
)
from compressor.quantization.placement.forms import Dynamic
from compressor.quantization.post_training import Prepared, prepare
from compressor.runtime import feeds_of, open_session
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.target import Isa, Target
from compressor.workload import Workload, first_batches
from workbench.cpu import exact_outputs
from workbench.predictions import predict_all
from workbench.tiny import TinyResNet, make_workload

CONTEXT = Context(target=Target(isa=Isa.X86_VNNI), progress=False)


@pytest.fixture(scope="module")
def cnn(_trained_model: TinyResNet) -> tuple[Prepared, Workload]:
    """The trained residual CNN with 8-bit grids, its first layer's weights all of one sign: there it saturates."""
    model = copy.deepcopy(_trained_model)
    with torch.no_grad():
        model.conv1.weight[:] = model.conv1.weight.abs() + 0.5 * model.conv1.weight.abs().max()
    workload = make_workload(model)
    return prepare(export_onnx(model, workload).onnx_bytes, Quantize(), workload, CONTEXT), workload


def _graph(op: str, weight: np.ndarray, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(op, ["x", "w"], ["y"], "layer", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    return helper.make_model(graph)


def _grid(integers: list, axis: int | None) -> WeightGrid:
    values = torch.tensor(integers, dtype=torch.int32)
    shape = () if axis is None else (values.shape[axis],)
    return WeightGrid(
        bits=8,
        scale=torch.ones(shape),
        zero_point=torch.zeros(shape, dtype=torch.int32),
        axis=axis,
        group_size=None,
        integers=values,
    )


def test_only_channels_with_a_large_pair_lose_resolution() -> None:
    """Weights 120, 100 in a row need 220 / 128 times the step: 69.8, 58.2 round to 70, 58; the other row stays."""
    weights = [[120, 100, 4], [127, -127, 127]]
    graph = _graph("Gemm", np.array(weights), transB=1)
    safe = safe_grids(graph, {"w": _grid(weights, 0)}, {"layer"})["w"]
    assert safe.scale.tolist() == [220 / 128, 1]
    assert safe.integers.tolist() == [[70, 58, 2], [127, -127, 127]]


def test_a_pair_that_rounds_up_is_lowered_by_a_step() -> None:
    """Per tensor, 127 + 126 need 253 / 128 times the step: 64.25, 63.7 round to 64 + 64, just safe."""
    weights = [[127, 126], [1, 2]]
    safe = safe_grids(_graph("Gemm", np.array(weights), transB=1), {"w": _grid(weights, None)}, {"layer"})["w"]
    assert safe.scale.item() == pytest.approx(253 / 128)
    assert safe.integers.tolist() == [[64, 64], [1, 1]]


def test_repair_shares_what_is_too_much() -> None:
    """100 + 31 is 3 too much: 98 + 30; -65 - 64 is 1 too much: the larger gives it; other pairs stay."""
    weights = [[100, 31, 64, 64], [-65, -64, 127, -127]]
    graph = _graph("Gemm", np.array(weights), transB=1)
    repaired = repaired_grids(graph, {"w": _grid(weights, 0)}, {"layer"})["w"]
    assert repaired.integers.tolist() == [[98, 30, 64, 64], [-64, -64, 127, -127]]
    assert repaired.scale.tolist() == [1, 1]


def test_pairs_of_a_convolution_are_neighbouring_channels() -> None:
    """127 in two channels of one position is a pair; 127 at two positions of one channel is not."""
    together, apart = np.zeros((2, 1, 2, 1, 2), int)
    together[0, :, 0, 0] = 127
    apart[0, 0, 0, :] = 127
    for weights, scale in ((together, 254 / 128), (apart, 1.0)):
        safe = safe_grids(_graph("Conv", weights), {"w": _grid(weights.tolist(), 0)}, {"layer"})["w"]
        assert safe.scale.item() == pytest.approx(scale)


def test_depthwise_weights_and_other_nodes_stay() -> None:
    """Depthwise kernels do not saturate, and neither do nodes that stay in float."""
    weights = [[[[127, 127]]], [[[127, 127]]]]
    grids = {"w": _grid(weights, 0)}
    assert safe_grids(_graph("Conv", np.array(weights), group=2), grids, {"layer"})["w"] is grids["w"]
    pointwise = [[[[127]], [[127]]]]
    grids = {"w": _grid(pointwise, 0)}
    assert safe_grids(_graph("Conv", np.array(pointwise)), grids, set())["w"] is grids["w"]


def test_a_safe_file_has_no_pair_that_saturates(cnn) -> None:
    """After `SafePairs` not one pair of the CNN's file could saturate, and the file gives the same bits everywhere."""
    prepared, workload = cnn
    assert sum(seen.risky_pairs for seen in SaturatingModel(serialize(prepared.place())).saturation.values()) > 0
    safe = made_portable(prepared, Portable(), workload, CONTEXT)
    onnx_bytes = serialize(safe.place())
    model = SaturatingModel(onnx_bytes)
    assert len(model.saturation) == len(prepared.placement.static)
    assert [seen.risky_pairs for seen in model.saturation.values()] == [0] * len(model.saturation)
    told = safe.details["portable"]
    assert 0 < told["scales_grown"] < told["scales"]
    outputs, _, _ = emulated_outputs(onnx_bytes, workload.validation)
    assert torch.equal(outputs, predict_all(onnx_bytes, workload.validation)[0])


def test_a_recurrent_file_is_safe_too() -> None:
    """Both directions of an LSTM share the scales of their gates; no pair of either can saturate after `SafePairs`."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("LSTM", ["input", "W", "R"], ["", "last"], "rnn", hidden_size=16, direction="bidirectional"),
        helper.make_node("Reshape", ["last", "shape"], ["flat"], "flat"),
        helper.make_node("Gemm", ["flat", "head"], ["output"], "head"),
    ]
    weights = {"W": (2, 64, 7), "R": (2, 64, 16), "head": (32, 4)}
    constants = {name: draw.uniform(-0.25, 0.25, shape).astype(np.float32) for name, shape in weights.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [6, "batch", 7])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in {**constants, "shape": np.array([-1, 32])}.items()],
    )
    exported = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    workload = make_workload(nn.Identity())
    prepared = prepare(exported.SerializeToString(), Quantize(), workload, CONTEXT)
    assert integer_nodes(prepared) == frozenset(prepared.placement.dynamic)
    plain, safe = (
        SaturatingModel(serialize(one.place())).saturation
        for one in (prepared, made_portable(prepared, Portable(), workload, CONTEXT))
    )
    assert sum(seen.risky_pairs for seen in plain.values()) > 0
    assert len(safe) == 2
    assert not any(seen.risky_pairs for seen in safe.values())


def test_seven_bits_go_to_the_layer_that_saturates(cnn) -> None:
    """Only the layer with weights of one sign gets 7 bits, and nothing of it saturates any more."""
    prepared, workload = cnn
    portable = Portable(cure=SevenBits(wrong_sums=0.01), samples=32)
    cured = made_portable(prepared, portable, workload, CONTEXT)
    assert cured.details["portable"]["seven_bits"] == ["conv1"]
    weight_of = {node.name: node.input[1] for node in prepared.graph.graph.node if node.op_type in {"Conv", "Gemm"}}
    bits = {name: cured.weights[weight].bits for name, weight in weight_of.items()}
    assert bits == {name: 7 if name == "conv1" else 8 for name in weight_of}
    before, after = (
        saturation_report(serialize(one.place()), workload.calibration, Isa.X86_AVX2, samples=32)["conv1"]
        for one in (prepared, cured)
    )
    assert before.sum_share > 0.01
    assert after.risky_pairs == after.saturated_sums == 0


def test_layers_are_measured_again_after_every_choice(cnn, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that starts to saturate once another one is cured is found in the next round."""
    _, workload = cnn
    shares = {frozenset(): {"a": 0.5}, frozenset("a"): {"a": 0.0, "b": 0.5}, frozenset("ab"): {"a": 0.0, "b": 0.0}}

    def report(onnx_bytes: bytes, *args: object, **kwargs: object) -> dict:
        seen = shares[frozenset(onnx_bytes.decode())]
        return {name: type("Seen", (), {"sum_share": share})() for name, share in seen.items()}

    monkeypatch.setattr("compressor.quantization.other_cpus.portability.saturation_report", report)
    nodes = seven_bit_nodes(lambda names: "".join(sorted(names)).encode(), SevenBits(), workload, CONTEXT, samples=1)
    assert nodes == frozenset("ab")


def test_the_other_cpu_has_another_score(cnn) -> None:
    """The check says that 8-bit weights change the outputs of CPUs without VNNI, where, and what score is left."""
    prepared, workload = cnn
    onnx_bytes = serialize(prepared.place())
    checked = check_cpus(onnx_bytes, workload, CONTEXT, samples=16)
    found = checked.cpus
    assert found["x86_vnni"] == found["arm_dot"] == "exact: sums in 32 bits"
    assert found["x86_avx2"] == found["x86_avx512"]
    assert found["x86_avx2"].startswith("emulated: accuracy ")
    assert "conv1" in checked.wrong_sums
    outputs, targets, _ = emulated_outputs(onnx_bytes, workload.validation, samples=16)
    rows = workload.metric.per_sample(outputs, targets)
    assert checked.score_saturated == rows.mean().item()
    assert checked.samples == len(rows)
    inputs, targets = first_batches(workload.validation, 1)[0]
    exact = torch.from_numpy(exact_outputs(onnx_bytes, feeds_of(open_session(onnx_bytes), inputs))[0])
    assert checked.score_exact == workload.metric.per_sample(exact, targets).mean().item()
    assert not torch.equal(emulated_outputs(onnx_bytes, workload.validation, samples=1)[0], exact)


def test_a_safe_file_says_that_it_is_exact_everywhere(cnn) -> None:
    """Without a risky pair nothing is emulated, and the file's metadata says so after writing it twice."""
    prepared, workload = cnn
    onnx_bytes = serialize(made_portable(prepared, Portable(), workload, CONTEXT).place())
    checked = check_cpus(onnx_bytes, replace(workload, validation=[]), CONTEXT, samples=16)
    found = checked.cpus
    assert found["x86_avx2"] == "exact: no pair of products can exceed 16 bits"
    assert checked.products_that_may_saturate == ()
    written = with_checked_cpus(with_checked_cpus(onnx_bytes, {"x86_avx2": "old"}), found)
    assert checked_cpus(written) == found
    assert checked_cpus(onnx_bytes) == {}
    keys = [entry.key for entry in onnx.load_from_string(written).metadata_props]
    assert keys.count(METADATA_KEY) == 1
    assert torch.equal(predict_all(written, workload.validation)[0], predict_all(onnx_bytes, workload.validation)[0])


def test_classes_that_add_in_32_bits_have_nothing_to_report(cnn) -> None:
    """VNNI and Arm saturate nothing; the generic class is refused, because nothing is known of it."""
    prepared, workload = cnn
    onnx_bytes = serialize(prepared.place())
    assert saturation_report(onnx_bytes, workload.calibration, Isa.X86_VNNI) == {}
    assert saturation_report(onnx_bytes, workload.calibration, Isa.ARM_DOT) == {}
    with pytest.raises(ValueError, match="name one of the other classes"):
        saturation_report(onnx_bytes, workload.calibration, Isa.GENERIC)


def test_settings_are_values_and_are_checked() -> None:
    """Their reprs make them again; a fraction above 1 and no samples are refused."""
    for value in (Portable(), Portable(cure=SevenBits(wrong_sums=0.0), samples=8)):
        names = {"Portable": Portable, "SevenBits": SevenBits, "SafePairs": SafePairs}
        assert eval(repr(value), names) == value  # noqa: S307  # our own repr
    with pytest.raises(ValueError, match=r"fraction of a layer's sums, in \[0, 1\); got 50"):
        SevenBits(wrong_sums=50)
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Portable(samples=0)


@pytest.mark.parametrize("kind", [nn.GRU, nn.RNN])
def test_recurrent_cells_cannot_saturate(kind) -> None:
    """A GRU and an RNN as loops of integer products are safe on every x86 CPU, like any other layer."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = kind(8, 16, batch_first=True)
            self.linear = nn.Linear(16, 4)

        def forward(self, x):
            return self.linear(self.recurrent(x)[0].mean(dim=1))

    torch.manual_seed(0)
    data = torch.rand(32, 6, 8), torch.randint(0, 4, (32,))
    workload = Workload.from_datasets(Classifier().eval(), train=data, validation=data, test=data, name="recurrent")
    context = Context(progress=False, target=Target(isa=Isa.X86_VNNI))
    Quantize(form=Dynamic()).apply(copy.deepcopy(workload.model), workload, context)
    assert context.details["checked_cpus"]["products"] > 0
    assert context.details["checked_cpus"]["products_that_may_saturate"] == []
