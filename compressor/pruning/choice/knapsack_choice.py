"""Which widths stay and which blocks go, for the least loss within a budget: a multiple-choice knapsack.

Every item (a group of coupled channels, or a block with the groups inside it) takes one of its options, each with a
loss and a cost (Sinha & Zoltners 1979, "The multiple-choice knapsack problem", Operations Research 27). What a layer
costs is no sum over its groups: it depends on the widths at both of its ends. So costs are differences around the
choice at hand, and the knapsack is solved again around each new choice (sequential linear programming), until nothing
changes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from compressor.errors import BudgetError
from compressor.knapsack import Option, choose, frontier

# The width of each group and 1 or 0 for each block, by name.
State = Mapping[str, int]
# The cost of each of several states, asked for together so that what has to be measured is measured in one go.
Cost = Callable[[Sequence[State]], list[float]]

# How many undominated choices of the parts of one item are looked at.
_INNER_FRONTIER = 96
_ITERATIONS = 12


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The `changes` that an option makes to a state, and its loss."""

    changes: Mapping[str, int]
    loss: float


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is decided together: groups, each with its choices, that all go when `dropped` is chosen.

    `kept` is what else holds when it is not: that the block stands. A group outside of blocks is an item of one part.
    """

    parts: tuple[tuple[Choice, ...], ...]
    kept: Choice | None = None
    dropped: Choice | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A state with its whole loss, in the units of the choices, and its cost."""

    state: dict[str, int]
    loss: float
    cost: float


def choose_structure(items: Sequence[Item], cost: Cost, budget: float, start: State) -> Chosen:
    """The state of the least loss that costs at most `budget`, among those that repeated knapsacks visit from `start`.

    `cost` is the true one and decides what is allowed. Losses add up over the choices. The best state visited is
    improved by single changes as long as one helps. Raises BudgetError where no visited state keeps the budget.
    """
    search = _Search(items, cost, budget)
    picks = search.picks_of(start)
    visited = set()
    best: _Picks | None = None
    allowed = budget
    for _ in range(_ITERATIONS):
        visited.add(picks)
        options, base = search.linearised(picks)
        try:
            chosen = choose(options.options, allowed - base)
        except BudgetError:
            chosen = tuple(min(range(len(item)), key=lambda i, item=item: item[i].cost) for item in options.options)  # type: ignore[misc]  # mypy cannot infer a lambda's default
        picks = tuple(options.picks[item][index] for item, index in enumerate(chosen))
        true = search.cost_of(picks)
        if true <= budget and (best is None or search.loss_of(picks) < search.loss_of(best)):
            best = picks
        if picks in visited:
            if best is not None:
                break
            # The differences promised more than the state keeps: ask for that much more.
            allowed -= max(true - budget, 0.01 * abs(budget))
    if best is None:
        best = search.repaired(picks)
    best = search.improved(best)
    return Chosen(state=search.state_of(best), loss=search.loss_of(best), cost=search.cost_of(best))


def polish(items: Sequence[Item], cost: Cost, budget: float, start: State) -> Chosen:
    """The state that single changes lead to from `start`: down to `budget` first, then to less loss within it.

    Raises BudgetError where no change is cheaper any more and the budget is not kept.
    """
    search = _Search(items, cost, budget)
    picks = search.improved(search.repaired(search.picks_of(start)))
    return Chosen(state=search.state_of(picks), loss=search.loss_of(picks), cost=search.cost_of(picks))


# One pick for each item: None where it is dropped, else the index of the choice of each part.
_Pick = tuple[int, ...] | None
_Picks = tuple[_Pick, ...]


@dataclass(frozen=True, kw_only=True)
class _Options:
    options: list[list[Option]]
    picks: list[list[_Pick]]


class _Search:
    def __init__(self, items: Sequence[Item], cost: Cost, budget: float) -> None:
        self.items, self._cost, self.budget = items, cost, budget
        self._known: dict[_Picks, float] = {}

    def state_of(self, picks: _Picks) -> dict[str, int]:
        state: dict[str, int] = {}
        for item, pick in zip(self.items, picks, strict=True):
            state |= _changes(item, pick)
        return state

    def loss_of(self, picks: _Picks) -> float:
        return sum(_loss(item, pick) for item, pick in zip(self.items, picks, strict=True))

    def cost_of(self, picks: _Picks) -> float:
        return self.costs_of([picks])[0]

    def costs_of(self, several: list[_Picks]) -> list[float]:
        missing = [picks for picks in dict.fromkeys(several) if picks not in self._known]
        if missing:
            self._known.update(zip(missing, self._cost([self.state_of(picks) for picks in missing]), strict=True))
        return [self._known[picks] for picks in several]

    def picks_of(self, state: State) -> _Picks:
        """The picks that come nearest to `state`: the choices whose changes it already has, else the first."""

        def fits(choice: Choice) -> bool:
            return all(state.get(name) == value for name, value in choice.changes.items())

        found: list[_Pick] = []
        for item in self.items:
            if item.dropped is not None and item.dropped.changes and fits(item.dropped):
                found.append(None)
            else:
                found.append(tuple(next((i for i, c in enumerate(part) if fits(c)), 0) for part in item.parts))
        return tuple(found)

    def linearised(self, picks: _Picks) -> tuple[_Options, float]:
        """Every item's options with their costs as differences around `picks`, and the cost of `picks`."""
        wanted: list[_Picks] = [picks]
        for number, item in enumerate(self.items):
            here = picks[number]
            standing = here if here is not None else _lightest(item)
            wanted += [_with(picks, number, standing)]
            wanted += [
                _with(picks, number, _with_part(standing, part, index))
                for part, choices in enumerate(item.parts)
                for index in range(len(choices))
            ]
            if item.dropped is not None:
                wanted.append(_with(picks, number, None))
        costs = dict(zip(wanted, self.costs_of(wanted), strict=True))
        base = costs[picks]
        options: list[list[Option]] = []
        found: list[list[_Pick]] = []
        for number, item in enumerate(self.items):
            here = picks[number]
            standing = here if here is not None else _lightest(item)
            whole = costs[_with(picks, number, standing)]
            parts = [
                [
                    Option(
                        loss=choice.loss,
                        cost=costs[_with(picks, number, _with_part(standing, part, index))] - whole,
                    )
                    for index, choice in enumerate(choices)
                ]
                for part, choices in enumerate(item.parts)
            ]
            inner = frontier(parts, math.inf, _INNER_FRONTIER)
            extra = item.kept.loss if item.kept is not None else 0.0
            row = [Option(loss=extra + loss, cost=whole - base + price) for _, loss, price in inner]
            names: list[_Pick] = [pick for pick, _, _ in inner]
            if item.dropped is not None:
                row.append(Option(loss=item.dropped.loss, cost=costs[_with(picks, number, None)] - base))
                names.append(None)
            options.append(row)
            found.append(names)
        return _Options(options=options, picks=found), base

    def neighbours(self, picks: _Picks) -> list[_Picks]:
        found = []
        for number, item in enumerate(self.items):
            here = picks[number]
            if here is None:
                found.append(_with(picks, number, _lightest(item)))
                continue
            found += [
                _with(picks, number, _with_part(here, part, index))
                for part, choices in enumerate(item.parts)
                for index in range(len(choices))
                if index != here[part]
            ]
            if item.dropped is not None:
                found.append(_with(picks, number, None))
        return found

    def repaired(self, picks: _Picks) -> _Picks:
        """`picks` with the changes of the least loss for what they save, until the budget is kept."""
        cost = self.cost_of(picks)
        while cost > self.budget:
            loss = self.loss_of(picks)
            others = self.neighbours(picks)
            cheaper = [
                (other, price) for other, price in zip(others, self.costs_of(others), strict=True) if price < cost
            ]
            if not cheaper:
                raise BudgetError(self.budget, cost)
            picks, cost = min(cheaper, key=lambda pair: _rate(self.loss_of(pair[0]) - loss, cost - pair[1]))
        return picks

    def improved(self, picks: _Picks) -> _Picks:
        """`picks` after single changes, each the one of the least loss within the budget, as long as one helps."""
        while True:
            others = self.neighbours(picks)
            allowed = [
                other for other, price in zip(others, self.costs_of(others), strict=True) if price <= self.budget
            ]
            better = min(allowed, key=self.loss_of, default=picks)
            if not self.loss_of(better) < self.loss_of(picks):
                return picks
            picks = better


def _changes(item: Item, pick: _Pick) -> dict[str, int]:
    if pick is None:
        return dict(item.dropped.changes) if item.dropped is not None else {}
    found = dict(item.kept.changes) if item.kept is not None else {}
    for part, index in zip(item.parts, pick, strict=True):
        found |= part[index].changes
    return found


def _loss(item: Item, pick: _Pick) -> float:
    if pick is None:
        return item.dropped.loss if item.dropped is not None else 0.0
    kept = item.kept.loss if item.kept is not None else 0.0
    return kept + sum(part[index].loss for part, index in zip(item.parts, pick, strict=True))


def _lightest(item: Item) -> tuple[int, ...]:
    """The choice of the least loss for each part."""
    return tuple(min(range(len(part)), key=lambda index, part=part: part[index].loss) for part in item.parts)  # type: ignore[misc]  # mypy cannot infer a lambda's default


def _with(picks: _Picks, number: int, pick: _Pick) -> _Picks:
    return (*picks[:number], pick, *picks[number + 1 :])


def _with_part(pick: tuple[int, ...], part: int, index: int) -> tuple[int, ...]:
    return (*pick[:part], index, *pick[part + 1 :])


def _rate(loss: float, saved: float) -> tuple[bool, float]:
    # What costs no loss goes first, the more it saves the better; then the least loss for what is saved.
    return (True, loss / saved) if loss > 0 else (False, -saved)
