"""Layers left in float between integer ones stay float, and residual sums apart from the norms behind them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.activations import activation_grids
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.float_layers import keep_sums_apart_
from compressor.quantization.placement.forms import Dynamic, Form, Static, WeightOnly
from compressor.quantization.placement.static import place_static
from compressor.quantization.quantizer import quantized_file
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages.quantization import Quantize
from compressor.target import Isa, Target
from compressor.workload import Workload
from workbench.cpu import exact_outputs
from workbench.onnx_graphs import calibrated_on, graph_of


def chain(middle: str) -> onnx.ModelProto:
    """Three layers of 4 channels, the second a `middle` with a ReLU behind it: all Gemm, or convolutions around it.

    What the first Gemm gives is read by an integer "d" too, without which it would be left in float.
    """
    generator = np.random.default_rng(0)
    linear = middle == "Gemm"
    size = (4, 4) if linear else (4, 4, 3, 3)
    weights = {f"{name}.w": generator.normal(size=size).astype(np.float32) / (2 if linear else 6) for name in "abcd"}
    # One scale for the tensor would round the other channels to nothing.
    weights["b.w"][0 if middle == "Conv" else slice(None), slice(None) if middle == "Conv" else 0] *= 1000
    outer, settings = ("Gemm", {}) if linear else ("Conv", {"pads": [1, 1, 1, 1]})
    nodes = [
        helper.make_node(outer, ["input", "a.w"], ["a"], "a", **settings),
        helper.make_node(middle, ["a", "b.w"], ["b"], "b", **settings),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node(outer, ["r", "c.w"], ["output"], "c", **settings),
    ]
    shape = ["n", 4] if linear else ["n", 4, 6, 6]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "output")]
    if linear:
        nodes.append(helper.make_node("Gemm", ["a", "d.w"], ["other"], "d"))
        value.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, shape))
    else:
        del weights["d.w"]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("middle", ["Conv", "ConvTranspose", "Gemm"])
def test_a_float_layer_between_integer_ones_computes_floats(middle: str) -> None:
    """What ONNX Runtime gives for the layer alone in float is what it gives with its own rewriting switched off."""
    model = chain(middle)
    ranges = {"input": (-3.0, 3.0), "a": (-3.0, 3.0), "r": (0.0, 3000.0), "output": (-3000.0, 3000.0)}
    activations = activation_grids(ranges, Asymmetric(), signed=False)
    kernel, nodes = ("QGemm", {"a", "c", "d"}) if middle == "Gemm" else ("QLinearConv", {"a", "c"})
    placed = place_static(model, nodes, activations, nearest_grids(model, dict.fromkeys(nodes, Symmetric())))
    assert kernels(serialize(placed))[kernel] == len(nodes)
    x = {
        "input": np.random.default_rng(1).normal(size=(64, 4) if middle == "Gemm" else (4, 4, 6, 6)).astype(np.float32)
    }
    expected, got = (exact_outputs(serialize(placed), x, fused=fused)[0] for fused in (False, True))
    step = float(activations["output"].scale)
    assert np.abs(expected - got).max() <= 1.01 * step
    assert (np.abs(expected - got) > 0.5 * step).mean() < 0.01


@pytest.mark.parametrize(
    ("cut", "inputs", "written"),
    [
        ("Relu", [], {"Max": 1}),
        ("Clip", ["low", "high"], {"Max": 1, "Min": 1}),
        ("Clip", ["", "high"], {"Min": 1}),
        ("Clip", ["found"], {"Max": 1}),
    ],
)
@pytest.mark.parametrize(("op", "kernel"), [("MatMul", "MatMulIntegerToFloat"), ("Gemm", "QGemm")])
def test_a_float_relu_keeps_no_product_from_integers(
    op: str, kernel: str, cut: str, inputs: list[str], written: dict[str, int]
) -> None:
    """Behind a layer on integers a ReLU or clip that stays in float is written so that ONNX Runtime runs the kernel."""
    nodes = [
        helper.make_node("ReduceMin", ["input"], ["found"], "bound", keepdims=0),
        helper.make_node(op, ["input", "w"], ["a"], "front"),
        helper.make_node(cut, ["a", *inputs], ["b"], "cut"),
        helper.make_node("Tanh", ["b"], ["output"], "float"),
    ]
    weights = {"w": np.random.default_rng(0).normal(size=(16, 4)), "low": np.array(-0.5), "high": np.array(0.5)}
    model = graph_of(nodes, weights, ["n", 16], ["n", 4])
    activations = activation_grids({"input": (-4.0, 4.0)}, Asymmetric(), signed=False)
    grids = nearest_grids(model, {"front": Symmetric()})
    placed = place_static(onnx.shape_inference.infer_shapes(model), {"front"}, activations, grids)
    running = kernels(serialize(placed))
    assert running[kernel] == 1
    assert {name: running[name] for name in written} == written
    assert not {"MatMul", "Gemm", "FusedGemm", cut} & running.keys()
    x = {"input": np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)}
    expected, got = (exact_outputs(serialize(each), x)[0] for each in (model, placed))
    assert sqnr_db(expected, got) > 30


def test_a_residual_sum_keeps_no_product_from_integers() -> None:
    """ONNX Runtime writes a product and a sum with what is computed as one Gemm, for which it has no integer kernel."""
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"], "front"),
        helper.make_node("Relu", ["a"], ["b"], "cut"),
        helper.make_node("MatMul", ["b", "v"], ["c"], "inner"),
        helper.make_node("Add", ["c", "input"], ["d"], "residual"),
        helper.make_node("MatMul", ["d", "u"], ["output"], "head"),
    ]
    generator = np.random.default_rng(0)
    weights = {name: generator.normal(size=(16, 16)).astype(np.float32) / 4 for name in "wvu"}
    model = graph_of(nodes, weights, ["n", 16], ["n", 16]).SerializeToString()
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    context = Context(progress=False)
    file = quantized_file(model, Quantize(form=Static()), calibrated_on(inputs), context)
    assert not context.details["left_in_float"]
    assert sum(context.details["integer_kernels"].values()) == 3
    expected, got = (exact_outputs(each, {"input": inputs.numpy()})[0] for each in (model, file))
    assert sqnr_db(expected, got) > 25


def test_nothing_is_added_where_no_layer_stands_between() -> None:
    """A chain with every layer in integers, or none behind, has no scale by channel."""
    model = chain("Conv")
    activations = activation_grids(
        dict.fromkeys(("input", "a", "b", "r", "output"), (-3.0, 3.0)), Asymmetric(), signed=False
    )
    for nodes in ({"a", "b", "relu", "c"}, {"a", "b", "relu"}):
        grids = nearest_grids(model, dict.fromkeys(nodes - {"relu"}, Symmetric()))
        placed = place_static(model, nodes, activations, grids)
        assert not [tensor.name for tensor in placed.graph.initializer if tensor.name.endswith("_by_channel")]


@pytest.mark.parametrize("reader", ["nothing", "the caller", "another node"])
def test_a_float_result_that_others_read_needs_no_scale(reader: str) -> None:
    """ONNX Runtime rewrites a layer whose result is quantized for one reader alone; then the scale is by channel."""
    model = chain("Conv")
    shape = ["n", 4, 6, 6]
    if reader == "another node":
        model.graph.node.append(helper.make_node("Neg", ["r"], ["more"], "more"))
        model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, shape))
    if reader == "the caller":
        model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, shape))
    ranges = {"input": (-3.0, 3.0), "a": (-3.0, 3.0), "r": (0.0, 3000.0), "output": (-3000.0, 3000.0)}
    activations = activation_grids(ranges, Asymmetric(), signed=False)
    placed = place_static(model, {"a", "c"}, activations, nearest_grids(model, dict.fromkeys("ac", Symmetric())))
    added = [tensor.name for tensor in placed.graph.initializer if tensor.name.endswith("_by_channel")]
    assert bool(added) == (reader == "nothing")
    running = kernels(serialize(placed))
    assert running["QLinearConv"] == 2
    assert running["Conv"] + running["FusedConv"] == 1


TABLE = np.random.default_rng(2).normal(size=(40, 16)).astype(np.float32)


def language_model(*, tied: bool) -> tuple[OnnxModule, Workload]:
    """Six words looked up in a table, and scored by a linear layer that has the same table if `tied`."""
    nodes = [
        helper.make_node("Gather", ["table", "input"], ["found"], "embedding"),
        helper.make_node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["found", "turned" if tied else "head.w"], ["output"], "head"),
    ]
    weights = {"table": TABLE} if tied else {"table": TABLE, "head.w": TABLE[::-1].T.copy()}
    graph = helper.make_graph(
        nodes if tied else [nodes[0], nodes[2]],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", 6])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 6, 40])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    module = OnnxModule(serialize(model))
    data = torch.from_numpy(np.random.default_rng(3).integers(0, 40, (32, 6))), torch.zeros(32, 6, 40)
    return module, Workload.from_datasets(module, train=data, test=data, metric="mse", calibration_samples=16)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("form", "weights", "kernel"),
    [
        (Static(), Symmetric(), "MatMulIntegerToFloat"),
        (Dynamic(), Symmetric(), "DynamicQuantizeMatMul"),
        (WeightOnly(), Symmetric(), "MatMulNBits"),
        (WeightOnly(), Symmetric(bits=4, granularity=PerBlock(size=16)), "MatMulNBits"),
    ],
)
def test_a_skipped_embedding_stays_float(form: Form, weights: Symmetric, kernel: str, tied) -> None:
    """The table is looked up bit by bit as it was and listed with the pattern; the output layer is quantized.

    So it is where the output layer has the embedding's own weights.
    """
    module, workload = language_model(tied=tied)
    context = Context(target=Target(isa=Isa.X86_VNNI), progress=False)
    stage = Quantize(form=form, weights=weights, skip=("embedding",))
    graph = onnx.load_from_string(stage.apply(module, workload, context).onnx_bytes).graph
    (lookup,) = [node for node in graph.node if node.op_type == "Gather"]
    (table,) = [tensor for tensor in graph.initializer if tensor.name == lookup.input[0]]
    assert np.array_equal(numpy_helper.to_array(table), TABLE)
    assert numpy_helper.to_array(table).dtype == np.float32
    assert context.details["quantized"] == 1
    assert set(context.details["integer_kernels"]) == {kernel}
    assert {"node": "embedding", "op": "Gather", "reason": "skipped by the pattern 'embedding'"} in context.details[
        "left_in_float"
    ]


def residual_block() -> onnx.ModelProto:
    """LayerNorm(x + MatMul(x)) + bias, as a transformer has it, and a sum that no norm reads."""
    ones = numpy_helper.from_array(np.ones(8, np.float32), "ones")
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32)[::-1].copy(), "weight")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "ones", "ones"], ["normed"], axis=-1),
        helper.make_node("Add", ["normed", "ones"], ["shifted"]),
        helper.make_node("Add", ["shifted", "x"], ["out"]),
    ]
    shape = ["batch", 4, 8]
    made = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [ones, weight],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def fused(model: onnx.ModelProto, tmp_path) -> set[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def test_the_sum_before_a_norm_stays_apart(tmp_path) -> None:
    """One Add of three is a residual that a norm reads; as a Sum it computes the same bits and is not merged."""
    plain, apart = residual_block(), residual_block()
    assert keep_sums_apart_(apart) == 1
    assert [node.op_type for node in apart.graph.node] == ["MatMul", "Sum", "LayerNormalization", "Add", "Add"]
    assert "SkipLayerNormalization" in fused(plain, tmp_path)
    assert "SkipLayerNormalization" not in fused(apart, tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    outputs = [
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for model in (plain, apart)
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
