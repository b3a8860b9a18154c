"""QuantizeLinear and DequantizeLinear around operators, so that ONNX Runtime fuses them and computes what is meant."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.activations import ActivationGrid, activation_grids
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.policy import followers
from compressor.quantization.placement.static import place_static, tensors_to_observe, with_shared
from compressor.runtime import open_session
from workbench.cpu import exact_outputs
from workbench.onnx_graphs import with_branch


def _model(nodes: list, weights: dict[str, np.ndarray], shape: list, output: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *output])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _conv(source: str, target: str, name: str, **attributes: list[int]) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"{name}.w", f"{name}.b"], [target], name, **attributes)


def _weights(*names: str, channels: int = 8, kernel: int = 3) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    weights = {}
    for name in names:
        weights[f"{name}.w"] = generator.normal(size=(channels, channels, kernel, kernel)).astype(np.float32) / 8
        weights[f"{name}.b"] = generator.normal(size=channels).astype(np.float32)
    return weights


def _placed(model: onnx.ModelProto, static: set[str], *, bits: int = 8, signed: bool = False) -> onnx.ModelProto:
    """`model` with `static` nodes and their followers quantized for the ranges of one batch."""
    nodes = {*static, *followers(model, static)}
    tensors, same = tensors_to_observe(model, nodes)
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    names = [name for name in tensors if name not in {"input", "output"}]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    wanted = ["output", *names]
    values = dict(zip(wanted, open_session(probe.SerializeToString()).run(wanted, _feeds(model)), strict=True))
    values |= _feeds(model)
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in tensors}
    activations = activation_grids(with_shared(ranges, same), Asymmetric(bits=bits), signed=signed)
    return place_static(model, nodes, activations, nearest_grids(model, dict.fromkeys(static, Symmetric())))


def _feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"input": np.random.default_rng(1).normal(size=(4, *dims)).astype(np.float32)}


def _noise_db(model: onnx.ModelProto, placed: onnx.ModelProto) -> float:
    expected, got = (open_session(serialize(one)).run(None, _feeds(model))[0] for one in (model, placed))
    return sqnr_db(expected, got)


SAME = {"pads": [1, 1, 1, 1]}


def test_what_stands_between_convolutions_runs_on_integers() -> None:
    """A residual sum, a concatenation, average, global and max pooling become integer kernels, with 2 conversions."""
    nodes = [
        _conv("input", "a", "first", **SAME),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        _conv("b", "c", "second", **SAME),
        helper.make_node("Add", ["c", "b"], ["d"], "sum"),
        helper.make_node("AveragePool", ["d"], ["e"], "mean", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxPool", ["d"], ["f"], "largest", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["e", "f"], ["g"], "both", axis=1),
        helper.make_node("Conv", ["g", "third.w"], ["h"], "third"),
        helper.make_node("GlobalAveragePool", ["h"], ["i"], "pool"),
        helper.make_node("Flatten", ["i"], ["j"], "flat"),
        helper.make_node("Gemm", ["j", "head.w"], ["output"], "head"),
    ]
    weights = _weights("first", "second")
    generator = np.random.default_rng(2)
    weights["third.w"] = generator.normal(size=(8, 16, 1, 1)).astype(np.float32)
    weights["head.w"] = generator.normal(size=(8, 4)).astype(np.float32)
    model = _model(nodes, weights, [8, 8, 8], [4])
    placed = _placed(model, {"first", "second", "third", "head"})
    running = kernels(serialize(placed))
    assert running["QLinearConv"] == 3
    for name in (
        "QLinearAdd",
        "QLinearConcat",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "NhwcMaxPool",
        "QGemm",
    ):
        assert running[name] == 1, name
    assert running["QuantizeLinear"] == 1
    assert running["DequantizeLinear"] == 0
    assert _noise_db(model, placed) > 25


def test_integers_compute_what_the_grids_say() -> None:
    """A convolution's integers are those of torch on the dequantized operands, rounded to the output's grid."""
    weights = _weights("conv")
    model = _model([_conv("input", "output", "conv", **SAME)], weights, [8, 6, 6], [8, 6, 6])
    activations = activation_grids({"input": (-3.0, 3.0), "output": (-4.0, 4.0)}, Asymmetric(), signed=False)
    grids = nearest_grids(model, {"conv": Symmetric(bits=4)})
    placed = place_static(model, {"conv"}, activations, grids)
    source, target = activations["input"], activations["output"]
    x = torch.from_numpy(_feeds(model)["input"])
    x = ((x / source.scale).round() + source.zero_point).clamp(0, 255).sub(source.zero_point) * source.scale
    step = source.scale * grids["conv.w"].scale
    bias = (torch.from_numpy(weights["conv.b"]) / step).round() * step
    y = F.conv2d(x.double(), grids["conv.w"].values().double(), bias.double(), padding=1)
    expected = ((y / target.scale).round() + target.zero_point).clamp(0, 255)
    got = open_session(serialize(placed)).run(None, _feeds(model))[0] / float(target.scale) + float(target.zero_point)
    difference = np.abs(expected.numpy() - np.round(got))
    assert difference.max() <= 1  # a sum that lies halfway, where float32's own rounding decides
    assert (difference > 0).mean() < 0.001


def test_a_relu_behind_a_pool_of_signed_values_stays() -> None:
    """Max pooling hands on its input's grid, which reaches below zero: dropping the ReLU behind it would be wrong."""
    nodes = [
        _conv("input", "a", "conv", **SAME),
        helper.make_node("MaxPool", ["a"], ["b"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        _conv("c", "output", "second", **SAME),
    ]
    weights = _weights("conv", "second")
    weights["conv.b"] -= 2  # most of what the pool gives is negative
    model = _model(nodes, weights, [8, 8, 8], [8, 4, 4])
    placed = _placed(model, {"conv", "second"})
    assert "Relu" in {node.op_type for node in placed.graph.node}
    assert _noise_db(model, placed) > 25


def test_floats_beside_integers_stay_exact() -> None:
    """What a float operator computes is rounded for the integer operator that reads it, not for its float readers."""
    nodes = [
        helper.make_node("Tanh", ["input"], ["a"], "tanh"),
        _conv("a", "b", "conv", **SAME),
        helper.make_node("Sub", ["a", "a"], ["c"], "nothing"),
        helper.make_node("Exp", ["a"], ["d"], "exp"),
        helper.make_node("Mul", ["b", "c"], ["e"], "off"),
        helper.make_node("Sum", ["e", "d"], ["output"], "sum"),
    ]
    model = _model(nodes, _weights("conv"), [8, 6, 6], [8, 6, 6])
    placed = _placed(model, {"conv"})
    x = _feeds(model)
    assert np.array_equal(*(open_session(serialize(one)).run(None, x)[0] for one in (model, placed)))


def test_linear_layers_give_floats_to_floats() -> None:
    """A Gemm that only a softmax reads runs as a kernel with float output: no rounding of the logits, no conversion."""
    nodes = [
        helper.make_node("Gemm", ["input", "w"], ["a"], "head"),
        helper.make_node("Softmax", ["a"], ["output"], "softmax"),
    ]
    weight = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    placed = _placed(_model(nodes, {"w": weight}, [16], [4]), {"head"})
    assert kernels(serialize(placed)) == {"QuantizeLinear": 1, "QGemm": 1, "Softmax": 1}


@pytest.mark.parametrize(("op", "kernel"), [("MatMul", "QLinearMatMul"), ("Gemm", "QGemm")])
@pytest.mark.parametrize("cut", ["Relu", "Clip"])
def test_a_product_that_a_relu_cuts_off_runs_on_integers_before_floats(op: str, kernel: str, cut: str) -> None:
    """Rounding behind the ReLU takes its place; without it the product, prepared for integers, multiplied floats."""
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.normal(size=(16, 8)).astype(np.float32),
        "none": np.float32(0),
        "six": np.float32(6),
        "v": generator.normal(size=(8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node(op, ["input", "w"], ["a"], "front"),
        helper.make_node(cut, ["a", "none", "six"][: 1 if cut == "Relu" else 3], ["b"], "cut"),
        helper.make_node("Einsum", ["b", "v"], ["output"], "float", equation="bi,io->bo"),
    ]
    model = _model(nodes, weights, [16], [4])
    placed = _placed(model, {"front"})
    assert kernels(serialize(placed)) == {"QuantizeLinear": 1, kernel: 1, "DequantizeLinear": 1, "Einsum": 1}
    expected, got = (exact_outputs(serialize(each), _feeds(model))[0] for each in (model, placed))
    assert sqnr_db(expected, got) > 30


def test_a_relu_at_the_end_cuts_off_the_floats_that_a_layer_gives() -> None:
    """What the graph gives out is not rounded: the kernel hands out floats, and the ReLU stays."""
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"], "head"),
        helper.make_node("Relu", ["a"], ["output"], "cut"),
    ]
    weight = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    placed = _placed(_model(nodes, {"w": weight}, [16], [4]), {"head"})
    assert kernels(serialize(placed)) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1, "Relu": 1}


@pytest.mark.parametrize("stack", [(1,), (4,), (4, 3)])
@pytest.mark.parametrize("behind", ["Tanh", "MatMul"])
def test_a_stack_of_matrices_is_multiplied_on_integers(stack: tuple[int, ...], behind: str) -> None:
    """Matrices that are stacked have one scale for all, with which ONNX Runtime has kernels, whoever reads them."""
    generator = np.random.default_rng(0)
    weights = {
        "w": generator.normal(size=(*stack, 16, 8)).astype(np.float32) / 4,
        "v": generator.normal(size=(8, 4)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"], "stacked"),
        helper.make_node(behind, ["a", "v"] if behind == "MatMul" else ["a"], ["output"], "behind"),
    ]
    shape = [1] * (len(stack) - 1) + [5, 16]
    model = _model(nodes, weights, shape, [*stack[1:], 5, 4 if behind == "MatMul" else 8])
    placed = _placed(model, {"stacked", "behind"} if behind == "MatMul" else {"stacked"})
    running = kernels(serialize(placed))
    assert "MatMul" not in running
    assert running["MatMulIntegerToFloat"] == 1
    assert running["QLinearMatMul"] == (behind == "MatMul")
    expected, got = (exact_outputs(serialize(each), _feeds(model))[0] for each in (model, placed))
    assert sqnr_db(expected, got) > 30


def test_a_bias_too_large_for_its_grid_gets_room() -> None:
    """A dead channel (weights of 1e-12) with a bias of 3 keeps the bias, though 3 / (s_x * s_w) is beyond int32."""
    weights = _weights("conv")
    weights["conv.w"][2], weights["conv.b"][2] = 1e-12, 3.0
    model = _model([_conv("input", "output", "conv", **SAME)], weights, [8, 6, 6], [8, 6, 6])
    placed = _placed(model, {"conv"})
    assert kernels(serialize(placed))["QLinearConv"] == 1
    got = open_session(serialize(placed)).run(None, _feeds(model))[0]
    assert np.allclose(got[:, 2], 3.0, atol=0.05)
    assert _noise_db(model, placed) > 30


def test_sixteen_bit_activations_are_almost_exact_and_float() -> None:
    """ONNX Runtime has no integer kernel for 16 bits: it computes floats, and the weights are the only noise left."""
    model = _model([_conv("input", "output", "conv", **SAME)], _weights("conv"), [8, 6, 6], [8, 6, 6])
    placed = _placed(model, {"conv"}, bits=16)
    assert kernels(serialize(placed))["QLinearConv"] == 0
    assert _noise_db(model, placed) > _noise_db(model, _placed(model, {"conv"})) + 3
    grid = next(tensor for tensor in placed.graph.initializer if tensor.name == "input_zero_point")
    assert grid.data_type == TensorProto.UINT16


def test_scales_per_group_are_refused() -> None:
    """There is no integer kernel for them; the message gives the ways out."""
    model = _model([_conv("input", "output", "conv", **SAME)], _weights("conv"), [8, 6, 6], [8, 6, 6])
    grids = nearest_grids(model, {"conv": Symmetric(bits=4, granularity=PerBlock(size=8))})
    activations = activation_grids({"input": (-3.0, 3.0), "output": (-4.0, 4.0)}, Asymmetric(), signed=False)
    with pytest.raises(StageError, match=r"conv has a scale for every 8 weights.*or form=WeightOnly\(\)"):
        place_static(model, {"conv"}, activations, grids)


def test_activation_grids_end_where_they_say() -> None:
    """[-1, 4] on 8 unsigned bits: steps of 5/255, zero at 51; 12 bits have no type."""
    grid = activation_grids({"a": (-1.0, 4.0)}, Asymmetric(), signed=False)["a"]
    assert float(grid.scale) == pytest.approx(5 / 255)
    assert int(grid.zero_point) == 51
    assert (grid.low, grid.high) == (pytest.approx(-1.0), pytest.approx(4.0))
    with pytest.raises(ValueError, match="8 or 16 bits, for which ONNX has types; got 12"):
        ActivationGrid(scale=torch.tensor(1.0), zero_point=torch.tensor(0), bits=12)


def test_what_a_branch_reads_before_a_relu_stays() -> None:
    """A ReLU whose input is read inside of an If as well is not left to the integers: the branch gets what it did."""
    nodes = [
        _conv("input", "a", "one", **SAME),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        _conv("b", "output", "two", **SAME),
    ]
    plain = _model(nodes, _weights("one", "two"), [8, 6, 6], [8, 6, 6])
    model = with_branch(plain, "a")
    placed = _placed(model, {"one", "two"})
    assert "relu" in [node.name for node in placed.graph.node]
    assert "relu" not in [node.name for node in _placed(plain, {"one", "two"}).graph.node]
    expected, got = (open_session(serialize(one)).run(["peeked"], _feeds(model))[0] for one in (model, placed))
    assert sqnr_db(expected, got) > 15
