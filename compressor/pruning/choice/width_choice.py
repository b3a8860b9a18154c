"""Which widths coupled layers keep within a budget of milliseconds, multiply-accumulates or parameters."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from compressor.errors import BudgetError
from compressor.pruning.choice.knapsack_choice import Choice, Chosen, Cost, Item, State, choose_structure
from compressor.pruning.ranking.importance import comparable, keep_best
from compressor.pruning.ranking.scope import Global, Isomorphic, PerLayer, kept_widths
from compressor.structure.couplings import Coupled

# The items, the cost, the limit and the state to start from: the state of the least loss within the limit.
Choose = Callable[[Sequence[Item], Cost, float, State], Chosen]

# So many widths of a group are enough to see its staircase; more cost a measured layer for each pair of neighbours.
MOST_WIDTHS = 16
# Scopes that take a share of every group are searched in steps of this fraction.
_FRACTION_STEPS = 128


def width_options(width: int, align: int, most: int = MOST_WIDTHS) -> tuple[int, ...]:
    """`width` and the multiples of `align` (>= 1) below it, largest first; at most `most` (>= 2), evenly spread."""
    below = list(range(align, width, align))[::-1]
    if len(below) > most - 1:
        places = [round(index * (len(below) - 1) / (most - 2)) if most > 2 else 0 for index in range(most - 1)]
        below = [below[place] for place in places]
    return (width, *below)


def removed_importance(scores: Tensor, width: int) -> float:
    """The sum of the scores that go when the `width` best stay; 0 for all of them."""
    kept = set(keep_best(scores, width))
    values: list[float] = scores.tolist()
    return math.fsum(score for channel, score in enumerate(values) if channel not in kept)


def widths_within(
    limit: float,
    cost: Cost,
    *,
    scope: Global | PerLayer | Isomorphic,
    groups: Sequence[Coupled],
    scores: Mapping[str, Tensor],
    align: Callable[[Coupled], int],
    across: Callable[[Tensor], Tensor] = comparable,
    choose: Choose = choose_structure,
) -> dict[str, int]:
    """The width that each of `groups` keeps, by name, so that `cost` is at most `limit`.

    In the scope Global, the least importance goes: a knapsack over all widths in which every channel counts with its
    score, made comparable by `across`, once for each layer that makes it; `choose` solves it. The other scopes take the
    least fraction that is enough, of every layer or topology. `scores` are (width,) by group name. Raises BudgetError
    where nothing keeps the limit.
    """
    if not isinstance(scope, Global):
        before = {group.name: group.width for group in groups}
        tried = [
            kept_widths(scope, groups, dict(scores), step / _FRACTION_STEPS, before=before, align=align, across=across)
            for step in range(_FRACTION_STEPS)
        ]
        return _first_within(limit, cost, tried)
    items = []
    for group in groups:
        # A group's scores are means over its layers; what goes, goes from all of them.
        values = across(scores[group.name]) * max(1, len({part.module for part in group.parts if part.makes}))
        items.append(
            Item(
                parts=(
                    tuple(
                        Choice(changes={group.name: width}, loss=removed_importance(values, width))
                        for width in width_options(group.width, align(group))
                    ),
                )
            )
        )
    whole = {group.name: group.width for group in groups}
    return choose(items, cost, limit, whole).state


def _first_within(limit: float, cost: Cost, tried: Sequence[dict[str, int]]) -> dict[str, int]:
    # Neighbouring fractions mostly round to the same widths.
    states = list({tuple(state.items()): state for state in tried}.values())
    costs = cost(states)
    for state, price in zip(states, costs, strict=True):
        if price <= limit:
            return state
    raise BudgetError(limit, min(costs))
