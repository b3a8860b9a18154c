"""The rules that keep or roll back, checked with numbers made by hand."""

import pytest

from compressor.budget import Budget, describe_drop, judge_drop, judge_gain, judge_values, unmet_goals
from compressor.estimate import Estimate
from compressor.metrics import Metric

ACCURACY, MSE = Metric.accuracy(), Metric.mse()


def test_a_file_that_is_slower_beyond_its_interval_is_refused():
    """0.8x [0.75, 0.85] of the speed is slower, however small the file."""
    verdict = judge_gain(Estimate(0.8, 0.75, 0.85), 50, 100)
    assert not verdict.keep
    assert verdict.reason.startswith("slower: 0.80x")
    assert verdict.reason.endswith("though the file is 2.00x smaller")
    assert "not_slower: false" in verdict.way_out
    assert judge_gain(Estimate(0.8, 0.75, 0.85), 100, 100).way_out == ""


def test_no_difference_in_time_is_paid_by_size_alone():
    """An interval around 1 claims nothing; a smaller file then earns the stage its place, an equal one does not."""
    assert judge_gain(Estimate(0.99, 0.95, 1.03), 50, 100).keep
    assert not judge_gain(Estimate(1.01, 0.97, 1.05), 100, 100).keep


def test_what_is_larger_than_the_given_file_is_not_called_smaller_alone():
    """A file of 20 bytes that takes 100 as it was read: 50 of them are half of that, and more than what was given."""
    verdict = judge_gain(Estimate(0.99, 0.95, 1.03), 50, 100, given_bytes=20)
    assert verdict.reason.startswith(
        "file 2.00x smaller than the given one as it was read, 2.50x larger than it is; no difference in time"
    )
    assert judge_gain(Estimate(0.99, 0.95, 1.03), 50, 100, given_bytes=60).reason.startswith("file 2.00x smaller; no")


def test_a_faster_file_pays():
    """2x [1.9, 2.1] is faster."""
    assert judge_gain(Estimate(2.0, 1.9, 2.1), 100, 100).keep


def test_drop_is_compared_with_the_budget_in_points():
    """1.2 points lost is more than one point, 0.9 is not."""
    assert not judge_drop(Estimate(0.012, 0.0, 0.02), 0.01, ACCURACY).keep
    assert judge_drop(Estimate(0.009, 0.0, 0.02), 0.01, ACCURACY).keep


def test_training_that_makes_things_worse_is_refused_only_when_significant():
    """A loss whose interval contains zero may be chance."""
    assert judge_values(Estimate(0.004, -0.001, 0.009), ACCURACY).keep
    assert not judge_values(Estimate(0.004, 0.001, 0.007), ACCURACY).keep


def test_words_follow_the_direction_of_the_metric():
    """Accuracy falls when it is worse, an error rises."""
    assert describe_drop(Estimate(0.01, 0.0, 0.02), ACCURACY) == "accuracy fell 1.0 points [0.0, 2.0]"
    assert describe_drop(Estimate(-0.01, -0.02, 0.0), ACCURACY) == "accuracy rose 1.0 points [0.0, 2.0]"
    assert describe_drop(Estimate(0.5, 0.4, 0.6), MSE) == "mse rose 50.0 % [40.0, 60.0]"


def test_goals_are_about_the_final_file():
    """Each missed goal is one sentence with the two numbers."""
    budget = Budget(min_speedup=3, max_size_bytes=100)
    assert unmet_goals(budget, speedup=3.5, latency_ms=1, size_bytes=90) == []
    missed = unmet_goals(budget, speedup=2.5, latency_ms=1, size_bytes=200)
    assert missed == [
        "speed-up 2.50x is below the wanted 3.00x",
        "size 200 bytes is above the wanted 100 bytes",
    ]


def test_percent_is_refused_with_a_hint():
    """50 instead of 0.5 is the usual slip."""
    with pytest.raises(ValueError, match=r"did you mean 0\.5"):
        Budget(max_drop=50)
