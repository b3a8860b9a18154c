"""The algebra of axes: products, sums, and what meeting makes of them."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
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
from compressor.structure.axes.pieces import equal_pieces


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
    """The first 4 of 4 x 2 are the first 2 of the outer 4."""
    outer = Axis(4)
    whole = product([outer, Axis(2)])
    half = cut(whole, 0, 4)
    assert [factor.size for factor in factors(half)] == [2, 2]
    assert [piece.size for piece in segments(outer)] == [2, 2]


def test_a_position_that_a_cut_divides_stays() -> None:
    """58 of 29 x 2 x 2 are 14 whole fours and half of another: that one stays, the 14 on each side may go."""
    outer, inner = Axis(29), Axis(4, "fixed")
    half = cut(product([outer, inner]), 0, 58)
    before, divided, after = segments(outer)
    assert (before.size, divided.size, after.size) == (14, 1, 14)
    assert is_locked(divided)
    assert not is_locked(before)
    assert int(kept(half, {before: removed(14, 3)}).sum()) == 54


@st.composite
def axes(draw: st.DrawFn, depth: int = 3) -> Axis:
    """An atom, or a product or a sum of up to three axes."""
    form = draw(st.sampled_from(["atom", "product", "sum"])) if depth else "atom"
    if form == "atom":
        return Axis(draw(st.integers(1, 4)))
    parts = [draw(axes(depth=depth - 1)) for _ in range(draw(st.integers(2, 3)))]
    return product(parts) if form == "product" else chain(parts)


def random_removal(axis: Axis, random) -> dict[Axis, np.ndarray]:
    every = dict.fromkeys(atom for atom, _, _ in atoms(axis) if not is_locked(atom))
    return {atom: np.array([random.random() < 0.5 for _ in range(atom.size)]) for atom in every}


@settings(max_examples=200, deadline=None)
@given(axes(), st.randoms())
def test_a_cut_keeps_what_the_whole_keeps_there(whole: Axis, random) -> None:
    """Whatever an axis is made of and wherever it is cut, the cut loses what the whole loses between its ends."""
    assume(whole.size <= 600)
    start = random.randrange(whole.size)
    stop = random.randrange(start, whole.size) + 1
    piece = cut(whole, start, stop)
    gone = random_removal(whole, random)
    assert kept(piece, gone).tolist() == kept(whole, gone)[start:stop].tolist()


@settings(max_examples=200, deadline=None)
@given(axes(), st.integers(2, 4), st.randoms())
def test_equal_pieces_stay_equal(whole: Axis, count: int, random) -> None:
    """Whatever goes of an axis that a split takes in equal pieces, every piece keeps as many positions."""
    assume(whole.size <= 600)
    whole = product([Axis(count), whole]) if whole.size % count else whole
    size = whole.size // count
    pieces = equal_pieces(whole, count)
    gone = random_removal(whole, random)
    left = kept(whole, gone)
    counts = {int(left[number * size : (number + 1) * size].sum()) for number in range(count)}
    assert len(counts) == 1
    for number, piece in enumerate(pieces):
        assert kept(piece, gone).tolist() == left[number * size : (number + 1) * size].tolist()


def test_a_concatenation_in_rows_of_other_sizes() -> None:
    """6 + 2 and 8 laid end to end and seen as 2 rows of 8: both rows lose the same, and no row goes."""
    first, second, third = Axis(6), Axis(2), Axis(8)
    whole = chain([first, second, third])
    rows, row = regroup([whole], [2, 8])
    assert is_locked(rows)
    assert [piece.size for piece in segments(row)] == [6, 2]
    assert kept(whole, {first.root: removed(6, 0)}).tolist() == ([False] + [True] * 7) * 2


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
