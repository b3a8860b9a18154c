"""Rounding that keeps the outputs of layers: GPTQ, AdaRound, and the walk through the network that feeds them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.measuring.fidelity import sqnr_db
from compressor.notes.quantization import RoundingLearned
from compressor.quantization.accuracy import layer_data
from compressor.quantization.accuracy.adaptive_rounding import AdaRound, SoftRounding
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.gptq import GPTQ, Moments, drift_damping_of, gptq
from compressor.quantization.accuracy.layer_data import Crossing, Layer, Twins, Walk
from compressor.quantization.accuracy.layer_rounding import LayerRounding, round_layers
from compressor.quantization.accuracy.layer_rows import input_columns, to_rows, to_weight
from compressor.quantization.accuracy.linear_layers import linear_layers, with_biases
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.schemes import Symmetric
from compressor.quantization.grids.weights import WeightGrid, nearest_grids
from compressor.quantization.post_training import Prepared, prepare
from compressor.quantization.quantizer import quantized_file
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.target import Isa, Target
from compressor.workload import Workload
from workbench.onnx_graphs import graph_of
from workbench.predictions import predict_all
from workbench.tiny import TinyResNet, make_workload

QUICK = AdaRound(iterations=200, learning_rate=0.05, samples=64)
METHODS = [GPTQ(samples=64), QUICK]


def _linear(weight: Tensor, *, relu: bool = False, bias: float = 0.0) -> onnx.ModelProto:
    """A Gemm with `weight` (outputs, inputs), and a ReLU behind it."""
    outputs, inputs = weight.shape
    nodes = [helper.make_node("Gemm", ["input", "w", "b"], ["y" if relu else "output"], "layer", transB=1)]
    if relu:
        nodes.append(helper.make_node("Relu", ["y"], ["output"], "relu"))
    constants = {"w": weight.numpy(), "b": np.full(outputs, bias, dtype=np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", inputs])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _grid(weight: Tensor, scale: float = 1.0, bits: int = 4) -> dict[str, WeightGrid]:
    empty = WeightGrid(
        bits=bits,
        scale=torch.tensor(scale),
        zero_point=torch.tensor(0, dtype=torch.int32),
        axis=None,
        group_size=None,
        integers=torch.zeros(weight.shape, dtype=torch.int32),
    )
    return {"w": empty.rounded(weight)}


def _as_float(graph: onnx.ModelProto) -> Callable[[dict[str, WeightGrid]], onnx.ModelProto]:
    """A placement of weights alone: the float graph with the values of the grids."""

    def place(grids: dict[str, WeightGrid]) -> onnx.ModelProto:
        placed = onnx.ModelProto()
        placed.CopyFrom(graph)
        for tensor in placed.graph.initializer:
            if tensor.name in grids:
                tensor.CopyFrom(numpy_helper.from_array(grids[tensor.name].values().numpy(), tensor.name))
        return placed

    return place


def _workload(graph: onnx.ModelProto, inputs: Tensor) -> Workload:
    data = inputs, torch.zeros(len(inputs), 2)
    module = OnnxModule(serialize(graph))
    return Workload.from_datasets(module, train=data, test=data, validation=data, metric="mse", calibration_samples=64)


def _round(method: GPTQ | AdaRound, graph: onnx.ModelProto, grids: dict[str, WeightGrid], inputs: Tensor) -> Tensor:
    workload = _workload(graph, inputs)
    context = Context(progress=False)
    rounded, _, _ = round_layers(method, graph, grids, place=_as_float(graph), workload=workload, context=context)
    return rounded["w"].integers


@pytest.fixture(scope="module")
def cnn(_trained_model: TinyResNet) -> tuple[Prepared, Workload]:
    """The trained residual CNN with weights of 3 bits, on which rounding to nearest does harm."""
    workload = make_workload(copy.deepcopy(_trained_model))
    exported = export_onnx(workload.model, workload).onnx_bytes
    stage = Quantize(weights=Symmetric(bits=3))
    return prepare(exported, stage, workload, Context(target=Target(isa=Isa.X86_VNNI), progress=False)), workload


def _noise_db(prepared: Prepared, grids: dict[str, WeightGrid], workload: Workload) -> float:
    expected, _ = predict_all(serialize(prepared.graph), workload.validation)
    got, _ = predict_all(serialize(prepared.place(weights=grids)), workload.validation)
    return sqnr_db(expected.numpy(), got.numpy())


@pytest.mark.parametrize("method", METHODS)
def test_two_weights_that_see_one_input_are_rounded_together(method: GPTQ | AdaRound) -> None:
    """0.45 and 0.35 on equal inputs: nearest gives 0 + 0 for 0.8, off by 0.8; one of them up is off by 0.2 alone."""
    weight = torch.tensor([[0.45, 0.35]])
    grids = _grid(weight)
    assert grids["w"].integers.tolist() == [[0, 0]]
    inputs = torch.randn(64, 1).expand(64, 2).contiguous()
    assert sorted(_round(method, _linear(weight), grids, inputs)[0].tolist()) == [0, 1]


def test_gptq_agrees_with_obq() -> None:
    """The Cholesky form gives what removing one weight at a time from the inverse gives (Frantar & Alistarh 2022)."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(5, 7, generator=generator, dtype=torch.float64) * 2
    inputs = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    inputs[1:] += inputs[:-1].clone()
    hessian = inputs @ inputs.T
    ones, nothing = torch.ones(1, 5, 7, dtype=torch.float64), torch.zeros(1, 7, 7, dtype=torch.float64)
    found = gptq(rows[None], ones, 0 * ones, hessian[None], nothing, bounds=(-8, 7), damping=0.0)[0]

    damped = hessian.numpy() + np.eye(7) * 1e-9 * np.diag(hessian.numpy()).mean()
    expected = np.zeros((5, 7))
    for row in range(5):
        weights = rows[row].numpy().copy()
        left = list(np.argsort(-np.diag(damped), kind="stable"))
        while left:
            inverse = np.linalg.inv(damped[np.ix_(left, left)])
            expected[row, left[0]] = np.clip(np.round(weights[left[0]]), -8, 7)
            error = weights[left[0]] - expected[row, left[0]]
            weights[left] -= error / inverse[0, 0] * inverse[0]
            left = left[1:]
    assert np.array_equal(found.numpy(), expected)

    def cost(integers: Tensor) -> float:
        return float(((integers - rows) @ inputs).square().sum())

    assert cost(found) < 0.7 * cost(rows.round())


def test_gptq_of_blocks_passes_errors_on() -> None:
    """More inputs than one block: the error of the outputs is still well below that of rounding to nearest."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(1, 4, 300, generator=generator, dtype=torch.float64)
    inputs = torch.randn(1, 300, 64, generator=generator, dtype=torch.float64)
    inputs = inputs.repeat_interleave(10, dim=2) + 0.05 * torch.randn(1, 300, 640, generator=generator).double()
    ones = torch.ones_like(rows)
    moments = inputs @ inputs.mT
    found = gptq(rows, ones, 0 * ones, moments, 0 * moments, bounds=(-8, 7), damping=0.01)
    before, after = (float(((each - rows) @ inputs).square().sum()) for each in (rows.round(), found))
    assert after < 0.15 * before


def test_gptq_makes_up_for_inputs_that_changed() -> None:
    """Inputs half of what they were want weights twice as large: 1.0 in steps of 0.5 becomes 4 steps."""
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    quantized = torch.tensor([[[1.0, 2.0, -1.0]]], dtype=torch.float64)
    moments, drift = quantized @ quantized.mT, (2 * quantized - quantized) @ quantized.mT
    assert gptq(one, 0.5 * one, 0 * one, moments, drift, bounds=(-8, 7), damping=0.0).item() == 4


@pytest.mark.parametrize("centered", [False, True])
def test_a_drift_is_made_up_for_as_far_as_other_samples_have_it(*, centered: bool) -> None:
    """Inputs that shrank by a tenth want larger weights; noise on them, of which ten samples say nothing, none."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 5, 64, generator=generator, dtype=torch.float64)
    empty = Moments(
        second=torch.zeros(1, 64, 64).double(),
        cross=torch.zeros(1, 64, 64).double(),
        moved=torch.zeros(1, 64, 1).double(),
        read=torch.zeros(1, 64, 1).double(),
        count=0,
        centered=centered,
    )

    def damping(count: int, *, noise: bool) -> float:
        theirs = torch.randn(2, 1, 64, count, generator=generator, dtype=torch.float64)
        change = torch.randn(theirs.shape, generator=generator, dtype=torch.float64) if noise else 0.1 * theirs
        return drift_damping_of(rows, (empty.seen(change[0], theirs[0]), empty.seen(change[1], theirs[1])), 0.01)

    assert damping(1000, noise=False) == 0.01
    assert damping(10, noise=False) < float("inf")
    assert damping(10, noise=True) == float("inf")


def test_halves_of_the_samples_add_up() -> None:
    """Moments of both halves together are those of all positions at once, around their own means."""
    generator = torch.Generator().manual_seed(1)
    near, change = torch.randn(2, 3, 4, 50, generator=generator, dtype=torch.float64) + 2
    zeros = [torch.zeros(3, 4, size).double() for size in (4, 1)]
    empty = Moments(second=zeros[0], cross=zeros[0], moved=zeros[1], read=zeros[1], count=0, centered=True)
    both = empty.seen(change[..., :20], near[..., :20]) + empty.seen(change[..., 20:], near[..., 20:])
    around, moved = (each - each.mean(dim=-1, keepdim=True) for each in (near, change))
    assert both.count == 50
    assert torch.allclose(both.hessian, around @ around.mT)
    assert torch.allclose(both.drift, moved @ around.mT)


def test_inputs_that_are_always_zero_are_rounded_to_nearest() -> None:
    """A dead input says nothing about its weight."""
    weight = torch.tensor([[1.4, 2.6]])
    inputs = torch.zeros(64, 2)
    assert _round(GPTQ(), _linear(weight), _grid(weight), inputs).tolist() == [[1, 3]]


def test_soft_rounding_begins_at_the_weights() -> None:
    """Before the first step the weights are what they were, and the integers those nearest to them."""
    steps = torch.tensor([0.3, -1.2, 2.75])
    rounding = SoftRounding(steps, torch.tensor([2.0, 1.0, 0.5]), learning_rate=0.1)
    assert rounding.values().tolist() == pytest.approx([0.6, -1.2, 1.375], abs=1e-5)
    assert rounding.integers().tolist() == [0, -1, 3]


def test_regulariser_decides_every_weight() -> None:
    """Without an error to lower, weights end within 2 % of a step of the integer that they are nearest to."""
    rounding = SoftRounding(torch.tensor([0.3, 0.8, 1.4]), torch.ones(3), learning_rate=0.05)
    rounding.weigh_(torch.full((3,), 0.05))
    noise = torch.Generator().manual_seed(0)
    for iteration in range(1000):
        rounding.step_(0.01 * torch.randn(3, generator=noise), progress=iteration / 1000)
    assert rounding.values().tolist() == pytest.approx([0.0, 1.0, 1.0], abs=0.02)


def test_adaround_sees_what_the_relu_hides() -> None:
    """What is zero behind the ReLU has no say: one sample in eleven is seen, and wants 2.45 + 2.35 to become 5.

    The others, (2, -2) and (-2, 2), want both weights to move alike; nearest, 2 + 2, is best for all of them together.
    """
    weight = torch.tensor([[2.45, 2.35]])
    seen, hidden = torch.ones(20, 2), torch.tensor([[2.0, -2.0], [-2.0, 2.0]]).repeat(100, 1)
    inputs = torch.cat([seen, hidden])[torch.randperm(220)]
    method = replace(QUICK, samples=220)
    relu, linear = (
        _round(method, _linear(weight, relu=relu, bias=-3.0), _grid(weight), inputs)[0].tolist()
        for relu in (True, False)
    )
    assert linear == [2, 2]
    assert sorted(relu) == [2, 3]


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((6, 4, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((6, 2, 3, 3), {"group": 2, "dilations": [2, 2], "pads": [2, 2, 2, 2]}),
        ((4, 1, 3, 3), {"group": 4}),
        ((5, 4, 3), {"strides": [2], "pads": [1, 1]}),
        ((5, 4, 2, 3, 1), {"dilations": [2, 1, 1]}),
    ],
)
def test_rows_times_columns_is_the_convolution(shape: tuple[int, ...], settings: dict[str, list[int]]) -> None:
    """Grouped, dilated, strided, of one to three dimensions: the products are torch's, and the way back is exact."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], **settings)
    rank = len(shape) - 2
    weight, values = torch.randn(shape), torch.randn(3, 4, *[9, 8, 7][:rank])
    convolution = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    expected = convolution(
        values,
        weight,
        stride=settings.get("strides", 1),
        padding=settings.get("pads", [0] * rank)[:rank],
        dilation=settings.get("dilations", 1),
        groups=settings.get("group", 1),
    )
    columns = torch.cat(list(input_columns(node, values, shape)), dim=-1)
    product = (to_rows(node, weight) @ columns).flatten(0, 1)
    assert torch.allclose(product, expected.transpose(0, 1).flatten(1), atol=1e-5)
    assert torch.equal(to_weight(node, to_rows(node, weight), shape), weight)


@pytest.mark.parametrize(("kind", "shape"), [("Gemm", (5, 4)), ("MatMul", (4, 5))])
def test_rows_times_columns_is_the_product(kind: str, shape: tuple[int, int]) -> None:
    """Gemm with rows first and MatMul over tokens: the products are theirs."""
    node = helper.make_node(kind, ["x", "w"], ["y"], **({"transB": 1} if kind == "Gemm" else {}))
    weight, values = torch.randn(shape), torch.randn(2, 3, 4)
    (columns,) = input_columns(node, values, shape)
    expected = values @ (weight.T if kind == "Gemm" else weight)
    assert torch.allclose((to_rows(node, weight) @ columns)[0].T.reshape(2, 3, 5), expected, atol=1e-6)
    assert torch.equal(to_weight(node, to_rows(node, weight), shape), weight)


def test_same_padding_is_onnx_runtimes() -> None:
    """auto_pad=SAME_UPPER pads the end more than the beginning, as the session does."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2])
    weight, values = torch.randn(3, 2, 3, 3), torch.randn(1, 2, 8, 8)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(weight.numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    expected = OnnxModule(serialize(model))(values)
    (columns,) = input_columns(node, values, weight.shape)
    assert isinstance(expected, Tensor)
    assert torch.allclose((to_rows(node, weight) @ columns)[0], expected[0].flatten(1), atol=1e-5)


def test_walk_carries_what_onnx_runtime_computes(cnn: tuple[Prepared, Workload]) -> None:
    """At every border the twin's values are those of the file that would be shipped, the other's the float file's."""
    prepared, workload = cnn
    twins = Twins(prepared.graph, prepared.weights, lambda grids: prepared.place(weights=grids))
    assert twins.quantized_net is not twins.float_net
    walk = Walk(twins, workload, samples=40, seed=0)
    layers = [layer.weight for segment in walk.segments for layer in segment.layers]
    assert layers == [layer.weight for layer in twins.layers]
    assert len(layers) == len(prepared.weights)
    assert len(walk.segments) > 10
    placed = prepared.place()
    inputs = torch.cat([batch for batch, _ in workload.calibration])[:40]
    for segment, crossing in list(walk)[1::4]:
        assert crossing.samples == 40
        for name in segment.inputs:
            for model, tensor, found, allowed in (
                (prepared.graph, name, crossing.exact[name], 0.0),
                # Sums in another order may fall on the other side of a half, here and there.
                (placed, twins.names[name], crossing.quantized[name], 0.002),
            ):
                probe = onnx.ModelProto()
                probe.CopyFrom(model)
                del probe.graph.output[:]
                probe.graph.output.append(onnx.ValueInfoProto(name=tensor))
                expected = OnnxModule(serialize(probe))(inputs)
                assert isinstance(expected, Tensor)
                assert float(((found - expected).abs() > 1e-3).float().mean()) <= allowed, name


@pytest.mark.parametrize("method", METHODS)
def test_rounding_keeps_a_network_of_three_bits(cnn: tuple[Prepared, Workload], method: GPTQ | AdaRound) -> None:
    """On new images the file has 5 dB less noise than with the nearest integers; the report is told.

    GPTQ chooses scales near those of the least error of the weights, AdaRound keeps these.
    """
    prepared, workload = cnn
    found, _, told = round_layers(
        method,
        prepared.graph,
        prepared.weights,
        place=lambda grids: prepared.place(weights=grids),
        workload=workload,
        context=Context(progress=False),
    )
    assert found.keys() == prepared.weights.keys()
    for name, grid in found.items():
        before = prepared.weights[name].scale
        assert torch.allclose(grid.scale, before, rtol=0.4 if isinstance(method, GPTQ) else 0.0, atol=0.0)
    assert _noise_db(prepared, found, workload) > _noise_db(prepared, dict(prepared.weights), workload) + 5
    assert (told.method, told.samples, told.to_nearest) == (repr(method), 64, ())
    assert 0.02 < told.changed_fraction < 0.5


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_integers(method: GPTQ | AdaRound) -> None:
    """Twice is the same to the bit, also where training data fills up the samples, whatever torch's seed was."""
    weight = torch.randn(16, 32)
    graph, grids = _linear(weight), _grid(weight, scale=0.4)
    inputs = torch.randn(100, 4) @ torch.randn(4, 32)
    workload = _workload(graph, inputs)
    if isinstance(method, AdaRound):
        # Small batches differ: with another seed some twenty of the 512 weights go the other way.
        method = replace(method, batch=16)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        context = Context(progress=False)
        rounded, _, told = round_layers(
            replace(method, samples=80), graph, grids, place=_as_float(graph), workload=workload, context=context
        )
        assert told.samples == 80
        found.append(rounded["w"].integers)
    assert torch.equal(*found)


def test_operators_without_a_torch_form_leave_activations_exact() -> None:
    """Where torch cannot run the quantized graph, the layers still are rounded, on the float network's activations."""
    weight = torch.tensor([[0.45, 0.35]])
    graph = _linear(weight)

    def place(_grids: dict[str, WeightGrid]) -> onnx.ModelProto:
        placed = onnx.ModelProto()
        placed.CopyFrom(graph)
        placed.graph.node[0].op_type = "NoSuchOperator"
        return placed

    inputs = torch.randn(64, 1).expand(64, 2).contiguous()
    workload = _workload(graph, inputs)
    context = Context(progress=False)
    found, _, _ = round_layers(GPTQ(), graph, _grid(weight), place=place, workload=workload, context=context)
    assert sorted(found["w"].integers[0].tolist()) == [0, 1]


def test_few_samples_are_held_of_large_activations(
    cnn: tuple[Prepared, Workload], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many that those of the widest segment fit, and no layer is lost where segments go on to pass fewer of them."""
    prepared, workload = cnn
    twins = Twins(prepared.graph, prepared.weights, lambda grids: prepared.place(weights=grids))
    whole = Walk(twins, workload, samples=50, seed=0)
    assert whole.samples == 50
    monkeypatch.setattr(layer_data, "MAX_BYTES", 160 << 10)
    few = Walk(twins, workload, samples=50, seed=0)
    assert len(few.segments) < len(whole.segments)
    assert [layer.weight for part in few.segments for layer in part.layers] == [each.weight for each in twins.layers]
    # Segments of one layer passed on three activations of 4 KiB, each in both networks: room for 6.
    assert 6 < few.samples < 50


def test_segments_go_on_where_much_crosses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a block that widens 8 numbers to 128 all samples are held at its ends; its middle leaves room for few."""
    widths = (8, 128, 8, 128, 8)
    weights = [torch.randn(after, before) / before**0.5 for before, after in pairwise(widths)]
    nodes, constants, name = [], {}, "input"
    for number, weight in enumerate(weights):
        output = f"y{number}" if number < len(weights) - 1 else "output"
        nodes.append(helper.make_node("Gemm", [name, f"w{number}"], [output], f"layer{number}", transB=1))
        constants[f"w{number}"], name = weight.numpy(), output
    graph = graph_of(nodes, constants, ["batch", 8], ["batch", 8])
    grids = nearest_grids(graph, {node.name: Symmetric(bits=4) for node in nodes})
    workload, context = _workload(graph, torch.randn(40, 8)), Context(progress=False)

    def rounded() -> dict[str, WeightGrid]:
        place = _as_float(graph)
        return round_layers(GPTQ(), graph, grids, place=place, workload=workload, context=context)[0]

    expected = rounded()
    monkeypatch.setattr(layer_data, "MAX_BYTES", 40 * 2 * 4 * (8 + 8))
    walk = Walk(Twins(graph, grids, _as_float(graph)), workload, samples=40, seed=0)
    assert walk.samples == 40
    assert [[layer.weight for layer in part.layers] for part in walk.segments] == [["w0", "w1"], ["w2", "w3"]]
    assert all(torch.equal(grid.integers, expected[name].integers) for name, grid in rounded().items())


def test_layers_on_the_same_grid_per_group_are_rounded() -> None:
    """Scales by pieces of a row: every piece keeps its own, and integers stay within their bits."""
    weight = torch.randn(3, 8)
    graph = _linear(weight)
    grids = {
        "w": replace(
            _grid(weight)["w"],
            scale=torch.tensor([[0.5, 0.25]] * 3),
            zero_point=torch.zeros(3, 2, dtype=torch.int32),
            axis=0,
            group_size=4,
        ).rounded(weight)
    }
    inputs = torch.randn(64, 2) @ torch.randn(2, 8)
    found = grids["w"].with_integers(_round(GPTQ(), graph, grids, inputs))
    before, after = (float(((grid.values() - weight) @ inputs.T).square().sum()) for grid in (grids["w"], found))
    assert after < before / 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GPTQ(damping=-1), "damping is a fraction of the mean of the diagonal, from 0 to 10; got -1"),
        (lambda: GPTQ(samples=0), "samples is the number of samples that are looked at, at least 1; got 0"),
        (lambda: AdaRound(iterations=3), "iterations is the number of steps a layer, at least 10; got 3"),
        (lambda: AdaRound(batch=0), "batch is the number of positions in a step, at least 1; got 0"),
        (lambda: AdaRound(learning_rate=2), r"learning_rate is Adam's, in \(0, 1\]; got 2"),
    ],
)
def test_settings_out_of_range_are_refused(make: Callable[[], object], message: str) -> None:
    """The message says what was wanted and what was got."""
    with pytest.raises(ValueError, match=message):
        make()


def test_methods_are_their_own_text() -> None:
    """What a report prints makes the same method again."""
    for method in (GPTQ(damping=0.1), AdaRound(iterations=20)):
        assert eval(repr(method)) == method  # noqa: S307 - the promise under test


def test_no_data_is_refused(cnn: tuple[Prepared, Workload]) -> None:
    """Without a batch there is nothing to keep the outputs of."""
    prepared, workload = cnn
    empty = replace(workload, calibration=[], train=[])
    with pytest.raises(StageError, match="calibration data is empty; give the workload at least one batch"):
        round_layers(
            GPTQ(),
            prepared.graph,
            prepared.weights,
            place=lambda grids: prepared.place(weights=grids),
            workload=empty,
            context=Context(progress=False),
        )


def test_nearest_grids_are_the_start(cnn: tuple[Prepared, Workload]) -> None:
    """What a method finds for every layer is the nearest integers of 3 bits; without a change the report says 0."""
    prepared, workload = cnn
    nearest = nearest_grids(prepared.graph, dict.fromkeys(prepared.placement.static, Symmetric(bits=3)))

    class Unchanged:
        samples = 8
        seen: ClassVar[dict[str, Tensor]] = {}

        def rounded(self, layer: Layer, crossing: Crossing, twins: Twins, generator: torch.Generator) -> WeightGrid:
            assert crossing.samples == 8
            self.seen[layer.weight] = twins.grids[layer.weight].integers
            return twins.grids[layer.weight]

    _, _, told = round_layers(
        Unchanged(),
        prepared.graph,
        prepared.weights,
        place=lambda grids: prepared.place(weights=grids),
        workload=workload,
        context=Context(progress=False),
    )
    assert Unchanged.seen.keys() == nearest.keys()
    assert all(torch.equal(Unchanged.seen[name], nearest[name].integers) for name in nearest)
    assert (told.layers, told.changed_fraction) == (len(nearest), 0)


def test_the_report_is_told_how_many_weights_moved() -> None:
    """Of four weights that see one input, nearest rounds 4 x 0.3 to 0; one of them going up makes a quarter changed."""
    weight = torch.full((1, 4), 0.3)
    graph = _linear(weight)
    inputs = torch.randn(64, 1).expand(64, 4).contiguous()
    found, _, told = round_layers(
        GPTQ(),
        graph,
        {**_grid(weight), "other": _grid(weight)["w"]},
        place=_as_float(graph),
        workload=_workload(graph, inputs),
        context=Context(progress=False),
    )
    assert int(found["w"].integers.sum()) == 1
    assert told == RoundingLearned(
        method=repr(GPTQ()), samples=128, layers=1, changed_fraction=0.25, to_nearest=("other",)
    )


@pytest.mark.parametrize(("groups", "channels"), [(4, 4), (1, 1)])
def test_depthwise_filters_and_those_of_one_channel_are_rounded(groups: int, channels: int) -> None:
    """Nine equal weights of 0.3 on patches of equal values go to 0 each by nearest; learned, 3 of 9 go up: 2.7 is 3."""
    weight = torch.full((4, 1, 3, 3), 0.3)
    nodes = [helper.make_node("Conv", ["input", "w"], ["output"], "conv", group=groups)]
    graph = graph_of(nodes, {"w": weight.numpy()}, ["n", channels, 3, 3], ["n", 4, 1, 1])
    inputs = torch.randn(128, channels, 1, 1).expand(-1, -1, 3, 3).contiguous()
    data = inputs, torch.zeros(len(inputs), 4, 1, 1)
    module = OnnxModule(serialize(graph))
    workload = Workload.from_datasets(module, train=data, test=data, validation=data, metric="mse")
    found, _, told = round_layers(
        GPTQ(), graph, _grid(weight), place=_as_float(graph), workload=workload, context=Context(progress=False)
    )
    assert (told.layers, told.to_nearest) == (1, ())
    assert found["w"].integers.sum(dim=(1, 2, 3)).tolist() == [3] * 4


class Kept:
    """Leaves the integers as they are."""

    samples = 64

    def rounded(self, layer: Layer, crossing: Crossing, twins: Twins, generator: torch.Generator) -> WeightGrid:
        del crossing, generator
        return twins.grids[layer.weight]


def _corrected(method: LayerRounding, graph: onnx.ModelProto, grids: dict[str, WeightGrid], inputs: Tensor) -> tuple:
    graph, layers = with_biases(graph, linear_layers(graph))
    grids, biases, _ = round_layers(
        method,
        graph,
        grids,
        place=_as_float(graph),
        workload=_workload(graph, inputs),
        context=Context(progress=False),
        corrected=layers,
    )
    return grids, [biases[layer.bias].tolist() for layer in layers]


def test_the_bias_takes_the_mean_and_the_weights_what_varies() -> None:
    """0.4 and 0.3 on inputs 10 + e and 10 - e give 7 + 0.1 e: a free bias makes that 0, 0 and 7; without it 1 and 0.

    What is far from the origin loses no digits: the same holds at a million.
    """
    weight = torch.tensor([[0.4, 0.3]])
    graph, grids = _linear(weight), _grid(weight)
    for mean in (10.0, 1e6):
        e = torch.tensor([1.0, -1.0]).repeat(64)[:, None]
        inputs = torch.cat([mean + e, mean - e], dim=1)
        found, (bias,) = _corrected(GPTQ(), graph, grids, inputs)
        assert found["w"].integers.tolist() == [[0, 0]]
        # The samples that are drawn have a mean of e of their own.
        assert bias == [pytest.approx(0.7 * mean, rel=1e-6, abs=0.05)]
        assert int(_round(GPTQ(), graph, grids, inputs).sum()) == 1


def test_few_positions_shrink_what_gptq_makes_up_for() -> None:
    """Ten samples of 64 inputs fit any rounding: on new ones it stays within a tenth of the nearest integers' error."""
    torch.manual_seed(0)
    weight = torch.randn(32, 64)
    graph, grids = _linear(weight), _grid(weight, scale=0.25)
    seen, new = torch.randn(10, 64).abs(), torch.randn(4000, 64).abs()
    workload = replace(_workload(graph, seen.repeat(13, 1)), calibration=[(seen, torch.zeros(10, 2))], train=[])
    found, _, _ = round_layers(
        GPTQ(), graph, grids, place=_as_float(graph), workload=workload, context=Context(progress=False)
    )
    rounded, nearest = (
        float(((grid.values() - weight) @ (new - new.mean(0)).T).square().mean()) for grid in (found["w"], grids["w"])
    )
    assert rounded < 1.1 * nearest


def test_biases_on_the_way_see_corrected_layers() -> None:
    """Two layers of weight 0.6, rounded to 1, on inputs of mean 5: biases -2 and, from 3 on, -1.2; not -3.2 again."""
    nodes = [
        helper.make_node("Gemm", ["input", "w"], ["a"], "one"),
        helper.make_node("Gemm", ["a", "v"], ["output"], "two"),
    ]
    weight = torch.tensor([[0.6]])
    graph = graph_of(nodes, {"w": weight.numpy(), "v": weight.numpy()}, ["n", 1], ["n", 1])
    grid = _grid(weight)["w"]
    _, biases = _corrected(Kept(), graph, {"w": grid, "v": grid}, torch.tensor([4.0, 6.0]).repeat(64)[:, None])
    # The samples that are drawn have a mean of their own.
    assert biases == [[pytest.approx(-2, abs=0.1)], [pytest.approx(-1.2, abs=0.1)]]


def test_a_network_of_three_bits_gains_by_its_biases_and_by_sweeps(cnn: tuple[Prepared, Workload]) -> None:
    """On new images GPTQ and biases together leave 1 dB less noise than GPTQ alone; with sweeps every pair is safe too.

    What the sweeps and other scales win leaves less to the biases.
    """
    prepared, workload = cnn
    exported = serialize(prepared.graph)
    expected, _ = predict_all(exported, workload.validation)
    noise, notes = {}, {}
    for name, sweeps, correction in (("plain", 0, None), ("biased", 0, BiasCorrection()), ("swept", 2, None)):
        context = Context(progress=False)
        rounding = GPTQ(samples=64, sweeps=sweeps)
        stage = Quantize(weights=Symmetric(bits=3), rounding=rounding, bias_correction=correction)
        got, _ = predict_all(quantized_file(exported, stage, workload, context), workload.validation)
        noise[name], notes[name] = sqnr_db(expected.numpy(), got.numpy()), context.details.get("bias_correction")
    assert notes["plain"] is None
    assert (notes["biased"]["method"], notes["biased"]["kept"], notes["biased"]["missing"]) == ("empirical", True, [])
    assert noise["biased"] > noise["plain"] + 1
    assert noise["swept"] > noise["plain"] + 1, noise


def test_gptq_leaves_zeros_at_zero() -> None:
    """Weights that are zero stay the zero point, and the others make up for more than rounding to nearest does."""
    rows = torch.randn(1, 6, 12, dtype=torch.float64)
    rows[torch.rand(rows.shape) < 0.5] = 0.0
    x = torch.randn(12, 12, dtype=torch.float64) @ torch.randn(12, 200, dtype=torch.float64)
    scale, zero_point = torch.full_like(rows, 0.3), torch.full_like(rows, 2.0)
    hessian = (x @ x.mT)[None]
    integers = gptq(rows, scale, zero_point, hessian, torch.zeros_like(hessian), bounds=(-8, 7), damping=0.01)
    assert (integers[rows == 0] == 2).all()
    assert (integers[rows != 0] != 2).any()
    nearest = ((rows / scale).round() + zero_point).clamp(-8, 7)
    errors = [((((own - zero_point) * scale - rows) @ x) ** 2).sum() for own in (integers, nearest)]
    assert errors[0] < errors[1]
