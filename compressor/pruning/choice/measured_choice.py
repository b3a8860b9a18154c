"""A choice of structure that was built and measured, and made once more where the prediction was off.

What can be off is what the choice costs, and, where milliseconds are to fall in step with a count, their efficiency.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.pruning.choice.goals import EfficientGoal, Goal
from compressor.pruning.choice.targets import PruningTarget
from compressor.structure.plan import Entry, apply_plan_

# A measured time that is off by less is as good as clock and staircase let it be.
_TOLERANCE = 0.03
# Being faster than asked for costs accuracy: worth a second choice from here on.
_TOO_FAST = 0.1


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The plan entries of a choice, the `state` that they lead to, and what it is predicted to cost."""

    entries: list[Entry]
    state: dict[str, int]
    predicted: float


def measured_choice(
    goal: Goal,
    target: PruningTarget,
    model: nn.Module,
    propose: Callable[[float], Proposal],
    details: dict[str, Any],
) -> Proposal:
    """What `propose` gives for the goal's limit; where it misses it as measured, for the limit corrected by the ratio.

    `model` is what the entries are carried out on, on a copy. `details` get "target", and "first_choice" or
    "second_choice" for what was not taken. Raises StageError where what is left costs no less than before.
    """
    first = propose(goal.limit)
    taken, measured = first, goal.measured(_built(model, first))
    details["target"] = _told(goal, target, first, measured)
    if missed(goal, measured):
        try:
            second = propose(goal.limit * first.predicted / measured.value)
        except StageError as error:
            details["second_choice"] = str(error)
            second = first
        if second.state != first.state:
            again = goal.measured(_built(model, second))
            if nearer(goal, again, measured):
                details["first_choice"] = details["target"]
                details["target"] = _told(goal, target, second, again)
                taken, measured = second, again
            else:
                details["second_choice"] = _told(goal, target, second, again)
    if measured.value >= goal.start:
        raise StageError(
            f"{target!r}: the best choice was measured at {measured.value:.4g} {goal.unit}, no less than the "
            f"{goal.start:.4g} {goal.unit} it has; raise the target, or leave this stage out"
        )
    details["target"] |= goal.beside(_built(model, taken))
    if isinstance(goal, EfficientGoal) and goal.shortfall(details["target"]) > _TOLERANCE:
        taken = _in_step(goal, model, taken, propose, details)
    return taken


def _in_step(
    goal: EfficientGoal,
    model: nn.Module,
    first: Proposal,
    propose: Callable[[float], Proposal],
    details: dict[str, Any],
) -> Proposal:
    """What `propose` gives once `goal` has learned from `first`, where that was measured to be nearer to it."""
    told = details["target"]
    goal.learn(told)
    try:
        second = propose(goal.limit)
    except StageError as error:
        details["second_choice"] = str(error)
        return first
    if second.state == first.state:
        return first
    built = _built(model, second)
    again = told | _costs(goal, second, goal.measured(built)) | goal.beside(built)
    if again["measured"] <= goal.limit * (1 + _TOLERANCE) and goal.shortfall(again) < goal.shortfall(told):
        details["first_choice"], details["target"] = told, again
        return second
    details["second_choice"] = again
    return first


def missed(goal: Goal, measured: Estimate) -> bool:
    """Whether the limit is exceeded by more than noise, or undercut by so much that accuracy was wasted."""
    if measured.value > goal.limit * (1 + _TOLERANCE):
        return measured.low > goal.limit
    return measured.high < goal.limit * (1 - _TOO_FAST)


def nearer(goal: Goal, second: Estimate, first: Estimate) -> bool:
    """Whether `second` is the better of two results: within the limit if the other is not, else closer to it."""
    within = [measured.value <= goal.limit * (1 + _TOLERANCE) for measured in (second, first)]
    if within[0] != within[1]:
        return within[0]
    return abs(second.value - goal.limit) < abs(first.value - goal.limit)


def _built(model: nn.Module, proposal: Proposal) -> nn.Module:
    return apply_plan_(copy.deepcopy(model), proposal.entries)


def _told(goal: Goal, target: PruningTarget, proposal: Proposal, measured: Estimate) -> dict[str, Any]:
    return {"target": repr(target), "unit": goal.unit, **_costs(goal, proposal, measured)}


def _costs(goal: Goal, proposal: Proposal, measured: Estimate) -> dict[str, float]:
    numbers = {
        "reference": goal.reference,
        "start": goal.start,
        "limit": goal.limit,
        "predicted": proposal.predicted,
        "measured": measured.value,
        "measured_low": measured.low,
        "measured_high": measured.high,
        "fraction_of_reference": measured.value / goal.reference,
    }
    return {key: float(f"{value:.5g}") for key, value in numbers.items()}
