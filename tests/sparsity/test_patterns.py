"""Patterns make units of weights, and of units weights, as worked out by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compressor.sparsity.layers import sparse_weights
from compressor.sparsity.patterns import Blocks, Rows, SemiStructured, Unstructured


def only_weight(module):
    """The one weight of `module` that may get zeros."""
    [found], _ = sparse_weights(nn.Sequential(module), layers=("*",), ignore=())
    return found


def test_two_of_four_keeps_the_two_largest_of_every_four() -> None:
    """By hand: of (1, 5, 3, 4) stay 5 and 4; of equals the first two stay."""
    kept = SemiStructured(n=2, m=4).kept(torch.tensor([[1.0, 5, 3, 4, 2, 2, 2, 2]]))
    assert kept.tolist() == [[False, True, False, True, True, True, False, False]]


def test_half_of_the_way_to_two_of_four_is_three_of_four() -> None:
    """Half of the zeros of 2:4 are one of every four."""
    assert SemiStructured(n=2, m=4).kept(torch.tensor([[1.0, 5, 3, 4]]), 0.5).tolist() == [[False, True, True, True]]


@pytest.mark.parametrize(
    ("module", "dim"),
    [(nn.Conv2d(8, 5, 3), 1), (nn.ConvTranspose2d(8, 5, 3), 0), (nn.Linear(8, 5), 1), (nn.Conv1d(8, 5, 2), 1)],
    ids=lambda value: type(value).__name__,
)
def test_groups_lie_along_the_inputs(module, dim: int) -> None:
    """Two of every four input channels stay at each output and kernel position, whatever the layer's layout."""
    weight = only_weight(module)
    kept = weight.as_weight(SemiStructured().kept(weight.arranged(weight.parameter.detach().abs())))
    assert kept.shape == module.weight.shape
    groups = kept.movedim(dim, -1).reshape(-1, 2, 4)
    assert (groups.sum(dim=-1) == 2).all()


def test_arranging_and_back_changes_nothing() -> None:
    """A transposed convolution's weight is as it was after both ways."""
    weight = only_weight(nn.ConvTranspose2d(6, 4, 3))
    assert torch.equal(weight.as_weight(weight.arranged(weight.parameter)), weight.parameter)


def test_blocks_at_the_edge_are_judged_by_what_they_have() -> None:
    """A 3 x 3 matrix in 2 x 2 blocks: the corner block has one element, whose mean is its value."""
    values = torch.arange(9.0).reshape(3, 1, 3)
    units = Blocks(height=2, width=2).units(values)
    assert units.tolist() == [[(0 + 1 + 3 + 4) / 4, (2 + 5) / 2], [(6 + 7) / 2, 8.0]]
    back = Blocks(height=2, width=2).elements(units, values.shape)
    assert back[:, 0].tolist() == [[2.0, 2.0, 3.5], [2.0, 2.0, 3.5], [6.5, 6.5, 8.0]]


def test_rows_are_filters() -> None:
    """A row's value is the mean over its kernel and inputs, as in the L1 norm of a filter over its size."""
    weight = only_weight(nn.Conv2d(3, 4, 3))
    units = Rows().units(weight.arranged(weight.parameter.detach().abs()))
    assert torch.allclose(units[:, 0], weight.parameter.detach().abs().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("pattern", "module", "reason"),
    [
        (SemiStructured(n=2, m=4), nn.Conv2d(3, 8, 3), "its 3 inputs are no multiple of 4"),
        (SemiStructured(n=2, m=4), nn.Conv2d(8, 8, 3, groups=8), "its 1 input are no multiple of 4"),
        (SemiStructured(n=1, m=3), nn.Linear(8, 8), "its 8 inputs are no multiple of 3"),
        (Rows(), nn.Embedding(4, 4), "rows of a Embedding"),
        (Rows(), nn.ConvTranspose2d(4, 4, 2, groups=2), "grouped transposed"),
        (Unstructured(), nn.Linear(3, 3), None),
        (Blocks(), nn.Linear(3, 3), None),
    ],
    ids=str,
)
def test_what_does_not_fit_says_why(pattern, module, reason) -> None:
    """A pattern names the reason why it leaves a layer alone."""
    found = pattern.unfit(only_weight(module))
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(("n", "m"), [(4, 4), (5, 4), (0, 4), (1, 1)])
def test_as_many_as_there_are_is_no_pattern(n: int, m: int) -> None:
    """N has to be below M, and both at least what makes a pattern."""
    with pytest.raises(ValueError, match=r"below m|at least"):
        SemiStructured(n=n, m=m)


def test_rows_rank_as_torch_ranks_them() -> None:
    """The filters that torch's ln_structured takes by L1 and by L2 norm are those with the smallest units here."""
    for norm, power in ((1, torch.abs), (2, torch.square)):
        layer = nn.Conv2d(4, 10, 3)
        weight = only_weight(layer)
        lowest = Rows().units(weight.arranged(power(weight.parameter.detach()))).flatten().argsort()[:4]
        prune.ln_structured(layer, "weight", amount=4, n=norm, dim=0)
        gone = (layer.weight_mask.flatten(1).sum(dim=1) == 0).nonzero().flatten()
        assert sorted(lowest.tolist()) == gone.tolist()
