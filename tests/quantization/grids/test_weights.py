"""Grids of weights: what their integers stand for, and which range they span."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerChannel, PerTensor, Symmetric
from compressor.quantization.grids.weights import WeightGrid, nearest_grid, nearest_grids, weight_axis


def _linear(weight: np.ndarray, op: str = "MatMul", **attributes: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["input", "w"], ["output"], "linear", **attributes)],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", None])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_per_channel_grid_by_hand() -> None:
    """Channels of largest value 1.27 and 0.7 get steps of 0.01 at 8 bits and 0.1 at 4; values come back from them."""
    weight = torch.tensor([[1.27, -0.5], [0.7, -0.34]])
    eight = nearest_grid(weight, Symmetric(), axis=0, weight_range="minmax")
    assert eight.scale.tolist() == pytest.approx([0.01, 0.7 / 127])
    assert eight.integers[0].tolist() == [127, -50]
    four = nearest_grid(weight, Symmetric(bits=4), axis=0, weight_range="minmax")
    assert four.scale.tolist() == pytest.approx([1.27 / 7, 0.1])
    assert four.integers.tolist() == [[7, -3], [7, -3]]
    assert four.values()[1].tolist() == pytest.approx([0.7, -0.3])
    assert four.continuous(weight)[1].tolist() == pytest.approx([7.0, -3.4], abs=1e-5)


def test_axis_of_the_channels_is_the_grids_own() -> None:
    """Channels along axis 1 have scales that broadcast along axis 1."""
    weight = torch.tensor([[1.27, 0.254], [-0.5, 0.1]])
    grid = nearest_grid(weight, Symmetric(), axis=1)
    assert grid.scale.tolist() == pytest.approx([0.01, 0.002])
    assert grid.integers.tolist() == [[127, 127], [-50, 50]]


def test_groups_have_scales_of_their_own_and_the_last_may_be_short() -> None:
    """Five inputs in groups of two: three scales a channel, each from its own values."""
    weight = torch.tensor([[7.0, 1.0, 0.7, -0.2, 14.0]])
    grid = nearest_grid(weight, Symmetric(bits=4, granularity=PerBlock(size=2)), axis=0, weight_range="minmax")
    assert grid.scale.tolist() == [pytest.approx([1.0, 0.1, 2.0])]
    assert grid.integers.tolist() == [[7, 1, 7, -2, 7]]
    assert grid.values()[0].tolist() == pytest.approx([7.0, 1.0, 0.7, -0.2, 14.0])


def test_groups_follow_the_channel_axis() -> None:
    """Of a (inputs, channels) weight the groups run along the inputs of each column."""
    weight = torch.randn(6, 4)
    scheme = Symmetric(bits=4, granularity=PerBlock(size=3))
    grid, turned = nearest_grid(weight, scheme, axis=1), nearest_grid(weight.T.contiguous(), scheme, axis=0)
    assert torch.equal(grid.scale, turned.scale)
    assert torch.equal(grid.values(), turned.values().T)


def test_least_squared_error_beats_minmax_where_there_is_an_outlier() -> None:
    """On 200 normal values and one of 6, 4 bits err a tenth less, within 1 % of a finer search over all steps."""
    weight = torch.cat([torch.randn(200), torch.tensor([6.0])]).reshape(1, -1)
    errors = {
        kind: float(
            (nearest_grid(weight, Symmetric(bits=4), axis=0, weight_range=kind).values() - weight).square().sum()
        )
        for kind in ("minmax", "mse")
    }
    assert errors["mse"] < 0.9 * errors["minmax"]
    finest = min(
        float(((weight / scale).round().clamp(-8, 7) * scale - weight).square().sum())
        for scale in torch.linspace(0.05, 6 / 7, 2000)
    )
    assert errors["mse"] <= 1.01 * finest


def test_auto_is_minmax_from_six_bits_on() -> None:
    """With few bits the range is searched, with many it holds every weight."""
    weight = torch.cat([torch.randn(200), torch.tensor([6.0])]).reshape(1, -1)
    for bits, kind in ((4, "mse"), (5, "mse"), (6, "minmax"), (8, "minmax")):
        auto = nearest_grid(weight, Symmetric(bits=bits), axis=0)
        assert torch.equal(auto.scale, nearest_grid(weight, Symmetric(bits=bits), axis=0, weight_range=kind).scale)


@pytest.mark.parametrize(
    "scheme",
    [
        Symmetric(bits=3),
        Symmetric(bits=8, granularity=PerTensor()),
        Asymmetric(bits=4),
        Asymmetric(bits=8, granularity=PerChannel()),
        Symmetric(bits=4, granularity=PerBlock(size=4)),
    ],
)
def test_values_are_what_dequantize_linear_computes(scheme) -> None:
    """ONNX Runtime's DequantizeLinear gives the grid's values to the bit, for every granularity."""
    from compressor.runtime import open_session

    weight = torch.randn(8, 6)
    grid = nearest_grid(weight, scheme, axis=1)
    # DequantizeLinear's blocks lie along one axis of the tensor: here the inputs, axis 0.
    blocks = {"block_size": 4, "axis": 0} if grid.group_size else {} if grid.axis is None else {"axis": 1}
    turn = (lambda parameter: parameter.T) if grid.group_size else (lambda parameter: parameter)
    parts = {
        "q": grid.integers.to(torch.int8),
        "s": turn(grid.scale).contiguous(),
        "z": turn(grid.zero_point.to(torch.int8)).contiguous(),
    }
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", list(parts), ["output"], **blocks)],
        "g",
        [],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [8, 6])],
        [numpy_helper.from_array(value.numpy(), name) for name, value in parts.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    computed = open_session(model.SerializeToString()).run(None, {})[0]
    assert np.array_equal(computed, grid.values().numpy())


def test_grids_are_named_after_initializers() -> None:
    """A MatMul's weight has its channels last, a transposed Gemm's first; nodes that are not named have no grid."""
    weight = np.array([[1.27, 0.254], [-0.5, 0.1]], dtype=np.float32)
    grids = nearest_grids(_linear(weight), {"linear": Symmetric()})
    assert list(grids) == ["w"]
    assert grids["w"].axis == 1
    assert nearest_grids(_linear(weight, "Gemm", transB=1), {"linear": Symmetric()})["w"].axis == 0
    assert nearest_grids(_linear(weight), {"other": Symmetric()}) == {}


def test_channel_axes_of_the_operators() -> None:
    """Conv: 0; ConvTranspose: 1; recurrent gates: 1; embeddings: rows."""
    for op, rank, axis in (("Conv", 4, 0), ("ConvTranspose", 4, 1), ("GRU", 3, 1), ("Gather", 2, 0), ("MatMul", 2, 1)):
        assert weight_axis(helper.make_node(op, ["a", "b"], ["c"]), rank) == axis


def test_other_integers_have_to_fit() -> None:
    """Integers beyond the bits, and of another shape, are refused."""
    grid = nearest_grid(torch.randn(4, 4), Symmetric(bits=4), axis=0)
    with pytest.raises(ValueError, match=r"integers of 4 bits lie in \[-8, 7\], got others; clamp them"):
        grid.with_integers(torch.full((4, 4), 8))
    with pytest.raises(ValueError, match=r"shape \(4, 4\), got integers of \(2, 4\)"):
        grid.with_integers(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="bits of weights are 2 to 8, got 9"):
        WeightGrid(
            bits=9,
            scale=torch.ones(()),
            zero_point=torch.zeros((), dtype=torch.int32),
            axis=None,
            group_size=None,
            integers=torch.zeros(2, dtype=torch.int32),
        )


@pytest.mark.parametrize("granularity", [PerChannel(), PerBlock(size=16)])
def test_a_vector_has_one_scale(granularity: PerChannel | PerBlock) -> None:
    """A vector in a product, or a table of one number a row, has no channels: its largest value is 127 steps."""
    vector = np.array([0.5, -1.27, 0.25], np.float32)
    for model in (_linear(vector), _linear(vector, "Gather")):
        if model.graph.node[0].op_type == "Gather":
            model.graph.node[0].input[:] = ["w", "input"]
        grid = nearest_grids(model, {"linear": Symmetric(granularity=granularity)})["w"]
        assert (grid.axis, grid.group_size) == (None, None)
        assert grid.integers.tolist() == [50, -127, 25]
        assert weight_axis(model.graph.node[0], 1) is None


def test_a_stack_of_matrices_has_one_scale_where_it_is_multiplied() -> None:
    """No kernel takes a scale for every channel of a stack; where floats are made of it, channels keep their own."""
    stack = np.array([[[1.27, 0.1]], [[-0.5, 0.254]]], np.float32)
    model, scheme = _linear(stack), {"linear": Symmetric()}
    assert nearest_grids(model, scheme)["w"].scale.tolist() == pytest.approx(0.01)
    assert nearest_grids(model, scheme, multiplied=False)["w"].scale.tolist() == pytest.approx([0.01, 0.002])
