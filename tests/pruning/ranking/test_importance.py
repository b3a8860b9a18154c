"""The arithmetic of importances and of the choice, by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.pruning.ranking.importance import (
    aligned_width,
    comparable,
    coupled_importance,
    geometric_median_importance,
    hessian_importance,
    keep_best,
    kept_by_threshold,
    lamp_importance,
    norm_importance,
    scale_importance,
    squared_norms,
    taylor_importance,
)

WEIGHT = torch.tensor([[3.0, -4.0], [1.0, 0.0]])


def test_norms_by_hand() -> None:
    """L1 of (3, -4) is 7, L2 is 5 and its square 25; along the other dimension the slices are columns."""
    assert norm_importance(WEIGHT, 0, 1).tolist() == [7.0, 1.0]
    assert norm_importance(WEIGHT, 0, 2).tolist() == [5.0, 1.0]
    assert norm_importance(WEIGHT, 1, 1).tolist() == [4.0, 4.0]
    assert squared_norms(WEIGHT, 0).tolist() == [25.0, 1.0]
    assert norm_importance(torch.ones(2, 3, 3, 3), 0, 1).tolist() == [27.0, 27.0]
    assert norm_importance(torch.tensor([-2.0, 1.0]), 0, 1).tolist() == [2.0, 1.0]


def test_loss_estimates_by_hand() -> None:
    """Taylor of (1, -2) with slopes (3, 1) is |3| + |-2|; half of w^2 F for (2, -1) with F = (3, 4) is (12 + 4) / 2."""
    assert taylor_importance(torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]]), 0).tolist() == [5.0]
    assert hessian_importance(torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 4.0]]), 0).tolist() == [8.0]
    assert hessian_importance(torch.tensor([[2.0, -1.0]]), torch.tensor([[3.0, 4.0]]), 1).tolist() == [6.0, 2.0]


def test_distances_by_hand() -> None:
    """Of (0, 0), (3, 4) and (0, 0) the twins are 0 and 5 from the others, the one between none is 5 and 5."""
    assert geometric_median_importance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])).tolist() == [5.0, 10.0, 5.0]


def test_lamp_by_hand() -> None:
    """Squares 1, 4 and 3 score 1/8, 4/4 and 3/7; of equals the first is the smaller; zeros score zero."""
    assert lamp_importance(torch.tensor([1.0, 4.0, 3.0])).tolist() == pytest.approx([1 / 8, 1, 3 / 7])
    assert lamp_importance(torch.tensor([2.0, 2.0])).tolist() == [0.5, 1.0]
    assert lamp_importance(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_lamp_keeps_the_order_and_ends_at_one(squares: list[float]) -> None:
    """Within a layer LAMP ranks as magnitude does, and the largest channel always scores 1."""
    scores = lamp_importance(torch.tensor(squares))
    assert float(scores.max()) == 1.0
    order = torch.argsort(torch.tensor(squares), stable=True)
    assert bool((scores[order].diff() > 0).all())


def test_scales_means_and_comparison_by_hand() -> None:
    """Scales count by size; coupled layers (1, 3) and (3, 5) are worth (2, 4); (1, 3) over its mean is (0.5, 1.5)."""
    assert scale_importance(torch.tensor([-2.0, 0.5])).tolist() == [2.0, 0.5]
    assert coupled_importance([torch.tensor([1.0, 3.0]), torch.tensor([3.0, 5.0])]).tolist() == [2.0, 4.0]
    assert comparable(torch.tensor([1.0, 3.0])).tolist() == [0.5, 1.5]
    assert comparable(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_choice_by_hand() -> None:
    """The threshold runs over all groups, each keeps its own least, and widths are rounded up."""
    groups = [torch.tensor([0.1, 0.2, 0.9, 0.8]), torch.tensor([0.3, 1.0, 1.1, 1.2, 1.3])]
    assert kept_by_threshold(groups, 3, 1) == [2, 4]
    assert kept_by_threshold(groups, 3, 3) == [3, 3]
    assert kept_by_threshold(groups, 3, [4, 1]) == [4, 2]
    assert kept_by_threshold([torch.ones(4), torch.ones(8)], 6, 1) == [2, 4]
    assert keep_best(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2) == [1, 3]
    assert [aligned_width(kept, 20, 8) for kept in (1, 8, 9, 17)] == [8, 8, 16, 20]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(700, 900), (50, 60, 11, 11), (3, 400_000)])
def test_norms_of_large_weights_are_those_of_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Sums over stretches of a weight agree with float64 to six digits, along either dimension, for either norm."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    for dim in (0, 1):
        rows = weight.double().movedim(dim, 0).flatten(1)
        for order in (1, 2):
            wanted = torch.linalg.vector_norm(rows, order, dim=1)
            found = norm_importance(weight, dim, order)
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
