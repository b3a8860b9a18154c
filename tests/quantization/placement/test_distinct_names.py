"""Names that quantization makes up never meet a name that the file has."""

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import all_graphs, all_nodes
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.file.channel_alignment import aligned
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.placement.distinct_names import make_names_distinct_
from compressor.quantization.placement.forms import ByFamily, Dynamic, Float16, Form, Static, WeightOnly
from compressor.quantization.post_training import prepare
from compressor.quantization.quantizer import QuantizationSettings, quantized_file
from compressor.runtime import open_session
from compressor.stage import Context
from workbench.onnx_graphs import calibrated_on

SAME = [1, 1, 1, 1]


def _model(nodes: list, constants: dict[str, np.ndarray], shape: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) / 4).astype(np.float32)


def _convolutions() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], "first", pads=SAME),
        helper.make_node("HardSigmoid", ["a"], ["g"], "gate"),
        helper.make_node("Mul", ["a", "g"], ["h"], "times"),
        helper.make_node("Pad", ["h", "around", "value"], ["p"], "pad"),
        helper.make_node("Conv", ["p", "v"], ["c"], "second"),
        helper.make_node("ConvTranspose", ["c", "u"], ["t"], "up", kernel_shape=[4, 4], strides=[2, 2], pads=SAME),
        helper.make_node("Conv", ["t", "own"], ["y"], "last"),
    ]
    constants = {"w": _weight(20, 3, 3, 3), "b": _weight(20, 1)[:, 0], "v": _weight(20, 20, 3, 3)}
    constants |= {"u": _weight(20, 8, 4, 4), "own": _weight(8, 8, 1, 1), "value": np.array(0.1, np.float32)}
    return _model(nodes, {**constants, "around": np.array([0, 0, 0, 0, 0, 0, 1, 1])}, [3, 8, 8])


def _sequence() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["x"], ["s"], "turn", perm=[1, 0, 2]),
        helper.make_node("GRU", ["s", "W", "R"], ["", "q"], "gru", hidden_size=256),
        helper.make_node("Squeeze", ["q", "zero"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "w", "b"], ["l"], "head", alpha=0.5, beta=0.5),
        helper.make_node("Relu", ["l"], ["r"], "relu"),
        helper.make_node("MatMul", ["r", "own"], ["y"], "last"),
    ]
    constants = {
        "W": _weight(1, 768, 16),
        "R": _weight(1, 768, 256) / 8,
        "w": _weight(256, 32),
        "b": _weight(32, 1)[:, 0],
    }
    return _model(nodes, {**constants, "own": _weight(32, 8), "zero": np.array([0])}, [4, 16])


NETWORKS: dict[str, Callable[[], onnx.ModelProto]] = {"convolutions": _convolutions, "sequence": _sequence}
FORMS = (ByFamily(), Static(), Dynamic(), WeightOnly(), Float16())


def _inputs(network: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*((24, 3, 8, 8) if network == "convolutions" else (24, 4, 16)), generator=generator)


def _placed(model: onnx.ModelProto, form: Form, inputs: torch.Tensor) -> onnx.ModelProto:
    context = Context(progress=False)
    prepared = prepare(model.SerializeToString(), QuantizationSettings(form=form), calibrated_on(inputs), context)
    return aligned(prepared.place(), prepared.isa)


def _all_names(model: onnx.ModelProto) -> set[str]:
    graphs = [*all_graphs(model.graph)]
    stored = {tensor.name for graph in graphs for tensor in graph.initializer}
    return stored | {name for node in all_nodes(model.graph) for name in (node.name, *node.output) if name}


def _renamed(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for value in (*changed.graph.input, *changed.graph.output, *changed.graph.initializer):
        value.name = new if value.name == old else value.name
    for node in changed.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    return changed


def _outputs(model: onnx.ModelProto, inputs: torch.Tensor) -> np.ndarray:
    session = open_session(serialize(model))
    return session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_name_that_is_made_up_may_be_there_already(network: str, form: Form) -> None:
    """A weight that is called like anything that quantization makes up changes no bit of what the file computes."""
    model, inputs = NETWORKS[network](), _inputs(network)
    if network == "convolutions" and isinstance(form, Dynamic):
        pytest.skip("dynamic convolutions are refused")
    placed = _placed(model, form, inputs)
    wanted = _outputs(placed, inputs)
    made_up = sorted(_all_names(placed) - _all_names(model) - {"x", "y"})
    assert len(made_up) > 4
    for name in made_up:
        np.testing.assert_array_equal(
            _outputs(_placed(_renamed(model, "own", name), form, inputs), inputs), wanted, name
        )


@pytest.mark.parametrize("name", ["w_scale", "a_QuantizeLinear_Output", "first/pad_value", "h_DequantizeLinear_Output"])
@pytest.mark.parametrize("place", ["x", "y"])
def test_inputs_and_outputs_keep_names_that_look_made_up(place: str, name: str) -> None:
    """A file whose input is called `w_scale` beside a weight `w` still has that input, and computes the same."""
    model, inputs = _convolutions(), _inputs("convolutions")
    changed = _renamed(model, place, name)
    made = quantized_file(
        changed.SerializeToString(), QuantizationSettings(), calibrated_on(inputs), Context(progress=False)
    )
    session = open_session(made)
    assert name in {value.name for value in (*session.get_inputs(), *session.get_outputs())}
    got = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    assert sqnr_db(_outputs(model, inputs), got) > 20


@pytest.mark.parametrize("pair", [("x", "x_scale"), ("x_scale", "x_scale_scale"), ("y", "y_zero_point")])
def test_two_names_that_stay_are_set_apart(pair: tuple[str, str]) -> None:
    """Where both are inputs or outputs of the file, neither can be renamed: an Identity makes room."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=SAME),
        helper.make_node("Conv", ["also", "w"], ["b"], "second", pads=SAME),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
        helper.make_node("Conv", ["y", "v"], ["more"], "third"),
    ]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in ("x", "also")]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "more")]
    constants = {"w": _weight(16, 3, 3, 3), "v": _weight(8, 16, 1, 1)}
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", floats, results, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    places = ("y", "more") if "y" in pair else ("x", "also")
    changed = _renamed(_renamed(model, places[1], pair[1]), places[0], pair[0])
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(changed))
    names = [value.name for value in (*changed.graph.input, *changed.graph.output)]
    make_names_distinct_(changed)
    assert [value.name for value in (*changed.graph.input, *changed.graph.output)] == names
    feeds = dict(
        zip((value.name for value in changed.graph.input), [np.ones((2, 3, 8, 8), np.float32)] * 2, strict=True)
    )
    wanted = open_session(model.SerializeToString()).run(None, dict(zip(("x", "also"), feeds.values(), strict=True)))
    for ours, theirs in zip(open_session(changed.SerializeToString()).run(None, feeds), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nodes_may_be_called_like_conversions() -> None:
    """A convolution called `a_QuantizeLinear` beside the tensor `a` is quantized like any other."""
    model, inputs = _convolutions(), _inputs("convolutions")
    for node, name in zip(model.graph.node, ("x_QuantizeLinear", "w_DequantizeLinear", "w"), strict=False):
        node.name = name
    settings = QuantizationSettings(bias_correction=BiasCorrection())
    context = Context(progress=False)
    made = quantized_file(model.SerializeToString(), settings, calibrated_on(inputs), context)
    got = open_session(made).run(None, {"x": inputs.numpy()})[0]
    assert sqnr_db(_outputs(model, inputs), got) > 20
    assert context.details["left_in_float"] == []


def test_ordinary_names_stay() -> None:
    """Names of weights and tensors as exporters write them, and those of all nodes, are what they were."""
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["/conv/Conv_output_0"], "/conv/Conv"),
        helper.make_node("Relu", ["/conv/Conv_output_0"], ["/relu/Relu_output_0"], "/conv/Conv_1"),
        helper.make_node("Conv", ["/relu/Relu_output_0", "conv2.weight"], ["y"], "/conv/Conv_2"),
    ]
    constants = {
        "conv.weight": _weight(8, 3, 1, 1),
        "conv.bias": _weight(8, 1)[:, 0],
        "conv2.weight": _weight(8, 8, 1, 1),
    }
    model = _model(nodes, constants, [3, 8, 8])
    before = model.SerializeToString()
    make_names_distinct_(model)
    assert model.SerializeToString() == before


def _duplicates(names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    return {name for name in names if name in seen or seen.add(name)}


@pytest.mark.parametrize(
    "names", [("a", "a", "a_1"), ("", "", "conv_1"), ("a_1", "a", "a"), ("", "relu_1", "relu_1_1")]
)
def test_nodes_of_one_name_get_several(names: tuple[str, ...]) -> None:
    """Whatever nodes are called, no two have one name in the file that is made."""
    model, inputs = _convolutions(), _inputs("convolutions")
    for node, name in zip(model.graph.node, names, strict=False):
        node.name = name
    placed = _placed(model, ByFamily(), inputs)
    assert _duplicates(node.name for node in placed.graph.node) == set()
