"""Which of several files, or recipes over several seeds, can be told apart by their scores on the same samples.

Two files are compared sample by sample: McNemar's exact test where a sample is right or wrong (McNemar 1947,
Psychometrika 12, the binomial form), else the standard error of their paired difference. Over several seeds the
scatter from seed to seed comes to it (Bouthillier et al. 2021, arXiv:2103.03098, sec. 3). Degrees of freedom are those
of Welch 1947 and Satterthwaite 1946. Of three seeds a variance is hardly known, and of many pairs one has two small
ones by chance: no row's counts as smaller than the mean within all rows. Many pairs at once are corrected by Holm 1979.
Who cannot be told apart shares a letter (Piepho 2004, "An algorithm for a letter-based representation of all-pairwise
comparisons").
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.intervals import holm, mcnemar, resampled
from compressor.metrics import Metric
from compressor.scoring.means import mean_of_asked

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """How scores scatter from seed to seed over all recipes of a comparison: a variance, and its degrees of freedom."""

    variance: float
    freedom: int

    @classmethod
    def of(cls, groups: Collection[Sequence[Tensor]], metric: Metric) -> "Scatter | None":
        """The mean variance within `groups` of seeds, of those that scatter at all; None where none does."""
        found = [(_scores(group, metric).var(ddof=1), len(group) - 1) for group in groups if len(group) > 1]
        found = [(variance, freedom) for variance, freedom in found if 0 < variance < math.inf]
        total = sum(freedom for _, freedom in found)
        return cls(variance=sum(v * f for v, f in found) / total, freedom=total) if found else None


def p_value(
    one: Sequence[Tensor], other: Sequence[Tensor], metric: Metric, *, scatter: Scatter | None = None, seed: int = 0
) -> float:
    """How likely scores that differ so much are where nothing differs, two-sided, in [0, 1].

    `one` and `other` hold a tensor of rows for every seed, (samples,) or (samples, k), all of the same samples.
    `scatter` is that of all recipes beside them: few seeds that happen to lie close together tell of no small scatter.
    """
    if len(one) == len(other) == 1 and _right_or_wrong(metric, *one, *other):
        return mcnemar(int((one[0] > other[0]).sum()), int((other[0] > one[0]).sum()))
    scores = [_scores(group, metric) for group in (one, other)]
    difference = float(scores[0].mean() - scores[1].mean())
    # The variance of each part, with its degrees of freedom: of the samples, and of the seeds of either.
    parts = [(_sample_variance(one, other, metric, seed), len(one[0]) - 1)]
    parts += [_by_seed(group, scatter) for group in scores if len(group) > 1]
    error2 = sum(variance for variance, _ in parts)
    if not math.isfinite(difference) or not math.isfinite(error2):
        return 1.0
    if error2 == 0:
        return 1.0 if difference == 0 else 0.0
    # Welch and Satterthwaite.
    freedom = error2**2 / sum(variance**2 / count for variance, count in parts if variance)
    return _two_sided(abs(difference) / math.sqrt(error2), freedom)


def told_apart(
    rows: Mapping[str, Sequence[Tensor]],
    metric: Metric,
    *,
    pairs: Collection[tuple[str, str]] | None = None,
    among: int = 0,
) -> dict[tuple[str, str], float]:
    """The corrected p value of every pair of `rows`, or of `pairs` alone, by the two names in the order of `rows`.

    `among` is the number of pairs that they were chosen from by how they score, where there was a choice: whoever looks
    at the best of many must correct for all of them. Pairs that were left out count as alike.
    """
    asked = list(combinations(rows, 2)) if pairs is None else list(pairs)
    scatter = Scatter.of(rows.values(), metric)
    found = [p_value(rows[one], rows[other], metric, scatter=scatter) for one, other in asked]
    left_out = max(0, among - len(asked))
    return dict(zip(asked, holm([*found, *[1.0] * left_out]), strict=False))


def letters(names: Sequence[str], apart: Collection[frozenset[str]]) -> dict[str, str]:
    """Letters for each of `names`, with spaces between: all but the pairs in `apart`, which differ, share one.

    Piepho 2004: one column with everyone, split at every pair that differs; columns inside others are dropped.
    """
    columns = [frozenset(names)]
    for pair in sorted(apart, key=lambda pair: sorted(map(list(names).index, pair))):
        split: list[frozenset[str]] = []
        for column in columns:
            split += [column - {name} for name in pair] if pair <= column else [column]
        columns = [
            column
            for number, column in enumerate(split)
            if not any(column < other or (column == other and number > at) for at, other in enumerate(split))
        ]
    columns.sort(key=lambda column: sorted(map(list(names).index, column)))
    return {
        name: " ".join(_letter(number) for number, column in enumerate(columns) if name in column) for name in names
    }


def _letter(number: int) -> str:
    """A to z, then a2, b2 and so on."""
    return chr(ord("a") + number % 26) + (str(number // 26 + 1) if number >= 26 else "")


def _right_or_wrong(metric: Metric, *groups: Tensor) -> bool:
    return metric.proportion and all(rows.ndim == 1 and bool(((rows == 0) | (rows == 1)).all()) for rows in groups)


def _scores(group: Sequence[Tensor], metric: Metric) -> NDArray[np.float64]:
    return np.array([metric.aggregate(rows) for rows in group], dtype=float)


def _by_seed(scores: NDArray[np.float64], scatter: Scatter | None) -> tuple[float, int]:
    """The variance of a mean over seeds with its degrees of freedom: their own, or that of all where it is larger."""
    own, freedom = float(scores.var(ddof=1)), len(scores) - 1
    if scatter is not None and 0 < own < scatter.variance:
        own, freedom = scatter.variance, scatter.freedom
    return own / len(scores), freedom


def _sample_variance(one: Sequence[Tensor], other: Sequence[Tensor], metric: Metric, seed: int) -> float:
    """The variance of the difference of mean scores that other samples would make."""
    simple = metric.aggregate in {Metric.aggregate, mean_of_asked}
    if simple and not any(bool(rows.isnan().any()) for rows in (*one, *other)):
        means = [
            torch.stack([rows.double().reshape(len(rows), -1).mean(1) for rows in group]) for group in (one, other)
        ]
        difference = means[0].mean(0) - means[1].mean(0)
        return float(difference.var(unbiased=True)) / len(difference) if len(difference) > 1 else 0.0
    scores = resampled([*one, *other], metric, seed)
    difference = scores[:, : len(one)].mean(axis=1) - scores[:, len(one) :].mean(axis=1)
    return float(np.nanvar(difference))


def _two_sided(statistic: float, freedom: float) -> float:
    from scipy.special import stdtr  # type: ignore[import-untyped]  # scipy ships no types

    return min(1.0, 2 * float(stdtr(freedom, -statistic)))
