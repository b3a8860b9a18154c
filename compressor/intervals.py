"""Scores of samples with their 95 % intervals, and the paired drop between two models on the same samples.

Wilson 1927 for proportions; the bootstrap of Efron and Tibshirani 1993 otherwise, paired where two are compared. Means
over the folds of a cross-validation have the interval of Nadeau and Bengio 2003.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.estimate import Estimate
from compressor.metrics import Metric
from compressor.scoring.means import mean_of_asked

_RESAMPLES = 2000
# Of rows of so many numbers, sums of many channels, whose scores take a while.
_FEW_RESAMPLES, _MANY_NUMBERS = 400, 50_000
# The two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054


def score_estimate(rows: Tensor, metric: Metric, *, seed: int = 0) -> Estimate:
    """The score of the samples with its 95 % interval: Wilson's for a proportion, percentile bootstrap otherwise.

    Wilson 1927, eq. for the score interval; Efron and Tibshirani 1993, sec. 13.3, with 2000 resamples of the samples.
    """
    value = _finite(metric.aggregate(rows), metric)
    asked = rows[~rows.isnan()] if metric.aggregate is mean_of_asked else rows
    if metric.proportion and rows.ndim == 1 and bool(((asked == 0) | (asked == 1)).all()):
        return _wilson(value, len(asked))
    return _percentiles(value, resampled([rows], metric, seed)[:, 0])


def paired_drop(rows: Tensor, reference_rows: Tensor, metric: Metric, *, seed: int = 0) -> Estimate:
    """How much worse `rows` score than `reference_rows`, row for row of the same samples, with its 95 % interval.

    In points of a bounded metric, else as a fraction of the reference's score; negative where better. Both are
    resampled together (paired bootstrap, 2000 resamples), so what is hard for both cancels. Two models that agree on
    every sample get a drop of 0 without an interval.
    """
    if len(rows) != len(reference_rows):
        raise ValueError(
            f"paired samples are wanted, got {len(rows)} rows against {len(reference_rows)} of the reference; "
            "score both on the same data, in the same order"
        )
    value = metric.drop(_finite(metric.aggregate(reference_rows), metric), _finite(metric.aggregate(rows), metric))
    if value == 0 and torch.equal(rows, reference_rows):  # and so it is on every resample
        return Estimate(value, value, value)
    scores = resampled([reference_rows, rows], metric, seed)
    return _percentiles(value, np.array([metric.drop(reference, score) for reference, score in scores.tolist()]))


def gap_between(seen: Tensor, unseen: Tensor, metric: Metric, *, seed: int = 0) -> Estimate:
    """How much worse the rows of `unseen` samples score than those of `seen` ones, with its 95 % interval.

    In points of a bounded metric, else as a fraction of the score on `seen`. The two are resampled each by itself.
    """
    value = metric.drop(_finite(metric.aggregate(seen), metric), _finite(metric.aggregate(unseen), metric))
    return _percentiles(value, _gaps([seen], [unseen], metric, seed)[:, 0])


def gap_change(own: Sequence[Tensor], base: Sequence[Tensor], metric: Metric, *, seed: int = 0) -> Estimate:
    """By how much the gap of `own` rows, (seen, unseen), is larger than that of `base`, with its 95 % interval.

    Rows of the same samples are resampled together.
    """
    (seen, unseen), (base_seen, base_unseen) = own, base
    gaps = _gaps([seen, base_seen], [unseen, base_unseen], metric, seed)
    ours, theirs = (
        metric.drop(metric.aggregate(first), metric.aggregate(second))
        for first, second in ((seen, unseen), (base_seen, base_unseen))
    )
    return _percentiles(ours - theirs, gaps[:, 0] - gaps[:, 1])


def _gaps(seen: list[Tensor], unseen: list[Tensor], metric: Metric, seed: int) -> NDArray[np.float64]:
    """The gaps of every set on resamples, (resamples, sets)."""
    first, second = resampled(seen, metric, seed), resampled(unseen, metric, seed + 1)
    count = min(len(first), len(second))
    pairs = zip(first[:count].tolist(), second[:count].tolist(), strict=True)
    return np.array([[metric.drop(*pair) for pair in zip(*both, strict=True)] for both in pairs])


def mean_over_folds(values: Sequence[float], *, tested: float, rest: float) -> Estimate:
    """The mean of one finite value a fold with its 95 % interval, where folds share the samples that made their models.

    C. Nadeau, Y. Bengio, Inference for the Generalization Error, Machine Learning 52, 239-281, 2003: the corrected
    resampled t-test. Of J values with the sample variance S^2 the variance of the mean is taken for
    (1/J + n2/n1) S^2, n2 being the number of samples that a fold is `tested` on and n1 that of the `rest`, which made
    its model; quantiles are those of Student's t with J - 1 degrees of freedom. Raises ValueError for one value alone.
    """
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    count = len(values)
    if count < 2:
        raise ValueError(f"an interval over folds needs the values of at least 2, got {count}")
    mean = math.fsum(values) / count
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    half = float(stdtrit(count - 1, 0.975)) * math.sqrt((1 / count + tested / rest) * variance)
    return Estimate(mean, mean - half, mean + half)


def _wilson(proportion: float, count: int) -> Estimate:
    """The 95 % score interval of a proportion of `count` trials."""
    shrink = 1 + _Z**2 / count
    middle = (proportion + _Z**2 / (2 * count)) / shrink
    half = _Z / shrink * math.sqrt(proportion * (1 - proportion) / count + _Z**2 / (4 * count**2))
    # Rounding must not push the interval off a proportion of 0 or 1, nor out of [0, 1].
    return Estimate(proportion, max(0.0, min(middle - half, proportion)), min(1.0, max(middle + half, proportion)))


def resampled(samples: Sequence[Tensor], metric: Metric, seed: int) -> NDArray[np.float64]:
    """The scores of every set of rows on the same resamples of the samples, (resamples, sets)."""
    count = len(samples[0])
    generator = np.random.default_rng(seed)
    # Means, the default, can be resampled all at once.
    averaged = metric.aggregate in {Metric.aggregate, mean_of_asked}
    if not averaged or (metric.aggregate is mean_of_asked and any(bool(rows.isnan().any()) for rows in samples)):
        resamples = _RESAMPLES if samples[0].numel() < _MANY_NUMBERS else _FEW_RESAMPLES
        picks = (torch.from_numpy(generator.integers(count, size=count)) for _ in range(resamples))
        return np.array([[metric.aggregate(rows[pick]) for rows in samples] for pick in picks])
    means = np.stack([rows.double().reshape(count, -1).mean(dim=1).numpy() for rows in samples])
    chunk = max(1, 2_000_000 // count)  # some 30 MB of indices at a time
    sizes = [min(chunk, _RESAMPLES - start) for start in range(0, _RESAMPLES, chunk)]
    return np.concatenate([means[:, generator.integers(count, size=(size, count))].mean(axis=2).T for size in sizes])


def _percentiles(value: float, resampled: NDArray[np.float64]) -> Estimate:
    if not np.isfinite(value) or np.isinf(resampled).any():
        return Estimate(value, value, value)
    # A metric may be undefined on some resamples, a class gone missing for instance.
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _finite(score: float, metric: Metric) -> float:
    if not math.isfinite(score):
        raise ValueError(f"{metric.name} must be a number, got {score}; the model's outputs hold NaN or infinities")
    return score


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p value of so many samples that only one, and only the other, of two models is right on.

    McNemar 1947, Psychometrika 12, in the binomial form.
    """
    from scipy.special import bdtr

    count = lost + won
    return 1.0 if count == 0 else min(1.0, 2 * float(bdtr(min(lost, won), count, 0.5)))


def holm(values: Sequence[float]) -> list[float]:
    """The p values `values` corrected for their number, in their order: those below 5 % hold together at 5 %.

    Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    found = [1.0] * len(values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        found[index] = highest
    return found
