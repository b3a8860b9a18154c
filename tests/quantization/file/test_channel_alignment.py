"""Integer convolutions of any width run in the kernels for aligned ones, with the same bits."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compressor.quantization.file.channel_alignment import aligned
from compressor.quantization.file.compact_graph import compact_graph, kernels, serialize
from compressor.quantization.grids.activations import activation_grids
from compressor.quantization.grids.schemes import Asymmetric, Symmetric
from compressor.quantization.grids.weights import nearest_grids
from compressor.quantization.other_cpus.cpu_emulation import SaturatingModel
from compressor.quantization.other_cpus.pair_safety import repaired_grids, safe_grids
from compressor.quantization.placement.policy import followers
from compressor.quantization.placement.static import place_static, tensors_to_observe, with_shared
from compressor.runtime import open_session
from compressor.target import Isa
from workbench.onnx_graphs import graph_of

RANGE = (-2.0, 3.0)


def _network(widths: tuple[int, int, int], *, image: int = 3) -> onnx.ModelProto:
    """A stem, a residual block with a depthwise convolution, a global pool and a head."""
    stem, inner, last = widths
    generator = np.random.default_rng(0)
    shapes = {"stem": (stem, image, 3, 3), "one": (inner, stem, 3, 3), "deep": (inner, 1, 3, 3)}
    shapes |= {"two": (stem, inner, 3, 3), "three": (last, stem, 1, 1), "head": (last, 10)}
    weights = {f"{name}.w": generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights |= {f"{name}.b": generator.normal(size=shapes[name][0]).astype(np.float32) for name in ("stem", "one")}
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["input", "stem.w", "stem.b"], ["a"], "stem", **same),
        helper.make_node("Relu", ["a"], ["b"], "stem.relu"),
        helper.make_node("Conv", ["b", "one.w", "one.b"], ["c"], "one", **same),
        helper.make_node("Relu", ["c"], ["d"], "one.relu"),
        helper.make_node("Conv", ["d", "deep.w"], ["e"], "deep", group=inner, **same),
        helper.make_node("Conv", ["e", "two.w"], ["f"], "two", **same),
        helper.make_node("Add", ["f", "b"], ["g"], "sum"),
        helper.make_node("Conv", ["g", "three.w"], ["h"], "three"),
        helper.make_node("GlobalAveragePool", ["h"], ["i"], "pool"),
        helper.make_node("Flatten", ["i"], ["j"], "flat"),
        helper.make_node("Gemm", ["j", "head.w"], ["output"], "head"),
    ]
    return onnx.shape_inference.infer_shapes(graph_of(nodes, weights, ["batch", image, 8, 8], ["batch", 10]))


def _placed(model: onnx.ModelProto, *, signed: bool = False, safe: bool = False) -> onnx.ModelProto:
    return aligned(_plain(model, signed=signed, safe=safe), Isa.X86_VNNI)


def _plain(model: onnx.ModelProto, *, signed: bool = False, safe: bool = False) -> onnx.ModelProto:
    static = {node.name for node in model.graph.node if node.op_type in {"Conv", "Gemm"}}
    nodes = {*static, *followers(model, static)}
    tensors, same = tensors_to_observe(model, nodes)
    ranges = with_shared({name: RANGE if name == "input" else (0.0, 9.0) for name in tensors}, same)
    grids = nearest_grids(model, dict.fromkeys(static, Symmetric()))
    if safe:
        grids = safe_grids(model, grids, static)
    return place_static(model, nodes, activation_grids(ranges, Asymmetric(), signed=signed), grids)


def _widths(model: onnx.ModelProto) -> dict[str, list[int]]:
    """{convolution: the dimensions of its integer weight}."""
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {node.name: sizes[sources[node.input[1]]] for node in model.graph.node if node.op_type in {"Conv", "Gemm"}}


def _images(channels: int = 3) -> dict[str, np.ndarray]:
    return {"input": np.random.default_rng(1).uniform(*RANGE, size=(5, channels, 8, 8)).astype(np.float32)}


def test_every_tensor_between_convolutions_is_filled_up() -> None:
    """Colours 3 become 4, 14 and 11 channels 16, 18 before the head 20; the file's outputs keep every bit."""
    model = _network((14, 11, 18))
    # Where pairs saturate the bits are others, because other weights are neighbours.
    placed = _placed(model, safe=True)
    assert _widths(placed) == {
        "stem": [16, 4, 3, 3],
        "one": [16, 16, 3, 3],
        "deep": [16, 1, 3, 3],
        "two": [16, 16, 3, 3],
        "three": [20, 16, 1, 1],
        "head": [20, 10],
    }
    plain = _plain(model, safe=True)
    assert _widths(plain)["one"] == [11, 14, 3, 3]
    outputs = [open_session(serialize(one)).run(None, _images())[0] for one in (placed, plain, compact_graph(placed))]
    assert np.ptp(outputs[0]) > 1
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    more = kernels(serialize(placed))
    more.subtract(kernels(serialize(plain)))
    assert +more == {"Pad": 1}


def test_aligned_networks_stay_as_they_are() -> None:
    """Widths that the kernels take need no channel and no Pad."""
    placed = _placed(_network((16, 32, 24), image=4))
    assert [shape[:2] for shape in _widths(placed).values()] == [
        [16, 4],
        [32, 16],
        [32, 1],
        [16, 32],
        [24, 16],
        [24, 10],
    ]
    assert "Pad" not in {node.op_type for node in placed.graph.node}


def test_signed_activations_keep_their_widths() -> None:
    """Arm's kernels were not measured: with int8 activations no channel is added."""
    placed = _placed(_network((14, 11, 18)), signed=True)
    assert [shape[:2] for shape in _widths(placed).values()] == [
        [14, 3],
        [11, 14],
        [11, 1],
        [14, 11],
        [18, 14],
        [18, 10],
    ]


def test_outputs_and_concatenations_keep_their_channels() -> None:
    """What the graph gives out, or an operator reads that counts channels, has as many as before."""
    generator = np.random.default_rng(0)
    weights = {
        name: generator.normal(size=shape).astype(np.float32)
        for name, shape in {"a.w": (11, 4, 3, 3), "b.w": (11, 11, 3, 3), "c.w": (13, 22, 3, 3)}.items()
    }
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["input", "a.w"], ["a"], "a", **same),
        helper.make_node("Conv", ["a", "b.w"], ["b"], "b", **same),
        helper.make_node("Concat", ["a", "b"], ["both"], "both", axis=1),
        helper.make_node("Conv", ["both", "c.w"], ["output"], "c", **same),
    ]
    model = graph_of(nodes, weights, ["batch", 4, 8, 8], ["batch", 13, 8, 8])
    placed = _placed(onnx.shape_inference.infer_shapes(model))
    assert [shape[:2] for shape in _widths(placed).values()] == [[11, 4], [11, 11], [13, 22]]


def test_patches_are_not_padded() -> None:
    """Windows that do not overlap, as in a vision transformer's first layer, are read as fast with three channels."""
    weights = {"a.w": np.random.default_rng(0).normal(size=(16, 3, 4, 4)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["input", "a.w"], ["output"], "a", strides=[4, 4])]
    model = onnx.shape_inference.infer_shapes(graph_of(nodes, weights, ["batch", 3, 8, 8], ["batch", 16, 2, 2]))
    assert _widths(_placed(model)) == {"a": [16, 3, 4, 4]}


def test_pairs_are_safe_with_the_added_channel() -> None:
    """With a fourth colour other weights are neighbours: no pair of the file may saturate, and the bits are VNNI's."""
    model = _network((16, 16, 16))
    stem = next(tensor for tensor in model.graph.initializer if tensor.name == "stem.w")
    weights = np.zeros((16, 3, 3, 3), np.float32)
    # Channels 0 and 1 of the second position: neighbours in fours (4, 5), not in threes (3, 4).
    weights[:, 0, 0, 1] = weights[:, 1, 0, 1] = 1
    stem.CopyFrom(numpy_helper.from_array(weights, "stem.w"))
    data = serialize(_placed(model, safe=True))
    emulated = SaturatingModel(data)
    assert not any(seen.risky_pairs for seen in emulated.saturation.values())
    np.testing.assert_array_equal(emulated.run(_images())[0], open_session(data).run(None, _images())[0])
    unsafe = SaturatingModel(serialize(_placed(model)))
    assert sum(seen.risky_pairs for seen in unsafe.saturation.values()) >= 16


def test_repair_lowers_the_pairs_of_both_layouts() -> None:
    """Learned rounding may lift a pair that only the padded layout has: 127 + 127 become 64 + 64."""
    weights = np.zeros((16, 3, 1, 2), np.float32)
    weights[:, 0, 0, 1] = weights[:, 1, 0, 1] = 100
    weights[0, 2, 0, 0] = 127
    nodes = [helper.make_node("Conv", ["input", "a.w"], ["output"], "a")]
    model = graph_of(nodes, {"a.w": weights}, ["batch", 3, 8, 8], ["batch", 16, 8, 7])
    grids = nearest_grids(model, {"a": Symmetric()}, weight_range="minmax")
    repaired = repaired_grids(model, grids, {"a"})["a.w"].integers
    # Channel 0 holds 127 (its largest) and 100, 100 in steps of 1; in the others 100 is the largest: 127 and 127.
    assert repaired[1, :2, 0, 1].tolist() == [64, 64]
    assert int(repaired[0, 0, 0, 1] + repaired[0, 1, 0, 1]) == 128
