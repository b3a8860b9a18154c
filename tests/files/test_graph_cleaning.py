"""Zeros of one sign in exported weights."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.files.export import export_onnx
from compressor.files.graph_cleaning import unsign_zeros_
from compressor.runtime import open_session
from workbench.same_data import same_data

MIXED = np.array([[0.0, -0.0, 2.0], [-0.0, -3.0, np.nan]], np.float32)


def graph_of(*nodes: onnx.NodeProto, kind: type = np.float32) -> onnx.ModelProto:
    """Nodes that read `weight`, of zeros of both signs, and `x`, (1, 2)."""
    weight = numpy_helper.from_array(MIXED.astype(kind), "weight")
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x, *outs = (
        helper.make_tensor_value_info(name, element, None) for name in ("x", *(node.output[0] for node in nodes))
    )
    graph = helper.make_graph(list(nodes), "graph", [x], outs, [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def below(model: onnx.ModelProto) -> int:
    """How many zeros of the weight are below zero."""
    (tensor,) = model.graph.initializer
    values = numpy_helper.to_array(tensor)
    return int(((values == 0) & np.signbit(values)).sum())


PRODUCT = helper.make_node("MatMul", ["x", "weight"], ["y"])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_zeros_of_weights_get_one_sign_and_all_else_keeps_its_bits(kind) -> None:
    model = graph_of(PRODUCT, kind=kind)
    assert below(model) == 2
    assert unsign_zeros_(model) == 2
    (tensor,) = model.graph.initializer
    after = numpy_helper.to_array(tensor)
    assert (tensor.name, below(model), after.dtype, after.shape) == ("weight", 0, kind, (2, 3))
    kept = MIXED != 0
    assert after[kept].tobytes() == MIXED.astype(kind)[kept].tobytes()
    assert unsign_zeros_(model) == 0


@pytest.mark.parametrize(
    "nodes",
    [
        (helper.make_node("Div", ["x", "weight"], ["y"]),),
        (helper.make_node("Gather", ["weight", "x"], ["y"]),),
        (PRODUCT, helper.make_node("Reciprocal", ["weight"], ["z"])),
        (helper.make_node("MatMul", ["x", "weight"], ["y"], domain="mine"),),
        (helper.make_node("If", ["x"], ["y"], then_branch=helper.make_graph(
            [helper.make_node("Reciprocal", ["weight"], ["z"])], "then", [], [
                helper.make_tensor_value_info("z", TensorProto.FLOAT, None)])), PRODUCT),
    ],
    ids=["divided by", "looked up", "read by another too", "an operator of somebody", "read inside"],
)  # fmt: skip
def test_what_anything_else_reads_keeps_its_signs(nodes) -> None:
    model = graph_of(*nodes)
    assert unsign_zeros_(model) == 0
    assert below(model) == 2


class Signed(nn.Module):
    """A convolution behind whose zeros a norm of negative scale is folded, and a layer with zeros below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 4)
        with torch.no_grad():
            self.conv.weight[:, 0] = 0.0
            self.norm.weight.fill_(-1.5)
            self.last.weight[:2] = -0.0

    def forward(self, images):
        return self.last(self.norm(self.conv(images)).mean((2, 3)))


def test_an_exported_file_has_zeros_of_one_sign() -> None:
    torch.manual_seed(0)
    model = Signed().eval()
    data = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)] * 2
    exported = export_onnx(model, same_data(model, data, data[0][0][:2])).onnx_bytes
    weights = [numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(exported).graph.initializer]
    floats = [each for each in weights if each.dtype == np.float32]
    assert sum(int((each == 0).sum()) for each in floats) >= 8
    assert not any(((each == 0) & np.signbit(each)).any() for each in floats)
    session = open_session(exported)
    images = data[0][0]
    output = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(output, model(images).detach().numpy(), atol=1e-5)
