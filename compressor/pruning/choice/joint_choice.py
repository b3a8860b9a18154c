"""Which widths stay and which blocks go, for the least loss within several limits at once.

The limits are weighted and added up to one, which the knapsack of `knapsack_choice` keeps; what is exceeded weighs
more the next time (surrogate constraints: Glover 1968, "Surrogate constraints", Operations Research 16; the weights
follow the multiplicative rule of Arora, Hazan & Kale 2012, "The multiplicative weights update method").
"""

import math
from collections.abc import Callable, Sequence

from compressor.errors import BudgetError
from compressor.pruning.choice.knapsack_choice import Chosen, Item, State, choose_structure, polish

# By how much each of several states exceeds each limit, in units that compare; at most 0 where it is kept.
Excess = Callable[[Sequence[State]], list[tuple[float, ...]]]

_ROUNDS = 10
# A limit that is exceeded by most of all gains this factor of weight in the first round, less later.
_FIRST_STEP = math.e


def choose_jointly(items: Sequence[Item], excess: Excess, start: State) -> Chosen:
    """The state of the least loss that keeps every limit, among those that weighted knapsacks visit from `start`.

    Its `cost` is the largest excess, at most 0. Raises BudgetError where no visited state keeps all limits, nor single
    changes to the one that comes nearest.
    """

    def worst(states: Sequence[State]) -> list[float]:
        return [max(values) for values in excess(states)]

    weights = [1.0] * len(excess([start])[0])
    best: Chosen | None = None
    nearest, distance = start, math.inf
    state = start
    for number in range(1, _ROUNDS + 1):

        def weighted(states: Sequence[State], weights: Sequence[float] = tuple(weights)) -> list[float]:
            return [
                math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
                for values in excess(states)
            ]

        try:
            state = dict(start) | choose_structure(items, weighted, 0.0, state).state
        except BudgetError:
            # What cannot be kept on average cannot be kept by each.
            break
        values = excess([state])[0]
        if max(values) < distance:
            nearest, distance = state, max(values)
        if max(values) <= 0:
            found = polish(items, worst, 0.0, state)
            if best is None or found.loss < best.loss:
                best = found
        scale = max(map(abs, values)) or 1.0
        weights = [
            weight * _FIRST_STEP ** (value / scale / math.sqrt(number))
            for weight, value in zip(weights, values, strict=True)
        ]
        weights = [weight / math.fsum(weights) for weight in weights]
    return best if best is not None else polish(items, worst, 0.0, nearest)
