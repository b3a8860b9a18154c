"""Weights that learn within what an earlier stage decided."""

import pytest
import torch

from compressor.quantization.learning.tied_weights import TiedWeight


def test_zeros_stay_zero_and_the_rest_learns() -> None:
    """A step of any optimizer moves the nonzero weights alone."""
    weight = torch.tensor([[0.5, 0.0, -0.25], [0.0, 1.0, 0.75]])
    tied = TiedWeight(weight, axis=0)
    torch.testing.assert_close(tied(), weight)
    optimizer = torch.optim.AdamW(tied.parameters(), lr=0.1, weight_decay=0.1)
    tied().sum().backward()
    optimizer.step()
    assert (tied() == 0).equal(weight == 0)
    assert bool((tied() != weight)[weight != 0].all())


def test_equal_weights_learn_from_all_their_gradients() -> None:
    """Two values shared by six weights are two parameters, each with the sum of its weights' gradients."""
    weight = torch.tensor([[0.5, -1.0, 0.5], [0.5, -1.0, -1.0]])
    tied = TiedWeight(weight, axis=0)
    (tied() * torch.tensor([[1.0, 10.0, 2.0], [3.0, 20.0, 30.0]])).sum().backward()
    values = tied.values.detach()
    gradients = tied.values.grad
    assert gradients is not None
    assert dict(zip(values.tolist(), gradients.tolist(), strict=True)) == {-1.0: 60.0, 0.5: 6.0}


def test_values_shared_within_channels_stay_shared_there() -> None:
    """Clusters that folding BatchNorm scaled by channel are tied within every channel."""
    clusters = torch.tensor([-1.0, 0.5, 2.0])[torch.randint(0, 3, (200, 30))]
    scales = torch.rand(200, 1) + 0.5
    tied = TiedWeight(clusters * scales, axis=0)
    torch.testing.assert_close(tied(), clusters * scales)
    assert tied.values.numel() <= 600
    with torch.no_grad():
        tied.values += torch.randn_like(tied.values)
    assert max(len(row.unique()) for row in tied()) <= 3


@pytest.mark.parametrize("axis", [0, None])
def test_different_weights_are_free(axis: int | None) -> None:
    """Weights that are all different have a parameter each, pruned or not."""
    weight = torch.randn(8, 40)
    assert TiedWeight(weight, axis=axis).values.shape == weight.shape
    weight[torch.rand(8, 40) < 0.9] = 0
    assert TiedWeight(weight, axis=axis).values.shape == weight.shape
