"""Points that no other beats: ranks, volumes that can be computed by hand, and choices of few."""

import itertools
import random

import pytest

from compressor.searching.front import best_groups, hypervolume, most_volume, ranks


def test_ranks_are_those_of_sorting_front_by_front() -> None:
    """(1, 3) and (3, 1) beat nobody each other; (2, 3) is beaten by the first alone, (4, 4) by all of them."""
    assert ranks([(1.0, 3.0), (3.0, 1.0), (2.0, 3.0), (4.0, 4.0)]) == [0, 0, 1, 2]
    # Equal points beat neither the other.
    assert ranks([(1.0, 1.0), (1.0, 1.0)]) == [0, 0]
    assert ranks([]) == []


def test_volumes_by_hand() -> None:
    """Boxes to the reference: one, two that overlap, one beyond it, and three dimensions."""
    assert hypervolume([(1.0, 1.0)], (3.0, 2.0)) == 2.0
    # 2 x 1 and 1 x 2 share 1 x 1.
    assert hypervolume([(1.0, 2.0), (2.0, 1.0)], (3.0, 3.0)) == 3.0
    assert hypervolume([(4.0, 0.0)], (3.0, 3.0)) == 0.0
    assert hypervolume([(0.0, 0.0, 0.0), (1.0, 1.0, 1.0)], (2.0, 2.0, 2.0)) == 8.0
    # A box of 1 x 2 x 2 and one of 2 x 1 x 2, which share 1 x 1 x 2.
    assert hypervolume([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0)], (2.0, 2.0, 2.0)) == 6.0
    assert hypervolume([(1.0,), (2.0,)], (5.0,)) == 4.0


def test_volumes_are_those_of_counting_cells() -> None:
    """Random points on a grid of 6 x 6 x 6: the volume is the number of cells that some point dominates."""
    drawn = random.Random(0)  # noqa: S311 - points, not secrets
    for _ in range(20):
        points = [tuple(float(drawn.randrange(6)) for _ in range(3)) for _ in range(8)]
        cells = itertools.product(range(6), repeat=3)
        count = sum(any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells)
        assert hypervolume(points, (6.0, 6.0, 6.0)) == count


def test_few_of_many_are_those_that_add_most() -> None:
    """The corner box adds most; then the one that does not lie within it."""
    groups = [[(2.0, 2.0)], [(1.0, 1.0)], [(0.0, 3.0)]]
    assert most_volume(groups, 2, (4.0, 4.0)) == [1, 2]
    assert most_volume(groups, 9, (4.0, 4.0)) == [1, 2, 0]
    # The greedy choice looks at a group anew when others were taken: it is that of asking all of them every time.
    drawn = random.Random(1)  # noqa: S311
    many = [[(drawn.random(), drawn.random(), drawn.random())] for _ in range(12)]
    chosen: list[int] = []
    for _ in range(5):
        taken = [many[index][0] for index in chosen]
        left = [index for index in range(12) if index not in chosen]
        chosen.append(max(left, key=lambda index: hypervolume([*taken, many[index][0]], (1.0, 1.0, 1.0))))
    assert most_volume(many, 5, (1.0, 1.0, 1.0)) == chosen


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 1])])
def test_ranks_go_before_volume(count: int, expected: list[int]) -> None:
    """A point that is beaten comes after those that are not, however much it would add."""
    groups = [[(0.0, 1.0)], [(0.1, 1.0)], [(3.9, 0.9)]]
    assert best_groups(groups, count, (4.0, 4.0)) == expected
