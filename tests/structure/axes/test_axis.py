"""The algebra of axes: products, sums, and what meeting makes of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.structure.axes.axis import (
    Axis,
    IrreconcilableError,
    atoms,
    chain,
    cut,
    factors,
    is_locked,
    join,
    kept,
    lock,
    product,
    regroup,
    segments,
    signature,
)


def removed(size: int, *indices: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[list(indices)] = True
    return mask


def test_a_view_refines_a_dimension_into_a_row_major_product() -> None:
    """Six features seen as 2 heads of 3: without head 0 the first three are gone, without width 1 two of six."""
    features = Axis(6)
    heads, width = regroup([features], [2, 3])
    assert kept(features, {heads: removed(2, 0)}).tolist() == [False, False, False, True, True, True]
    assert kept(features, {width: removed(3, 1)}).tolist() == [True, False, True, True, False, True]


def test_flattening_a_map_repeats_each_channel() -> None:
    """Two channels of a 1x2 map, flattened: channel 1 is positions 2 and 3."""
    channels = Axis(2)
    flat = product([channels, Axis(1), Axis(2, "a place")])
    (atom, positions, index), _ = atoms(flat)
    assert atom is channels
    assert [(int(place), int(unit)) for place, unit in zip(positions, index, strict=True)] == [
        (0, 0), (1, 0), (2, 1), (3, 1),
    ]  # fmt: skip


def test_a_concatenation_keeps_its_parts_apart() -> None:
    """Two channels after three: position 3 is channel 0 of the second."""
    first, second = Axis(3), Axis(2)
    both = chain([first, second])
    assert kept(both, {second: removed(2, 0)}).tolist() == [True, True, True, False, True]


def test_what_meets_is_the_same_axis() -> None:
    """Joining is transitive, and a lock holds for all."""
    axes = [Axis(4) for _ in range(3)]
    join(axes[0], axes[1])
    join(axes[1], axes[2])
    lock(axes[0], "output")
    assert {axis.root for axis in axes} == {axes[2].root}
    assert is_locked(axes[2])


def test_a_lock_goes_down_to_parts_made_later() -> None:
    """A locked dimension stays locked when a view takes it apart."""
    whole = Axis(6)
    lock(whole, "output")
    heads, _ = regroup([whole], [2, 3])
    assert is_locked(heads)
    assert not is_locked(regroup([Axis(6)], [2, 3])[0])


def test_products_are_refined_until_their_atoms_agree() -> None:
    """2 x 6 meets 4 x 3: both are 2 x 2 x 3."""
    one, two = product([Axis(2), Axis(6)]), product([Axis(4), Axis(3)])
    join(one, two)
    assert [factor.size for factor in factors(one)] == [2, 2, 3]
    assert signature(one) == signature(two)


def test_products_that_share_no_refinement_are_refused() -> None:
    """2 x 3 and 3 x 2 have no common row-major refinement."""
    with pytest.raises(IrreconcilableError):
        join(product([Axis(2), Axis(3)]), product([Axis(3), Axis(2)]))


def test_a_sum_meets_equal_groups_by_the_distributive_law() -> None:
    """4 + 4 channels seen as 2 x 4 couple the halves: index 1 of the group goes from both."""
    first, second = Axis(4), Axis(4)
    both = chain([first, second])
    _, group = regroup([both], [2, 4])
    assert first.root is second.root
    assert kept(both, {group.root: removed(4, 1)}).tolist() == [True, False, True, True] * 2


def test_a_channel_shuffle_is_followed() -> None:
    """2 x 3 transposed to 3 x 2: channel 1 of each group is positions 2 and 3 afterwards, 1 and 4 before."""
    channels = Axis(6)
    groups, width = regroup([channels], [2, 3])
    shuffled = product([width, groups])
    gone = {width: removed(3, 1)}
    assert np.flatnonzero(~kept(channels, gone)).tolist() == [1, 4]
    assert np.flatnonzero(~kept(shuffled, gone)).tolist() == [2, 3]


def test_slices_that_overlap_refine_each_other() -> None:
    """Slices 0:4 and 2:6 of six make the pieces 2 + 2 + 2."""
    whole = Axis(6)
    cut(whole, 0, 4)
    tail = cut(whole, 2, 6)
    assert [piece.size for piece in segments(whole)] == [2, 2, 2]
    assert [piece.size for piece in segments(tail)] == [2, 2]


def test_half_of_a_product_is_half_of_its_outer_factor() -> None:
    """The first 4 of 4 x 2 are the first 2 of the outer 4; the first 3 are no part of it."""
    outer = Axis(4)
    whole = product([outer, Axis(2)])
    half = cut(whole, 0, 4)
    assert [factor.size for factor in factors(half)] == [2, 2]
    assert [piece.size for piece in segments(outer)] == [2, 2]
    with pytest.raises(IrreconcilableError):
        cut(whole, 0, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 3), min_size=1, max_size=4), st.randoms())
def test_views_there_and_back_remove_the_same_positions(sizes: list[int], random) -> None:
    """Whatever a dimension is viewed as, removing from an atom removes the positions that numpy says."""
    total = int(np.prod(sizes))
    whole = Axis(total)
    parts = regroup([whole], sizes)
    number = random.randrange(len(sizes))
    index = random.randrange(sizes[number])
    left = kept(whole, {parts[number].root: removed(sizes[number], index)})
    grid = np.ones(sizes, dtype=bool)
    grid[(slice(None),) * number + (index,)] = False
    assert left.tolist() == grid.reshape(-1).tolist()
