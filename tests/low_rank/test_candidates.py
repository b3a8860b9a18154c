"""What chains compute and hold, against torch's own layers put one after the other."""

import itertools

import pytest
import torch
from torch import nn

from compressor.latency.operators import operators_of_layer
from compressor.low_rank.candidates import chain_operators, chain_parameters, rank_options
from compressor.structure.factored.chains import CP, SPATIAL, SVD, TUCKER, chain_of, unit_values, ways, weight_of

LAYERS = [
    (nn.Linear(12, 20), (7, 12)),
    (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 11)),
    (nn.Conv2d(8, 12, (3, 5), stride=(1, 2), padding=(2, 1), dilation=(2, 1), bias=False), (2, 8, 9, 11)),
    (nn.Conv2d(8, 12, 1, stride=2), (2, 8, 9, 11)),
    (nn.Conv1d(8, 12, 3, padding=1), (3, 8, 10)),
    (nn.LSTM(12, 6, 2, bidirectional=True), (5, 3, 12)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_operators_of_a_chain_are_those_of_its_layers(layer, shape):
    """Sizes, steps, padding and biases as torch's layers have them where each gets what the one before made."""
    weight = weight_of(layer)
    (first, *above) = operators_of_layer(layer, shape)
    for by in ways(weight.shape):
        ranks = (4, 4) if by == TUCKER else (4,)
        chain = chain_of(layer, by, unit_values(weight, by, ranks))
        x, wanted = torch.randn(*shape), []
        for part in chain.children():
            wanted += operators_of_layer(part, tuple(x.shape))
            x = part(x)
            x = x[0] if isinstance(x, tuple) else x
        assert [*chain_operators(first, weight.shape, by=by, ranks=ranks), *above] == wanted
        held = sum(parameter.numel() for parameter in chain.parameters())
        untouched = sum(parameter.numel() for parameter in layer.parameters()) - weight.numel()
        assert chain_parameters(weight.shape, by, ranks) == held - untouched


def test_rank_options_are_aligned_and_below_full():
    """Multiples of the alignment; of a Tucker kernel one side may be whole, never both."""
    assert list(rank_options((20, 12), SVD, 4)) == [(4,), (8,)]
    assert list(rank_options((8, 4, 3, 3), SPATIAL, 4)) == [(4,), (8,)]
    assert list(rank_options((8, 4, 3, 3), TUCKER, 4)) == [(4, 4)]
    assert list(rank_options((8, 6, 3, 3), TUCKER, 4)) == [(4, 4), (4, 6), (8, 4)]
    assert list(rank_options((8, 8), SVD, 8)) == []


def test_terms_are_few_aligned_and_fewer_than_would_hold_more_than_the_layer():
    """By CP (20 + 12 + 9) r < 20 * 12 * 9 for r below 52.7; of the ranks of a wide layer eight, in even ratios."""
    assert list(rank_options((20, 12, 3, 3), CP, 16)) == [(16,), (32,), (48,)]
    ratios = [rank for (rank,) in rank_options((64, 64, 3, 3), CP, 8)]
    assert (ratios[0], ratios[-1], len(ratios)) == (8, 264, 8)
    assert all(1.3 < second / first <= 2 for first, second in itertools.pairwise(ratios))
    assert list(rank_options((4, 4, 3, 3), CP, 16)) == []


def test_a_search_that_would_take_minutes_is_left_out():
    """A sweep over 2048 x 2048 x 9 weights costs twice as many products for every term, 2.5e9 at 33 of them."""
    assert list(rank_options((2048, 2048, 3, 3), CP, 16)) == [(16,), (32,)]
