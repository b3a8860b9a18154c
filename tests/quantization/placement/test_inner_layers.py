"""Layers inside branches and loops: on integers where there are kernels, weights stored once, true reasons."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import all_graphs
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.choice.give_back import GiveBack
from compressor.quantization.file.compact_graph import kernels
from compressor.quantization.placement.forms import Dynamic, Static
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.quantizer import QuantizationSettings, quantized_file
from compressor.runtime import open_session
from compressor.stage import Context
from workbench.onnx_graphs import calibrated_on

WIDTH = 128
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _value(name: str, shape: Any = None, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(sum(shape)).normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def _node(kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, list(outputs), **attributes)


def _model(nodes: list, constants: dict[str, Any], shape: tuple[int, ...] = (WIDTH,)) -> bytes:
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [_value("x", ["n", *shape])], [_value("y")], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def _loop(nodes: list, *, stored: tuple[TensorProto, ...] = (), times: str = "times") -> onnx.NodeProto:
    """A Loop over `nodes`, from the state "s" to "s2"."""
    body = helper.make_graph(
        [*nodes, _node("Identity", ["go"], "go2")],
        "body",
        [_value("i", [], INT64), _value("go", [], BOOL), _value("s")],
        [_value("go2", [], BOOL), _value("s2")],
        list(stored),
    )
    return helper.make_node("Loop", [times, "", "s0"], ["s9"], "loop", body=body)


def _branch(name: str, nodes: list, stored: tuple[TensorProto, ...] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [_value(name)], list(stored))


def _if(then: onnx.GraphProto, otherwise: onnx.GraphProto, target: str) -> list[onnx.NodeProto]:
    return [
        _node("ReduceSum", ["x"], "sum", keepdims=0),
        _node("Greater", ["sum", "none"], "way"),
        helper.make_node("If", ["way"], [target], "choice", then_branch=then, else_branch=otherwise),
    ]


class Quantized:
    """A model and its integer file on the same inputs, some of which take either way."""

    def __init__(self, model: bytes, inputs: torch.Tensor | None = None, **settings: Any) -> None:
        inputs = torch.randn(64, WIDTH) if inputs is None else inputs
        # One half goes one way at a branch, the other half the other.
        halves = [half + shift for half, shift in zip(inputs.chunk(2), (0.3, -0.3), strict=True)]
        context = Context(progress=False)
        self.before = model
        self.file = quantized_file(model, QuantizationSettings(**settings), calibrated_on(torch.cat(halves)), context)
        self.details = context.details
        sessions = [open_session(file) for file in (model, self.file)]
        wanted, got = (np.concatenate([each.run(None, {"x": half.numpy()})[0] for half in halves]) for each in sessions)
        self.db = sqnr_db(wanted, got)

    @property
    def share(self) -> float:
        """The size of the file as a share of what it was."""
        return len(self.file) / len(self.before)

    @property
    def reasons(self) -> dict[str, str]:
        return {entry["node"]: entry["reason"] for entry in self.details["left_in_float"]}


def _shared_loop(outside: list | None = None) -> bytes:
    inside = [helper.make_node("MatMul", ["s", "w"], ["m"], "inner"), _node("Tanh", ["m"], "s2")]
    nodes = [
        *(outside or [helper.make_node("MatMul", ["x", "w"], ["s0"], "outer")]),
        _loop(inside),
        helper.make_node("MatMul", ["s9", "d"], ["y"], "head"),
    ]
    return _model(nodes, {"w": _weight(WIDTH, WIDTH), "d": _weight(WIDTH, 8), "times": np.array(5)})


def test_a_weight_that_a_loop_shares_is_stored_once_in_integers() -> None:
    """One matrix inside and outside of a loop: four times fewer bytes, and all three layers on integers."""
    found = Quantized(_shared_loop())
    assert found.share < 0.3
    assert found.reasons == {}
    assert found.db > 25
    integers = [
        tensor
        for graph in all_graphs(onnx.load_from_string(found.file).graph)
        for tensor in graph.initializer
        if np.prod(tensor.dims) == WIDTH * WIDTH
    ]
    assert [tensor.data_type for tensor in integers] == [TensorProto.INT8]


def test_a_weight_that_a_loop_keeps_in_float_is_not_stored_twice() -> None:
    """Where the layer inside stays in float, so does the one outside with the same weight, for that reason."""
    found = Quantized(_shared_loop(), skip=("inner",))
    assert found.share < 1.05
    assert "skipped by the pattern 'inner'" in found.reasons["inner"]
    assert "its weight w is shared with inner inside of loop" in found.reasons["outer"]
    assert found.db > 25


@pytest.mark.parametrize("form", [Static(), Dynamic()])
def test_forms_say_what_becomes_of_layers_inside(form: Static | Dynamic) -> None:
    """Ranges found at every call go inside of loops; calibrated ones do not, and the report says so."""
    found = Quantized(_shared_loop(), form=form)
    assert found.db > 25
    if isinstance(form, Dynamic):
        assert found.reasons == {}
        assert found.share < 0.3
    else:
        assert "it is inside of loop, where Static() has no form" in found.reasons["inner"]
        assert found.share < 1.05


def test_what_is_folded_inside_of_branches_is_no_copy() -> None:
    """A weight that both branches turn around is stored once, and both multiply by integers."""
    branches = [
        _branch(
            name,
            [
                _node("Transpose", ["w"], f"{name}_w", perm=[1, 0]),
                helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_m"], f"{name}_layer"),
                _node(kind, [f"{name}_m"], name),
            ],
        )
        for name, kind in (("t", "Relu"), ("e", "Tanh"))
    ]
    nodes = [*_if(*branches, "i"), helper.make_node("MatMul", ["i", "d"], ["y"], "head")]
    constants = {"w": _weight(WIDTH, WIDTH), "d": _weight(WIDTH, 8), "none": np.float32(0)}
    model = _model(nodes, constants)
    assert clean_graph(model).ByteSize() < 1.05 * len(model)
    found = Quantized(model)
    assert found.share < 0.3
    assert found.reasons == {}
    assert found.db > 25


def test_a_weight_turned_around_inside_and_read_outside_is_one_constant() -> None:
    """W outside and its transpose inside a branch are one matrix before anything is rounded."""
    turned = [
        _node("Transpose", ["w"], "t_w", perm=[1, 0]),
        helper.make_node("MatMul", ["a", "t_w"], ["t"], "t_layer"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "outer"),
        *_if(_branch("t", turned), _branch("e", [_node("Relu", ["a"], "e")]), "y"),
    ]
    model = _model(nodes, {"w": _weight(WIDTH, WIDTH), "none": np.float32(0)})
    cleaned = clean_graph(model)
    large = [tensor.name for graph in all_graphs(cleaned.graph) for tensor in graph.initializer if len(tensor.dims) > 1]
    values = [
        open_session(each).run(None, {"x": np.ones((2, WIDTH), np.float32)})[0]
        for each in (model, cleaned.SerializeToString())
    ]
    np.testing.assert_allclose(*values, atol=1e-4)
    assert len({name.removesuffix("_copy1") for name in large}) == 1
    assert Quantized(model).db > 25


def test_constants_of_two_branches_with_one_name_stay_apart() -> None:
    """Both branches call their own weight "k": each keeps its own values when they are moved out."""
    branches = [
        _branch(
            name,
            [helper.make_node("MatMul", ["x", "k"], [name], f"{name}_layer")],
            (numpy_helper.from_array(factor * _weight(WIDTH, WIDTH), "k"),),
        )
        for name, factor in (("t", 1.0), ("e", -3.0))
    ]
    nodes = [*_if(*branches, "i"), helper.make_node("MatMul", ["i", "d"], ["y"], "head")]
    found = Quantized(_model(nodes, {"d": _weight(WIDTH, 8), "none": np.float32(0)}))
    assert found.reasons == {}
    assert found.share < 0.3
    assert found.db > 25


def test_loops_inside_of_branches_are_looked_into() -> None:
    """A layer two graphs deep is on integers, with its weight inside of the innermost graph."""
    inside = [
        helper.make_node("Gemm", ["s", "deep", "b"], ["m"], "inner", transB=1),
        _node("Sigmoid", ["m"], "s2"),
    ]
    stored = (
        numpy_helper.from_array(_weight(WIDTH, WIDTH), "deep"),
        numpy_helper.from_array(_weight(WIDTH, 1)[:, 0], "b"),
    )
    loop = [_node("Identity", ["x"], "s0"), _loop(inside, stored=stored), _node("Neg", ["s9"], "t")]
    branches = _branch("t", loop), _branch("e", [_node("Relu", ["x"], "e")])
    nodes = [*_if(*branches, "i"), helper.make_node("MatMul", ["i", "d"], ["y"], "head")]
    found = Quantized(_model(nodes, {"d": _weight(WIDTH, 8), "none": np.float32(0), "times": np.array(3)}))
    assert found.reasons == {}
    assert found.share < 0.35
    assert found.db > 20


def test_a_scan_over_steps_multiplies_integers() -> None:
    """A cell that an exporter writes as a Scan with its weights outside runs on integers at every step."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["h", "w"], ["a"], "cell"),
            _node("Add", ["a", "step"], "b"),
            _node("Tanh", ["b"], "h2"),
            _node("Identity", ["h2"], "out"),
        ],
        "cell",
        [_value("h", [None, WIDTH]), _value("step", [None, WIDTH])],
        [_value("h2", [None, WIDTH]), _value("out", [None, WIDTH])],
    )
    nodes = [
        _node("Transpose", ["x"], "steps", perm=[1, 0, 2]),
        _node("ReduceMax", ["x", "one"], "first", keepdims=0),
        helper.make_node("Scan", ["first", "steps"], ["last", "all"], "scan", body=body, num_scan_inputs=1),
        helper.make_node("MatMul", ["last", "d"], ["y"], "head"),
    ]
    constants = {"w": _weight(WIDTH, WIDTH), "d": _weight(WIDTH, 8), "one": np.array([1])}
    found = Quantized(_model(nodes, constants, (6, WIDTH)), torch.randn(64, 6, WIDTH))
    assert found.reasons == {}
    assert found.share < 0.3
    assert found.db > 20


def test_a_voice_detector_of_two_rates_is_quantized_in_both() -> None:
    """An LSTM in either branch, each with weights of its own, finds the ranges of its inputs at every call."""
    branches = []
    for name, hidden in (("t", 64), ("e", 96)):
        gates = {part: _weight(1, 4 * hidden, size) / 4 for part, size in (("W", WIDTH), ("R", hidden))}
        nodes = [
            helper.make_node("LSTM", ["steps", "W", "R"], ["", f"{name}_h"], f"{name}_lstm", hidden_size=hidden),
            _node("Squeeze", [f"{name}_h", "first"], f"{name}_flat"),
            helper.make_node("MatMul", [f"{name}_flat", "out"], [name], f"{name}_head"),
        ]
        stored = [numpy_helper.from_array(values, part) for part, values in gates.items()]
        stored.append(numpy_helper.from_array(_weight(hidden, 16), "out"))
        branches.append(_branch(name, nodes, tuple(stored)))
    nodes = [_node("Transpose", ["x"], "steps", perm=[1, 0, 2]), *_if(*branches, "y")]
    model = _model(nodes, {"none": np.float32(0), "first": np.array([0])}, (5, WIDTH))
    found = Quantized(model, torch.randn(64, 5, WIDTH))
    assert found.reasons == {}
    assert found.share < 0.35
    assert found.db > 20
    assert kernels(found.file)["DynamicQuantizeLSTM"] == 2


def test_reasons_inside_are_the_causes() -> None:
    """A convolution in a branch has no calibrated ranges, and a product of two activations no weight."""
    branches = (
        _branch("t", [helper.make_node("Conv", ["a", "k"], ["t"], "t_layer", pads=[1] * 4)]),
        _branch("e", [helper.make_node("MatMul", ["a", "a"], ["e"], "e_layer")]),
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1] * 4),
        *_if(*branches, "i"),
        helper.make_node("Conv", ["i", "v"], ["y"], "last"),
    ]
    constants = {"w": _weight(8, 3, 3, 3) / 2, "k": _weight(8, 8, 3, 3) / 4, "v": _weight(8, 8, 1, 1)}
    found = Quantized(_model(nodes, {**constants, "none": np.float32(0)}, (3, 8, 8)), torch.randn(64, 3, 8, 8))
    assert "inside of choice (If), where no ranges are calibrated for Conv" in found.reasons["t_layer"]
    assert "inside of choice (If), and its weight is computed at run time" in found.reasons["e_layer"]
    assert found.db > 20
    assert kernels(found.file)["QLinearConv"] == 2


def test_a_branch_reads_what_a_convolution_gives_before_its_relu() -> None:
    """What branches read outside counts as read: both convolutions run on integers and the outputs are right."""
    branches = [
        _branch(name, [_node(kind, ["a"], name, keepdims=1)]) for name, kind in (("t", "ReduceMin"), ("e", "ReduceMax"))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", pads=[1] * 4),
        _node("Relu", ["a"], "r"),
        helper.make_node("Conv", ["r", "v"], ["b"], "last"),
        *_if(*branches, "i"),
        _node("Add", ["b", "i"], "y"),
    ]
    constants = {"w": _weight(16, 3, 3, 3) / 2, "v": _weight(8, 16, 1, 1), "none": np.float32(0)}
    found = Quantized(_model(nodes, constants, (3, 8, 8)), torch.randn(64, 3, 8, 8))
    assert kernels(found.file)["QLinearConv"] == 2
    assert found.db > 25


def test_what_learns_and_what_gives_back_see_layers_inside() -> None:
    """Rounding learns the layers outside and leaves those inside at nearest; giving back may take any of them."""
    settings = {"rounding": GPTQ(samples=32), "give_back": GiveBack(slower=False, min_sqnr_db=30.0)}
    found = Quantized(_shared_loop([_node("Relu", ["x"], "s0")]), **settings)
    assert found.details["rounding"]["to_nearest"] == ["w"]
    assert found.db > 30
