"""Small ONNX files made by hand."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper


def model_bytes(nodes, inputs, outputs, weights=()) -> bytes:
    """The file of a graph; inputs are (name, type, shape), outputs names, weights {name: array}."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in dict(weights).items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def scaled(factor: float) -> bytes:
    """The file of y = factor * x."""
    return model_bytes(
        [helper.make_node("Mul", ["input", "factor"], ["output"])],
        [("input", TensorProto.FLOAT, ["n", 2])],
        ["output"],
        {"factor": np.array([factor], np.float32)},
    )


def convolutions(count: int, width: int = 16) -> bytes:
    """`count` 3x3 convolutions on (n, width, 24, 24)."""
    weight = np.random.default_rng(0).standard_normal((width, width, 3, 3)).astype(np.float32) / width
    names = ["input", *(f"h{index}" for index in range(count - 1)), "output"]
    nodes = [
        helper.make_node("Conv", [names[index], "w"], [names[index + 1]], pads=[1, 1, 1, 1]) for index in range(count)
    ]
    return model_bytes(nodes, [("input", TensorProto.FLOAT, ["n", width, 24, 24])], ["output"], {"w": weight})


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers of this shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights_of(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Small normal numbers of these shapes, float32."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def saved_onnx(folder: Path, nodes: list, inputs: list, outputs: list, weights: dict[str, np.ndarray]) -> Path:
    """The path of a checked file in `folder`; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "given.onnx"))
    return folder / "given.onnx"
