"""Ranges from a stream of batches."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compressor.quantization.calibration import MinMax, Observed, Percentile, observe_tensors
from compressor.stage import StageError

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


def test_min_max_is_the_whole_range() -> None:
    """One outlier decides."""
    assert MinMax().range_of(_observed([1.0, 2.0], [-7.5])) == (-7.5, 2.0)


def test_percentile_cuts_outliers() -> None:
    """Of 10000 values in [0, 1) and one at 100, 99.9 % lie below about 1."""
    values = (np.arange(10000) / 10000).astype(np.float32)
    low, high = Percentile(percent=99.9).range_of(_observed(values, [100.0]))
    assert low == 0
    # Bins are 128 / 4096 = 0.03125 wide.
    assert 0.99 <= high <= 1.04


def test_percentile_of_everything_is_min_max() -> None:
    """100 % cuts nothing."""
    seen = _observed([-1.0, 0.5, 3.25])
    assert Percentile(percent=100).range_of(seen) == MinMax().range_of(seen)


def test_zeros_alone_give_an_empty_range() -> None:
    """A tensor that was always zero has the range [0, 0] under either method."""
    seen = _observed([0.0, 0.0], [0.0])
    assert MinMax().range_of(seen) == (0.0, 0.0)
    assert Percentile().range_of(seen) == (0.0, 0.0)


def test_memory_does_not_grow() -> None:
    """What is kept after a hundred batches has the size of what is kept after one."""
    seen = _observed(np.ones(10))
    size = seen.counts.nbytes
    for factor in range(100):
        seen.update(np.full(10, factor, dtype=np.float32))
    assert seen.counts.nbytes == size


def test_percent_given_as_a_fraction_is_refused_with_a_hint() -> None:
    """0.9999 is taken for what it means."""
    with pytest.raises(ValueError, match=r"did you mean 99\.99\?"):
        Percentile(percent=0.9999)


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
    with pytest.raises(StageError, match="tensor 'x' cannot be calibrated: it produced NaN"):
        observe_tensors(_relu_model(), ["x"], batches, binned=True)


def test_empty_calibration_data_is_refused() -> None:
    """No batch, no range: the message says what to give."""
    with pytest.raises(StageError, match="calibration data is empty"):
        observe_tensors(_relu_model(), ["x"], [], binned=True)
