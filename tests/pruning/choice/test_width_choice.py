"""Widths within a budget: which are offered, what they lose, and that scopes differ as they should."""

import pytest
import torch

from compressor.errors import BudgetError
from compressor.pruning.choice.width_choice import removed_importance, width_options, widths_within
from compressor.pruning.ranking.scope import Global, Isomorphic, PerLayer
from compressor.structure.couplings import Coupled, Part


def group(name: str, width: int) -> Coupled:
    return Coupled(name=name, width=width, parts=(), makes_output=False, opaque=False)


def test_options_by_hand() -> None:
    """The width itself and the multiples below it, thinned out evenly where there are too many."""
    assert width_options(32, 8) == (32, 24, 16, 8)
    assert width_options(20, 8) == (20, 16, 8)
    assert width_options(6, 8) == (6,)
    assert width_options(512, 16, 5) == (512, 496, 336, 176, 16)
    assert len(width_options(512, 1)) == 16


def test_removed_importance_by_hand() -> None:
    """Of 1, 4, 2 and 3 the best two stay, and 1 + 2 go."""
    scores = torch.tensor([1.0, 4.0, 2.0, 3.0])
    assert [removed_importance(scores, width) for width in (4, 2, 1)] == [0.0, 3.0, 6.0]


def test_the_global_choice_sees_the_staircase() -> None:
    """Of two layers with equal scores the one goes down whose narrower width is cheaper."""
    groups = [group("flat", 8), group("steep", 8)]
    scores = {"flat": torch.ones(8), "steep": torch.ones(8)}
    prices = {"flat": {8: 10.0, 4: 9.9}, "steep": {8: 10.0, 4: 2.0}}

    def cost(states):
        return [sum(prices[name][width] for name, width in state.items()) for state in states]

    found = widths_within(15.0, cost, scope=Global(), groups=groups, scores=scores, align=lambda _: 4)
    assert found == {"flat": 8, "steep": 4}
    with pytest.raises(BudgetError, match=r"costs 11\.9"):
        widths_within(11.0, cost, scope=Global(), groups=groups, scores=scores, align=lambda _: 4)


def test_a_channel_counts_once_for_each_layer_that_makes_it() -> None:
    """Of two groups of equal scores and prices, the one goes that is made by one layer and not by three."""

    def part(module: str) -> Part:
        return Part(module=module, tensors=(), indices=(), channels=(), makes=True, is_norm=False)

    stream = Coupled(
        name="stream", width=8, parts=tuple(map(part, "abc")), makes_output=False, opaque=False, kind="channels"
    )
    inner = Coupled(name="inner", width=8, parts=(part("d"),), makes_output=False, opaque=False, kind="channels")
    scores = {"stream": torch.ones(8), "inner": torch.ones(8)}

    def cost(states):
        return [float(sum(state.values())) for state in states]

    found = widths_within(12.0, cost, scope=Global(), groups=[stream, inner], scores=scores, align=lambda _: 4)
    assert found == {"stream": 8, "inner": 4}


@pytest.mark.parametrize("scope", [PerLayer(), Isomorphic()])
def test_other_scopes_take_the_least_fraction(scope: PerLayer | Isomorphic) -> None:
    """Layers of 8 and 16 channels lose the same fraction, no more than half the width needs."""
    groups = [group("small", 8), group("large", 16)]
    scores = {"small": torch.arange(8.0) + 1, "large": (torch.arange(16.0) + 1) / 2}

    def cost(states):
        return [float(sum(state.values())) for state in states]

    found = widths_within(12.0, cost, scope=scope, groups=groups, scores=scores, align=lambda _: 1)
    assert sum(found.values()) == 12
    if scope == PerLayer():
        assert found == {"small": 4, "large": 8}
