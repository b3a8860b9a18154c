"""Ranges from a histogram: by hand, against other implementations, and what they refuse."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import HistogramCollector
from scipy.stats import entropy

from compressor.quantization.grids.schemes import (
    Asymmetric,
    PerTensor,
    Scheme,
    Symmetric,
    choose_affine,
    dequantize,
    quantize,
)
from compressor.quantization.ranges.costs import information_loss, squared_errors
from compressor.quantization.ranges.histogram import Observed
from compressor.quantization.ranges.methods import MSE, Auto, Entropy, Method, MinMax, MovingAverage, Percentile

UINT8, INT8 = Asymmetric(), Symmetric(granularity=PerTensor())
METHODS: tuple[Method, ...] = (MinMax(), Percentile(), Entropy(), MSE(), Auto())


def _observed(*batches: list[float] | npt.NDArray[np.float32]) -> Observed:
    seen = Observed()
    for batch in batches:
        seen.update(np.asarray(batch, dtype=np.float32))
    return seen


def _noise(values: npt.NDArray[np.float32], low: float, high: float, scheme: Scheme, *, signed: bool = False) -> float:
    scale, zero = choose_affine(torch.tensor(low), torch.tensor(high), scheme, signed=signed)
    tensor = torch.from_numpy(values)
    back = dequantize(quantize(tensor, scale, zero, bits=scheme.bits, signed=signed), scale, zero)
    return float((back.double() - tensor.double()).square().mean())


def test_min_max_is_the_whole_range() -> None:
    """One outlier decides."""
    assert MinMax().range_of(_observed([1.0, 2.0], [-7.5]), UINT8, signed=False) == (-7.5, 2.0)


def test_moving_average_weighs_samples_in_their_order() -> None:
    """With weight 0.5 the highs 4, 8, 2 average to 4, then 6, then 4; the lows 0, -4, 0 to 0, -2, -1."""
    seen = Observed(binned=False, averaging=0.5)
    for sample in ([0.0, 4.0], [-4.0, 8.0], [0.0, 2.0]):
        seen.update(np.array(sample, dtype=np.float32))
    assert MovingAverage(averaging=0.5).range_of(seen, UINT8, signed=False) == (-1.0, 4.0)


def test_moving_average_of_what_kept_none_is_refused() -> None:
    """Averages cannot be had from a histogram afterwards, and the error says what to do."""
    with pytest.raises(ValueError, match="observe with Observed"):
        MovingAverage().range_of(_observed([1.0]), UINT8, signed=False)


def test_percentile_cuts_outliers() -> None:
    """Of 10000 values in [0, 1) and one at 100, 99.9 % lie below about 1."""
    values = (np.arange(10000) / 10000).astype(np.float32)
    low, high = Percentile(percent=99.9).range_of(_observed(values, [100.0]), UINT8, signed=False)
    assert low == 0
    # Bins are 128 / 4096 = 0.03125 wide.
    assert 0.99 <= high <= 1.04


def test_percentile_of_everything_is_min_max() -> None:
    """100 % cuts nothing."""
    seen = _observed([-1.0, 0.5, 3.25])
    assert Percentile(percent=100).range_of(seen, UINT8, signed=False) == (-1.0, 3.25)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_zeros_alone_give_an_empty_range(method: Method) -> None:
    """A tensor that was always zero has the range [0, 0] under every method."""
    assert method.range_of(_observed([0.0, 0.0], [0.0]), UINT8, signed=False) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@settings(max_examples=12)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30))
def test_no_method_leaves_what_was_seen(method: Method, values: list[float]) -> None:
    """Its low is not above its high, and both lie within the extremes or at zero."""
    for scheme in (UINT8, INT8):
        low, high = method.range_of(_observed(values), scheme, signed=False)
        assert min(*values, 0) <= low <= high <= max(*values, 0)


@pytest.mark.parametrize("scheme", [UINT8, INT8, Asymmetric(bits=4), Asymmetric(bits=16)], ids=repr)
@pytest.mark.parametrize("ends", [(-3.0, 4.0), (-0.5, 1.5), (0.0, 2.0)])
def test_expected_error_is_the_measured_one(scheme: Scheme, ends: tuple[float, float]) -> None:
    """The integral over the histogram agrees with quantizing the values themselves, cut tails and all."""
    values = np.random.default_rng(0).normal(0.3, 1, 200_000).astype(np.float32)
    counts, edges = _observed(values).histogram()
    expected = squared_errors(counts, edges, np.array([ends[0]]), np.array([ends[1]]), scheme, signed=False)[0]
    # Bins of 2**-9 are wider than a step of 16 bits: uniform within them is what normal values are not quite.
    assert expected == pytest.approx(_noise(values, *ends, scheme), rel=0.02)


def test_error_of_two_values_by_hand() -> None:
    """On a grid of step 1 up to 3, a bin [0, 1) errs by 1/12, a bin [4, 5) by the integral of (x - 3)**2, 7/3."""
    edges = np.arange(7.0)
    bits2 = Asymmetric(bits=2)
    for counts, error in (([1, 0, 0, 0, 0, 0], 1 / 12), ([0, 0, 0, 0, 1, 0], 7 / 3), ([1, 0, 0, 0, 1, 0], 29 / 24)):
        found = squared_errors(np.array(counts), edges, np.array([0.0]), np.array([3.0]), bits2, signed=False)
        assert found[0] == pytest.approx(error)


@pytest.mark.parametrize(
    ("scheme", "integers"), [(UINT8, "uint8"), (Asymmetric(bits=4), "uint4"), (Symmetric(bits=4), "int4")]
)
@pytest.mark.parametrize("shape", ["normal", "relu", "skewed"])
def test_mse_is_as_good_as_an_exhaustive_search(scheme: Scheme, integers: str, shape: str) -> None:
    """No range of a 2-D grid over both ends rounds the values with 2 % less squared error than the one found."""
    signed = integers == "int4"
    generator = np.random.default_rng(1)
    values = generator.laplace(size=20_000).astype(np.float32)
    values = {"normal": values, "relu": np.maximum(values, 0), "skewed": np.where(values > 0, values * 4, values)}[
        shape
    ]
    found = MSE().range_of(_observed(values), scheme, signed=signed)
    low, high = float(values.min()), float(values.max())
    searched = min(
        _noise(values, low * a, high * b, scheme, signed=signed)
        for a in np.linspace(0.1, 1, 19)
        for b in np.linspace(0.1, 1, 19)
    )
    assert _noise(values, *found, scheme, signed=signed) <= 1.02 * searched
    if scheme.bits == 4:
        assert found[1] < 0.9 * high, "at 4 bits the tail of a Laplace distribution does not pay"


def _reference_divergence(counts: npt.NDArray[np.int64], kept: int, levels: int) -> float:
    """NVIDIA's loops (pytorch-quantization, calib/histogram.py), with scipy's divergence."""
    bins = counts.astype(float)
    bins[0] = bins[1]
    space = np.linspace(0, kept, num=levels + 1)
    digitized = np.digitize(range(kept), space) - 1
    digitized[bins[:kept] == 0] = -1
    density = np.zeros(levels)
    for index, level in enumerate(digitized):
        if level != -1:
            density[level] += bins[index]
    for level, count in Counter(digitized.tolist()).items():
        if level != -1:
            density[level] /= count
    new = np.array([density[level] if level != -1 else 0.0 for level in digitized])
    reference = bins[:kept].copy()
    reference[-1] += bins[kept:].sum()
    return float(entropy(reference, new))


@pytest.mark.parametrize("kept", [128, 200, 256, 500, 1000])
def test_information_loss_is_that_of_nvidias_calibrator(kept: int) -> None:
    """The same divergence as its loops give, at thresholds that levels divide and that they do not."""
    values = np.abs(np.random.default_rng(2).laplace(size=100_000))
    counts, _ = np.histogram(values, bins=1000)
    assert information_loss(counts, kept, 128) == pytest.approx(_reference_divergence(counts, kept, 128), rel=1e-9)


def test_information_loss_by_hand() -> None:
    """Counts 2, 2, 6, 2 in two levels become 2, 2, 4, 4: 0.5 ln 1.5 + 1/6 ln 0.5 nats."""
    expected = 0.5 * np.log(1.5) + np.log(0.5) / 6
    assert information_loss(np.array([9, 2, 6, 2]), 4, 2) == pytest.approx(expected)


def test_entropy_is_near_onnx_runtimes() -> None:
    """With as many levels on both sides its search ends within a quarter: bins differ, and the minimum is flat."""
    values = np.random.default_rng(3).standard_t(3, size=50_000).astype(np.float32)
    values = np.concatenate([values, -values])
    collector = HistogramCollector("entropy", False, 2048, 256, 99.99, "same")
    collector.collect({"x": [values]})
    theirs = float(collector.get_entropy_threshold(collector.histogram_dict["x"], 256)[1])
    low, high = Entropy().range_of(_observed(values), INT8, signed=True)
    assert -low == high
    assert high == pytest.approx(theirs, rel=0.25)
    assert high < 0.5 * values.max(), "the tail of Student's t reaches far beyond what is kept"


def test_percentile_is_onnx_runtimes() -> None:
    """To the width of a bin, on both sides of a skewed distribution."""
    values = np.random.default_rng(4).gumbel(size=100_000).astype(np.float32)
    collector = HistogramCollector("percentile", False, 2048, 128, 99.9, "same")
    collector.collect({"x": [values]})
    theirs = collector.compute_percentile()["x"]
    low, high = Percentile(percent=99.9).range_of(_observed(values), UINT8, signed=False)
    width = 2 * float(np.abs(values).max()) / 2048
    assert low == pytest.approx(float(theirs[0]), abs=1.5 * width)
    assert high == pytest.approx(float(theirs[1]), abs=1.5 * width)


def test_entropy_keeps_everything_where_levels_abound() -> None:
    """With 16 bits there are more levels than bins: nothing is cut."""
    values = np.random.default_rng(5).laplace(size=10_000).astype(np.float32)
    seen = _observed(values)
    assert Entropy().range_of(seen, Asymmetric(bits=16), signed=False) == (seen.low, seen.high)


def test_auto_takes_the_candidate_of_least_error() -> None:
    """At 4 bits MSE's own range is the best of the five for a Laplace distribution; where all are equal, min-max."""
    values = np.random.default_rng(6).laplace(size=50_000).astype(np.float32)
    seen, bits4 = _observed(values), Asymmetric(bits=4)
    chosen = Auto().range_of(seen, bits4, signed=False)
    ranges = np.array([method.range_of(seen, bits4, signed=False) for method in Auto.candidates])
    errors = squared_errors(*seen.histogram(), ranges[:, 0], ranges[:, 1], bits4, signed=False, cut_weight=4)
    assert chosen == tuple(ranges[int(errors.argmin())])
    assert chosen != (seen.low, seen.high)
    constant = _observed([1.0] * 9)
    assert Auto().range_of(constant, UINT8, signed=False) == (1.0, 1.0)


def test_settings_out_of_range_are_refused() -> None:
    """Each says what it means, what it got, and for a fraction what was meant."""
    with pytest.raises(ValueError, match=r"did you mean 99\.99\?"):
        Percentile(percent=0.9999)
    with pytest.raises(ValueError, match="weight of each new sample, in \\(0, 1\\]; got 0"):
        MovingAverage(averaging=0)
    with pytest.raises(ValueError, match="at least 1; got 0; None runs all"):
        MSE(samples=0)
    with pytest.raises(ValueError, match="every candidate is run on, at least 1; got 0"):
        Auto(judged=0)


@pytest.mark.parametrize("method", [*METHODS, MovingAverage(averaging=0.1, samples=7)], ids=repr)
def test_methods_are_data(method: Method) -> None:
    """Each is made again from its own text."""
    assert eval(repr(method)) == method  # noqa: S307  # our own repr
