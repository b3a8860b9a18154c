import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.estimate import Estimate
from compressor.intervals import score_estimate
from compressor.measuring import measure as measure_module
from compressor.measuring import scores
from compressor.measuring.measure import (
    Measurement,
    count_macs,
    count_parameters,
    measure,
    score_rows,
    timed_against,
)
from compressor.measuring.timing import Timing
from compressor.metrics import Metric
from compressor.packing.files import packed_size
from compressor.sessions import open_session
from compressor.target import Target
from compressor.training.passes.threads import Threads
from compressor.workload import resize_batch

FLOAT = TensorProto.FLOAT


def onnx_file(nodes, shape, weights, opset=21) -> bytes:
    """The file of a graph with one input "x"; weights are {name: array or TensorProto}."""
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
        for name, value in weights.items()
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [onnx.ValueInfoProto(name="output")],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def small_conv() -> bytes:
    """A grouped 3x3 convolution 4 -> 6 with stride 2 on 8x8, then pooling and a Gemm 6 -> 3 with a bias."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2], group=2),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["output"], transB=1),
    ]
    return onnx_file(nodes, ["n", 4, 8, 8], {"w": floats(6, 2, 3, 3), "v": floats(3, 6), "b": floats(3)})


# MACs.


def test_macs_of_a_grouped_convolution_and_a_gemm() -> None:
    """6 x 4 x 4 outputs of 2 x 3 x 3 products each, and 6 x 3 for the linear layer: 1746."""
    assert count_macs(small_conv(), torch.zeros(2, 4, 8, 8)) == 6 * 4 * 4 * 2 * 3 * 3 + 6 * 3


def test_macs_of_a_transposed_convolution() -> None:
    """Each of the 2 x 5 x 5 inputs is spread over a filter of 3 x 2 x 2."""
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["output"], strides=[2, 2])]
    assert count_macs(onnx_file(nodes, ["n", 2, 5, 5], {"w": floats(2, 3, 2, 2)}), torch.zeros(1, 2, 5, 5)) == 600


def test_macs_of_batched_products() -> None:
    """A (4, 3, 5) x (5, 7) product is 4 x 3 x 7 x 5, and a product of activations counts the same way."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Transpose", ["h"], ["t"], perm=[0, 2, 1])]
    nodes.append(helper.make_node("MatMul", ["h", "t"], ["output"]))
    file = onnx_file(nodes, ["n", 3, 5], {"w": floats(5, 7)})
    assert count_macs(file, torch.zeros(4, 3, 5)) == 3 * 7 * 5 + 3 * 3 * 7


def test_macs_of_transposed_gemm_and_fused_matmul() -> None:
    """With the left side transposed (K x M), the inner dimension is still found: 4 x 3 x 5."""
    gemm = [helper.make_node("Gemm", ["w", "x"], ["output"], transA=1)]
    fused = [helper.make_node("FusedMatMul", ["w", "x"], ["output"], transA=1, domain="com.microsoft")]
    for nodes in (gemm, fused):
        assert count_macs(onnx_file(nodes, [5, 3], {"w": floats(5, 4)}), torch.zeros(5, 3)) == 4 * 3 * 5 // 5


@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_macs_of_recurrent_layers(op: str, gates: int) -> None:
    """7 steps, both directions, gates x hidden x (inputs + hidden) each: torch's own counter says 0 here."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(op, ["t", "w", "r"], ["output"], hidden_size=5, direction="bidirectional"),
    ]
    file = onnx_file(nodes, ["n", 7, 3], {"w": floats(2, gates * 5, 3), "r": floats(2, gates * 5, 5)})
    assert count_macs(file, torch.zeros(2, 7, 3)) == 7 * 2 * gates * 5 * (3 + 5)


def test_macs_of_an_einsum_are_the_product_of_its_letters() -> None:
    """The scores b h q d, b h k d -> b h q k cost 1 x 2 x 3 x 3 x 4."""
    nodes = [helper.make_node("Einsum", ["x", "x"], ["output"], equation="bhqd,bhkd->bhqk")]
    assert count_macs(onnx_file(nodes, ["n", 2, 3, 4], {}), torch.zeros(2, 2, 3, 4)) == 2 * 3 * 3 * 4


def test_macs_inside_a_loop_count_every_turn() -> None:
    """A loop of 5 turns around a 4x4 product of one row costs 5 x 16."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["h_out"]), helper.make_node("Identity", ["go"], ["go_out"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h_out", FLOAT, None),
        ],
    )
    nodes = [helper.make_node("Loop", ["turns", "", "x"], ["output"], body=body)]
    file = onnx_file(nodes, ["n", 4], {"turns": np.array(5), "w": floats(4, 4)})
    assert count_macs(file, torch.zeros(2, 4)) == 80
    assert count_parameters(file) == (16, 16)


def test_macs_do_not_depend_on_the_batch() -> None:
    """A file frozen at batch 3 has the same MACs a sample as a free one."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["output"])]
    for batch in ("n", 3):
        assert count_macs(onnx_file(nodes, [batch, 6], {"w": floats(6, 2)}), torch.zeros(2, 6)) == 12


class Calibration:
    """One batch of images for the static quantizer."""

    def __init__(self) -> None:
        self.batches = iter([{"x": floats(2, 4, 8, 8)}])

    def get_next(self):
        return next(self.batches, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator", "dynamic"])
def test_quantized_files_cost_what_their_originals_cost(form: str, tmp_path) -> None:
    """MACs and parameters of a quantized file equal those of its float original."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    source.write_bytes(small_conv())
    if form == "dynamic":
        quantize_dynamic(source, target, weight_type=QuantType.QUInt8)
    else:
        quantize_static(source, target, Calibration(), quant_format=QuantFormat[form], per_channel=True)
    file = target.read_bytes()
    assert count_macs(file, torch.zeros(2, 4, 8, 8)) == 1746
    assert count_parameters(file)[0] == 6 * 2 * 3 * 3 + 3 * 6 + 3


# Parameters.


def test_parameters_are_weights_and_biases() -> None:
    """6 x 2 x 3 x 3 + 3 x 6 + 3 weights, of which the ones set to zero are not counted among the non-zero."""
    model = onnx.load_from_string(small_conv())
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[0] = 0  # one filter of 2 x 3 x 3
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    assert count_parameters(model.SerializeToString()) == (129, 129 - 18)


def test_shapes_settings_and_scalars_are_no_parameters() -> None:
    """A Reshape's target, a Clip's limits, a scalar and an unused tensor do not count; a Constant weight does."""
    constant = numpy_helper.from_array(floats(4, 2), "value")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=constant),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Mul", ["m", "scalar"], ["s"]),
        helper.make_node("Clip", ["s", "low", ""], ["output"]),
    ]
    weights = {
        "shape": np.array([-1, 4]),
        "scalar": np.array(2.0, np.float32),
        "low": np.array(0.0, np.float32),
        "unused": floats(100),
    }
    assert count_parameters(onnx_file(nodes, ["n", 4], weights)) == (8, 8)


def test_shared_weights_count_once() -> None:
    """A matrix used twice is in the file once."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["output"])]
    assert count_parameters(onnx_file(nodes, ["n", 3], {"w": floats(3, 3)})) == (9, 9)


def test_quantized_zero_is_its_channels_zero_point() -> None:
    """With zero points 1 and 2 per row, [[1, 5], [2, 1]] holds two zeros."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=0),
        helper.make_node("Gemm", ["x", "w"], ["output"], transB=1),
    ]
    weights = {
        "q": np.array([[1, 5], [2, 1]], np.int8),
        "scale": np.ones(2, np.float32),
        "zero": np.array([1, 2], np.int8),
    }
    assert count_parameters(onnx_file(nodes, ["n", 2], weights)) == (4, 2)


def test_four_bit_weights_count_as_weights() -> None:
    """Six 4-bit weights are six parameters, not three bytes; per-block zero points are honoured."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "w"], ["output"]),
    ]
    weights = {
        "q": helper.make_tensor("q", TensorProto.INT4, [4, 1], [1, 0, 3, 2]),
        "scale": np.ones((2, 1), np.float32),
        "zero": helper.make_tensor("zero", TensorProto.INT4, [2, 1], [1, 3]),
    }
    assert count_parameters(onnx_file(nodes, ["n", 4], weights)) == (4, 2)


def test_packed_weights_are_unpacked() -> None:
    """MatMulNBits of K = 20, N = 2 has 40 weights though its blocks hold 64; eights are zeros."""
    packed = np.full((2, 2, 8), 0x88, np.uint8)
    packed[0, 0, 0] = 0x81  # the first weight becomes 1, the second stays 8
    packed[1, 1, 7] = 0x11  # beyond K: padding
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["output"], K=20, N=2, bits=4, block_size=16, domain="com.microsoft"
        )
    ]
    file = onnx_file(nodes, ["n", 20], {"w": packed, "s": np.ones(4, np.float32)})
    assert count_parameters(file) == (40, 1)
    assert count_macs(file, torch.zeros(2, 20)) == 40


def test_dynamic_lstm_counts_its_packed_weights(tmp_path) -> None:
    """DynamicQuantizeLSTM has the MACs and the parameters of the float LSTM."""
    from onnxruntime.quantization import quantize_dynamic

    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b"], ["output"], hidden_size=5),
    ]
    file = onnx_file(nodes, ["n", 7, 3], {"w": floats(1, 20, 3), "r": floats(1, 20, 5), "b": floats(1, 40)}, opset=17)
    (tmp_path / "float.onnx").write_bytes(file)
    quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    small = (tmp_path / "int8.onnx").read_bytes()
    assert b"DynamicQuantizeLSTM" in small
    for candidate in (file, small):
        assert count_macs(candidate, torch.zeros(2, 7, 3)) == 7 * 20 * (3 + 5)
        assert count_parameters(candidate)[0] == 20 * (3 + 5) + 40


def test_foreign_bytes_are_refused() -> None:
    """Bytes that are no ONNX model give a clear error."""
    with pytest.raises(ValueError, match="export it again"):
        count_parameters(b"not a model at all")
    with pytest.raises(ValueError, match="has no graph"):
        count_parameters(b"")


# Scores.


def test_no_samples_are_refused() -> None:
    """A generator that is exhausted is an error, not a score of 0."""
    with pytest.raises(ValueError, match="at least one sample"):
        score_rows(small_conv(), iter([]), Metric.accuracy())


# All of it.


def test_resize_repeats_and_cuts_every_tensor() -> None:
    """Three samples become five by starting again, or two by stopping early; tensors without a batch stay."""
    inputs = {"a": torch.tensor([[1], [2], [3]]), "b": torch.tensor([1.0, 2.0, 3.0]), "table": torch.zeros(7)}
    larger, smaller = resize_batch(inputs, 5), resize_batch(inputs, 2)
    assert larger["a"].flatten().tolist() == [1, 2, 3, 1, 2]
    assert larger["b"].tolist() == [1.0, 2.0, 3.0, 1.0, 2.0]
    assert smaller["a"].flatten().tolist() == [1, 2]
    assert len(larger["table"]) == 7


def test_measurement_has_every_number_and_survives_json() -> None:
    """One call gives score, sizes, work and speed, and JSON gives the same measurement back."""
    file = small_conv()
    images, targets = torch.randn(12, 4, 8, 8), torch.arange(12) % 3
    found = measure(
        file,
        reference=file,
        data=[(images[:8], targets[:8]), (images[8:], targets[8:])],
        metric=Metric.accuracy(),
        example_inputs=images[:2],
        target=Target(batch_size=3),
    )
    rows = score_rows(file, [(images, targets)], Metric.accuracy())
    assert found.score == score_estimate(rows, Metric.accuracy())
    assert (found.parameters, found.nonzero_parameters, found.macs) == (129, 129, 1746)
    assert found.size_bytes == len(file)
    assert 0 < found.compressed_bytes < 2 * len(file)
    assert found.latency_ms.value > 0
    value = json.loads(json.dumps(found.to_json()))
    assert set(value["speedup"]) == {"value", "low", "high"}
    assert list(value) == [
        "score",
        "parameters",
        "nonzero_parameters",
        "macs",
        "size_bytes",
        "compressed_bytes",
        "latency_ms",
        "speedup",
        "packed_bytes",
    ]
    assert value["packed_bytes"] == packed_size(file, most=10**9)
    assert Measurement.from_json({name: entry for name, entry in value.items() if name != "packed_bytes"}) == replace(
        found, packed_bytes=None
    )
    assert Measurement.from_json(value) == found


@pytest.mark.parametrize(
    ("operator", "decides", "first", "seconds"),
    [
        ("Relu", True, 1.0, [2.0, 6.0]),
        ("Relu", True, 1.1, [2.0]),
        ("Relu", True, 0.9, [2.0]),
        ("Relu", False, 1.0, [2.0]),
        ("Abs", False, 1.0, [0.7]),
        ("Abs", True, 1.0, [2.0, 6.0]),
    ],
)
def test_what_decides_is_timed_again_where_it_is_open(
    *, operator: str, decides: bool, first: float, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interval around 1 does not say which file is faster: a longer timing does, if it matters.

    Where nothing hangs on it and weights alone differ, a short one says that there is no difference.
    """
    one, other = (
        onnx_file(
            [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node(name, ["y"], ["output"])],
            ["n", 1],
            {"w": np.full((1, 1), value, np.float32)},
        )
        for name, value in (("Abs", 1.0), (operator, 2.0))
    )
    asked: list[dict] = []

    def timed(*_: object, **settings: float) -> Timing:
        asked.append(settings)
        value = first if len(asked) == 1 else 0.98
        found = Estimate(value, value - 0.01, value + 0.01)
        return Timing(reference_ms=found, candidate_ms=found, speedup=found)

    monkeypatch.setattr(measure_module, "time_interleaved", timed)
    found = timed_against(one, other, example_inputs=torch.zeros(2, 1), target=Target(), decides=decides).speedup
    assert found.value == (first if len(seconds) == 1 else 0.98)
    assert [settings.get("seconds", 2.0) for settings in asked] == seconds
    assert len({settings["seed"] for settings in asked}) == len(seconds)


def test_incomplete_measurement_is_refused() -> None:
    """A stored measurement that lacks a field names it."""
    with pytest.raises(ValueError, match="macs"):
        Measurement.from_json({"score": {"value": 1.0, "low": 1.0, "high": 1.0}})


def test_zeros_show_in_the_compressed_size_alone() -> None:
    """A file of zeros has the size of a dense one, and compresses to a hundredth."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["output"])]
    sizes = []
    for weight in (floats(100, 100), np.zeros((100, 100), np.float32)):
        found = measure(
            onnx_file(nodes, ["n", 100], {"w": weight}),
            reference=onnx_file(nodes, ["n", 100], {"w": weight}),
            data=[(torch.ones(2, 100), torch.tensor([0, 1]))],
            metric=Metric.accuracy(),
            example_inputs=torch.ones(2, 100),
            target=Target(),
        )
        sizes.append((found.size_bytes, found.compressed_bytes, found.nonzero_parameters))
    (dense_size, dense_small, dense_count), (sparse_size, sparse_small, sparse_count) = sizes
    assert dense_size == sparse_size
    assert dense_small > 100 * sparse_small
    assert (dense_count, sparse_count) == (10_000, 0)


def test_estimates_refuse_reversed_intervals() -> None:
    """An interval whose ends are swapped cannot exist."""
    with pytest.raises(ValueError, match="low <= high"):
        Estimate(1.0, 2.0, 0.0)


def test_scores_take_the_threads_that_are_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside busy processes numbers of threads are tried on the batches, each in a session of its own."""
    opened: list[int] = []

    def opening(file: bytes, *, threads: int) -> Any:
        opened.append(threads)
        return open_session(file, threads=threads)

    monkeypatch.setattr(scores, "open_session", opening)
    data = [(torch.randn(4, 4, 8, 8), torch.arange(4) % 2) for _ in range(9)]
    file = small_conv()
    wanted = score_rows(file, data, Metric.accuracy())
    chosen = Threads(most=4, cores=4, fixed=False, clock=lambda: 0.0, others=lambda: 1, wait=lambda _: None)
    assert torch.equal(score_rows(file, data, Metric.accuracy(), threads=chosen), wanted)
    assert opened == [1, 1, 2, 4]
    assert chosen.told is not None
    assert "4, 1 from batch 9 on" in chosen.told
