"""Small ONNX graphs written by hand, and the data that they are calibrated on."""

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.workload import Workload


def graph_of(nodes: list, weights: dict[str, np.ndarray], shape: list, out: list) -> onnx.ModelProto:
    """The checked model "input" -> "output" of `nodes`, with `weights` as initializers, float32 or 8-bit integers."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(_constant(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def with_branch(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model` with an If at the end, whose branches read the tensor `name` and hand it on as the output "peeked"."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    peeked = helper.make_tensor_value_info("peeked", TensorProto.FLOAT, None)
    branches = {}
    for way in ("then", "else"):
        inside = helper.make_tensor_value_info(f"{way}_peeked", TensorProto.FLOAT, None)
        node = helper.make_node("Identity", [name], [inside.name], f"{way}_node")
        branches[f"{way}_branch"] = helper.make_graph([node], way, [], [inside])
    changed.graph.initializer.append(numpy_helper.from_array(np.array(True), "way"))
    changed.graph.node.append(helper.make_node("If", ["way"], ["peeked"], "peek", **branches))
    changed.graph.output.append(peeked)
    return changed


def _constant(value: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    return array if array.dtype in (np.int8, np.uint8) else array.astype(np.float32)


def calibrated_on(inputs: torch.Tensor) -> Workload:
    """Calibration on exactly these inputs, in their order as far as sums go."""
    data = inputs, torch.arange(len(inputs)) % 2
    return Workload.from_datasets(
        nn.Identity(), train=data, validation=data, test=data, calibration_samples=len(inputs), name="given"
    )
