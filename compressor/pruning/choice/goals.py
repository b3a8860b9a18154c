"""The goal that a pruning target sets for a model: a count, a latency, or a count with milliseconds in step.

Latency efficiency is the speed-up over the ratio of multiply-accumulates. A choice by multiply-accumulates alone takes
what is cheap in milliseconds and leaves what is not: weights that arrive from memory, starts of small operators.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from compressor.estimate import Estimate
from compressor.knapsack import BudgetError
from compressor.pruning.choice.joint_choice import choose_jointly
from compressor.pruning.choice.knapsack_choice import Chosen, Cost, Item, State, choose_structure
from compressor.pruning.choice.structure_goals import CountGoal, LatencyGoal
from compressor.pruning.choice.targets import Latency, Macs, PruningTarget
from compressor.stage import Context, StageError
from compressor.structure.couplings import Coupled
from compressor.workload import Workload

# What an efficiency is lowered by where no choice has it.
_EFFICIENCY_STEP = 0.05


@dataclass(frozen=True, kw_only=True)
class EfficientGoal:
    """At most so many multiply-accumulates as `counted` says, with the milliseconds of every `timed` form in step.

    `efficiency` is the least speed-up over the ratio of multiply-accumulates, both against the reference.
    """

    counted: CountGoal
    timed: tuple[LatencyGoal, ...]
    efficiency: float
    # By form, what was predicted of the last choice, and how much longer than predicted a measured one took.
    promised: dict[str, float] = field(default_factory=dict)
    slower: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, target: Macs, efficiency: float, model: nn.Module, workload: Workload, context: Context
    ) -> "EfficientGoal":
        """The goal that `target` sets for `model`: exports and times it and the reference in every form."""
        forms = [Latency(target.fraction, form=form) for form in target.forms]
        return cls(
            counted=CountGoal.of(target, model, workload, context),
            timed=tuple(LatencyGoal.of(form, model, workload, context) for form in forms),
            efficiency=efficiency,
        )

    @property
    def unit(self) -> str:
        """That of `reference`, `start` and `limit`, which are the counted ones."""
        return self.counted.unit

    @property
    def reference(self) -> float:
        """What the reference has."""
        return self.counted.reference

    @property
    def start(self) -> float:
        """What the model has."""
        return self.counted.start

    @property
    def limit(self) -> float:
        """What is to be left."""
        return self.counted.limit

    def costs(self, model: nn.Module, groups: Sequence[Coupled], blocks: Sequence[str] = ()) -> "TimedCost":
        """The cost of every state of `model`, in eval mode, in `unit`, and its milliseconds."""
        times = tuple(goal.costs(model, groups, blocks) for goal in self.timed)
        return TimedCost(count=self.counted.costs(model, groups, blocks), times=times)

    def measured(self, model: nn.Module) -> Estimate:
        """What `model` really costs, in `unit`."""
        return self.counted.measured(model)

    def choose(self, items: Sequence[Item], cost: Cost, limit: float, start: State) -> Chosen:
        """The state of the least loss within `limit` and of the efficiency asked for, or of the nearest to it."""
        assert isinstance(cost, TimedCost)  # `costs` made it

        def shares(states: Sequence[State]) -> list[tuple[float, list[float]]]:
            return [
                (
                    count / self.reference,
                    [
                        self.slower.get(goal.target.form, 1.0) * ms / goal.reference
                        for ms, goal in zip(times, self.timed, strict=True)
                    ],
                )
                for count, times in cost.of(states)
            ]

        def excess(efficiency: float, states: Sequence[State]) -> list[tuple[float, ...]]:
            return [
                (count - limit / self.reference, *(efficiency * time - count for time in times))
                for count, times in shares(states)
            ]

        efficiency, found = self.efficiency, None
        while found is None and efficiency > 0:
            try:
                found = choose_jointly(items, partial(excess, efficiency), start)
            except BudgetError:
                efficiency -= _EFFICIENCY_STEP
        if found is None:
            found = choose_structure(items, cost, limit, start)
        ((count, times),) = shares([found.state])
        self.promised.update({goal.target.form: count / time for goal, time in zip(self.timed, times, strict=True)})
        return replace(found, cost=cost([found.state])[0])

    def beside(self, model: nn.Module) -> dict[str, Any]:
        """What else of `model` the report is told: the efficiency in every form, asked, predicted and measured."""
        count = self.measured(model).value / self.reference
        measured = {goal.target.form: count * goal.reference / goal.measured(model).value for goal in self.timed}
        return {
            "efficiency": {
                "asked": self.efficiency,
                **{
                    form: {"predicted": float(f"{self.promised[form]:.4g}"), "measured": float(f"{value:.4g}")}
                    for form, value in measured.items()
                },
            }
        }

    def shortfall(self, beside: dict[str, Any]) -> float:
        """How far the form that is worst off, by `beside`, was measured below the efficiency asked for; at least 0."""
        measured: list[float] = [beside["efficiency"][goal.target.form]["measured"] for goal in self.timed]
        return max(0.0, self.efficiency - min(measured))

    def learn(self, beside: dict[str, Any]) -> None:
        """Takes what comes from now on as so much slower or faster than predicted as the choice of `beside` was."""
        for goal in self.timed:
            form = goal.target.form
            told = beside["efficiency"][form]
            self.slower[form] = self.slower.get(form, 1.0) * told["predicted"] / told["measured"]


@dataclass(frozen=True, kw_only=True)
class TimedCost:
    """The multiply-accumulates of states, and their milliseconds in several forms."""

    count: Cost
    times: tuple[Cost, ...]
    _known: dict[tuple[tuple[str, int], ...], tuple[float, tuple[float, ...]]] = field(default_factory=dict)

    def __call__(self, states: Sequence[State]) -> list[float]:
        """The multiply-accumulates of each state."""
        return self.count(states)

    def of(self, states: Sequence[State]) -> list[tuple[float, tuple[float, ...]]]:
        """The multiply-accumulates of each state and its milliseconds in each form."""
        keys = [tuple(sorted(state.items())) for state in states]
        fresh = dict(zip(keys, states, strict=True))
        missing = [key for key in fresh if key not in self._known]
        asked = [fresh[key] for key in missing]
        columns = [time(asked) for time in self.times]
        for key, count, *times in zip(missing, self.count(asked), *columns, strict=True):
            self._known[key] = count, tuple(times)
        return [self._known[key] for key in keys]


Goal = CountGoal | LatencyGoal | EfficientGoal


def goal_of(target: PruningTarget, model: nn.Module, workload: Workload, context: Context) -> "Goal":
    """`target` for `model`: fractions are of the workload's own model. Raises StageError where it is reached already.

    A latency exports and times both, interleaved, in the form that ships, which takes some seconds; so does an
    efficiency.
    """
    goal: Goal
    if isinstance(target, Latency):
        goal = LatencyGoal.of(target, model, workload, context)
    elif isinstance(target, Macs) and target.efficiency is not None:
        goal = EfficientGoal.of(target, target.efficiency, model, workload, context)
    else:
        goal = CountGoal.of(target, model, workload, context)
    if goal.start <= goal.limit:
        raise StageError(
            f"the model already has {_amount(goal.start, goal.unit)}, within the {_amount(goal.limit, goal.unit)} that "
            f"{target!r} allows (reference: {_amount(goal.reference, goal.unit)}); lower the target or leave this stage"
            " out"
        )
    return goal


def _amount(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if unit == "ms" else f"{value:,.0f} {unit}"
