"""The multiple-choice knapsack: one option of every item, for the least loss within a budget.

Sinha & Zoltners 1979, "The multiple-choice knapsack problem", Operations Research 27; by dynamic programming over
the undominated partial choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.errors import BudgetError

# Beyond so many undominated partial choices they are thinned out evenly over the cost.
_FRONTIER = 4096


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to have an item: what it loses and what it costs, in units that add up over items."""

    loss: float
    cost: float


def choose(items: Sequence[Sequence[Option]], budget: float) -> tuple[int, ...]:
    """The index of one option of each item: the least total loss at a total cost of at most `budget`.

    Of equals the cheapest. Exact while no more than 4096 partial choices are undominated; beyond, they are thinned
    out evenly over the cost, and what is chosen still keeps the budget. Raises BudgetError where nothing does.
    """
    found = frontier(items, budget, _FRONTIER, best_only=True)
    if not found:
        raise BudgetError(budget, sum(min(option.cost for option in item) for item in items))
    return found[0][0]


def frontier(
    items: Sequence[Sequence[Option]], budget: float, limit: int, *, best_only: bool = False
) -> list[tuple[tuple[int, ...], float, float]]:
    """The undominated choices within `budget` by rising cost, or the best: (option of each item, loss, cost)."""
    losses: NDArray[np.float64] = np.zeros(1)
    costs: NDArray[np.float64] = np.zeros(1)
    parents: list[tuple[NDArray[np.int64], int]] = []
    least = [min(option.cost for option in item) for item in items]
    # Sums of differences: a budget that is met to the last digit is met.
    slack = 1e-9 * (abs(budget) + sum(map(abs, least))) if np.isfinite(budget) else 0.0
    for number, item in enumerate(items):
        all_losses = (losses[:, None] + np.array([option.loss for option in item])).ravel()
        all_costs = (costs[:, None] + np.array([option.cost for option in item])).ravel()
        affordable = np.flatnonzero(all_costs + sum(least[number + 1 :]) <= budget + slack)
        order = affordable[np.lexsort((all_losses[affordable], all_costs[affordable]))]
        if not len(order):
            return []
        best = np.minimum.accumulate(all_losses[order])
        order = order[np.concatenate(([True], best[1:] < best[:-1]))]
        if len(order) > limit:
            span = all_costs[order] - all_costs[order[0]]
            bucket = np.floor(span / span[-1] * (limit - 2)).astype(np.int64)
            # Of each bucket the most expensive, which loses least; and the cheapest of all, which fits what follows.
            kept = np.append(bucket[1:] != bucket[:-1], True)
            kept[0] = True
            order = order[kept]
        losses, costs = all_losses[order], all_costs[order]
        parents.append((order, len(item)))
    found = []
    for end in range(len(losses) - 1 if best_only else 0, len(losses)):
        picks, at = [], end
        for order, count in reversed(parents):
            at, option = divmod(int(order[at]), count)
            picks.append(option)
        found.append((tuple(reversed(picks)), float(losses[end]), float(costs[end])))
    return found
