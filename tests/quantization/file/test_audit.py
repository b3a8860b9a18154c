"""The audit of an integer file: what ONNX Runtime runs on integers, what floats stand between them, and why."""

import platform

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compressor.errors import StageError
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.audit import coverage
from compressor.quantization.file.compact_graph import optimized_nodes, serialize
from compressor.quantization.grids.activations import activation_grids
from compressor.quantization.grids.schemes import Asymmetric, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.forms import Float16, WeightOnly
from compressor.quantization.placement.policy import Placement, placement_of
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.placement.static import place_static
from compressor.quantization.placement.weight_only import place_weight_only
from compressor.scoring.decibels import reported_db
from workbench.onnx_graphs import graph_of

RANGE = (-3.0, 3.0)


def conv(name: str, source: str, target: str) -> onnx.NodeProto:
    """A 3x3 convolution of 4 channels with the weight `name`.w."""
    return helper.make_node("Conv", [source, f"{name}.w"], [target], name, pads=[1, 1, 1, 1])


def network(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """The nodes on (n, 4, 6, 6), with a weight for every convolution among them."""
    generator = np.random.default_rng(0)
    names = [node.name for node in nodes if node.op_type == "Conv"]
    weights = {f"{name}.w": generator.normal(size=(4, 4, 3, 3)).astype(np.float32) / 6 for name in names}
    graph = graph_of(list(nodes), weights, ["n", 4, 6, 6], ["n", 4, 6, 6])
    return onnx.shape_inference.infer_shapes(graph)


def audited(
    graph: onnx.ModelProto,
    nodes: set[str],
    *,
    left: dict[str, str] | None = None,
    signed: bool = False,
    bits: int = 8,
) -> dict:
    """What the audit tells of `graph` with `nodes` on integers, every activation within -3 and 3."""
    values = [*graph.graph.value_info, *graph.graph.input, *graph.graph.output]
    grids = activation_grids({value.name: RANGE for value in values}, Asymmetric(bits=bits), signed=signed)
    weights = nearest_grids(graph, dict.fromkeys(nodes, Symmetric()))
    placed = place_static(graph, nodes, grids, weights)
    heavy = tuple(node.name for node in graph.graph.node if node.op_type == "Conv" and node.name in nodes)
    placement = Placement(static=heavy, left=left or {})
    found = coverage(serialize(placed), graph, placement, activation_bits=bits, signed_activations=signed)
    return found.to_json()


def test_integers_from_end_to_end_convert_twice() -> None:
    """Two convolutions and the addition behind them: three integer kernels, one conversion in and one out."""
    graph = network(
        conv("a", "input", "x"), conv("b", "x", "y"), helper.make_node("Add", ["x", "y"], ["output"], "sum")
    )
    assert audited(graph, {"a", "b", "sum"}) == {
        "quantized": 2,
        "integer_kernels": {"QLinearConv": 2},
        "integer_followers": {"QLinearAdd": 1},
        "left_in_float": [],
        "float_islands": [],
        "conversions": 2,
    }


def test_an_operator_without_an_8_bit_kernel_is_an_island() -> None:
    """An Elu between two convolutions costs a conversion on either side, four in all, and is named with the reason."""
    graph = network(conv("a", "input", "x"), helper.make_node("Elu", ["x"], ["y"], "bend"), conv("b", "y", "output"))
    told = audited(graph, {"a", "b"})
    assert told["float_islands"] == [
        {"node": "bend", "op": "Elu", "reason": "ONNX Runtime has no 8-bit kernel for Elu"},
    ]
    assert told["conversions"] == 4
    assert told["integer_kernels"] == {"QLinearConv": 2}
    assert told["left_in_float"] == []


def test_a_relu_whose_zero_is_not_the_first_integer_is_an_island() -> None:
    """Calibrated between -3 and 3 on both sides, a Relu's zero is integer 128, which saturation does not stop at."""
    graph = network(
        conv("a", "input", "x"),
        conv("b", "x", "y"),
        helper.make_node("Add", ["x", "y"], ["s"], "sum"),
        helper.make_node("Relu", ["s"], ["r"], "relu"),
        conv("c", "r", "output"),
    )
    (island,) = audited(graph, {"a", "b", "c", "sum", "relu"})["float_islands"]
    assert (island["node"], island["op"]) == ("relu", "Relu")
    assert island["reason"].startswith("its bounds are not where the integers of its output end")


def test_an_island_beside_a_float_neighbour_names_it() -> None:
    """An addition of an integer tensor and a float Elu's cannot run on integers; the Elu is what to look at."""
    graph = network(
        conv("a", "input", "x"),
        helper.make_node("Elu", ["x"], ["e"], "bend"),
        helper.make_node("Add", ["x", "e"], ["s"], "sum"),
        conv("b", "s", "output"),
    )
    islands = {entry["node"]: entry["reason"] for entry in audited(graph, {"a", "b"})["float_islands"]}
    assert islands == {"sum": "its input from bend (Elu) is float"}


def test_layers_that_compute_floats_keep_their_names_and_reasons() -> None:
    """A skipped convolution, renamed by a fusion with its Relu, stands under its own name with the given reason."""
    graph = network(conv("a", "input", "x"), conv("b", "x", "y"), helper.make_node("Relu", ["y"], ["output"], "relu"))
    told = audited(graph, {"a"}, left={"b": "skipped by the pattern 'b'"})
    (left,) = told["left_in_float"]
    assert (left["node"], left["reason"]) == ("b", "skipped by the pattern 'b'")
    assert told["quantized"] == 1


def test_a_product_fused_with_its_bias_keeps_its_name() -> None:
    """ONNX Runtime makes one Gemm of a float MatMul and the Add behind it, and calls it product/MatMulAddFusion."""
    nodes = [
        helper.make_node("MatMul", ["input", "m"], ["x"], "product"),
        helper.make_node("Add", ["x", "b"], ["y"], "bias"),
        helper.make_node("MatMul", ["y", "n"], ["output"], "second"),
    ]
    weights = {"m": np.eye(4), "b": np.ones(4), "n": np.eye(4)}
    graph = onnx.shape_inference.infer_shapes(graph_of(nodes, weights, ["batch", 4], ["batch", 4]))
    assert audited(graph, {"second"}, left={"product": "given back"})["left_in_float"] == [
        {"node": "product", "op": "Gemm", "reason": "given back"}
    ]


def test_a_product_fused_with_its_relu_keeps_its_name_and_reason() -> None:
    """ONNX Runtime makes one FusedGemm of a float Gemm and its Relu, and calls it "fused hidden"."""
    nodes = [
        helper.make_node("Gemm", ["input", "m", "b"], ["x"], "hidden"),
        helper.make_node("Relu", ["x"], ["y"], "relu"),
        helper.make_node("Gemm", ["y", "n"], ["output"], "last"),
    ]
    weights = {"m": np.eye(4), "b": np.ones(4), "n": np.eye(4)}
    graph = onnx.shape_inference.infer_shapes(graph_of(nodes, weights, ["batch", 4], ["batch", 4]))
    assert [node.name for node in optimized_nodes(serialize(graph))] == ["fused hidden", "last"]
    told = coverage(serialize(graph), graph, placement_of(graph, Float16(), ())).to_json()["left_in_float"]
    reason = "its weights are stored as float16 and computed in float32"
    assert told == [
        {"node": "hidden", "op": "FusedGemm", "reason": reason},
        {"node": "last", "op": "Gemm", "reason": reason},
    ]


FUSIONS = {
    "bias": ["MatMul", "Add"],
    "bias behind a transposition": ["Transpose", "MatMul", "Add"],
    "transposition": ["Transpose", "Gemm"],
    "sum": ["Gemm", "Sum"],
    "normalization": ["MatMul", "BatchNormalization"],
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("case", FUSIONS)
def test_a_layer_that_onnx_runtime_fuses_with_its_neighbours_keeps_its_name(case: str, *, named: bool) -> None:
    """The graph that is quantized has "product" where the file has it, and where it has none a name as others get."""
    kinds = FUSIONS[case]
    further = {
        "MatMul": ["m"],
        "Gemm": ["m"],
        "Sum": ["b"],
        "Add": ["b"],
        "BatchNormalization": ["b", "b", "b", "b"],
        "Transpose": [],
    }
    tensors = ["input", *(f"t{index}" for index in range(len(kinds) - 1)), "output"]
    nodes = [
        helper.make_node(
            kind,
            [tensors[index], *further[kind]],
            [tensors[index + 1]],
            ("product" if kind in {"MatMul", "Gemm"} else kind.lower()) if named else "",
            **({"perm": [1, 0]} if kind == "Transpose" else {}),
        )
        for index, kind in enumerate(kinds)
    ]
    graph = graph_of(nodes, {"m": np.eye(4) * 2, "b": np.ones(4)}, [4, 4], [4, 4])
    (node,) = (node for node in clean_graph(serialize(graph)).graph.node if node.op_type != "Transpose")
    assert node.name == ("product" if named else f"{node.op_type.lower()}_0")


def test_sixteen_bits_are_told_to_compute_floats() -> None:
    """With 16-bit activations no convolution runs on integers: a reason for each, and no refusal."""
    graph = network(conv("a", "input", "x"), conv("b", "x", "output"))
    told = audited(graph, {"a", "b"}, bits=16)
    assert told["quantized"] == 0
    assert [entry["node"] for entry in told["left_in_float"]] == ["a", "b"]
    assert {entry["reason"] for entry in told["left_in_float"]} == {
        "ONNX Runtime has no integer kernels for 16-bit activations: it rounds to them and computes floats"
    }


def test_a_file_without_integer_kernels_is_refused() -> None:
    """Prepared nodes of which none came to run on integers are an error with their number."""
    graph = network(conv("a", "input", "x"), conv("b", "x", "output"))
    placement = Placement(static=("a", "b"), left={})
    with pytest.raises(StageError, match="none of 2 prepared nodes on integers; leave this stage out"):
        coverage(serialize(graph), graph, placement)


def test_stored_weights_count_once() -> None:
    """A MatMul on blocks and a convolution unpacked at load time: two operators hold integers, not three."""
    nodes = [
        conv("a", "input", "x"),
        helper.make_node("MatMul", ["x", "m"], ["output"], "product"),
    ]
    generator = np.random.default_rng(0)
    weights = {"a.w": generator.normal(size=(4, 4, 3, 3)), "m": generator.normal(size=(6, 6))}
    graph = graph_of(nodes, weights, ["n", 4, 6, 6], ["n", 4, 6, 6])
    placement = placement_of(graph, WeightOnly(), ())
    grids = nearest_grids(graph, dict.fromkeys(placement.weight_only, Symmetric()))
    file = serialize(place_weight_only(graph, set(placement.weight_only), grids))
    told = coverage(file, graph, placement).to_json()
    assert told["quantized"] == 2
    assert told["integer_kernels"] == {"MatMulNBits": 1}
    assert [(entry["node"], entry["reason"]) for entry in told["left_in_float"]] == [
        ("a", "its weights are stored as integers and computed in float32")
    ]


def test_arm_judged_elsewhere_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 activations are let through to be looked at; off Arm the audit tells where, on Arm it has nothing to add."""
    sum_of = helper.make_node("Add", ["x", "y"], ["output"], "sum")
    graph = network(conv("a", "input", "x"), conv("b", "x", "y"), sum_of)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    told = audited(graph, {"a", "b", "sum"}, signed=True)
    assert (told["integer_kernels"], told["integer_followers"]) == ({"QLinearConv": 2}, {"QLinearAdd": 1})
    assert (told["conversions"], told["left_in_float"]) == (2, [])
    assert told["kernels_seen_on"] == (
        "x86_64, which let int8 activations through as ONNX Runtime does on Arm; the file has not run on Arm"
    )
    placement = Placement(static=("a", "b"), left={})
    with pytest.raises(StageError, match="nodes on integers, seen on x86_64, which let int8 activations through"):
        coverage(serialize(graph), graph, placement, signed_activations=True)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert "kernels_seen_on" not in audited(graph, {"a", "b", "sum"}, signed=True)


def test_loops_are_looked_into() -> None:
    """A product inside of a Scan's body is listed behind the Scan."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["row", "m"], ["product"], "inner"),
            helper.make_node("Add", ["state", "product"], ["next"], "sum"),
            helper.make_node("Identity", ["next"], ["shown"], "shown"),
        ],
        "body",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("state", "row")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("next", "shown")],
    )
    nodes = [helper.make_node("Scan", ["start", "input"], ["last", "output"], "loop", body=body, num_scan_inputs=1)]
    weights = {"start": np.zeros((1, 4)), "m": np.eye(4) * 2}
    graph = graph_of(nodes, weights, [5, 1, 4], [5, 1, 4])
    kinds = [node.op_type for node in optimized_nodes(serialize(graph))]
    assert kinds[0] == "Scan"
    assert set(kinds[1:]) & {"MatMul", "Gemm", "FusedGemm"}


def test_decibels_of_noise_a_tenth_and_none() -> None:
    """Noise of a tenth of the signal is 20 dB below it; none at all is told as 200 dB, also where all is zero."""
    signal = np.array([1.0, -1.0], np.float32)
    assert reported_db(sqnr_db(signal, signal * np.float32(1.1))) == 20.0
    assert reported_db(sqnr_db(signal, signal)) == 200.0
    assert reported_db(sqnr_db(signal * 0, signal * 0)) == 200.0
