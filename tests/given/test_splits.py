"""Samples parted in two: those that scikit-learn takes, without importing it."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from compressor.given.splits import parted


def classes(seed: int, count: int) -> list[int]:
    """Labels of rare and common classes, every one at least twice."""
    drawn = np.random.default_rng(seed).choice(4, size=count, p=[0.6, 0.25, 0.1, 0.05])
    return [*drawn.tolist(), 0, 0, 1, 1, 2, 2, 3, 3, -5, -5]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("size", [5, 7, 13, 40])
def test_the_samples_are_those_of_scikit_learn(seed: int, size: int) -> None:
    """With classes and without, of a part of the samples too: the same indices, in order."""
    labels = classes(seed, 60)
    indices = [index for index in range(len(labels)) if index % 7 or index > 60]
    strata = [labels[index] for index in indices]
    for given, wanted in ((labels, strata), (None, None)):
        rest, held = train_test_split(indices, test_size=size, random_state=seed, stratify=wanted)
        assert parted(indices, size, given, seed) == (sorted(rest), sorted(held))


def test_a_class_that_is_left_once_does_not_stop_a_split() -> None:
    """It lands on one side; scikit-learn refuses it, and a part of a part may well have such a class."""
    rest, held = parted(list(range(10)), 3, [0, 0, 0, 0, 0, 1, 1, 1, 1, 2], 0)
    assert sorted(rest + held) == list(range(10))
    assert len(held) == 3


def test_fewer_samples_than_classes_are_taken_by_chance() -> None:
    """Two of five classes cannot be all of them; nothing is left of everything."""
    assert len(parted(list(range(10)), 2, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], 0)[1]) == 2
    with pytest.raises(ValueError, match="cannot hold out 10 of 10"):
        parted(list(range(10)), 10, None, 0)
