"""Biases that take out what any grid of a layer's weights shifts in the mean."""

import numpy as np
import pytest
import torch
from onnx import helper

from compressor.quantization.accuracy.channel_scaling import read_weights
from compressor.quantization.accuracy.mean_shifts import MeanShifts
from compressor.quantization.grids.weights import WeightGrid
from workbench.onnx_graphs import calibrated_on, graph_of


def _whole(integers: list, *, axis: int = 0) -> WeightGrid:
    values = torch.tensor(integers, dtype=torch.int32)
    size = values.shape[axis]
    return WeightGrid(
        bits=4,
        scale=torch.ones(size),
        zero_point=torch.zeros(size, dtype=torch.int32),
        axis=axis,
        group_size=None,
        integers=values,
    )


def test_a_shift_by_hand() -> None:
    """Weights 1.4 and 0.8 as 1 and 1: for inputs of mean 2 and 5 the bias 3 gets 2 * 0.4 - 5 * 0.2 = -0.2; as 1 and 0
    it gets 2 * 0.4 + 5 * 0.8 = 4.8. A layer of other grids keeps its own.
    """
    nodes = [
        helper.make_node("Gemm", ["input", "w", "b"], ["a"], "one", transB=1),
        helper.make_node("Gemm", ["a", "v", "c"], ["output"], "two"),
    ]
    weights = {"w": np.array([[1.4, 0.8]]), "b": np.array([3.0]), "v": np.array([[0.6]]), "c": np.array([7.0])}
    model = graph_of(nodes, weights, ["n", 2], ["n", 1])
    inputs = torch.tensor([[1.0, 4], [3, 4], [1, 6], [3, 6]])
    shifts = MeanShifts(model, {"one", "two"}, calibrated_on(inputs), samples=4)
    for integers, bias in (([[1, 1]], 2.8), ([[1, 0]], 7.8)):
        found = read_weights(shifts.biased({"w": _whole(integers)}))
        assert found["b"].item() == pytest.approx(bias)
        assert found["c"].item() == 7.0
    assert shifts.biased({}) == model


def test_layers_without_a_bias_get_one_and_those_not_named_stay() -> None:
    """A kernel of 0.6 as 1 shifts inputs of mean 5 by 2: the bias is -2, where the layer is one of those asked for."""
    model = graph_of(
        [helper.make_node("Conv", ["input", "w"], ["output"], "conv")], {"w": np.full((1, 1, 1, 1), 0.6)},
        ["n", 1, 2, 2], ["n", 1, 2, 2],
    )  # fmt: skip
    inputs = torch.full((4, 1, 2, 2), 5.0) + torch.tensor([-1.0, -1, 1, 1]).reshape(4, 1, 1, 1)
    grids = {"w": _whole([[[[1]]]])}
    changed = MeanShifts(model, {"conv"}, calibrated_on(inputs), samples=4).biased(grids)
    (node,) = changed.graph.node
    assert read_weights(changed)[node.input[2]].tolist() == pytest.approx([-2.0])
    assert MeanShifts(model, {"other"}, calibrated_on(inputs), samples=4).biased(grids) == model
