"""Integers of few bits, packed in the file and unpacked when it is loaded; weights without the zeros behind them."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.files.weights import count_parameters
from compressor.quantization.file.compact_graph import kernels, serialize
from compressor.quantization.file.packing import pack_plane, pack_weights, smallest_file, without_filling
from compressor.runtime import open_session
from workbench.onnx_graphs import graph_of


def _convolutions(bits: int, channels: tuple[int, ...] = (5, 16, 3)) -> onnx.ModelProto:
    """Convolutions between integers, whose weights are every integer of `bits` bits in turn."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    constants = {"step": np.float32(0.1), "zero": np.uint8(128), "scale": np.float32(0.02), "none": np.int8(0)}
    nodes, source = [], "input"
    for index, (inputs, outputs) in enumerate(pairwise(channels)):
        size = inputs * outputs * 9
        weight = np.resize(np.arange(low, high + 1), size).astype(np.int8).reshape(outputs, inputs, 3, 3)
        constants[f"w{index}"] = weight
        names = [f"{part}{index}" for part in "qdfc"]
        nodes += [
            helper.make_node("QuantizeLinear", [source, "step", "zero"], [names[0]]),
            helper.make_node("DequantizeLinear", [names[0], "step", "zero"], [names[1]]),
            helper.make_node("DequantizeLinear", [f"w{index}", "scale", "none"], [names[2]]),
            helper.make_node("Conv", [names[1], names[2]], [names[3]], f"conv{index}"),
        ]
        source = names[3]
    nodes += [
        helper.make_node("QuantizeLinear", [source, "step", "zero"], ["last"]),
        helper.make_node("DequantizeLinear", ["last", "step", "zero"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", channels[0], 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", channels[-1], None, None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_packed_file_runs_the_same_kernels_to_the_same_bits(bits: int) -> None:
    """Both convolutions still fuse into QLinearConv, nothing unpacks at run time, and the outputs are equal."""
    model = _convolutions(bits)
    packed = pack_weights(model, {"w0": bits, "w1": bits})
    onnx.checker.check_model(packed, full_check=True)
    plain, small = model.SerializeToString(), packed.SerializeToString()
    assert kernels(small) == kernels(plain)
    assert kernels(small)["QLinearConv"] == 2
    feeds = {"input": np.random.default_rng(0).normal(size=(2, 5, 8, 8)).astype(np.float32)}
    before, after = (open_session(data).run(None, feeds)[0] for data in (plain, small))
    assert np.array_equal(before, after)
    # What is stored in fewer bytes is as many weights, and as many of them are zero.
    assert count_parameters(small) == count_parameters(plain)


def test_weights_take_their_bits_in_the_file() -> None:
    """73,728 weights of 4 bits take 36,864 bytes instead of 73,728, of 3 bits 27,648; unpacking adds under 2 KB."""
    model = _convolutions(4, (64, 64, 64))
    size = len(model.SerializeToString())
    assert size - 36864 <= len(pack_weights(model, {"w0": 4, "w1": 4}).SerializeToString()) < size - 36864 + 2048
    three = _convolutions(3, (64, 64, 64))
    assert len(pack_weights(three, {"w0": 3, "w1": 3}).SerializeToString()) < size - 46080 + 2048


def test_widths_mix_and_others_stay() -> None:
    """A graph of 2- and 4-bit weights unpacks each by itself; 8 bits and unknown names stay as they are."""
    model = _convolutions(2)
    packed = pack_weights(model, {"w0": 2, "w1": 4, "step": 4})
    feeds = {"input": np.random.default_rng(0).normal(size=(1, 5, 8, 8)).astype(np.float32)}
    before, after = (open_session(one.SerializeToString()).run(None, feeds)[0] for one in (model, packed))
    assert np.array_equal(before, after)
    assert pack_weights(model, {"w0": 8}) == model


def test_planes_by_hand() -> None:
    """Two-bit values 1, 2, 3, 0 and 1 fill one byte and a quarter, the first in the lowest bits."""
    assert pack_plane(np.array([1, 2, 3, 0, 1], dtype=np.uint8), 2).tolist() == [[0b00111001], [1]]
    assert pack_plane(np.array([10, 3], dtype=np.uint8), 4).tolist() == [[0x3A]]


def test_an_integer_too_large_is_refused() -> None:
    """What does not fit the bits is not cut silently."""
    with pytest.raises(ValueError, match=r"integers of 2 bits lie in \[-2, 1\], got -8 to 7"):
        pack_weights(_convolutions(4), {"w0": 2})


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
