"""Integer weights without the zeros behind their channels: smaller files that run the same."""

import numpy as np
import onnx
import pytest
from onnx import helper

from compressor.files.weights import count_parameters
from compressor.quantization.file.channel_storage import without_filling
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.file.packing import smallest_file
from compressor.runtime import open_session
from workbench.onnx_graphs import graph_of


def _convolution(weight: np.ndarray) -> onnx.ModelProto:
    """One integer convolution with the given weight."""
    outputs, inputs = weight.shape[:2]
    constants = {"step": np.float32(0.1), "zero": np.uint8(128), "scale": np.full(outputs, 0.02, np.float32)}
    constants |= {"none": np.zeros(outputs, np.int8), "w": weight}
    weights = {name: np.asarray(value) for name, value in constants.items()}
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "scale", "none"], ["f"], "f", axis=0),
        helper.make_node("Conv", ["d", "f"], ["c"], "conv"),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["l"], "l"),
        helper.make_node("DequantizeLinear", ["l", "step", "zero"], ["output"], "o"),
    ]
    return graph_of(nodes, weights, ["batch", inputs, 8, 8], ["batch", outputs, 6, 6])


def _integers(shape: tuple[int, ...], low: int, high: int, kept: tuple[int, int]) -> np.ndarray:
    """Integers in [low, high], zeros beyond the channels `kept`."""
    values = np.zeros(shape, np.int8)
    drawn = np.random.default_rng(0).integers(low, high + 1, (*kept, *shape[2:]))
    values[: kept[0], : kept[1]] = drawn
    return values


def _outputs(data: bytes, channels: int) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(2, channels, 8, 8)).astype(np.float32)
    result: np.ndarray = open_session(data).run(None, {"input": x})[0]
    return result


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_behind_channels_are_not_stored(bits: int) -> None:
    """9 of 16 outputs and 6 of 16 inputs: 54 of 256 filters are in the file, which runs the same to the bit."""
    half = 2 ** (bits - 1)
    model = _convolution(_integers((16, 16, 3, 3), -half, half - 1, (9, 6)))
    stored, becomes = without_filling(model)
    assert becomes == {"w_stored": "w"}
    assert {tensor.name: list(tensor.dims) for tensor in stored.graph.initializer}["w_stored"] == [9, 6, 3, 3]
    onnx.checker.check_model(stored, full_check=True)
    plain = serialize(model)
    small = smallest_file(plain, model, {"w": bits}, signed_activations=False)
    saved = 9 * 256 - 9 * 54 * bits // 8
    # Nodes and constants of the Pad, and of the unpacking, take their own room.
    assert len(small) < len(plain) - saved + (2000 if bits == 4 else 200)
    assert kernels(small) == kernels(plain)
    assert kernels(small)["QLinearConv"] == 1
    np.testing.assert_array_equal(_outputs(small, 16), _outputs(plain, 16))
    # The zeros that fill up are no weights.
    assert count_parameters(plain)[0] == 16 * 16 * 9
    assert count_parameters(small) == (9 * 6 * 9, count_parameters(plain)[1])


def test_zeros_among_channels_and_few_zeros_stay() -> None:
    """Zeros ahead of other channels are values; what saves fewer bytes than a node takes is stored as it is."""
    among = _integers((16, 16, 3, 3), -9, 9, (16, 16))
    among[:8] = 0
    for weight in (among, _integers((16, 1, 3, 3), -9, 9, (12, 1))):
        model = _convolution(weight)
        stored, becomes = without_filling(model)
        assert becomes == {}
        assert stored == model


def test_a_weight_of_zeros_keeps_one() -> None:
    """A layer that gives nothing still has a weight, and computes zeros."""
    model = _convolution(np.zeros((16, 16, 3, 3), np.int8))
    stored, _ = without_filling(model)
    assert {tensor.name: list(tensor.dims) for tensor in stored.graph.initializer}["w_stored"] == [1, 1, 3, 3]
    np.testing.assert_array_equal(_outputs(serialize(stored), 16), np.zeros((2, 16, 6, 6), np.float32))
