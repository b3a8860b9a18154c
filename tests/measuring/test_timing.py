import numpy as np
import pytest
import torch

from compressor.estimate import Estimate
from compressor.measuring.timing import _exp_interval, _interleave, time_interleaved
from workbench.onnx_files import convolutions, scaled


def test_interval_is_students() -> None:
    """Logarithms -1, 0, 1 have mean 0, standard error 1/sqrt(3), and t of 2 degrees of freedom is 4.303."""
    estimate = _exp_interval(np.array([-1.0, 0.0, 1.0]))
    half = 4.302653 / 3**0.5
    assert estimate.value == pytest.approx(1.0)
    assert np.log([estimate.low, estimate.high]) == pytest.approx([-half, half], rel=1e-5)


def test_interval_never_pretends_more_than_the_resolution() -> None:
    """Seven repeats that agree to the last bit still leave half a percent of doubt."""
    estimate = _exp_interval(np.zeros(7), floor=0.002)
    assert estimate.high == pytest.approx(np.exp(2.446912 * 0.002), rel=1e-6)
    assert not estimate.excludes(1.004)


def test_short_calls_end_when_enough_blocks_have_run() -> None:
    """Of sixty seconds none is waited for, and a budget that is over leaves two blocks of each file all the same."""
    calls = (lambda: None, lambda: None)
    assert _interleave(calls, [1e-3, 1e-3], 60.0, first=0, most=6).shape == (2, 6)
    assert _interleave(calls, [1e-3, 1e-3], 0.0, first=1, most=6).shape == (2, 2)


@pytest.mark.usefixtures("own_seconds")
def test_a_faster_file_is_seen_to_be_faster() -> None:
    """A quarter of the convolutions is between 2 and 8 times faster, and the interval excludes 1."""
    timing = time_interleaved(convolutions(2), convolutions(8), torch.randn(1, 16, 24, 24), seconds=0.7)
    assert timing.speedup.excludes(1.0)
    assert 2 < timing.speedup.value < 8
    assert timing.reference_ms.value > timing.candidate_ms.value > 0


@pytest.mark.usefixtures("own_seconds")
def test_the_same_file_is_as_fast_as_itself() -> None:
    """A/A stays near 1, by its value or by admitting how little it knows."""
    file = convolutions(3)
    speedup = time_interleaved(file, file, torch.randn(1, 16, 24, 24), seconds=0.7, seed=1).speedup
    assert 0.8 < speedup.value < 1.25
    # Twice the interval is exceeded in some 0.1 % of runs.
    assert abs(np.log(speedup.value)) < 2 * np.log(speedup.high / speedup.value)


def test_timing_refuses_too_little() -> None:
    """Two repeats have no interval, and no time measures nothing."""
    with pytest.raises(ValueError, match="at least 3"):
        time_interleaved(scaled(1.0), scaled(1.0), torch.ones(1, 2), repeats=2)
    with pytest.raises(ValueError, match="seconds is the time to spend, above 0; got 0"):
        time_interleaved(scaled(1.0), scaled(1.0), torch.ones(1, 2), seconds=0)


def test_estimates_hold_their_value() -> None:
    """Every estimate of a timing lies inside its own interval."""
    timing = time_interleaved(scaled(1.0), scaled(2.0), torch.ones(4, 2), seconds=0.2, repeats=3, threads=2)
    for estimate in (timing.reference_ms, timing.candidate_ms, timing.speedup):
        assert isinstance(estimate, Estimate)
        assert estimate.low <= estimate.value <= estimate.high
