"""Layers left in float between integer ones stay float."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.affine import Asymmetric, Symmetric
from compressor.quantization.activation_grids import activation_grids
from compressor.quantization.compact_graph import kernels, serialize
from compressor.quantization.quantize_graph import place_static
from compressor.quantization.weight_grids import nearest_grids
from compressor.runtime import open_session


def chain(middle: str) -> onnx.ModelProto:
    """Three convolutions of 4 channels, the second a `middle`, with a ReLU behind it."""
    generator = np.random.default_rng(0)
    weights = {f"{name}.w": generator.normal(size=(4, 4, 3, 3)).astype(np.float32) / 6 for name in "abc"}
    # One scale for the tensor would round the other channels to nothing.
    weights["b.w"][0 if middle == "Conv" else slice(None), slice(None) if middle == "Conv" else 0] *= 1000
    nodes = [
        helper.make_node("Conv", ["input", "a.w"], ["a"], "a", pads=[1, 1, 1, 1]),
        helper.make_node(middle, ["a", "b.w"], ["b"], "b", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "c.w"], ["output"], "c", pads=[1, 1, 1, 1]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4, 6, 6]) for name in ("input", "output")]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "chain", value[:1], value[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("middle", ["Conv", "ConvTranspose"])
def test_a_float_layer_between_integer_ones_computes_floats(middle: str) -> None:
    """What ONNX Runtime gives for the layer alone in float is what it gives with its own rewriting switched off."""
    model = chain(middle)
    ranges = {"input": (-3.0, 3.0), "a": (-3.0, 3.0), "r": (0.0, 3000.0), "output": (-3000.0, 3000.0)}
    activations = activation_grids(ranges, Asymmetric(), signed=False)
    grids = nearest_grids(model, dict.fromkeys("ac", Symmetric()))
    placed = place_static(model, {"a", "c"}, activations, grids)
    assert kernels(serialize(placed))["QLinearConv"] == 2
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(serialize(placed), options, providers=["CPUExecutionProvider"])
    x = {"input": np.random.default_rng(1).normal(size=(4, 4, 6, 6)).astype(np.float32)}
    expected, got = plain.run(None, x)[0], open_session(serialize(placed)).run(None, x)[0]
    step = float(activations["output"].scale)
    assert np.abs(expected - got).max() <= 1.01 * step
    assert (np.abs(expected - got) > 0.5 * step).mean() < 0.01


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
