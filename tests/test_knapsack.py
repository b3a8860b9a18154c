"""The multiple-choice knapsack: the least loss of one option of each item within a budget."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import BudgetError
from compressor.knapsack import Option, choose, frontier

options = st.lists(
    st.builds(Option, loss=st.integers(-2, 9).map(float), cost=st.integers(0, 9).map(float)), min_size=1, max_size=5
)


def test_knapsack_by_hand() -> None:
    """With costs 4, 2, 1 at losses 0, 1, 5 twice, a budget of 5 keeps 4 + 1 or 2 + 2, and the latter loses least."""
    item = [Option(loss=0.0, cost=4.0), Option(loss=1.0, cost=2.0), Option(loss=5.0, cost=1.0)]
    assert choose([item, item], 5.0) == (1, 1)
    assert choose([item, item], 6.0) in {(0, 1), (1, 0)}
    assert choose([item, item], 8.0) == (0, 0)
    with pytest.raises(BudgetError, match=r"no choice costs at most 1\.5: the cheapest costs 2"):
        choose([item, item], 1.5)


def test_of_equal_losses_the_cheapest_is_taken() -> None:
    """A width that costs more than the next larger one, as on a staircase, is never taken."""
    stairs = [Option(loss=0.0, cost=16.0), Option(loss=1.0, cost=17.0), Option(loss=2.0, cost=8.0)]
    assert choose([stairs], 17.0) == (0,)
    assert choose([stairs], 15.0) == (2,)
    assert choose([[Option(loss=0.0, cost=3.0), Option(loss=0.0, cost=2.0)]], 9.0) == (1,)


@settings(max_examples=150, deadline=None)
@given(items=st.lists(options, min_size=1, max_size=4), budget=st.integers(0, 30))
def test_knapsack_is_as_good_as_trying_everything(items: list[list[Option]], budget: int) -> None:
    """The chosen options keep the budget and lose what the best of all combinations loses."""
    losses = [
        sum(option.loss for option in combination)
        for combination in itertools.product(*items)
        if sum(option.cost for option in combination) <= budget
    ]
    if not losses:
        with pytest.raises(BudgetError):
            choose(items, budget)
        return
    chosen = [item[index] for item, index in zip(items, choose(items, budget), strict=True)]
    assert sum(option.cost for option in chosen) <= budget
    assert sum(option.loss for option in chosen) == min(losses)


def test_many_items_stay_within_the_budget_and_near_the_bound() -> None:
    """Forty items of eight widths are solved within 0.5 % of the linear relaxation's bound, thinned out or not."""
    items = [
        [
            Option(loss=(1 + k % 7) * (8 - width) ** 1.5, cost=width * (1 + (k * 37 % 11) / 7.13))
            for width in range(1, 9)
        ]
        for k in range(40)
    ]
    whole = sum(item[-1].cost for item in items)
    chosen = [item[index] for item, index in zip(items, choose(items, whole / 2), strict=True)]
    # The best split of the cost by one price for all, a lower bound on the loss of any choice (Lagrange).
    bound = max(
        sum(min(option.loss + price * option.cost for option in item) for item in items) - price * whole / 2
        for price in (step / 100 for step in range(1, 4000))
    )
    assert sum(option.cost for option in chosen) <= whole / 2
    assert bound <= sum(option.loss for option in chosen) <= 1.005 * bound


def test_the_frontier_by_hand() -> None:
    """Losses 0 and 3 at costs 2 and 1, twice: of the four choices the two mixed ones are equal, and one is named."""
    item = [Option(loss=0.0, cost=2.0), Option(loss=3.0, cost=1.0)]
    assert frontier([item, item], 9.0, 100) == [((1, 1), 6.0, 2.0), ((1, 0), 3.0, 3.0), ((0, 0), 0.0, 4.0)]
    assert frontier([item, item], 3.0, 100) == [((1, 1), 6.0, 2.0), ((1, 0), 3.0, 3.0)]
    assert frontier([item, item], 1.0, 100) == []


@settings(max_examples=100, deadline=None)
@given(items=st.lists(options, min_size=1, max_size=4), budget=st.integers(0, 30))
def test_the_frontier_holds_every_undominated_choice(items: list[list[Option]], budget: int) -> None:
    """Losses fall as costs rise, and at every cost the loss is the least that all combinations reach."""
    found = frontier(items, budget, 10_000)
    combinations = [
        (sum(option.cost for option in chosen), sum(option.loss for option in chosen))
        for chosen in itertools.product(*items)
    ]
    least = {
        cost: min(loss for other, loss in combinations if other <= cost) for cost, _ in combinations if cost <= budget
    }
    expected, best = [], float("inf")
    for cost, loss in sorted(least.items()):
        if loss < best:
            expected.append((cost, loss))
            best = loss
    assert [(cost, loss) for _, loss, cost in found] == expected


def test_a_budget_met_to_the_last_digit_is_met() -> None:
    """Three items of cost 0.1 fit a budget of 0.3, though their sum in floats is 0.30000000000000004."""
    assert choose([[Option(loss=1.0, cost=0.1)]] * 3, 0.3) == (0,) * 3


def test_no_items_need_no_choice() -> None:
    """Of nothing, nothing is chosen."""
    assert choose([], 0.0) == ()
