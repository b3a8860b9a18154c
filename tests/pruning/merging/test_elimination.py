"""What each channel's going loses, and what the others take over, by hand and by torch's least squares."""

import pytest
import torch

from compressor.pruning.merging.elimination import Reading, alone, elimination, share_of_one, shares
from compressor.pruning.merging.widths import widths_of_least_loss


def reading(width: int = 6, outputs: int = 4, rows: int = 200) -> tuple[Reading, torch.Tensor]:
    fed = torch.randn(rows, width, dtype=torch.float64) @ torch.randn(width, width, dtype=torch.float64)
    moments = fed.T @ fed / rows
    return Reading(weights=torch.randn(width, outputs, dtype=torch.float64), moments=moments), fed


def test_shares_are_least_squares() -> None:
    """They are what torch's own least squares gives for the data that the moments are of."""
    found, fed = reading()
    wanted = torch.linalg.lstsq(fed[:, [0, 2, 3]], fed[:, [1, 4, 5]]).solution.T
    assert torch.allclose(shares(found.moments, [1, 4, 5], [0, 2, 3]), wanted)


def test_losses_are_what_the_layer_really_loses() -> None:
    """After three steps their sum is the squared error of the layer on its data, over the energy."""
    found, fed = reading()
    order, losses = elimination([found], 3)
    kept = sorted(set(range(6)) - set(order))
    part = shares(found.moments, order, kept)
    left = found.weights[kept] + part.T @ found.weights[order]
    error = (fed[:, kept] @ left - fed @ found.weights).square().sum() / len(fed)
    assert sum(losses) == pytest.approx(float(error) / found.energy)
    assert losses[0] == pytest.approx(float(alone([found]).min()))


def test_two_that_are_equal_lose_nothing() -> None:
    """Of uncorrelated channels with variances 1, 4, 4 and equal weights, 0 goes first: 1 of 9 is lost."""
    moments = torch.diag(torch.tensor([1.0, 4.0, 4.0], dtype=torch.float64))
    order, losses = elimination([Reading(weights=torch.ones(3, 2, dtype=torch.float64), moments=moments)], 1)
    assert (order, losses) == ([0], [pytest.approx(1 / 9)])


def test_into_one_alone() -> None:
    """Channel 1, twice channel 0, goes into it with the factor 2, and one without any signal gives nothing."""
    moments = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    assert share_of_one(moments, {1: 0}, [0, 2]).tolist() == [[2.0, 0.0]]
    assert share_of_one(moments, {1: 2}, [0, 2]).tolist() == [[0.0, 0.0]]


def test_widths_follow_the_losses() -> None:
    """Six of 20 channels go in steps of 2: a's first four are cheapest, then b's two, and a keeps a third."""
    losses = {"a": [0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 9.0, 9.0, 9.0, 9.0], "b": [0.5] * 10}
    aligns = {"a": 2, "b": 2}
    assert widths_of_least_loss({"a": 10, "b": 10}, losses, aligns, 6) == {"a": 4, "b": 10}
    assert widths_of_least_loss({"a": 10, "b": 10}, losses, aligns, 9) == {"a": 4, "b": 8}
    assert widths_of_least_loss({"a": 10, "b": 10}, losses, {"a": 8, "b": 8}, 1) == {"a": 10, "b": 10}
