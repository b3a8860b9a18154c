"""A choice of structure that was built and measured, and made once more where the prediction was off.

What can be off is what the choice costs, and, where milliseconds are to fall in step with a count, their efficiency.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.kept_state import private_copy
from compressor.notes.note import Note
from compressor.notes.structure import BuiltChoice, FirstChoice, FormEfficiency, SecondChoice, TakenChoice
from compressor.pruning.choice.goals import Efficiency, EfficientGoal, Goal
from compressor.pruning.choice.targets import PruningTarget
from compressor.structure.plan import Entry, apply_plan_

# A measured time that is off by less is as good as clock and staircase let it be.
_TOLERANCE = 0.03
# Being faster than asked for costs accuracy: worth a second choice from here on.
_TOO_FAST = 0.1


Tell = Callable[[Note], None]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The plan entries of a choice, the `state` that they lead to, and what it is predicted to cost.

    `efficiency` is the latency efficiency that it is predicted to have, by form, where a goal asks for one.
    """

    entries: list[Entry]
    state: dict[str, int]
    predicted: float
    efficiency: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A choice that was built, with what it really costs in the goal's unit; decisions are made on it, unrounded.

    `efficiency` is that of each form that a goal asks it for, by form; empty where that was not measured.
    """

    proposal: Proposal
    cost: Estimate
    efficiency: Mapping[str, Efficiency] = field(default_factory=dict)


def measured_choice(
    goal: Goal,
    target: PruningTarget,
    model: nn.Module,
    propose: Callable[[float], Proposal],
    tell: Tell,
) -> Proposal:
    """What `propose` gives for the goal's limit; where it misses it as measured, for the limit corrected by the ratio.

    `model` is what the entries are carried out on, on a copy. `tell` gets the notes of the choice that is taken
    and of one that is not. Raises StageError where what is left costs no less than before.
    """

    def measured(proposal: Proposal) -> Measured:
        return Measured(proposal=proposal, cost=goal.measured(_built(model, proposal)))

    taken = measured(propose(goal.limit))
    tell(TakenChoice(target=_told(goal, target, taken)))
    if missed(goal, taken.cost):
        try:
            second = propose(goal.limit * taken.proposal.predicted / taken.cost.value)
        except StageError as error:
            tell(SecondChoice(second_choice=str(error)))
            second = taken.proposal
        if second.state != taken.proposal.state:
            again = measured(second)
            if nearer(goal, again.cost, taken.cost):
                tell(FirstChoice(first_choice=_told(goal, target, taken)))
                tell(TakenChoice(target=_told(goal, target, again)))
                taken = again
            else:
                tell(SecondChoice(second_choice=_told(goal, target, again)))
    if taken.cost.value >= goal.start:
        raise StageError(
            f"{target!r}: the best choice was measured at {taken.cost.value:.4g} {goal.unit}, no less than the "
            f"{goal.start:.4g} {goal.unit} it has; raise the target, or leave this stage out"
        )
    if isinstance(goal, EfficientGoal):
        taken = _in_step(goal, model, taken, propose, target=target, tell=tell)
    return taken.proposal


def _in_step(
    goal: EfficientGoal,
    model: nn.Module,
    taken: Measured,
    propose: Callable[[float], Proposal],
    *,
    target: PruningTarget,
    tell: Tell,
) -> Measured:
    """`taken` with its efficiency; where that falls short, what `propose` gives once `goal` has learned from it.

    The second one has to be measured nearer to the goal.
    """
    first = replace(taken, efficiency=goal.efficiencies(_built(model, taken.proposal), taken.proposal.efficiency))
    tell(TakenChoice(target=_told(goal, target, first)))
    if goal.shortfall(first.efficiency) <= _TOLERANCE:
        return first
    goal.learn(first.efficiency)
    try:
        proposal = propose(goal.limit)
    except StageError as error:
        tell(SecondChoice(second_choice=str(error)))
        return first
    if proposal.state == first.proposal.state:
        return first
    built = _built(model, proposal)
    second = Measured(
        proposal=proposal, cost=goal.measured(built), efficiency=goal.efficiencies(built, proposal.efficiency)
    )
    within = second.cost.value <= goal.limit * (1 + _TOLERANCE)
    if within and goal.shortfall(second.efficiency) < goal.shortfall(first.efficiency):
        tell(FirstChoice(first_choice=_told(goal, target, first)))
        tell(TakenChoice(target=_told(goal, target, second)))
        return second
    tell(SecondChoice(second_choice=_told(goal, target, second)))
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
    return apply_plan_(private_copy(model), proposal.entries)


def _told(goal: Goal, target: PruningTarget, measured: Measured) -> BuiltChoice:
    """What the report is told of a choice, rounded."""
    efficiency: dict[str, float | FormEfficiency] | None = None
    if isinstance(goal, EfficientGoal) and measured.efficiency:
        efficiency = {"asked": goal.efficiency} | {
            form: FormEfficiency(predicted=_digits(found.predicted, 4), measured=_digits(found.measured, 4))
            for form, found in measured.efficiency.items()
        }
    return BuiltChoice(
        target=repr(target),
        unit=goal.unit,
        reference=_digits(goal.reference, 5),
        start=_digits(goal.start, 5),
        limit=_digits(goal.limit, 5),
        predicted=_digits(measured.proposal.predicted, 5),
        measured=_digits(measured.cost.value, 5),
        measured_low=_digits(measured.cost.low, 5),
        measured_high=_digits(measured.cost.high, 5),
        fraction_of_reference=_digits(measured.cost.value / goal.reference, 5),
        efficiency=efficiency,
    )


def _digits(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
