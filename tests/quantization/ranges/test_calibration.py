"""What is kept of a stream of batches, and how a graph runs over it."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compressor.errors import StageError
from compressor.quantization.grids.schemes import Asymmetric
from compressor.quantization.ranges import calibration
from compressor.quantization.ranges.calibration import Auto, MinMax, MovingAverage, Observed, calibrate, observe_tensors

any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _observed(*batches: list[float] | np.ndarray) -> Observed:
    seen = Observed()
    for batch in batches:
        seen.update(np.asarray(batch, dtype=np.float32))
    return seen


@given(values=st.lists(any_float, min_size=1, max_size=40), data=st.data())
def test_any_split_into_batches_gives_the_same_bits(values: list[float], data: st.DataObject) -> None:
    """Counts, range and extremes depend on the values alone, not on how they came: also over 80 orders of magnitude."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=5)))
    parts = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True)]
    whole, split = _observed(values), _observed(*data.draw(st.permutations(parts)))
    assert (whole.low, whole.high, whole.exponent) == (split.low, split.high, split.exponent)
    for one, other in zip(whole.histogram(), split.histogram(), strict=True):
        assert np.array_equal(one, other)


def test_histogram_counts_every_value_in_its_bin() -> None:
    """Bins are half open: of -1, 0, 0.25 and 3 each lies at or above the lower edge of its bin and below the upper."""
    seen = _observed([0.25], [0.0, 0.0], [3.0, -1.0])
    counts, edges = seen.histogram()
    assert counts.sum() == 5
    assert (edges[0], edges[-1]) == (-4.0, 4.0)
    filled = {float(edges[index]): int(counts[index]) for index in np.flatnonzero(counts)}
    assert filled == {-1.0: 1, 0.0: 2, 0.25: 1, 3.0: 1}


def test_memory_does_not_grow() -> None:
    """What is kept after a hundred batches has the size of what is kept after one."""
    seen = _observed(np.ones(10))
    size = seen.counts.nbytes
    for factor in range(100):
        seen.update(np.full(10, factor, dtype=np.float32))
    assert seen.counts.nbytes == size


def _relu_model() -> onnx.ModelProto:
    shape = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Relu", ["y"], ["output"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_inputs_intermediates_and_outputs_are_observed() -> None:
    """The range of each named tensor over all batches, whatever its place in the graph; samples are counted."""
    batches = [(torch.tensor([[1.0, -2.0]]), torch.zeros(1)), (torch.tensor([[5.0, 0.0], [1.0, 1.0]]), torch.zeros(2))]
    observed, samples = observe_tensors(_relu_model(), ["x", "y", "output"], batches, binned=False)
    assert samples == 3
    assert {name: (seen.low, seen.high) for name, seen in observed.items()} == {
        "x": (-2.0, 5.0),
        "y": (-5.0, 2.0),
        "output": (0.0, 2.0),
    }


def test_nan_in_calibration_names_the_tensor() -> None:
    """NaN is refused with the name of the tensor that had it."""
    batches = [(torch.tensor([[float("nan"), 1.0]]), torch.zeros(1))]
    for needed in (None, {"x"}):
        with pytest.raises(StageError, match="tensor 'x' cannot be calibrated: it produced NaN"):
            calibrate(_relu_model(), ["x"], batches, MinMax(), Asymmetric(), signed=False, needed=needed)


@pytest.mark.parametrize(("value", "told"), [("nan", "NaN"), ("inf", "infinite values")])
def test_a_tensor_that_nothing_needs_has_no_range_and_says_why(value: str, told: str) -> None:
    """The others have theirs, and no warning comes of what is not a number."""
    batches = [(torch.tensor([[float(value), 1.0], [2.0, -3.0]]), torch.zeros(2))]
    found = calibrate(_relu_model(), ["x", "y"], batches, MinMax(), Asymmetric(), signed=False, needed=())
    assert found.ranges == {}
    assert found.note.without_range == dict.fromkeys(("x", "y"), f"it holds {told}, which no grid has")
    seen, _ = observe_tensors(_relu_model(), ["x"], batches, binned=True)
    assert (seen["x"].low, seen["x"].high, seen["x"].histogram()[0].sum()) == (-3.0, 2.0, 3)


def test_empty_calibration_data_is_refused() -> None:
    """No batch, no range: the message says what to give."""
    with pytest.raises(StageError, match="calibration data is empty"):
        observe_tensors(_relu_model(), ["x"], [], binned=True)


Batch = tuple[torch.Tensor, torch.Tensor]


def _batches(values: torch.Tensor, *sizes: int) -> list[Batch]:
    """`values` (samples, 2) in batches of the given sizes, over and over."""
    batches, start = [], 0
    while start < len(values):
        size = sizes[len(batches) % len(sizes)]
        batches.append((values[start : start + size], torch.zeros(len(values[start : start + size]))))
        start += size
    return batches


@pytest.mark.parametrize("averaging", [None, 0.1])
def test_a_graph_sees_the_same_slices_whatever_the_batches(averaging: float | None) -> None:
    """Batches of 1, of 7 and 3 in turns, and of all: the same slices reach the session, and all numbers are equal."""
    values = torch.randn(50, 2)
    kept = []
    for sizes in ((1,), (7, 3), (50,)):
        observed, samples = observe_tensors(
            _relu_model(), ["x", "y", "output"], _batches(values, *sizes), binned=True, averaging=averaging
        )
        assert samples == 50
        kept.append([(seen.low, seen.high, repr(seen.average_low), seen.counts.tolist()) for seen in observed.values()])
    assert kept[0] == kept[1] == kept[2]


def test_slices_cross_batches_but_not_changes_of_shape() -> None:
    """Slices of 4 from batches of 3, 3 and a wider 5: 4, 2 (the shape changes), 4, 1."""
    batches = [{"x": np.full((count, width), count)} for count, width in ((3, 2), (3, 2), (5, 7))]
    slices = calibration._slices(batches, 4, 100)
    assert [part["x"].shape for part in slices] == [(4, 2), (2, 2), (4, 7), (1, 7)]


def test_only_the_first_samples_are_run() -> None:
    """samples=5 of batches of 2 takes two batches and a half: the ten of the sixth sample are not seen."""
    values = torch.tensor([[1.0, 2.0]] * 5 + [[10.0, 10.0]] * 5)
    found = calibrate(
        _relu_model(), ["x"], _batches(values, 2), MinMax(samples=5), Asymmetric(), signed=False, threads=1
    )
    assert found.note.samples == 5
    assert found.ranges == {"x": (1.0, 2.0)}


def test_tensors_beyond_the_cap_are_observed_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of x, y and output takes 8 bytes each: with a cap of 17 there are two passes, with the same ranges."""
    fetched: list[list[str]] = []
    opened = calibration._probe
    monkeypatch.setattr(
        calibration, "_probe", lambda model, tensors: fetched.append(list(tensors)) or opened(model, tensors)
    )
    batches = _batches(torch.randn(20, 2), 5)
    capped, samples = observe_tensors(_relu_model(), ["x", "y", "output"], batches, binned=True, max_bytes=17)
    free, _ = observe_tensors(_relu_model(), ["x", "y", "output"], batches, binned=True)
    assert fetched == [["x", "y"], ["output"], ["x", "y", "output"]]
    assert samples == 20
    assert {name: (seen.low, seen.high) for name, seen in capped.items()} == {
        name: (seen.low, seen.high) for name, seen in free.items()
    }


def test_moving_average_of_a_graph_is_over_single_samples() -> None:
    """Highs of 1, 3 and 5 with weight 0.5 average to 1, 2, 3.5, though they come as one batch."""
    values = torch.tensor([[0.0, 1.0], [0.0, 3.0], [0.0, 5.0]])
    method = MovingAverage(averaging=0.5)
    found = calibrate(_relu_model(), ["x"], _batches(values, 3), method, Asymmetric(), signed=False, threads=1)
    assert found.ranges == {"x": (0.0, 3.5)}


def test_auto_judges_by_the_outputs() -> None:
    """The error that is reported for min-max is that of rounding x and y in numpy; the least of all is taken."""
    values = torch.randn(64, 2)
    scheme = Asymmetric(bits=4)
    found = calibrate(_relu_model(), ["x", "y"], _batches(values, 16), Auto(), scheme, signed=False, threads=1)
    errors = found.note.output_error
    assert errors[found.note.chosen] == min(errors.values())
    assert found.note.samples == 64

    def rounded(x: np.ndarray) -> np.ndarray:
        scale = np.float32((x.max() - x.min()) / 15)
        zero = np.round(-x.min() / scale)
        return (np.clip(np.round(x / scale) + zero, 0, 15) - zero) * scale

    x = values.numpy()
    expected = np.maximum(-x, 0)
    # y takes the range of -x, not that of the rounded x.
    low, high = float((-x).min()), float((-x).max())
    scale = np.float32((high - low) / 15)
    zero = np.round(-low / scale)
    y = (np.clip(np.round(-rounded(x) / scale) + zero, 0, 15) - zero) * scale
    error = np.square(np.maximum(y, 0) - expected).sum() / np.square(expected).sum()
    assert errors["MinMax(samples=None)"] == pytest.approx(error, rel=1e-3)


def test_tensors_without_elements_leave_the_range_of_the_others() -> None:
    """A selection that picks nothing in some batch has no values there, and those of the other batches count."""
    graph = helper.make_graph(
        [
            helper.make_node("Greater", ["x", "zero"], ["picked"]),
            helper.make_node("Compress", ["x", "picked"], ["output"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["m"])],
        [helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    batches = [(torch.full((64,), value), torch.zeros(64)) for value in (-1.0, 3.0, -2.0)]
    observed, samples = observe_tensors(model, ["x", "output"], batches, binned=True)
    assert samples == 192
    assert (observed["output"].low, observed["output"].high) == (3.0, 3.0)
    nothing, _ = observe_tensors(model, ["output"], batches[:1], binned=True)
    assert nothing["output"].high < nothing["output"].low or not nothing["output"].counts.any()
