"""Arithmetic on shapes that is known before the first call leaves the exported graph, and nothing else changes."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.files.export import export_onnx
from compressor.files.shape_cleaning import simplify_shapes_
from compressor.workload import Workload


def model_of(nodes, inputs, outputs, constants=(), inferred=()) -> onnx.ModelProto:
    """A model from nodes, and from (name, shape) pairs of inputs, outputs and tensors between; constants by name."""

    def value(pair):
        return helper.make_tensor_value_info(pair[0], TensorProto.FLOAT, pair[1])

    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(constants).items()]
    graph = helper.make_graph(
        nodes,
        "g",
        [value(i) for i in inputs],
        [value(o) for o in outputs],
        weights,
        value_info=list(map(value, inferred)),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def outputs(model: onnx.ModelProto, **feeds) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def flattened(*, keeps_batch: bool) -> onnx.ModelProto:
    """A map of (b, 2, h, w), pooled away, reshaped to (b, 2 * h * w) as computed from the shape of the input."""
    start = 0 if keeps_batch else 3
    nodes = [
        helper.make_node("Shape", ["x"], ["first"], start=start, end=start + 1),
        helper.make_node("Shape", ["x"], ["height"], start=2, end=3),
        helper.make_node("Shape", ["x"], ["width"], start=3, end=4),
        helper.make_node("Mul", ["height", "width"], ["area"]),
        helper.make_node("Mul", ["area", "two"], ["rest"]),
        helper.make_node("Concat", ["first", "rest"], ["shape"], axis=0),
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Reshape", ["y", "shape"], ["out"], allowzero=1),
    ]
    size = ["b", 2, "h", "w"]
    return model_of(nodes, [("x", size)], [("out", ["b", "n"])], {"two": np.array([2])}, [("y", size)])


def test_a_flattened_map_needs_no_arithmetic() -> None:
    """Relu and Reshape to (0, -1) are left of eight nodes, whatever batch and size come."""
    before, after = flattened(keeps_batch=True), flattened(keeps_batch=True)
    assert simplify_shapes_(after) == 6
    assert kinds(after) == ["Relu", "Reshape"]
    (shape,) = after.graph.initializer
    assert numpy_helper.to_array(shape).tolist() == [0, -1]
    for size in ((1, 2, 3, 4), (5, 2, 1, 1)):
        x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
        np.testing.assert_array_equal(outputs(before, x=x), outputs(after, x=x))


def test_two_open_sizes_stay_computed() -> None:
    """A reshape whose first size is another dimension of the input keeps its arithmetic."""
    model = flattened(keeps_batch=False)
    assert simplify_shapes_(model) == 0
    assert "Concat" in kinds(model)


def transposed(order: list[str]) -> onnx.ModelProto:
    """Matrices of (b, 2, 5, 4) transposed by way of three dimensions, and reshaped to `order` of the first sizes."""
    cut = {name: helper.make_node("Slice", ["shape", f"{i}", f"{i + 1}"], [name]) for i, name in enumerate("bhtd")}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        *cut.values(),
        helper.make_node("Concat", ["open", "t", "d"], ["three"], axis=0),
        helper.make_node("Reshape", ["x", "three"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Concat", order, ["four"], axis=0),
        helper.make_node("Reshape", ["turned", "four"], ["out"]),
    ]
    numbers = {str(i): np.array([i]) for i in range(5)} | {"open": np.array([-1])}
    return model_of(nodes, [("x", ["batch", 2, 5, 4])], [("out", [None] * 4)], numbers)


def test_matrices_are_transposed_directly() -> None:
    """Ten nodes that swap the last two dimensions become one Transpose."""
    before, after = transposed(["b", "h", "d", "t"]), transposed(["b", "h", "d", "t"])
    assert simplify_shapes_(after) == 9
    assert kinds(after) == ["Transpose"]
    x = np.arange(120, dtype=np.float32).reshape(3, 2, 5, 4)
    np.testing.assert_array_equal(outputs(after, x=x), x.transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(outputs(after, x=x), outputs(before, x=x))


def test_what_only_looks_like_a_transposition_stays() -> None:
    """Reshaped back to the sizes that it came with, the turned data is no transposition, and the numbers stay."""
    before, after = transposed(["b", "h", "t", "d"]), transposed(["b", "h", "t", "d"])
    simplify_shapes_(after)
    x = np.arange(120, dtype=np.float32).reshape(3, 2, 5, 4)
    np.testing.assert_array_equal(outputs(after, x=x), outputs(before, x=x))
    assert "Reshape" in kinds(after)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_only_states_of_zeros_are_left_out(value: float) -> None:
    """An LSTM that starts from expanded zeros loses its initial states, one that starts from halves keeps them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["steps"], start=1, end=2),
        helper.make_node("Concat", ["one", "steps", "three"], ["size"], axis=0),
        helper.make_node("Expand", ["value", "size"], ["state"]),
        helper.make_node("LSTM", ["x", "W", "R", "", "", "state", "state"], ["y"], hidden_size=3),
    ]
    generator = np.random.default_rng(0)
    constants = {
        "one": np.array([1]),
        "three": np.array([3]),
        "value": np.float32(value),
        "W": generator.standard_normal((1, 12, 2)).astype(np.float32),
        "R": generator.standard_normal((1, 12, 3)).astype(np.float32),
    }
    made = [model_of(nodes, [("x", [4, "b", 2])], [("y", [4, 1, "b", 3])], constants) for _ in range(2)]
    gone = simplify_shapes_(made[1])
    assert (gone, len(made[1].graph.node[-1].input)) == ((3, 3) if value == 0 else (0, 7))
    x = generator.standard_normal((4, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(outputs(made[0], x=x), outputs(made[1], x=x))


class Tagger(nn.Module):
    """(batch, steps, 3) -> (batch, 2) from two stacked LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(3, 4, 2, batch_first=True)
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.recurrent(x)[0].mean(dim=1))


def test_an_exported_recurrent_network_computes_no_shapes() -> None:
    """The file of two stacked LSTM layers, verified in other batch sizes, has no Shape, Expand or Mul left."""
    data = torch.randn(16, 5, 3), torch.arange(16) % 2
    workload = Workload.from_datasets(Tagger().eval(), train=data, test=data, batch_size=8, name="tagger")
    exported = export_onnx(workload.model, workload)
    found = kinds(onnx.load_from_string(exported.onnx_bytes))
    assert exported.exporter == "dynamo"
    assert not {"Shape", "Expand", "Mul", "Concat"}.intersection(found)
    assert found.count("LSTM") == 2
