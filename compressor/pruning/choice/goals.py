"""The goal that a pruning target sets for a model: a count, a latency, or a count with milliseconds in step.

A goal knows the limit, what a state would cost, and what a model really costs. Latency efficiency is the speed-up over
the ratio of multiply-accumulates. A choice by multiply-accumulates alone takes what is cheap in milliseconds and leaves
what is not: weights that arrive from memory, starts of small operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from compressor.batches import Inputs
from compressor.errors import BudgetError, StageError
from compressor.estimate import Estimate
from compressor.kept_state import private_copy
from compressor.latency.operators import Operator
from compressor.latency.table import LatencyTable
from compressor.measuring.timing import time_interleaved
from compressor.pruning.choice.costs import LatencyCosts, StructureCosts, TimedCost, file_time, table_times
from compressor.pruning.choice.joint_choice import choose_jointly
from compressor.pruning.choice.knapsack_choice import Chosen, Cost, Item, State, choose_structure
from compressor.pruning.choice.shipped_form import shipped_file
from compressor.pruning.choice.targets import Latency, Macs, Parameters, PruningTarget
from compressor.stage import Context
from compressor.structure.graph import StructureGraph
from compressor.structure.trials import evaluating
from compressor.workload import Workload, resize_batch

# What an efficiency is lowered by where no choice has it.
_EFFICIENCY_STEP = 0.05


@dataclass(frozen=True, kw_only=True)
class _OneCost:
    """At most `limit` of one cost, in `unit`, of which the reference has `reference` and the model `start`."""

    workload: Workload
    context: Context
    unit: str
    reference: float
    start: float
    limit: float

    def choose(self, items: Sequence[Item], cost: Cost, limit: float, start: State) -> Chosen:
        """The state of the least loss that costs at most `limit`. Raises BudgetError where there is none."""
        return choose_structure(items, cost, limit, start)

    def predicted_efficiency(self, cost: Cost, state: State) -> dict[str, float]:
        """None, by no form: what is not asked for is not predicted."""
        del cost, state
        return {}


@dataclass(frozen=True, kw_only=True)
class CountGoal(_OneCost):
    """At most `limit` multiply-accumulates or parameters; the reference has `reference`, the model `start`."""

    kind: type[Macs | Parameters]

    @classmethod
    def of(cls, target: Macs | Parameters, model: nn.Module, workload: Workload, context: Context) -> "CountGoal":
        """The goal that `target` sets for `model`."""
        kind = type(target)
        reference = _count(kind, context.began_with(workload), workload, context)
        return cls(
            kind=kind,
            workload=workload,
            context=context,
            unit="MACs" if kind is Macs else "parameters",
            reference=reference,
            start=_count(kind, model, workload, context),
            limit=target.fraction * reference,
        )

    def costs(self, model: nn.Module, graph: StructureGraph, blocks: Sequence[str] = ()) -> Cost:
        """The cost of every state of `model`, in eval mode, in `unit`."""
        costs = StructureCosts(model, _inputs(self.workload, self.context), graph, blocks)
        return costs.macs if self.kind is Macs else costs.parameters

    def measured(self, model: nn.Module) -> Estimate:
        """What `model` really costs, in `unit`."""
        value = _count(self.kind, model, self.workload, self.context)
        return Estimate(value, value, value)


@dataclass(frozen=True, kw_only=True)
class LatencyGoal(_OneCost):
    """At most `limit` milliseconds in the form that ships; the reference takes `reference`, the model `start`."""

    target: Latency
    reference_file: bytes
    start_file: bytes
    start_sizes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, target: Latency, model: nn.Module, workload: Workload, context: Context) -> "LatencyGoal":
        """The goal that `target` sets for `model`: exports it and the reference, and times both."""
        reference = private_copy(context.began_with(workload)).eval()
        reference_file = _shipped(reference, workload, context, target.form)
        same = _sizes(reference) == _sizes(model)
        file = reference_file if same else _shipped(model, workload, context, target.form)
        timing = time_interleaved(
            file,
            reference_file,
            _inputs(workload, context),
            threads=context.target.threads,
            seed=context.seed,
        )
        reference_ms = timing.reference_ms.value
        return cls(
            target=target,
            workload=workload,
            context=context,
            reference_file=reference_file,
            start_file=file,
            start_sizes=_sizes(model),
            unit="ms",
            reference=reference_ms,
            start=reference_ms if same else reference_ms / timing.speedup.value,
            limit=target.ms if target.fraction is None else target.fraction * reference_ms,  # type: ignore[arg-type]  # one of both is given
        )

    def costs(self, model: nn.Module, graph: StructureGraph, blocks: Sequence[str] = ()) -> Cost:
        """The cost of every state of `model`, in eval mode, in `unit`."""
        costs = StructureCosts(model, _inputs(self.workload, self.context), graph, blocks)
        table, form = self._table(), self.target.form
        file, now = self.start_file, self.start
        if _sizes(model) != self.start_sizes:
            # A later step of several: what runs between its layers, and how long, is to be seen again.
            file = _shipped(model, self.workload, self.context, form)
            now = self._against_reference(file).value
        whole = file_time(file, self.workload.example_inputs, table, form)
        return LatencyCosts(costs, table_times(table, form), file=whole, measured_ms=now)

    def times(self, models: Sequence[Sequence[Operator]]) -> list[float]:
        """The milliseconds of models of these operators: the table's, in proportion to its error on the whole file."""
        table, form = self._table(), self.target.form
        whole = file_time(self.start_file, self.workload.example_inputs, table, form).whole_ms
        return [self.start / whole * ms for ms in table_times(table, form)(models)]

    def _table(self) -> LatencyTable:
        return LatencyTable(self.context.target, progress=self.context.progress)

    def measured(self, model: nn.Module) -> Estimate:
        """What `model` really costs, in `unit`."""
        return self._against_reference(_shipped(model, self.workload, self.context, self.target.form))

    def _against_reference(self, file: bytes) -> Estimate:
        timing = time_interleaved(
            file,
            self.reference_file,
            _inputs(self.workload, self.context),
            threads=self.context.target.threads,
            seed=self.context.seed,
        )
        if self.target.fraction is None:
            return timing.candidate_ms
        # Against the reference of the same minute: what else the machine does cancels.
        speedup = timing.speedup
        return Estimate(self.reference / speedup.value, self.reference / speedup.high, self.reference / speedup.low)


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """The latency efficiency of a choice in one form, above 0: as it was predicted, and as it was measured."""

    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class EfficientGoal:
    """At most so many multiply-accumulates as `counted` says, with the milliseconds of every `timed` form in step.

    `efficiency` is the least speed-up over the ratio of multiply-accumulates, both against the reference.
    """

    counted: CountGoal
    timed: tuple[LatencyGoal, ...]
    efficiency: float
    # By form, how much longer than predicted a measured choice took.
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

    def costs(self, model: nn.Module, graph: StructureGraph, blocks: Sequence[str] = ()) -> TimedCost:
        """The cost of every state of `model`, in eval mode, in `unit`, and its milliseconds."""
        times = tuple(goal.costs(model, graph, blocks) for goal in self.timed)
        return TimedCost(count=self.counted.costs(model, graph, blocks), times=times)

    def measured(self, model: nn.Module) -> Estimate:
        """What `model` really costs, in `unit`."""
        return self.counted.measured(model)

    def choose(self, items: Sequence[Item], cost: Cost, limit: float, start: State) -> Chosen:
        """The state of the least loss within `limit` and of the efficiency asked for, or of the nearest to it."""
        assert isinstance(cost, TimedCost)  # `costs` made it

        def excess(efficiency: float, states: Sequence[State]) -> list[tuple[float, ...]]:
            return [
                (count - limit / self.reference, *(efficiency * time - count for time in times))
                for count, times in self._shares(cost, states)
            ]

        efficiency, found = self.efficiency, None
        while found is None and efficiency > 0:
            try:
                found = choose_jointly(items, partial(excess, efficiency), start)
            except BudgetError:
                efficiency -= _EFFICIENCY_STEP
        if found is None:
            found = choose_structure(items, cost, limit, start)
        return replace(found, cost=cost([found.state])[0])

    def predicted_efficiency(self, cost: Cost, state: State) -> dict[str, float]:
        """The latency efficiency that `state` is predicted to have, by form."""
        assert isinstance(cost, TimedCost)  # `costs` made it
        ((count, times),) = self._shares(cost, [state])
        return {goal.target.form: count / time for goal, time in zip(self.timed, times, strict=True)}

    def _shares(self, cost: TimedCost, states: Sequence[State]) -> list[tuple[float, list[float]]]:
        """What each state is predicted to have of the reference's products, and of its time in each form."""
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

    def efficiencies(self, model: nn.Module, predicted: Mapping[str, float]) -> dict[str, Efficiency]:
        """The efficiency of `model`, measured in every form, beside the one `predicted`."""
        count = self.measured(model).value / self.reference
        return {
            goal.target.form: Efficiency(
                predicted=predicted[goal.target.form],
                measured=count * goal.reference / goal.measured(model).value,
            )
            for goal in self.timed
        }

    def shortfall(self, found: Mapping[str, Efficiency]) -> float:
        """How far the form that is worst off in `found` was measured below the efficiency asked for; at least 0."""
        return max(0.0, self.efficiency - min(found[goal.target.form].measured for goal in self.timed))

    def learn(self, found: Mapping[str, Efficiency]) -> None:
        """Takes what comes from now on as so much slower or faster than predicted as what `found` was."""
        for goal in self.timed:
            form = goal.target.form
            self.slower[form] = self.slower.get(form, 1.0) * found[form].predicted / found[form].measured


Goal = CountGoal | LatencyGoal | EfficientGoal


def goal_of(target: PruningTarget, model: nn.Module, workload: Workload, context: Context) -> Goal:
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


def out_of_reach(
    target: PruningTarget, goal: Goal, limit: float, error: BudgetError, *, least: str, locked: str, way_out: str
) -> StageError:
    """That no choice costs at most `limit` of `goal`: what would be left with `least`, what is `locked`, a way out."""
    return StageError(
        f"{target!r} cannot be reached: with {least}, {error.least / goal.reference:.0%} of the reference's "
        f"{goal.unit} are left, and {limit / goal.reference:.0%} are asked for; {locked or 'nothing is locked'}; "
        f"{way_out}"
    )


def _shipped(model: nn.Module, workload: Workload, context: Context, form: str) -> bytes:
    with evaluating(model):
        return shipped_file(model, workload, context, form)


def _inputs(workload: Workload, context: Context) -> Inputs:
    return resize_batch(workload.example_inputs, context.target.batch_size)


def _count(kind: type[Macs | Parameters], model: nn.Module, workload: Workload, context: Context) -> float:
    if kind is Parameters:
        return float(sum(parameter.numel() for parameter in model.parameters()))
    judged = model if model is not context.began_with(workload) else private_copy(model)
    with evaluating(judged):
        return StructureCosts(judged, _inputs(workload, context)).macs([{}])[0]


def _sizes(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """The shapes of all weights: of models of one class, those that differ in time differ in them."""
    return tuple(sorted(tuple(value.shape) for value in (*model.parameters(), *model.buffers())))


def _amount(value: float, unit: str) -> str:
    return f"{value:.3g} {unit}" if unit == "ms" else f"{value:,.0f} {unit}"
