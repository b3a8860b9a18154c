"""Weights stored as integers or float16 under float arithmetic, and dynamic layers: what runs, and how exactly."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.measuring.fidelity import sqnr_db
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerChannel, PerTensor, Scheme, Symmetric
from compressor.quantization.grids.weights import nearest_grid, nearest_grids
from compressor.quantization.placement.dynamic import place_dynamic
from compressor.quantization.placement.weight_only import block_product, place_float16, place_weight_only
from workbench.cpu import exact_outputs


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32) / 8


def _model(nodes: list, weights: dict[str, np.ndarray], shape: list, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", kind, shape)],
        [helper.make_empty_tensor_value_info("output")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return exact_outputs(serialize(model), {"input": x})[0]


def _with_values(model: onnx.ModelProto, grids: dict) -> onnx.ModelProto:
    """The float graph on the values that the grids stand for."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in grids:
            tensor.CopyFrom(numpy_helper.from_array(grids[tensor.name].values().numpy(), tensor.name))
    return copy


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", [PerBlock(size=32), PerChannel(), PerTensor()])
@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Gemm transposed"])
def test_linear_layers_become_matmulnbits(op: str, granularity, bits: int) -> None:
    """One MatMulNBits, within 40 dB of the float layer on the grid's values: the kernel rounds activations to int8."""
    weight = _normal(48, 100) if op == "Gemm transposed" else _normal(100, 48)
    attributes = {"transB": 1} if op == "Gemm transposed" else {}
    inputs = ["input", "w"] if op == "MatMul" else ["input", "w", "b"]
    node = helper.make_node(op.removesuffix(" transposed"), inputs, ["output"], "linear", **attributes)
    model = _model([node], {"w": weight, "b": _normal(48)}, ["batch", 100])
    grids = nearest_grids(model, {"linear": Symmetric(bits=bits, granularity=granularity)})
    placed = place_weight_only(model, {"linear"}, grids)
    assert kernels(serialize(placed))["MatMulNBits"] == 1
    x = _normal(5, 100)
    # Below float32's own noise: the activations are rounded.
    assert 40 < sqnr_db(_run(_with_values(model, grids), x), _run(placed, x)) < 80
    if bits == 4:
        assert len(serialize(placed)) < len(serialize(model)) / 4


@pytest.mark.parametrize(
    "scheme",
    [
        Symmetric(),
        Asymmetric(bits=4, granularity=PerChannel()),
        Symmetric(bits=4, granularity=PerBlock(size=32)),
        Symmetric(bits=3, granularity=PerTensor()),
    ],
)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "GRU", "Gather", "Gemm"])
def test_other_weights_are_unpacked_once_and_exactly(op: str, scheme: Scheme) -> None:
    """What MatMulNBits is not made for runs as before, with nothing in front, on exactly the values of the grid.

    A Gemm is such a layer where it turns its input around.
    """
    if op == "Gather":
        model = _model(
            [helper.make_node("Gather", ["w", "input"], ["output"], "layer")],
            {"w": _normal(50, 20)},
            [4, 7],
            TensorProto.INT64,
        )
        x = np.random.default_rng(1).integers(0, 50, (4, 7))
    elif op == "Gemm":
        node = helper.make_node("Gemm", ["input", "w"], ["output"], "layer", transA=1)
        model = _model([node], {"w": _normal(20, 16)}, [20, 3])
        x = _normal(20, 3)
    elif op == "GRU":
        node = helper.make_node("GRU", ["input", "w", "r"], ["output", ""], "layer", hidden_size=8)
        model = _model([node], {"w": _normal(1, 24, 20), "r": _normal(1, 24, 8)}, [5, 2, 20])
        x = _normal(5, 2, 20)
    else:
        node = helper.make_node(op, ["input", "w"], ["output"], "layer")
        model = _model([node], {"w": _normal(16, 16, 3, 3)}, [2, 16, 8, 8])
        x = _normal(2, 16, 8, 8)
    grids = nearest_grids(model, {"layer": scheme})
    placed = place_weight_only(model, {"layer"}, grids)
    expected = _with_values(model, grids)
    assert kernels(serialize(placed)) == kernels(serialize(expected))
    assert np.array_equal(_run(placed, x), _run(expected, x))


def test_float16_halves_the_file_and_runs_the_float_model() -> None:
    """The file has half the size and the same kernels; outputs keep over 60 dB.

    What float16 cannot hold stays, and what is so small (225 weights) that a Cast costs as much as it saves.
    """
    node = helper.make_node("Conv", ["input", "w"], ["output"], "conv")
    model = _model([node], {"w": _normal(64, 64, 3, 3)}, [2, 64, 8, 8])
    placed = place_float16(model, {"conv"})
    assert len(serialize(placed)) < 0.51 * len(serialize(model))
    assert kernels(serialize(placed)) == kernels(serialize(model))
    assert sqnr_db(_run(model, _normal(2, 64, 8, 8)), _run(placed, _normal(2, 64, 8, 8))) > 60
    large = _model([node], {"w": _normal(64, 64, 3, 3) * 1e6}, [2, 64, 8, 8])
    assert serialize(place_float16(large, {"conv"})) == serialize(large)
    small = _model([node], {"w": _normal(5, 5, 3, 3)}, [2, 5, 8, 8])
    assert serialize(place_float16(small, {"conv"})) == serialize(small)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_product_of_some_rows_keeps_their_zero_points(bits: int) -> None:
    """Unsymmetric rows of ones and twos give 3 x 40 and 2 x 40 for inputs of 1, plus the bias, within 0.3 %."""
    weight = torch.tensor([[1.0] * 40, [1.0, 5.0] * 20, [2.0] * 40])
    grid = nearest_grid(weight, Asymmetric(bits=bits, granularity=PerTensor()), axis=0)
    bias = np.array([0.5, -0.5], dtype=np.float32)
    nodes, weights = block_product(grid, slice(1, None), "input", "output", bias)
    model = _model(nodes, {tensor.name: numpy_helper.to_array(tensor) for tensor in weights}, [1, 40])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    got = _run(model, np.ones((1, 40), dtype=np.float32))
    np.testing.assert_allclose(got, [[120.5, 79.5]], rtol=3e-3)


def test_dynamic_layers_share_the_quantization_of_what_they_read() -> None:
    """Two linear layers on one tensor quantize it once; each keeps over 30 dB, also at 4 bits of its own grid."""
    nodes = [
        helper.make_node("Gemm", ["input", "a", "bias"], ["left"], "left", transB=1, alpha=2.0, beta=0.5),
        helper.make_node("MatMul", ["input", "b"], ["right"], "right"),
        helper.make_node("Add", ["left", "right"], ["output"], "sum"),
    ]
    model = _model(nodes, {"a": _normal(8, 32), "b": _normal(32, 8), "bias": _normal(8)}, ["batch", 32])
    for bits in (8, 4):
        grids = nearest_grids(model, {"left": Symmetric(bits=bits), "right": Symmetric(bits=bits)})
        placed = place_dynamic(model, {"left", "right"}, grids)
        running = kernels(serialize(placed))
        assert running["DynamicQuantizeLinear"] == 1
        assert running["MatMulIntegerToFloat"] == 2
        x = _normal(6, 32)
        assert sqnr_db(_run(_with_values(model, grids), x), _run(placed, x)) > 30


@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor()])
def test_dynamic_lstm_keeps_both_directions(granularity) -> None:
    """A bidirectional LSTM runs as DynamicQuantizeLSTM and keeps over 30 dB of the float layer on the grid's values."""
    node = helper.make_node("LSTM", ["input", "w", "r"], ["output"], "lstm", hidden_size=8, direction="bidirectional")
    model = _model([node], {"w": _normal(2, 32, 12) * 8, "r": _normal(2, 32, 8) * 8}, [5, 3, 12])
    grids = nearest_grids(model, {"lstm": Symmetric(granularity=granularity)})
    placed = place_dynamic(model, {"lstm"}, grids)
    assert kernels(serialize(placed)) == {"DynamicQuantizeLSTM": 1}
    x = _normal(5, 3, 12) * 8
    assert sqnr_db(_run(_with_values(model, grids), x), _run(placed, x)) > 30


@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor()])
def test_embeddings_are_looked_up_as_integers(granularity) -> None:
    """The rows that come out are the grid's values to the bit, and the file holds a byte a weight."""
    table = _normal(500, 32)
    node = helper.make_node("Gather", ["w", "input"], ["output"], "embedding")
    model = _model([node], {"w": table}, [4, 7], TensorProto.INT64)
    grids = nearest_grids(model, {"embedding": Symmetric(granularity=granularity)})
    placed = place_dynamic(model, {"embedding"}, grids)
    x = np.random.default_rng(0).integers(0, 500, (4, 7))
    assert np.array_equal(_run(placed, x), grids["w"].values().numpy()[x])
    assert len(serialize(placed)) < table.size + 4 * 500 + 500


def test_a_table_of_one_number_a_row_is_looked_up_as_integers() -> None:
    """The numbers that come out are the grid's values to the bit, whether integers are looked up or unpacked."""
    model = _model(
        [helper.make_node("Gather", ["w", "input"], ["output"], "biases")],
        {"w": _normal(500)},
        [4, 7],
        TensorProto.INT64,
    )
    x = np.random.default_rng(0).integers(0, 500, (4, 7))
    for place in (place_dynamic, place_weight_only):
        grids = nearest_grids(model, {"biases": Symmetric()})
        placed = place(model, {"biases"}, grids)
        assert np.array_equal(_run(placed, x), grids["w"].values().numpy()[x])
        assert any(tensor.data_type == TensorProto.INT8 and tensor.dims for tensor in placed.graph.initializer)


def test_a_stack_of_matrices_finds_its_range_at_run_time() -> None:
    """One scale for all matrices: the kernel runs, and keeps over 30 dB."""
    model = _model(
        [helper.make_node("MatMul", ["input", "w"], ["output"], "stacked")], {"w": _normal(3, 32, 8)}, [3, 6, 32]
    )
    grids = nearest_grids(model, {"stacked": Symmetric()})
    placed = place_dynamic(model, {"stacked"}, grids)
    assert kernels(serialize(placed)) == {"DynamicQuantizeMatMul": 1}
    x = _normal(3, 6, 32)
    assert sqnr_db(_run(_with_values(model, grids), x), _run(placed, x)) > 30


def test_groups_are_refused_with_dynamic_activations() -> None:
    """No kernel takes them; the message gives the ways out."""
    model = _model([helper.make_node("MatMul", ["input", "w"], ["output"], "linear")], {"w": _normal(32, 8)}, [1, 32])
    grids = nearest_grids(model, {"linear": Symmetric(granularity=PerBlock(size=16))})
    with pytest.raises(StageError, match=r"linear has a scale for every 16 weights.*or form=WeightOnly\(\)"):
        place_dynamic(model, {"linear"}, grids)
