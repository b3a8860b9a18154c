"""Codebooks by k-means: hand-made clusters, as good as scikit-learn's own, and what begins where."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from compressor.clustering.codebooks import DensityCentroids, KMeansPlusPlus, LinearCentroids, shared_values

INITIALS = [LinearCentroids(), DensityCentroids(), KMeansPlusPlus()]


@pytest.mark.parametrize("initial", INITIALS, ids=repr)
def test_far_clusters_get_their_means(initial) -> None:
    """Around -1, 0 and 2 stand two weights each: their means are the codebook, wherever k-means begins."""
    weights = torch.tensor([[-1.1, 0.1, 2.0], [-0.9, -0.1, 2.2]])
    found = shared_values(weights, 3, initial, seed=0)
    assert torch.allclose(found, torch.tensor([[-1.0, 0.0, 2.1], [-1.0, 0.0, 2.1]]))


@pytest.mark.parametrize("initial", INITIALS, ids=repr)
@pytest.mark.parametrize("count", [3000, 40_000])
def test_the_error_is_that_of_all_weights_clustered(initial, count) -> None:
    """Eight values for normal weights err within a few per cent as k-means on every single one, from ten starts."""
    weights = torch.randn(count)
    found = shared_values(weights, 8, initial, seed=0)
    assert len(torch.unique(found)) == 8
    whole = KMeans(8, n_init=10 if count < 10_000 else 1, random_state=0).fit(weights.double().numpy()[:, None])
    assert float((found - weights).double().square().sum()) <= 1.1 * whole.inertia_


def test_where_centroids_begin() -> None:
    """For 0, 0, 0, 1 and 4: evenly from 0 to 4, or so that as many weights lie on each side."""
    values = np.array([0.0, 0.0, 0.0, 1.0, 4.0])
    assert LinearCentroids().begin(values, 3).tolist() == [0.0, 2.0, 4.0]
    assert DensityCentroids().begin(values, 2).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("initial", INITIALS, ids=repr)
def test_few_values_stay_as_they_are(initial) -> None:
    """Weights of three values need no codebook of four, and equal ones none at all."""
    weights = torch.tensor([0.3, -2.0, 0.3, 7.5])
    assert torch.equal(shared_values(weights, 4, initial, seed=0), weights)
    assert torch.equal(shared_values(torch.ones(5), 2, initial, seed=0), torch.ones(5))


def test_one_seed_gives_one_codebook() -> None:
    """Equal seeds give equal bits, in half precision too, and the type stays."""
    weights = torch.randn(500).half()
    first, second = (shared_values(weights, 16, KMeansPlusPlus(), seed=4) for _ in "ab")
    assert torch.equal(first, second)
    assert first.dtype == torch.float16
