"""Codebooks: the few values that many weights share, by k-means on the weights.

Han et al. 2016, "Deep Compression", arXiv:1510.00149, sec. 3.1 (k-means, eq. 2) and 3.2 (where centroids begin).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[np.float64]

# Of more weights than these, neighbours are taken together, with their number: a codebook does not see the difference.
_POINTS = 1 << 14
_ITERATIONS = 100


@dataclass(frozen=True, kw_only=True)
class LinearCentroids:
    """Begins with values evenly spaced between the least and the largest weight, which keeps the rare large ones."""

    def begin(self, values: Values, clusters: int) -> Values | str:
        """The first centroids for `values`, which are sorted."""
        return np.linspace(values[0], values[-1], clusters)


@dataclass(frozen=True, kw_only=True)
class DensityCentroids:
    """Begins with values between which equally many weights lie, which is finest where most weights are."""

    def begin(self, values: Values, clusters: int) -> Values | str:
        """The first centroids for `values`, which are sorted."""
        # In the middle of each of `clusters` equal shares.
        return np.quantile(values, (np.arange(clusters) + 0.5) / clusters)


@dataclass(frozen=True, kw_only=True)
class KMeansPlusPlus:
    """Begins with weights drawn one by one, far from those drawn before (Arthur and Vassilvitskii 2007)."""

    def begin(self, values: Values, clusters: int) -> Values | str:  # noqa: ARG002 - as the others
        """What scikit-learn calls it."""
        return "k-means++"


Initial = LinearCentroids | DensityCentroids | KMeansPlusPlus


def shared_values(weights: Tensor, clusters: int, initial: Initial, seed: int) -> Tensor:
    """`weights`, of any shape, each replaced by the nearest of at most `clusters` (>= 1) values: the means of clusters.

    Weights with no more different values stay as they are.
    """
    flat = weights.detach().double().cpu().flatten()
    if len(torch.unique(weights)) <= clusters:
        return weights.detach().clone()
    centroids = torch.from_numpy(np.sort(_centroids(flat.numpy(), clusters, initial, seed)))
    # The border between two clusters lies halfway between their centroids.
    index = torch.bucketize(flat, (centroids[1:] + centroids[:-1]) / 2)
    sums = torch.zeros_like(centroids).index_add_(0, index, flat)
    counts = torch.bincount(index, minlength=len(centroids))
    # The mean of what is in the cluster now; an empty one has no weight to give a value to.
    return (sums / counts.clamp(min=1))[index].reshape(weights.shape).to(weights)


def _centroids(values: Values, clusters: int, initial: Initial, seed: int) -> Values:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    ordered = np.sort(values)
    points, counts = _points(ordered)
    kmeans = KMeans(
        clusters, init=_column(initial.begin(ordered, clusters)), n_init=1, max_iter=_ITERATIONS, random_state=seed
    )
    # Sums over several threads differ in their last bits from run to run.
    with warnings.catch_warnings(), threadpool_limits(1):
        # Fewer clusters than asked for, where many weights are equal, are fine.
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans.fit(points[:, None], sample_weight=counts)
    found: Values = kmeans.cluster_centers_[:, 0]
    return found


def _points(ordered: Values) -> tuple[Values, Values]:
    """At most `_POINTS` values that stand for the `ordered` ones, and how many each stands for."""
    if len(ordered) <= _POINTS:
        return ordered, np.ones(len(ordered))
    parts = np.array_split(ordered, _POINTS)
    return np.array([part.mean() for part in parts]), np.array([float(len(part)) for part in parts])


def _column(begin: Values | str) -> Values | str:
    return begin if isinstance(begin, str) else begin[:, None]
