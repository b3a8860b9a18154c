"""What the rounding of single signals does to the outputs, against numpy and against the graphs that are placed."""

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from compressor.quantization.choice.harm import Rounded, worst_share
from compressor.quantization.placement.forms import Static
from compressor.quantization.post_training import Prepared, prepare
from compressor.quantization.ranges.calibration import sample_slices
from compressor.quantization.ranges.choice import grid_numbers, rounding_graph
from compressor.runtime import open_session
from compressor.stage import Context
from compressor.stages import Quantize
from compressor.workload import Workload
from workbench.onnx_graphs import calibrated_on, graph_of


def _cubed() -> tuple[bytes, Workload]:
    """A layer, its cube, and another layer: the cube reaches far for the sake of a few values."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(16, 16)) / 4 for name in ("first", "second")}
    nodes = [
        helper.make_node("MatMul", ["input", "first"], ["product"], "one"),
        helper.make_node("Mul", ["product", "product"], ["square"], "squared"),
        helper.make_node("Mul", ["square", "product"], ["cube"], "cubed"),
        helper.make_node("Tanh", ["cube"], ["bounded"], "bounds"),
        helper.make_node("MatMul", ["bounded", "second"], ["output"], "two"),
    ]
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    inputs[:2] *= 6
    return graph_of(nodes, weights, ["batch", 16], ["batch", 16]).SerializeToString(), calibrated_on(inputs)


def _prepared(exported: bytes, workload: Workload) -> Prepared:
    return prepare(exported, Quantize(form=Static()), workload, Context(progress=False))


def _rounded(prepared: Prepared, workload: Workload) -> Rounded:
    return Rounded(prepared, sample_slices(prepared.graph, workload.calibration, size=64, samples=64))


def test_a_signal_alone_is_what_numpy_gives() -> None:
    """Rounding the cube, or one layer's weights, alone: the noise of the output is that of numpy's own rounding."""
    exported, workload = _cubed()
    prepared = _prepared(exported, workload)
    rounded = _rounded(prepared, workload)
    (feeds,) = rounded.slices
    tensors = {each.name: numpy_helper.to_array(each) for each in prepared.graph.graph.initializer}
    first, second = (next(value for name, value in tensors.items() if part in name) for part in ("first", "second"))
    cube = (feeds["input"] @ first) ** 3
    exact = np.tanh(cube) @ second
    power = np.square(exact - exact.mean()).sum()

    grid = rounded.grids["cube"]
    integers = np.clip(np.round(cube / float(grid.scale)) + int(grid.zero_point), 0, 255)
    by_hand = np.tanh((integers - int(grid.zero_point)) * float(grid.scale)) @ second
    assert rounded.noise(["cube"]) == pytest.approx(np.square(by_hand - exact).sum() / power, rel=1e-3)

    (name,) = [name for name in rounded.weights if "second" in name]
    by_hand = np.tanh(cube) @ prepared.weights[name].values().numpy()
    assert rounded.noise([name]) == pytest.approx(np.square(by_hand - exact).sum() / power, rel=1e-3)
    assert rounded.noise([]) < 1e-12


def test_all_signals_together_are_the_placed_graph() -> None:
    """With everything on its grid the session computes what the placed graph does, up to rounding at halves."""
    exported, workload = _cubed()
    prepared = _prepared(exported, workload)
    rounded = _rounded(prepared, workload)
    placed = onnx.reference.ReferenceEvaluator(prepared.place())
    found = worst_share(rounded.expected, [placed.run(None, feeds) for feeds in rounded.slices])
    assert rounded.noise(rounded.order) == pytest.approx(found, rel=0.02)


def test_groups_find_the_signal_that_does_harm_in_fewer_runs() -> None:
    """The cube stands first, with the noise that it has by itself; what is below the floor shares its group's."""
    exported, workload = _cubed()
    prepared = _prepared(exported, workload)
    rounded = _rounded(prepared, workload)
    alone = {name: rounded.noise([name]) for name in rounded.order}
    worst = max(alone, key=alone.__getitem__)
    whole, rounded.runs = rounded.noise(rounded.order), 0
    found = rounded.harms(alone[worst] / 2, whole)
    assert next(iter(found)) == worst == "cube"
    assert found[worst] == alone[worst]
    assert set(found) == set(rounded.order)
    assert rounded.runs < 2 * len(rounded.order) - 2


def test_the_loudest_groups_are_halved_first_where_runs_are_few() -> None:
    """With runs for three halvings the cube stands alone; what they do not reach shares its group's noise."""
    exported, workload = _cubed()
    rounded = _rounded(_prepared(exported, workload), workload)
    whole, rounded.runs = rounded.noise(rounded.order), 0
    found = rounded.harms(1e-30, whole, runs=6)
    assert rounded.runs <= 6
    assert set(found) == set(rounded.order)
    assert next(iter(found)) == "cube"
    assert found["cube"] == rounded.noise(["cube"])
    assert len({*found.values()}) < len(found)
    assert sum(found.values()) == pytest.approx(sum(rounded.harms(1e-30, whole).values()), rel=0.5)


def test_what_is_not_rounded_stays_as_it_is() -> None:
    """To the bit, whatever numbers stand for its grid, and infinities as well."""
    nodes = [helper.make_node("Mul", ["input", "two"], ["double"]), helper.make_node("Neg", ["double"], ["output"])]
    graph = graph_of(nodes, {"two": np.float32(2)}, ["batch", 3], ["batch", 3])
    session = open_session(rounding_graph(graph, {"input": "a", "double": "b"}).SerializeToString())
    x = np.array([[0.1, np.inf, -3e-7]], dtype=np.float32)
    (kept,) = session.run(None, {"input": x, **grid_numbers("a"), **grid_numbers("b")})
    assert np.array_equal(kept, -2 * x)
    (rounded,) = session.run(None, {"input": x, **grid_numbers("a"), **grid_numbers("b", (0.5, -1, 1))})
    assert rounded.tolist() == [[-0.0, -0.5, 0.0]]


def test_the_output_that_loses_most_decides() -> None:
    """Shares by hand: the second output loses a quarter of its variance, whatever its offset and its size."""
    big, small = np.array([[100.0, -100.0]], dtype=np.float32), np.array([[5.01, 4.99]], dtype=np.float32)
    off = np.array([[5.015, 4.985]], dtype=np.float32)
    assert worst_share([[big, small]], [[big, small]]) == 0
    assert worst_share([[big, small]], [[big + 10, off]]) == pytest.approx(0.25, rel=1e-2)
    assert worst_share([[big, small]], [[big, np.full_like(small, np.nan)]]) == float("inf")


def test_constants_and_whole_numbers_have_no_variance() -> None:
    """A constant output is compared with its own size; integers and sizes that vary are nobody's noise."""
    ones, numbers = np.ones((1, 4), dtype=np.float32), np.arange(4)
    assert worst_share([[ones, numbers]], [[ones * 1.1, numbers + 1]]) == pytest.approx(0.01, rel=1e-3)
    assert worst_share([[ones]], [[np.ones((1, 3), dtype=np.float32)]]) == 0
    masked = np.array([[-np.inf, 1.0, 2.0]], dtype=np.float32)
    assert worst_share([[masked]], [[masked]]) == 0
