"""Codebooks in files: the same bits by the same kernels, in a file smaller by what was repeated."""

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.clustering.codebook_files import with_codebooks
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.files.weights import count_parameters
from compressor.measuring.macs import count_macs
from compressor.quantization.file.compact_graph import kernels
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.stages import ClusterWeights, PerChannel, StoreCodebooks
from workbench.tiny import TinyResNet, make_workload


def product(weight: np.ndarray) -> bytes:
    """A file that multiplies (batch, rows of the matrix) by it, or folds (batch, channels, 6, 6) with the kernel."""
    dims = ["batch", *([len(weight)] if weight.ndim == 2 else [weight.shape[1], 6, 6])]
    kind = "MatMul" if weight.ndim == 2 else "Conv"
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def outputs(data: bytes, x: np.ndarray) -> np.ndarray:
    return open_session(data).run(None, {"x": x})[0]


def drawn(values: int, shape: tuple[int, ...], *, lines: int = 1) -> np.ndarray:
    """A weight of `values` different ones in each of `lines` equal parts of its first axis."""
    generator = np.random.default_rng(0)
    books = generator.normal(size=(lines, values)).astype(np.float32)
    numbers = generator.integers(0, values, (lines, int(np.prod(shape)) // lines))
    numbers[:, :values] = np.arange(values)
    return np.take_along_axis(books, numbers, axis=1).reshape(shape)


CASES = {
    "16 values, two in a byte": (drawn(16, (32, 30)), 480 + 64),
    "an odd number of weights": (drawn(5, (33, 33)), 545 + 20),
    "17 values, one in a byte": (drawn(17, (40, 30)), 1200 + 68),
    "256 values": (drawn(256, (64, 48)), 3072 + 1024),
    "a codebook for every row": (drawn(8, (6, 16, 3, 3), lines=6), 432 + 192),
    "a codebook for every column": (np.ascontiguousarray(drawn(8, (12, 300), lines=12).T), 1800 + 384),
}


@pytest.mark.parametrize("weight", [case[0] for case in CASES.values()], ids=list(CASES))
def test_the_file_computes_the_same_bits(weight: np.ndarray) -> None:
    """Outputs are equal to the bit, kernels and counts are the same, and the file is as small as the numbers are."""
    plain = product(weight)
    stored = next(size for one, size in CASES.values() if one is weight)
    data, (book,) = with_codebooks(plain)
    shape = (3, len(weight)) if weight.ndim == 2 else (3, weight.shape[1], 6, 6)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    assert np.array_equal(outputs(data, x), outputs(plain, x))
    assert kernels(data) == kernels(plain)
    assert count_parameters(data) == count_parameters(plain) == (weight.size, np.count_nonzero(weight))
    assert count_macs(data, torch.from_numpy(x)) == count_macs(plain, torch.from_numpy(x))
    assert stored < len(data) < stored + 1200
    gathered = np.take_along_axis(book.values, book.numbers.astype(np.int64), axis=book.axis)
    assert np.array_equal(gathered.reshape(book.shape), weight)


@pytest.mark.parametrize(
    "weight",
    [drawn(257, (64, 48)), np.random.default_rng(0).normal(size=(8, 40)).astype(np.float32), drawn(2, (3, 4))],
    ids=["257 values", "all different", "12 weights, smaller than the nodes"],
)
def test_what_would_not_be_smaller_stays(weight: np.ndarray) -> None:
    """The very bytes come back, and no codebook."""
    plain = product(weight)
    assert with_codebooks(plain) == (plain, ())


def test_zeros_are_counted_as_before() -> None:
    """Zeros among the values are zeros of the file, of both signs, and stay what they are."""
    weight = drawn(4, (40, 40))
    weight[:20, ::2], weight[20:, ::2] = 0.0, -0.0
    data, _ = with_codebooks(product(weight))
    assert count_parameters(data) == (1600, 800)


def test_a_clustered_network_ships_as_codebooks(tmp_path) -> None:
    """Sixteen values a layer: the exported network becomes less than a fifth, and computes the same bits."""
    workload = make_workload(TinyResNet(width=32).eval(), train=32, test=16)
    model = ClusterWeights(clusters=16).apply(copy.deepcopy(workload.model), workload, Context(progress=False)).eval()
    plain = export_onnx(model, workload).onnx_bytes
    context = Context(progress=False)
    stored = StoreCodebooks().apply(model, workload, context)
    assert len(stored.onnx_bytes) < len(plain) / 4
    images = workload.example_inputs
    name = open_session(plain).get_inputs()[0].name
    wanted = open_session(plain).run(None, {name: images.numpy()})[0]
    assert np.array_equal(stored(images).numpy(), wanted)
    assert count_parameters(stored.onnx_bytes) == count_parameters(plain)
    told = context.details["codebooks_stored"]
    assert len(told) > 10
    assert all(entry["values"] < entry["of"] for entry in told)
    assert onnx.load_from_string(stored.onnx_bytes).opset_import == onnx.load_from_string(plain).opset_import


def test_free_weights_are_refused() -> None:
    """A network without shared values has nothing to store: the way out is named."""
    workload = make_workload(TinyResNet().eval(), train=32, test=16)
    with pytest.raises(StageError, match="too many different values; put cluster_weights before it"):
        StoreCodebooks().apply(copy.deepcopy(workload.model), workload, Context(progress=False))


def test_codebooks_of_channels_of_linear_layers() -> None:
    """A linear layer is stored by its outputs, whichever way the exporter lays it."""
    workload = make_workload(nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 4)).eval())
    stage = ClusterWeights(clusters=4, granularity=PerChannel())
    model = stage.apply(copy.deepcopy(workload.model), workload, Context(progress=False)).eval()
    stored = StoreCodebooks().apply(model, workload, Context(progress=False))
    plain = export_onnx(model, workload).onnx_bytes
    assert len(stored.onnx_bytes) < len(plain) / 4
    with torch.no_grad():
        torch.testing.assert_close(stored(workload.example_inputs), model(workload.example_inputs))
