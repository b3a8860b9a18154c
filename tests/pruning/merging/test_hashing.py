"""Vectors of one direction share their hashes, and what goes into what."""

import pytest
import torch

from compressor.pruning.merging.hashing import clusters, similar_pairs


def test_pairs_are_those_of_all_cosines() -> None:
    """Of 60 vectors in 20 directions the hashes find every pair that comparing all with all finds, and no other."""
    centres = torch.randn(20, 30)
    vectors = centres.repeat_interleave(3, dim=0) * torch.rand(60, 1).add(0.1) + 0.02 * torch.randn(60, 30)
    rows = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    cosines = (rows @ rows.T).triu(diagonal=1)
    wanted = {(int(i), int(j)) for i, j in (cosines >= 0.9).nonzero()}
    found = similar_pairs(vectors, 0.9, seed=0)
    assert set(found) == wanted
    assert len(wanted) >= 40
    assert all(found[pair] == pytest.approx(float(cosines[pair])) for pair in wanted)


def test_opposite_and_zero_vectors_are_similar_to_nothing() -> None:
    """w, 2 w, -w and two zero vectors: one pair."""
    vector = torch.tensor([1.0, -2.0, 0.5])
    vectors = torch.stack([vector, 2 * vector, -vector, 0 * vector, 0 * vector])
    assert similar_pairs(vectors, 1.0, seed=1) == {(0, 1): pytest.approx(1.0)}


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (3, 0)])
def test_too_few_vectors_have_no_pairs(shape) -> None:
    """One vector, none, and vectors of no values."""
    assert similar_pairs(torch.ones(shape), 0.5, seed=0) == {}


def test_everything_goes_into_a_neighbour() -> None:
    """In the chain 0-1-2 the longest, 1, stays; in 3-4-5 with 3 longest, 5 is no neighbour of it and stays too."""
    pairs = {(0, 1): 0.9, (1, 2): 0.9, (3, 4): 0.9, (4, 5): 0.9}
    lengths = torch.tensor([1.0, 3.0, 2.0, 3.0, 1.0, 2.0])
    assert clusters(pairs, lengths) == {0: 1, 2: 1, 4: 3}
