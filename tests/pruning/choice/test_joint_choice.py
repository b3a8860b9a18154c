"""Several limits at once: the least loss that keeps all of them, where one alone would choose otherwise."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import BudgetError
from compressor.pruning.choice.joint_choice import choose_jointly
from compressor.pruning.choice.knapsack_choice import Choice, Item, choose_structure


def group(name: str, losses: dict[int, float]) -> Item:
    """A group by its loss at each width."""
    return Item(parts=(tuple(Choice(changes={name: width}, loss=loss) for width, loss in losses.items()),))


ITEMS = [group("a", {8: 0.0, 4: 1.0}), group("b", {8: 0.0, 4: 2.0})]
WHOLE = {"a": 8, "b": 8}


def test_a_second_limit_moves_the_choice() -> None:
    """Three quarters of the products cost least loss in `a`; all of the time is in `b`, which goes when time counts."""

    def count(states):
        return [(state["a"] + state["b"]) / 16 for state in states]

    def excess(states):
        return [(m - 0.75, 0.9 * state["b"] / 8 - m) for state, m in zip(states, count(states), strict=True)]

    assert choose_structure(ITEMS, count, 0.75, WHOLE).state == {"a": 4, "b": 8}
    found = choose_jointly(ITEMS, excess, WHOLE)
    assert found.state == {"a": 8, "b": 4}
    assert (found.loss, found.cost) == (2.0, pytest.approx(0.0))


def test_what_no_state_keeps_is_refused() -> None:
    """Limits that contradict each other have no choice, whichever of them weighs more."""

    def excess(states):
        return [(state["a"] / 8 - 0.5, 0.75 - state["a"] / 8) for state in states]

    with pytest.raises(BudgetError, match="no choice costs at most 0"):
        choose_jointly(ITEMS, excess, WHOLE)


prices = st.lists(st.integers(1, 9), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(first=prices, second=prices, shares=st.tuples(st.integers(4, 9), st.integers(4, 9)))
def test_every_limit_is_kept_at_a_loss_near_the_least(
    first: list[int], second: list[int], shares: tuple[int, int]
) -> None:
    """Of three groups with two prices each, what is chosen keeps both limits and loses at most twice the least."""
    names, widths = ("a", "b", "c"), (4, 3, 2, 1)
    items = [
        group(name, {width: float((4 - width) ** 2 * (1 + i)) for width in widths}) for i, name in enumerate(names)
    ]
    whole = dict.fromkeys(names, 4)

    def excess(states):
        return [
            tuple(
                sum(price * state[name] for price, name in zip(row, names, strict=True)) / (4 * sum(row)) - share / 10
                for row, share in zip((first, second), shares, strict=True)
            )
            for state in states
        ]

    def loss(state) -> float:
        return sum((4 - state[name]) ** 2 * (1 + i) for i, name in enumerate(names))

    every = [dict(zip(names, combination, strict=True)) for combination in itertools.product(widths, repeat=3)]
    least = min(loss(state) for state in every if max(excess([state])[0]) <= 1e-9)
    found = choose_jointly(items, excess, whole)
    assert max(excess([found.state])[0]) <= 1e-9
    assert found.loss == loss(found.state) <= 2 * least


def test_what_is_exceeded_weighs_more_the_next_time() -> None:
    """Two limits weighed alike lead to a loss of 21; with the weights moved to the tighter one, 19 are found."""
    losses = {
        "a": {4: 0.0, 3: 4.0, 2: 9.0, 1: 11.0},
        "b": {4: 0.0, 3: 5.0, 2: 8.0, 1: 10.0},
        "c": {4: 0.0, 3: 2.0, 2: 7.0, 1: 10.0},
    }
    limits = (({"a": 2, "b": 4, "c": 1}, 0.6), ({"a": 2, "b": 1, "c": 1}, 0.5))

    def excess(states):
        return [
            tuple(sum(row[name] * state[name] for name in row) / (4 * sum(row.values())) - s for row, s in limits)
            for state in states
        ]

    found = choose_jointly([group(name, row) for name, row in losses.items()], excess, dict.fromkeys(losses, 4))
    assert (found.state, found.loss) == ({"a": 1, "b": 2, "c": 4}, 19.0)
