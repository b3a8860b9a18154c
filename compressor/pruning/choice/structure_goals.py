"""What a count or a latency means for a model at hand: the limit, what a state would cost, and what was reached."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from compressor.batches import Inputs
from compressor.estimate import Estimate
from compressor.latency.operators import Operator
from compressor.latency.prediction import operators_of_graph
from compressor.latency.table import LatencyTable, in_one_model
from compressor.pruning.choice.costs import FileTime, LatencyCosts, StructureCosts
from compressor.pruning.choice.knapsack_choice import Chosen, Cost, Item, State, choose_structure
from compressor.pruning.choice.shipped_form import shipped_file
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.runtime import time_interleaved
from compressor.stage import Context
from compressor.structure.couplings import Coupled
from compressor.structure.trials import evaluating
from compressor.workload import Workload, resize_batch


@dataclass(frozen=True, kw_only=True)
class CountGoal:
    """At most `limit` multiply-accumulates or parameters; the reference has `reference`, the model `start`."""

    kind: type[Macs | Parameters]
    workload: Workload
    context: Context
    unit: str
    reference: float
    start: float
    limit: float

    @classmethod
    def of(cls, target: Macs | Parameters, model: nn.Module, workload: Workload, context: Context) -> "CountGoal":
        """The goal that `target` sets for `model`."""
        kind = type(target)
        reference = _count(kind, workload.model, workload, context)
        return cls(
            kind=kind,
            workload=workload,
            context=context,
            unit="MACs" if kind is Macs else "parameters",
            reference=reference,
            start=_count(kind, model, workload, context),
            limit=target.fraction * reference,
        )

    def costs(self, model: nn.Module, groups: Sequence[Coupled], blocks: Sequence[str] = ()) -> Cost:
        """The cost of every state of `model`, in eval mode, in `unit`."""
        costs = StructureCosts(model, _inputs(self.workload, self.context), groups, blocks)
        return costs.macs if self.kind is Macs else costs.parameters

    def measured(self, model: nn.Module) -> Estimate:
        """What `model` really costs, in `unit`."""
        value = _count(self.kind, model, self.workload, self.context)
        return Estimate(value, value, value)

    def choose(self, items: Sequence[Item], cost: Cost, limit: float, start: State) -> Chosen:
        """The state of the least loss that costs at most `limit`. Raises BudgetError where there is none."""
        return choose_structure(items, cost, limit, start)

    def beside(self, model: nn.Module) -> dict[str, Any]:
        """What else of `model` the report is told: nothing."""
        del model
        return {}


@dataclass(frozen=True, kw_only=True)
class LatencyGoal:
    """At most `limit` milliseconds in the form that ships; the reference takes `reference`, the model `start`."""

    target: Latency
    workload: Workload
    context: Context
    reference_file: bytes
    start_file: bytes
    start_sizes: tuple[tuple[int, ...], ...]
    unit: str
    reference: float
    start: float
    limit: float

    @classmethod
    def of(cls, target: Latency, model: nn.Module, workload: Workload, context: Context) -> "LatencyGoal":
        """The goal that `target` sets for `model`: exports it and the reference, and times both."""
        reference = copy.deepcopy(workload.model).eval()
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

    def costs(self, model: nn.Module, groups: Sequence[Coupled], blocks: Sequence[str] = ()) -> Cost:
        """The cost of every state of `model`, in eval mode, in `unit`."""
        costs = StructureCosts(model, _inputs(self.workload, self.context), groups, blocks)
        table, form = LatencyTable(self.context.target, progress=self.context.progress), self.target.form

        def times(models: Sequence[Sequence[Operator]]) -> list[float]:
            rows = [in_one_model(operators, form) for operators in models]
            every = list(dict.fromkeys(operator for row in rows for operator in row))
            known = dict(zip(every, table.milliseconds(every, form), strict=True))
            return [math.fsum(known[operator] for operator in row) for row in rows]

        file, now = self.start_file, self.start
        if _sizes(model) != self.start_sizes:
            # A later step of several: what runs between its layers, and how long, is to be seen again.
            file = _shipped(model, self.workload, self.context, form)
            now = self._against_reference(file).value
        whole = file_time(file, self.workload.example_inputs, table, form)
        return LatencyCosts(costs, times, file=whole, measured_ms=now)

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

    def choose(self, items: Sequence[Item], cost: Cost, limit: float, start: State) -> Chosen:
        """The state of the least loss that costs at most `limit`. Raises BudgetError where there is none."""
        return choose_structure(items, cost, limit, start)

    def beside(self, model: nn.Module) -> dict[str, Any]:
        """What else of `model` the report is told: nothing."""
        del model
        return {}


def _shipped(model: nn.Module, workload: Workload, context: Context, form: str) -> bytes:
    with evaluating(model):
        return shipped_file(model, workload, context.target, form)


def file_time(file: bytes, inputs: Inputs, table: LatencyTable, form: str) -> FileTime:
    """What `table` says of the ONNX file for its target's batch of `inputs`, in `form`: "float32" or "int8"."""
    operators = operators_of_graph(file, inputs, table.target.batch_size, layout=form == "float32")
    call = [operator for operator in operators if operator.flags == ("Call",)]
    between = [operator for operator in operators if operator.kind == "light" and operator not in call]
    # The straight line through the times of whole and of quarter sizes: where it starts.
    quarters = [replace(operator, size=(max(1, operator.size[0] // 4),)) for operator in between]
    pairs = zip(table.milliseconds(between, form), table.milliseconds(quarters, form), strict=True)
    starts = [min(max((4 * quarter - whole) / 3, 0.0), whole) for whole, quarter in pairs]
    return FileTime(
        whole_ms=table.total(operators, form),
        call_ms=math.fsum(table.milliseconds(call, form)),
        step_ms=math.fsum(starts),
    )


def _inputs(workload: Workload, context: Context) -> Inputs:
    return resize_batch(workload.example_inputs, context.target.batch_size)


def _count(kind: type[Macs | Parameters], model: nn.Module, workload: Workload, context: Context) -> float:
    if kind is Parameters:
        return float(sum(parameter.numel() for parameter in model.parameters()))
    judged = model if model is not workload.model else copy.deepcopy(model)
    with evaluating(judged):
        return StructureCosts(judged, _inputs(workload, context), ()).macs([{}])[0]


def _sizes(model: nn.Module) -> tuple[tuple[int, ...], ...]:
    """The shapes of all weights: of models of one class, those that differ in time differ in them."""
    return tuple(sorted(tuple(value.shape) for value in model.state_dict().values()))
