"""Pad, HardSigmoid and transposed convolutions become what ONNX Runtime runs on integers."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.files.operators import OPERATORS, Fact, Operator
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.activations import activation_grids
from compressor.quantization.grids.schemes import Asymmetric, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.forms import Static
from compressor.quantization.placement.integer_forms import take_integer_forms_
from compressor.quantization.placement.policy import followers, placement_of
from compressor.quantization.placement.static import place_static, tensors_to_observe, with_shared
from compressor.quantization.placement.transposed_convolutions import as_convolutions
from compressor.quantization.torch_graph.operators import Call
from compressor.quantization.torch_graph.shapes import SHAPES
from compressor.runtime import open_session
from workbench.cpu import exact_outputs

SAME = {"pads": [1, 1, 1, 1]}


def _model(nodes: list, constants: dict[str, np.ndarray], shape: list, output: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", *output])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def _between(nodes: list, constants: dict[str, np.ndarray], size: int) -> onnx.ModelProto:
    """`nodes` from "a" to "b" between two convolutions of 16 channels; maps are 8x8, in the end `size`."""
    generator = np.random.default_rng(0)
    weights = {f"{name}.w": generator.normal(size=(16, 16, 3, 3)).astype(np.float32) / 12 for name in ("one", "two")}
    nodes = [
        helper.make_node("Conv", ["input", "one.w"], ["a"], "one", **SAME),
        *nodes,
        helper.make_node("Conv", ["b", "two.w"], ["output"], "two", **SAME),
    ]
    return _model(nodes, {**weights, **constants}, [16, 8, 8], [16, size, size])


def _feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"input": np.random.default_rng(1).normal(size=(4, *sizes)).astype(np.float32)}


def _run(model: onnx.ModelProto, names: list[str] | None = None) -> list[np.ndarray]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names or ())
    return exact_outputs(serialize(probe), _feeds(model))


def _placed(model: onnx.ModelProto) -> onnx.ModelProto:
    static = {node.name for node in model.graph.node if node.op_type == "Conv"}
    nodes = {*static, *followers(model, static)}
    tensors, same = tensors_to_observe(model, nodes)
    inner = [name for name in tensors if name not in {"input", "output"}]
    values = dict(zip(["output", *inner], _run(model, inner), strict=True)) | _feeds(model)
    ranges = with_shared({name: (float(values[name].min()), float(values[name].max())) for name in tensors}, same)
    grids = nearest_grids(model, dict.fromkeys(static, Symmetric()))
    return place_static(model, nodes, activation_grids(ranges, Asymmetric(), signed=False), grids)


@pytest.mark.parametrize(("mode", "value"), [("constant", None), ("constant", 0.5), ("reflect", None), ("edge", None)])
def test_padding_moves_integers(mode: str, value: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding needs no float: one conversion at each end of the file, and the bits of padding floats."""
    constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    if value is not None:
        constants["value"] = np.array(value, np.float32)
    node = helper.make_node("Pad", ["a", *constants], ["b"], "pad", mode=mode)
    model = _between([node], constants, 10)
    placed = _placed(model)
    running = kernels(serialize(placed))
    assert running["QuantizeLinear"] == running["DequantizeLinear"] == running["Pad"] == 1
    monkeypatch.setattr("compressor.quantization.placement.static.take_integer_forms_", lambda graph: None)
    plain = _placed(model)
    assert kernels(serialize(plain))["DequantizeLinear"] == 2
    np.testing.assert_array_equal(_run(placed)[0], _run(plain)[0])


def test_hard_swish_runs_on_integers() -> None:
    """HardSwish is a saturating addition and a product of integers; 30 dB and more of the signal stay."""
    nodes = [
        helper.make_node("HardSigmoid", ["a"], ["gate"], "gate", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["a", "gate"], ["b"], "product"),
    ]
    model = _between(nodes, {}, 8)
    # Both ends of the gate are reached, so that its bounds matter.
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(8 * numpy_helper.to_array(model.graph.initializer[0]), "one.w")
    )
    gates = _run(model, ["gate"])[1]
    assert (gates == 0).mean() > 0.1
    assert (gates == 1).mean() > 0.1
    placed = _placed(model)
    running = kernels(serialize(placed))
    assert running["QLinearAdd"] == running["QLinearMul"] == 1
    assert running["HardSigmoid"] == 0
    assert running["QuantizeLinear"] == running["DequantizeLinear"] == 1
    assert sqnr_db(_run(model)[0], _run(placed)[0]) > 30


def _gate(zero_point: int) -> onnx.ModelProto:
    """HardSigmoid between steps of 0.5 and steps of 1 / 255."""
    constants = {
        "s": np.array(0.5, np.float32),
        "z": np.array(100, np.uint8),
        "t": np.array(1 / 255, np.float32),
        "o": np.array(zero_point, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["i"], "q"),
        helper.make_node("DequantizeLinear", ["i", "s", "z"], ["d"], "dq"),
        helper.make_node("HardSigmoid", ["d"], ["g"], "gate", alpha=1 / 6, beta=0.5),
        helper.make_node("QuantizeLinear", ["g", "t", "o"], ["j"], "q2"),
        helper.make_node("DequantizeLinear", ["j", "t", "o"], ["output"], "dq2"),
    ]
    model = _model(nodes, constants, [6], [6])
    take_integer_forms_(model.graph)
    return model


def test_a_gate_on_integers_has_the_values_of_the_formula() -> None:
    """Inputs -4, -3, 0, 1.5, 3, 4 give round(255 * clip(x / 6 + 0.5, 0, 1)) = 0, 0, 127 or 128, 191, 255, 255."""
    data = serialize(_gate(0))
    assert kernels(data)["QLinearAdd"] == 1
    x = np.array([[-4, -3, 0, 1.5, 3, 4]], np.float32)
    steps = np.rint(open_session(data).run(None, {"input": x})[0] * 255)[0].tolist()
    assert steps[:2] + steps[3:] == [0, 0, 191, 255, 255]
    assert steps[2] in {127, 128}  # 127.5 lies halfway


def test_a_gate_that_nothing_cuts_stays_float() -> None:
    """On a grid that reaches below 0 the integers would not cut: HardSigmoid stays."""
    assert "HardSigmoid" in {node.op_type for node in _gate(20).graph.node}


TRANSPOSED = {
    "overlap": ((4, 4), 2, (1, 1), (0, 0)),
    "odd": ((3, 3), 2, (1, 1), (0, 0)),
    "padded": ((3, 3), 2, (1, 1), (1, 1)),
    "no padding": ((5, 5), 2, (0, 0), (0, 0)),
    "thirds": ((5, 4), 3, (1, 0), (2, 0)),
    "wide": ((7, 5), 2, (2, 3), (1, 0)),
}


def _transposed(
    kernel: tuple, stride: int, padding: tuple, extra: tuple, **options: int
) -> tuple[nn.Module, onnx.ModelProto]:
    """A layer of torch of 6 to 5 channels, and the same in ONNX with a ReLU behind it."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(6, 5 if not options else 6, kernel, stride, padding, extra, **options)
    constants = {"w": layer.weight.detach().numpy(), "c": layer.bias.detach().numpy()}
    attributes = {"strides": [stride] * 2, "pads": [*padding] * 2, "output_padding": list(extra)}
    attributes |= {"dilations": [options["dilation"]] * 2} if "dilation" in options else {}
    attributes |= {"group": options["groups"]} if "groups" in options else {}
    nodes = [
        helper.make_node("ConvTranspose", ["input", "w", "c"], ["a"], "layer", **attributes),
        helper.make_node("Relu", ["a"], ["output"], "relu"),
    ]
    sizes = list(layer(torch.zeros(1, 6, 7, 9)).shape[1:])
    return layer, _model(nodes, constants, [6, 7, 9], sizes)


@pytest.mark.parametrize("case", TRANSPOSED)
def test_a_transposed_convolution_is_a_convolution(case: str) -> None:
    """Conv and DepthToSpace give torch's outputs, whatever kernel, stride, padding and parity of the size."""
    layer, model = _transposed(*TRANSPOSED[case])
    rewritten = as_convolutions(model)
    kinds = [node.op_type for node in rewritten.graph.node]
    assert kinds[:3] == ["Conv", "Relu", "DepthToSpace"]
    assert "ConvTranspose" not in kinds
    assert rewritten.graph.node[0].name == "layer"
    expected = layer(torch.from_numpy(_feeds(model)["input"])).relu().detach().numpy()
    np.testing.assert_allclose(_run(rewritten)[0], expected, atol=2e-6)


def test_what_would_gain_nothing_stays_transposed() -> None:
    """Windows side by side are left as they are: the same model comes back."""
    _, model = _transposed((2, 2), 2, (0, 0), (0, 0))
    assert as_convolutions(model) is model


@pytest.mark.parametrize(("kernel", "padding"), [((3, 3), (1, 1)), ((5, 4), (1, 0)), ((1, 1), (0, 0))])
def test_of_stride_one_it_is_one_convolution(kernel: tuple, padding: tuple) -> None:
    """Conv alone, with weights turned around, gives torch's outputs."""
    layer, model = _transposed(kernel, 1, padding, (0, 0))
    rewritten = as_convolutions(model)
    assert [(node.op_type, node.name) for node in rewritten.graph.node] == [("Conv", "layer"), ("Relu", "relu")]
    expected = layer(torch.from_numpy(_feeds(model)["input"])).relu().detach().numpy()
    np.testing.assert_allclose(_run(rewritten)[0], expected, atol=2e-6)


def _alone(kernel: int, size: list | None = None, **attributes: object) -> onnx.ModelProto:
    """A transposed convolution of 6 to 5 channels over maps of 7x9, or `size`."""
    weight = np.random.default_rng(2).normal(size=(6, 5, kernel, kernel)).astype(np.float32)
    node = helper.make_node("ConvTranspose", ["input", "w"], ["output"], "layer", **attributes)
    return _model([node], {"w": weight}, [6, *(size or [7, 9])], [5, "rows", "columns"])


PADS_BY_RULE = {
    "upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "upper of stride 1": {"auto_pad": "SAME_UPPER"},
    "lower of stride 1": {"auto_pad": "SAME_LOWER"},
    "thirds": {"auto_pad": "SAME_UPPER", "strides": [3, 3]},
    "longer": {"auto_pad": "SAME_UPPER", "strides": [3, 3], "output_padding": [1, 2]},
    "valid": {"auto_pad": "VALID", "strides": [2, 2]},
    "output shape": {"output_shape": [14, 17], "strides": [2, 2]},
    "output shape, pads besides": {"output_shape": [14, 17], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "output shape, upper": {"output_shape": [14, 17], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "output shape, lower": {"output_shape": [14, 17], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    "output shape of stride 1": {"output_shape": [8, 9]},
}


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("case", PADS_BY_RULE)
def test_pads_by_rule_are_those_of_the_runtime(case: str, kernel: int) -> None:
    """With auto_pad or output_shape, as Keras and TensorFlow write them, the convolution gives the same outputs."""
    model = _alone(kernel, **PADS_BY_RULE[case])
    rewritten = as_convolutions(model)
    assert "ConvTranspose" not in {node.op_type for node in rewritten.graph.node}
    np.testing.assert_allclose(_run(rewritten)[0], _run(model)[0], atol=2e-5)


LEFT_TRANSPOSED = {
    "groups": ("it has 2 groups", 5, {"group": 2}, None),
    "dilation": ("the dilations 2x2", 5, {"dilations": [2, 2]}, None),
    "strides": ("the strides 2x1", 5, {"strides": [2, 1]}, None),
    "gaps": ("smaller than its stride", 2, {"strides": [3, 3]}, None),
    "side by side": ("do not overlap", 2, {"strides": [2, 2]}, None),
    "size unknown": ("the size of its input", 5, {"output_shape": [14, 17], "strides": [2, 2]}, ["h", "w"]),
    "too long": ("output_shape, 19x30, is larger", 5, {"output_shape": [19, 30], "strides": [2, 2]}, None),
    "padding": ("its padding, 3x3x3x3, cuts off more", 3, {"pads": [3, 3, 3, 3]}, None),
}


@pytest.mark.parametrize("case", LEFT_TRANSPOSED)
def test_what_stays_transposed_is_told_its_own_reason(case: str) -> None:
    """Of the rules that a transposed convolution must keep the report names the one that it does not."""
    reason, kernel, attributes, size = LEFT_TRANSPOSED[case]
    model = _alone(kernel, size, **attributes)
    assert as_convolutions(model) is model
    told = placement_of(model, Static(), ()).left["layer"]
    assert told.startswith("no int8 kernel for ConvTranspose: ")
    assert reason in told


def test_windows_side_by_side_are_rewritten_ahead_of_a_concatenation() -> None:
    """A U-Net's upsampling joins integers of its skip: as a float it would turn the concatenation into floats, too."""
    weights = np.random.default_rng(3).normal(size=(16, 16, 2, 2)).astype(np.float32) / 8
    constants = {
        "up.w": weights,
        "down.w": np.random.default_rng(4).normal(size=(16, 32, 3, 3)).astype(np.float32) / 12,
    }
    nodes = [
        helper.make_node("MaxPool", ["a"], ["half"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["half", "up.w"], ["u"], "up", strides=[2, 2]),
        helper.make_node("Concat", ["u", "a"], ["both"], "both", axis=1),
        helper.make_node("Conv", ["both", "down.w"], ["b"], "down", **SAME),
    ]
    model = _between(nodes, constants, 8)
    rewritten = as_convolutions(model)
    np.testing.assert_allclose(_run(rewritten)[0], _run(model)[0], atol=1e-5)
    running = kernels(serialize(_placed(rewritten)))
    assert running["QLinearConv"] == 4
    assert running["QLinearConcat"] == running["QuantizeLinear"] == running["DequantizeLinear"] == 1


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}])
def test_groups_and_dilation_stay_transposed(options: dict) -> None:
    """Transposed convolutions in groups or with holes are not written as convolutions."""
    _, model = _transposed((4, 4), 2, (1, 1), (0, 0), **options)
    assert as_convolutions(model) is model


def test_a_decoder_runs_on_integers() -> None:
    """Between two convolutions the transposed one is an integer kernel, without a conversion of its own."""
    weights = np.random.default_rng(3).normal(size=(16, 16, 4, 4)).astype(np.float32) / 16
    nodes = [
        helper.make_node("ConvTranspose", ["a", "up.w"], ["u"], "up", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["u"], ["b"], "relu"),
    ]
    model = as_convolutions(_between(nodes, {"up.w": weights}, 16))
    placed = _placed(model)
    running = kernels(serialize(placed))
    assert running["QLinearConv"] == 3
    assert running["DepthToSpace"] == 1
    assert running["QuantizeLinear"] == running["DequantizeLinear"] == 1
    assert sqnr_db(_run(model)[0], _run(placed)[0]) > 30


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_torch_interleaves_as_onnx_runtime_does(mode: str) -> None:
    """The training graph's DepthToSpace gives ONNX Runtime's values in both orders."""
    node = helper.make_node("DepthToSpace", ["input"], ["output"], "d", blocksize=2, mode=mode)
    model = _model([node], {}, [12, 2, 3], [3, 4, 6])

    values = torch.from_numpy(_feeds(model)["input"])
    call = Call(
        name="d",
        operator="DepthToSpace",
        inputs=[values],
        attributes={"blocksize": 2, "mode": mode},
        outputs=1,
        opset=20,
    )
    np.testing.assert_array_equal(SHAPES["DepthToSpace"](call).numpy(), _run(model)[0])


def test_a_constant_that_the_graph_gives_out_survives_the_rewriting() -> None:
    """A second output that is a constant is still there behind the rewritten transposed convolution."""
    _, model = _transposed(*TRANSPOSED["thirds"])
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "given"))
    model.graph.output.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [3]))
    rewritten = as_convolutions(model)
    assert rewritten is not model
    assert "given" in [tensor.name for tensor in rewritten.graph.initializer]


def test_a_row_is_all_that_a_mover_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tile, which is not said to follow integers, runs on them between two convolutions once its row says so."""
    tile = [helper.make_node("Tile", ["a", "repeats"], ["b"], "tile")]
    model = _between(tile, {"repeats": np.array([1, 1, 2, 2])}, 16)
    assert followers(model, {"one", "two"}) == []
    monkeypatch.setitem(OPERATORS, "Tile", Operator("Tile", Fact.FOLLOWS | Fact.MOVES))
    assert followers(model, {"one", "two"}) == ["tile"]
    running = kernels(serialize(_placed(model)))
    assert running["QuantizeLinear"] == running["DequantizeLinear"] == running["Tile"] == 1
    assert running["QLinearConv"] == 2
