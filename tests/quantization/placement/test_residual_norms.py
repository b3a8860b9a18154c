"""Residual sums before a LayerNormalization are written so that ONNX Runtime does not merge the two."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization.placement.residual_norms import keep_sums_apart_


def graph() -> onnx.ModelProto:
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


def kernels(model: onnx.ModelProto, tmp_path) -> set[str]:
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def test_the_sum_before_a_norm_stays_apart(tmp_path) -> None:
    """One Add of three is a residual that a norm reads; as a Sum it computes the same bits and is not merged."""
    plain, apart = graph(), graph()
    assert keep_sums_apart_(apart) == 1
    assert [node.op_type for node in apart.graph.node] == ["MatMul", "Sum", "LayerNormalization", "Add", "Add"]
    assert "SkipLayerNormalization" in kernels(plain, tmp_path)
    assert "SkipLayerNormalization" not in kernels(apart, tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
    outputs = [
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for model in (plain, apart)
    ]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-6)
