"""Intervals of scores, by hand and against the normal distribution, and paired drops."""

import math

import pytest
import torch

from compressor.estimate import Estimate
from compressor.intervals import holm, mcnemar, mean_over_folds, paired_drop, score_estimate
from compressor.metrics import Metric

pytestmark = pytest.mark.usefixtures("resampled_in_full")


def test_wilson_interval_by_hand() -> None:
    """8 of 10 right: Wilson's interval is [0.4902, 0.9433]."""
    estimate = score_estimate(torch.tensor([1.0] * 8 + [0.0] * 2), Metric.accuracy())
    assert estimate.value == pytest.approx(0.8)
    assert (estimate.low, estimate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_wilson_interval_at_the_ends() -> None:
    """All of 20 right does not prove perfection: the interval goes down to 0.8389, and up to 1."""
    estimate = score_estimate(torch.ones(20), Metric.accuracy())
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(0.8389, abs=1e-4)


@pytest.mark.parametrize("count", [300, 3000])
def test_bootstrap_of_a_mean_is_near_the_normal_interval(count: int) -> None:
    """The interval of a mean is about value +- 1.96 s / sqrt(n), whatever the chunks of resamples."""
    rows = torch.randn(count, generator=torch.Generator().manual_seed(1)).abs()
    estimate = score_estimate(rows, Metric.mae())
    half = 1.96 * float(rows.double().std()) / math.sqrt(count)
    assert estimate.value == pytest.approx(float(rows.mean()))
    assert estimate.low == pytest.approx(estimate.value - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(estimate.value + half, abs=0.15 * half)


def test_bootstrap_repeats_with_its_seed() -> None:
    """The same seed gives the same interval; another seed another one."""
    rows = torch.rand(50)
    first, again, other = (score_estimate(rows, Metric.mse(), seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_bootstrap_follows_the_metrics_own_aggregate() -> None:
    """Macro-F1 is no mean of rows: with 1 of 2 right in each of two classes it is 0.5, inside its interval."""
    rows = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]] * 10)
    estimate = score_estimate(rows, Metric.macro_f1())
    assert estimate.value == pytest.approx(0.5)
    assert 0.3 < estimate.low < 0.5 < estimate.high < 0.7


def test_paired_drop_is_tighter_than_two_intervals() -> None:
    """90 and 88 right of 100, differing in two samples only: the drop is 0.02, and surely below 0.06."""
    reference = torch.tensor([1.0] * 90 + [0.0] * 10)
    rows = reference.clone()
    rows[:2] = 0
    drop = paired_drop(rows, reference, Metric.accuracy())
    assert drop.value == pytest.approx(0.02)
    assert drop.low == pytest.approx(0.0)
    assert 0.03 <= drop.high < 0.06


def test_paired_drop_of_equal_rows_is_zero_without_a_resample(monkeypatch) -> None:
    """Stages that change nothing are asked about often; what differs in one sample is resampled."""
    monkeypatch.setattr("compressor.intervals.resampled", None)
    rows = torch.randn(50, 3)
    assert paired_drop(rows, rows.clone(), Metric.mse()) == Estimate(0.0, 0.0, 0.0)
    with pytest.raises(TypeError):
        paired_drop(rows, rows + torch.eye(50)[:, :3], Metric.mse())


def test_paired_drop_is_relative_for_unbounded_metrics() -> None:
    """An error of 3 after 2 is a drop of one half, exactly so when every sample grew by half."""
    drop = paired_drop(torch.full((10,), 3.0), torch.full((10,), 2.0), Metric.mse())
    assert (drop.value, drop.low, drop.high) == (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.5))


def test_paired_drop_needs_the_same_samples() -> None:
    """Rows of different data cannot be paired."""
    with pytest.raises(ValueError, match="got 3 rows against 4"):
        paired_drop(torch.ones(3), torch.ones(4), Metric.accuracy())


def test_nan_outputs_are_refused() -> None:
    """A model that gives NaN has no score."""
    with pytest.raises(ValueError, match="NaN or infinities"):
        score_estimate(torch.tensor([1.0, math.nan]), Metric.mse())


def test_the_mean_over_folds_by_hand() -> None:
    """Nadeau and Bengio 2003: of 1, 2, 3, 4, 5 with 20 tested beside 80 the variance is (1/5 + 1/4) 2.5 = 1.125.

    The 97.5 % quantile of Student's t with 4 degrees of freedom is 2.776445: 3 +- 2.776445 * 1.060660.
    """
    found = mean_over_folds([1.0, 2.0, 3.0, 4.0, 5.0], tested=20, rest=80)
    assert found.value == 3.0
    assert found.high - 3 == pytest.approx(2.944864, abs=1e-6)
    assert 3 - found.low == pytest.approx(2.944864, abs=1e-6)


def test_the_mean_over_folds_is_wider_than_of_independent_values() -> None:
    """Ten times two-fold: of independent values the half-width is 2.093024 sqrt(S^2 / 20); it is sqrt(21) wider."""
    values = [0.0, 1.0] * 10
    plain = 2.093024 * (sum((value - 0.5) ** 2 for value in values) / 19 / 20) ** 0.5
    found = mean_over_folds(values, tested=50, rest=50)
    assert found.high - found.value == pytest.approx(plain * 21**0.5, rel=1e-6)


def test_equal_folds_have_no_width_and_one_fold_no_interval() -> None:
    """Without scatter there is none to tell; one value has none."""
    assert mean_over_folds([0.25, 0.25], tested=1, rest=1) == Estimate(0.25, 0.25, 0.25)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        mean_over_folds([0.25], tested=1, rest=1)


def test_mcnemar_by_hand() -> None:
    """8 lost against 1 won: 2 (1 + 9) / 2^9 = 0.0390625."""
    assert mcnemar(8, 1) == pytest.approx(0.0390625)
    assert mcnemar(5, 0) == pytest.approx(0.0625)
    assert (mcnemar(0, 0), mcnemar(3, 3)) == (1.0, 1.0)


def test_holm_by_hand() -> None:
    """0.01 x 4, then 0.02 x 3, 0.03 x 2 raised to it, 0.5 x 1; none is above 1."""
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]
