"""Products of 8-bit integers that saturate at 16 bits, and ONNX Runtime's integer kernels around them."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.quantization.other_cpus.cpu_emulation import KERNELS, SaturatingModel, exact_run
from compressor.quantization.other_cpus.saturation import exact_product, saturated_product, saturating_pairs
from compressor.runtime import open_session
from compressor.target import Isa, detect_isa
from workbench.masked_cpu import can_mask, run_masked


def _int8(*rows: list[int]) -> NDArray[np.int8]:
    return np.array(rows, np.int8)


def _model(node: onnx.NodeProto, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in feeds.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    domain = "" if op in {"QLinearConv", "QLinearMatMul", "MatMulInteger"} else "com.microsoft"
    return helper.make_node(op, inputs, outputs, "node", domain=domain, **attributes)


def _case(kind: str, *, largest: int) -> tuple[onnx.NodeProto, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A node, its input and its constants; activations near 255 and weights up to `largest` in magnitude."""
    draw = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return np.abs(draw.integers(-largest, largest + 1, shape)).astype(np.int8)

    def activations(*shape: int) -> np.ndarray:
        return draw.integers(180, 256, shape).astype(np.uint8)

    quantized = {
        "xs": np.float32(0.9),
        "xz": np.uint8(7),
        "ws": draw.uniform(1e-4, 2e-4, 12).astype(np.float32),
        "wz": np.zeros(12, np.int8),
        "ys": np.float32(1.1),
        "yz": np.uint8(3),
        "b": draw.integers(-900, 900, 12).astype(np.int32),
    }
    conv = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    if kind == "conv of 3 channels":
        node = _node("QLinearConv", conv, ["y"], pads=[1, 0, 1, 2], strides=[1, 2])
        return node, {"x": activations(2, 3, 9, 7)}, {**quantized, "w": weights(12, 3, 3, 3)}
    if kind == "dilated conv in groups":
        node = _node("QLinearConv", conv, ["y"], group=2, dilations=[2, 1])
        return node, {"x": activations(2, 10, 9, 7)}, {**quantized, "w": weights(12, 5, 3, 2)}
    if kind == "conv padded to the same size":
        node = _node("QLinearConv", conv, ["y"], auto_pad="SAME_LOWER", strides=[2, 1])
        return node, {"x": activations(2, 3, 9, 7)}, {**quantized, "w": weights(12, 3, 3, 2)}
    if kind == "conv over one axis":
        node = _node("QLinearConv", conv, ["y"], kernel_shape=[3])
        return node, {"x": activations(2, 8, 11)}, {**quantized, "w": weights(12, 8, 3)}
    if kind == "conv of shifted weights":
        shifted = {**quantized, "wz": np.int8(5), "ws": np.float32(1e-4), "w": weights(12, 4, 3, 3)}
        return _node("QLinearConv", conv, ["y"]), {"x": activations(2, 4, 6, 6)}, shifted
    if kind == "QLinearMatMul":
        constants = {**quantized, "w": weights(33, 12)}
        return _node(kind, conv[:-1], ["y"]), {"x": activations(2, 5, 33)}, _without(constants, "b")
    if kind == "QGemm":
        node = _node(kind, ["x", "xs", "xz", "w", "ws", "wz", "b", "ys", "yz"], ["y"], transB=1, alpha=0.5)
        return node, {"x": activations(5, 33)}, {**quantized, "w": weights(12, 33)}
    if kind == "QGemm with float outputs":
        node = _node("QGemm", ["x", "xs", "xz", "w", "ws", "wz", "b"], ["y"])
        return node, {"x": activations(5, 33)}, _without({**quantized, "w": weights(33, 12)}, "ys", "yz")
    if kind == "MatMulInteger":
        constants = {"w": weights(33, 12), "xz": np.uint8(7), "wz": np.int8(0)}
        return _node(kind, ["x", "w", "xz", "wz"], ["y"]), {"x": activations(1, 33)}, constants
    if kind == "MatMulIntegerToFloat":
        constants = {name: quantized[name] for name in ("xs", "ws", "xz", "wz")} | {"w": weights(33, 12)}
        return _node(kind, ["x", "w", "xs", "ws", "xz", "wz"], ["y"]), {"x": activations(5, 33)}, constants
    if kind == "MatMulIntegerToFloat of a stack":
        # One matrix for every head, and the same activations for both rows of heads.
        constants = {**quantized, "ws": np.float32(1e-4), "wz": np.int8(0), "w": weights(2, 3, 33, 12)}
        constants = {name: constants[name] for name in ("xs", "ws", "xz", "wz", "w")}
        node = _node("MatMulIntegerToFloat", ["x", "w", "xs", "ws", "xz", "wz"], ["y"])
        return node, {"x": activations(3, 5, 33)}, constants
    if kind == "DynamicQuantizeMatMul":
        constants = {"w": weights(33, 12), "ws": np.float32(0.01), "wz": np.int8(0)}
        x = draw.uniform(-0.1, 2, (5, 33)).astype(np.float32)
        return _node(kind, ["x", "w", "ws", "wz"], ["y"]), {"x": x}, constants
    assert kind == "DynamicQuantizeLSTM"
    constants = {
        "w": weights(2, 7, 32),
        "r": weights(2, 8, 32),
        "b": draw.uniform(-0.3, 0.3, (2, 64)).astype(np.float32),
        "ws": np.full(2, 0.002, np.float32),
        "rs": np.full((2, 32), 0.004, np.float32),
        "wz": np.zeros(2, np.int8),
        "rz": np.zeros((2, 32), np.int8),
    }
    names = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    node = _node(kind, names, ["y", "h", "c"], hidden_size=8, direction="bidirectional")
    return node, {"x": draw.uniform(-0.1, 1, (5, 3, 7)).astype(np.float32)}, constants


def _exact(node: onnx.NodeProto, feeds: dict[str, np.ndarray], constants: dict[str, np.ndarray]) -> tuple:
    """The node's outputs with sums in 32 bits."""
    values = {**feeds, **constants}
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [np.asarray(values[name]) if name else None for name in node.input]
    outputs = KERNELS[node.op_type](attributes, inputs, exact_product)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _without(constants: dict[str, np.ndarray], *names: str) -> dict[str, np.ndarray]:
    return {name: value for name, value in constants.items() if name not in names}


KINDS = (
    "conv of 3 channels",
    "dilated conv in groups",
    "conv padded to the same size",
    "conv over one axis",
    "conv of shifted weights",
    "QLinearMatMul",
    "QGemm",
    "QGemm with float outputs",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "MatMulIntegerToFloat of a stack",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
)


def test_a_pair_of_products_stops_at_16_bits() -> None:
    """255 * 127 * 2 = 64770 counts 32767, -255 * 128 * 2 counts -32768, and two safe products count in full."""
    weights = _int8([127, 127, 1, 2], [-128, -128, 1, 2], [127, -128, 1, 2])
    columns = np.array([[255], [255], [10], [20]], np.uint8)
    result = saturated_product(weights, columns)
    assert result.values.tolist() == [[32767 + 50], [-32768 + 50], [255 * -1 + 50]]
    assert (result.pairs, result.sums) == (2, 2)


def test_a_pair_is_risky_above_128_of_one_sign() -> None:
    """64 + 64 fits for every activation, 64 + 65 does not; opposite signs never add up; an odd end has no partner."""
    weights = _int8([64, 64, 127], [64, 65, 127], [127, -127, -128], [-64, -64, 0], [-64, -65, 0])
    outputs, pairs = saturating_pairs(weights)
    assert list(zip(outputs.tolist(), pairs.tolist(), strict=True)) == [(1, 0), (4, 0)]


def test_seven_bits_never_saturate() -> None:
    """No pair of weights in [-64, 63] can leave 16 bits."""
    every = np.array([[a, b] for a in range(-64, 64) for b in range(-64, 64)], np.int8)
    assert len(saturating_pairs(every)[0]) == 0


def test_saturated_product_is_the_sum_of_clipped_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random products over an odd depth equal a plain loop over pairs, also when computed in small pieces."""
    draw = np.random.default_rng(1)
    weights = draw.integers(-128, 128, (6, 13)).astype(np.int8)
    columns = draw.integers(150, 256, (13, 20)).astype(np.uint8)
    expected = np.zeros((6, 20), int)
    clipped, touched = 0, np.zeros((6, 20), bool)
    for first in range(0, 13, 2):
        sums = weights[:, first : first + 2].astype(int) @ columns[first : first + 2].astype(int)
        expected += sums.clip(-32768, 32767)
        clipped += int((sums != sums.clip(-32768, 32767)).sum())
        touched |= sums != sums.clip(-32768, 32767)
    monkeypatch.setattr("compressor.quantization.other_cpus.saturation._CHUNK", 60)
    result = saturated_product(weights, columns)
    assert np.array_equal(result.values, expected)
    assert (result.pairs, result.sums) == (clipped, int(touched.sum()))
    assert clipped > 0


def test_exact_product_holds_sums_beyond_float32() -> None:
    """1200 products of 255 * 127, plus one: 38,862,001, where float32 knows even numbers alone."""
    weights = _int8([127] * 1200 + [1])
    columns = np.full((1201, 1), 255, np.uint8)
    columns[-1] = 1
    assert exact_product(weights, columns).tolist() == [[38_862_001]]


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_agree_with_onnx_runtime_bit_for_bit(kind: str) -> None:
    """With weights that are safe on every CPU, each kernel gives the very outputs of ONNX Runtime's own."""
    node, feeds, constants = _case(kind, largest=63)
    got = _exact(node, feeds, constants)
    expected = open_session(_model(node, feeds, constants)).run(None, feeds)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == theirs.dtype
        # Sigmoid and tanh of the LSTM are approximations on the other side.
        assert np.abs(mine.astype(float) - theirs).max() <= (1e-5 if "LSTM" in kind else 0)


@pytest.mark.parametrize("isa", [Isa.X86_AVX2, Isa.X86_AVX512])
@pytest.mark.parametrize("kind", KINDS)
def test_emulation_agrees_with_the_kernels_of_older_cpus(kind: str, isa: Isa) -> None:
    """Saturating weights give the numbers of ONNX Runtime's AVX2 and AVX-512 kernels, which differ from exact ones."""
    if detect_isa() is not isa and not can_mask():
        pytest.skip(
            f"needs a CPU of the class {isa.value}, or an Intel CPU with VNNI that can hide it and a C compiler"
        )
    node, feeds, constants = _case(kind, largest=127)
    onnx_bytes = _model(node, feeds, constants)
    model = SaturatingModel(onnx_bytes)
    got, exact = model.run(feeds), model.run_exactly(feeds)
    native = detect_isa() is isa
    real = open_session(onnx_bytes).run(None, feeds) if native else run_masked(onnx_bytes, feeds, isa)
    assert model.saturation["node"].saturated_pairs > 0
    assert not np.array_equal(got[0], exact[0])
    for mine, theirs in zip(got, real, strict=True):
        assert np.abs(mine.astype(float) - theirs).max() <= (1e-5 if "LSTM" in kind else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_sums_are_those_of_32_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very file that saturates gives exact sums in both of its forms, also on a CPU that saturates."""
    node, feeds, constants = _case(kind, largest=127)
    onnx_bytes = _model(node, feeds, constants)
    expected = _exact(node, feeds, constants)
    for isa in {detect_isa(), Isa.X86_AVX2}:
        monkeypatch.setattr("compressor.quantization.other_cpus.cpu_emulation.detect_isa", lambda isa=isa: isa)
        for fused in (True, False):
            got = exact_run(onnx_bytes, fused=fused)(feeds)
            for mine, theirs in zip(expected, got, strict=True):
                assert np.abs(mine.astype(float) - theirs).max() <= (1e-5 if "LSTM" in kind else 0)


def test_running_exactly_counts_nothing() -> None:
    """255 * 127 * 2 = 64770 instead of 32767, and no pair is counted as cut off."""
    node = _node("MatMulInteger", ["x", "w"], ["y"])
    feeds = {"x": np.full((1, 2), 255, np.uint8)}
    model = SaturatingModel(_model(node, feeds, {"w": np.full((2, 1), 127, np.int8)}))
    assert [model.run_exactly(feeds)[0].item(), model.run(feeds)[0].item()] == [64770, 32767]
    assert (model.saturation["node"].sums, model.saturation["node"].saturated_pairs) == (1, 1)


def test_results_that_nothing_reads_are_left_out() -> None:
    """A node behind the last product whose result is no output runs nowhere, and nothing is asked of it."""
    node = _node("MatMulInteger", ["x", "w"], ["y"])
    feeds = {"x": np.full((1, 2), 255, np.uint8)}
    file = onnx.load_from_string(_model(node, feeds, {"w": np.full((2, 1), 127, np.int8)}))
    file.graph.node.append(helper.make_node("Add", ["y", "y"], ["unread"], "unread"))
    model = SaturatingModel(file.SerializeToString(), fused=False)
    assert model.run(feeds)[0].item() == 32767


def test_depth_runs_over_positions_then_channels() -> None:
    """Weights 127 of two channels at one position saturate together; at two positions of a kernel they do not."""
    together, apart = np.zeros((2, 1, 2, 2, 2), np.int8)
    together[0, :, 0, 0] = 127
    apart[0, 0, 0, :] = 127
    feeds = {"x": np.full((1, 2, 2, 2), 255, np.uint8)}
    scale = np.float32(1 / 510)
    shared = {"xs": np.float32(1), "xz": np.uint8(0), "ws": scale, "wz": np.int8(0), "ys": np.float32(1)}
    node = _node("QLinearConv", ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["y"])
    outputs = [
        SaturatingModel(_model(node, feeds, {**shared, "yz": np.uint8(0), "w": weights})).run(feeds)[0].item()
        for weights in (together, apart)
    ]
    # 32767 / 510 = 64.2 and 64770 / 510 = 127.
    assert outputs == [64, 127]


def test_depthwise_and_unsigned_weights_cannot_saturate() -> None:
    """Kernels that widen before they add are left to ONNX Runtime and are not listed."""
    feeds = {"x": np.full((1, 16, 4, 4), 255, np.uint8)}
    constants = {"xs": np.float32(1), "xz": np.uint8(0), "ws": np.float32(1e-3), "ys": np.float32(1), "yz": np.uint8(0)}
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz"]
    depthwise = {**constants, "w": np.full((16, 1, 3, 3), 127, np.int8), "wz": np.int8(0)}
    assert not SaturatingModel(_model(_node("QLinearConv", names, ["y"], group=16), feeds, depthwise)).saturation
    unsigned = {**constants, "w": np.full((16, 16, 1, 1), 255, np.uint8), "wz": np.uint8(0)}
    assert not SaturatingModel(_model(_node("QLinearConv", names, ["y"]), feeds, unsigned)).saturation
