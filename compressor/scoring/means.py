"""Scores that are means of rows."""

from torch import Tensor


def mean_of_asked(values: Tensor) -> float:
    """The mean of rows without those that are NaN: samples of which nothing was asked."""
    return float(values.double().nanmean())
