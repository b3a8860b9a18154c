"""GRU and RNN layers written out as cells: exactly the layer in floats, close to it in integers."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.errors import StageError
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import compact_graph, kernels, serialize
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerTensor, Scheme, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.placement.dynamic import place_dynamic
from compressor.quantization.placement.forms import ByFamily, Dynamic, Static
from compressor.quantization.placement.policy import placement_of
from compressor.quantization.placement.recurrent_cells import layer_of, why_no_cells, write_layer
from workbench.cpu import exact_outputs

INPUTS, UNITS, STEPS = 20, 24, 7
GATES = {"GRU": 3, "RNN": 1}
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


def _uniform(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-0.5, 0.5, shape).astype(np.float32)


def _model(
    op: str, direction: str = "forward", *, states: bool = False, bias: bool = True, **attributes
) -> onnx.ModelProto:
    count, rows = DIRECTIONS[direction], GATES[op] * UNITS
    names = ["input", "W", "R", "B" if bias else "", "", "states" if states else ""]
    node = helper.make_node(op, names, ["all", "last"], "layer", direction=direction, hidden_size=UNITS, **attributes)
    weights = {"W": _uniform(count, rows, INPUTS), "R": _uniform(count, rows, UNITS), "B": _uniform(count, 2 * rows)}
    inputs = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["steps", "batch", INPUTS])]
    if states:
        inputs.append(helper.make_tensor_value_info("states", TensorProto.FLOAT, [count, "batch", UNITS]))
    graph = helper.make_graph(
        [node],
        "g",
        inputs,
        [helper.make_empty_tensor_value_info(name) for name in ("all", "last")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto, batch: int = 3, steps: int = STEPS) -> list[np.ndarray]:
    feeds = {"input": 2 * _uniform(steps, batch, INPUTS)}
    if len(model.graph.input) > 1:
        states = model.graph.input[1].type.tensor_type.shape.dim
        feeds["states"] = _uniform(states[0].dim_value, batch, UNITS)
    return exact_outputs(serialize(model), feeds)


def _written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """The layer as cells on floats."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, node = copy.graph, copy.graph.node[0]
    constants = {tensor.name: tensor for tensor in graph.initializer}
    layer = layer_of(node, constants)
    weight, recurrence = (numpy_helper.to_array(constants[name]) for name in ("W", "R"))
    nodes, projected = [], []
    for index, matrix in enumerate(weight):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(matrix.T), f"w{index}"))
        graph.initializer.append(numpy_helper.from_array(layer.biases(index)[0], f"b{index}"))
        nodes.append(helper.make_node("MatMul", ["input", f"w{index}"], [f"plain{index}"]))
        nodes.append(helper.make_node("Add", [f"plain{index}", f"b{index}"], [f"x{index}"]))
        projected.append(f"x{index}")
    written = write_layer(layer, projected, list(recurrence))
    graph.initializer.extend(written.initializers)
    del graph.node[:]
    graph.node.extend([*nodes, *written.nodes])
    return copy


CASES = [("GRU", {"linear_before_reset": 1}), ("GRU", {"linear_before_reset": 0}), ("RNN", {})]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), CASES)
@pytest.mark.parametrize(("states", "bias"), [(False, True), (True, True), (True, False)])
def test_cells_on_floats_are_the_layer(op: str, attributes: dict, direction: str, *, states: bool, bias: bool) -> None:
    """All states and the last ones, of every direction, agree with ONNX Runtime's own kernel to 1e-6."""
    model = _model(op, direction, states=states, bias=bias, **attributes)
    for expected, got in zip(_run(model), _run(_written_out(model)), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_cells_on_floats_are_the_layer_of_torch() -> None:
    """The written-out GRU gives what torch's GRU computes from the same weights, whose gates stand in another order."""
    model = _model("GRU", linear_before_reset=1)
    weights = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
    }

    def reordered(rows: torch.Tensor) -> torch.Tensor:
        update, reset, candidate = rows.chunk(3)
        return torch.cat([reset, update, candidate])

    layer = nn.GRU(INPUTS, UNITS)
    with torch.no_grad():
        layer.weight_ih_l0.copy_(reordered(weights["W"][0]))
        layer.weight_hh_l0.copy_(reordered(weights["R"][0]))
        layer.bias_ih_l0.copy_(reordered(weights["B"][0, : 3 * UNITS]))
        layer.bias_hh_l0.copy_(reordered(weights["B"][0, 3 * UNITS :]))
        expected = layer(torch.from_numpy(2 * _uniform(STEPS, 3, INPUTS)))[0].numpy()
    np.testing.assert_allclose(_run(_written_out(model))[0][:, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "attributes"), CASES)
@pytest.mark.parametrize(
    ("scheme", "least_db"),
    [
        (Symmetric(), 35),
        (Symmetric(granularity=PerTensor()), 35),
        (Asymmetric(granularity=PerTensor()), 35),
        (Symmetric(bits=4), 12),
    ],
)
def test_cells_on_integers_keep_the_layer(
    op: str, attributes: dict, direction: str, scheme: Scheme, least_db: float
) -> None:
    """Every product runs on integers, also behind compaction, for any batch and number of steps."""
    model = _model(op, direction, **attributes)
    placed = compact_graph(place_dynamic(model, {"layer"}, nearest_grids(model, {"layer": scheme})))
    running = kernels(serialize(placed))
    count = DIRECTIONS[direction]
    assert running["MatMulNBits"] == count * (2 if attributes.get("linear_before_reset") == 0 else 1)
    assert running["DynamicQuantizeMatMul"] == 1
    assert not running[op]
    for batch, steps in ((1, STEPS), (3, 2)):
        for expected, got in zip(_run(model, batch, steps), _run(placed, batch, steps), strict=True):
            assert got.shape == expected.shape
            assert sqnr_db(expected, got) > least_db


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"activations": ["Sigmoid", "Relu"]}, "its activations are Sigmoid, Relu"),
        ({"clip": 0.5}, "its gates are clipped at 0.5"),
        ({"layout": 1}, "its batch comes first (layout=1)"),
    ],
)
def test_what_cells_cannot_express_stays_in_float(attributes: dict, reason: str) -> None:
    """The report says which setting of the layer is in the way."""
    model = _model("GRU", **attributes)
    placement = placement_of(model, Dynamic(), ())
    assert placement.dynamic == ()
    assert placement.left["layer"] == f"no int8 kernel for GRU, and it cannot be written out as cells: {reason}"


def test_lengths_of_their_own_stay_in_float() -> None:
    """Sequences that end early would go on in a Scan."""
    node = helper.make_node("GRU", ["x", "W", "R", "", "lengths"], ["y"], "layer", hidden_size=4)
    assert why_no_cells(node, {"W", "R"}) == "its sequences have lengths of their own"
    assert why_no_cells(node, {"W"}) == "its weights are computed at run time"


def test_only_wide_layers_become_cells_by_family() -> None:
    """A cell's fixed time per step is more than what integers save on a narrow layer; `Static` knows no cells."""
    model = _model("GRU")
    assert placement_of(model, ByFamily(), ()).weight_only == ("layer",)
    assert placement_of(model, Dynamic(), ()).dynamic == ("layer",)
    assert placement_of(model, Static(), ()).left == {"layer": "no int8 kernel for GRU"}
    wide = next(entry for entry in model.graph.node[0].attribute if entry.name == "hidden_size")
    wide.i = 256
    assert placement_of(model, ByFamily(), ()).dynamic == ("layer",)


def test_a_scale_per_group_has_no_cell() -> None:
    """The product of all steps knows one scale a channel."""
    model = _model("GRU")
    grids = nearest_grids(model, {"layer": Symmetric(granularity=PerBlock(size=16))})
    with pytest.raises(StageError, match=r"layer has a scale for every 16 weights.*WeightOnly\(\)"):
        place_dynamic(model, {"layer"}, grids)
