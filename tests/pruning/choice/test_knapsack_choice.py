"""The knapsack over widths and blocks: exact where costs add up, within the budget where they multiply."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import BudgetError
from compressor.pruning.choice.knapsack_choice import Choice, Item, choose_structure


def group(name: str, losses: dict[int, float]) -> Item:
    """A group by its loss at each width."""
    return Item(parts=(tuple(Choice(changes={name: width}, loss=loss) for width, loss in losses.items()),))


def test_a_product_of_widths_is_seen_as_one() -> None:
    """Two groups around one layer of cost a x b: half the cost takes one at half, not both."""
    items = [group("a", {8: 0.0, 4: 1.0, 2: 9.0}), group("b", {8: 0.0, 4: 2.0, 2: 9.0})]
    chosen = choose_structure(items, lambda states: [float(s["a"] * s["b"]) for s in states], 32, {"a": 8, "b": 8})
    assert chosen.state == {"a": 4, "b": 8}
    assert (chosen.loss, chosen.cost) == (1.0, 32.0)
    both = choose_structure(items, lambda states: [float(s["a"] * s["b"]) for s in states], 16, {"a": 8, "b": 8})
    assert both.state == {"a": 4, "b": 4}


def test_a_block_goes_where_narrowing_costs_more_loss() -> None:
    """A block with a group inside is dropped, kept whole or kept narrow, whichever loses least in the budget."""
    inside = (tuple(Choice(changes={"conv": width}, loss=loss) for width, loss in {8: 0.0, 4: 2.0}.items()),)
    block = Item(
        parts=inside,
        kept=Choice(changes={"block": 1}, loss=0.0),
        dropped=Choice(changes={"block": 0}, loss=3.0),
    )
    other = group("stem", {8: 0.0, 4: 8.0})

    def cost(states):
        return [s["stem"] + s.get("block", 1) * s.get("conv", 8) for s in states]

    start = {"stem": 8, "block": 1, "conv": 8}
    assert choose_structure([block, other], cost, 16, start).state == start
    assert choose_structure([block, other], cost, 12, start).state == {"stem": 8, "block": 1, "conv": 4}
    dropped = choose_structure([block, other], cost, 9, start)
    assert (dropped.state["block"], dropped.state["stem"], dropped.loss) == (0, 8, 3.0)
    with pytest.raises(BudgetError) as raised:
        choose_structure([block, other], cost, 3, start)
    assert raised.value.least == 4


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    rates=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    share=st.floats(0.15, 0.95),
)
def test_a_chain_of_layers_keeps_the_budget(weights: list[int], rates: list[int], share: float) -> None:
    """In a chain whose layers cost the product of their widths, the choice keeps the budget and is near the best."""
    widths = (2, 4, 6, 8)
    names = "abcd"
    items = [
        group(name, {width: rate * (8 - width) ** 1.5 for width in widths})
        for name, rate in zip(names, rates, strict=True)
    ]

    def cost(states):
        return [
            float(sum(w * s[one] * s[two] for w, (one, two) in zip(weights, itertools.pairwise(names), strict=True)))
            for s in states
        ]

    budget = share * 64 * sum(weights)
    chosen = choose_structure(items, cost, budget, dict.fromkeys(names, 8))
    every = [dict(zip(names, combination, strict=True)) for combination in itertools.product(widths, repeat=4)]
    best = min(
        sum(rate * (8 - state[name]) ** 1.5 for name, rate in zip(names, rates, strict=True))
        for state, price in zip(every, cost(every), strict=True)
        if price <= budget
    )
    assert cost([chosen.state])[0] <= budget
    assert chosen.loss <= 1.5 * best + 1e-9
