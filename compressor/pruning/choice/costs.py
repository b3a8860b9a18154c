"""What a structure costs before it is built: milliseconds, multiply-accumulates or parameters, for any state of it.

One call on the example shows which layers run, on which sizes; the groups of coupled channels say which sides of their
weights shrink. A layer's cost follows from its narrowed sizes alone, and is worked out once for each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torch import nn

from compressor.batches import Inputs
from compressor.latency.operators import Operator
from compressor.latency.prediction import operators_of_graph
from compressor.latency.table import LatencyTable, in_one_model
from compressor.pruning.choice.knapsack_choice import Cost, State
from compressor.pruning.choice.layer_calls import LayerCall, Shape, calls_of
from compressor.pruning.choice.loose_products import Follows, followed
from compressor.structure.graph import StructureGraph
from compressor.structure.recurrent_layers import as_if_modules, layer_name
from compressor.structure.tensor_ids import tensors_of
from compressor.workload import batch_size_of

SizeOf = Callable[[str], Shape]
# The milliseconds of each of several models, given all operators of each.
ModelTimes = Callable[[Sequence[Sequence[Operator]]], list[float]]
# A state is asked for its products, its outputs and its times, one after the other.
_LATEST_STATES = 64


def block_key(name: str) -> str:
    """What a state calls the block `name`: 1 where it stands, 0 where it is gone."""
    return f"block:{name}"


def float_key(name: str) -> str:
    """What a state calls it that the layer `name` stays in float among integers: 1 where it does."""
    return f"float:{name}"


@dataclass(frozen=True, kw_only=True)
class _Record:
    """One layer, or one parameter: on which groups and blocks it depends, and what it is at given sizes."""

    name: str
    groups: tuple[str, ...]
    blocks: tuple[str, ...]
    operators: Callable[[SizeOf, State], list[Operator]]
    tensors: tuple[str, ...] = ()


class StructureCosts:
    """The costs of every state of `model`, as one call on `inputs` shows them.

    `model` is in eval mode, and left as it is; `inputs` have the batch size that is to be paid for. `graph` is its
    structure, None where all states are whole but for `blocks`, the names of those that may go. A state gives widths by
    group name, 1 or 0 by `block_key`, and by `float_key`; what it leaves out stands whole, in the form of all. Products
    outside of known layers are counted, and shrink with the heads of the module they run in, or with whatever makes
    them smaller when it is tried.
    """

    def __init__(
        self, model: nn.Module, inputs: Inputs, graph: StructureGraph | None = None, blocks: Sequence[str] = ()
    ) -> None:
        groups = graph.groups if graph is not None else ()
        self.batch = batch_size_of(inputs)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        self._widths = {group.name: group.width for group in groups}
        self._blocks = tuple(blocks)
        # By tensor and dimension: how many indices each group's channel takes there.
        self._sides: dict[str, list[tuple[int, str, float]]] = {}
        for group in groups:
            for part in group.parts:
                for tensor, dim in part.tensors:
                    self._sides.setdefault(tensor, []).append((dim, group.name, len(part.indices) / group.width))
        self._heads = [(group, {part.module for part in group.parts}) for group in groups if group.kind == "heads"]
        self._places = as_if_modules(model)
        calls = calls_of(model, inputs)
        loose = [number for number, call in enumerate(calls) if not call.tensors and self._head_of(call.name) is None]
        follows = followed(model, inputs, graph, calls, loose) if graph is not None else {}
        self._records = [
            record for number, call in enumerate(calls) for record in self._records_of(call, follows.get(number, ()))
        ]
        self._parameters = self._parameter_records(model)
        self._whole = [(*(self._widths[group] for group in record.groups), 0) for record in self._records]
        self._known: dict[tuple[int, tuple[int, ...]], list[Operator]] = {}
        self._latest = lru_cache(_LATEST_STATES)(self._operators)
        # By parameter and the widths that it shrinks with.
        self._counts: dict[tuple[str, tuple[int, ...]], int] = {}

    def parameters(self, states: Sequence[State]) -> list[float]:
        """How many parameters each state has; tied ones count once."""
        return [
            float(
                sum(
                    self._count(name, state)
                    for name, blocks in self._parameters
                    if all(state.get(block, 1) for block in blocks)
                )
            )
            for state in states
        ]

    def _count(self, name: str, state: State) -> int:
        widths = tuple([state.get(group, self._widths[group]) for _, group, _ in self._sides.get(name, ())])
        if (name, widths) not in self._counts:
            self._counts[name, widths] = math.prod(self._size_of(state)(name))
        return self._counts[name, widths]

    def macs(self, states: Sequence[State]) -> list[float]:
        """The multiply-accumulates of one sample in each state."""
        return [sum(operator.macs for operator in self.operators(state)) / self.batch for state in states]

    def elements(self, states: Sequence[State]) -> list[float]:
        """How many numbers the layers of each state put out: what additions, activations and moves take time for."""
        return [float(sum(map(_elements, self.operators(state)))) for state in states]

    def operators(self, state: State) -> tuple[Operator, ...]:
        """All that is counted in `state`, in the order of the calls."""
        return self._latest(tuple(state.items()))

    def _operators(self, items: tuple[tuple[str, int], ...]) -> tuple[Operator, ...]:
        state = dict(items)
        return tuple(operator for key in self._keys(state) for operator in self._of(key, state))

    def origins(self, state: State) -> list[Operator]:
        """What each of `operators(state)` is in the state with everything in it."""
        return [operator for number, _ in self._keys(state) for operator in self._of((number, self._whole[number]), {})]

    def _of(self, key: tuple[int, tuple[int, ...]], state: State) -> list[Operator]:
        if key not in self._known:
            found = self._records[key[0]].operators(self._size_of(state), state)
            self._known[key] = [replace(each, precision="float32") for each in found] if key[1][-1] else found
        return self._known[key]

    def layer_weights(self, state: State) -> dict[str, int]:
        """How many weights each layer that runs in `state` has, biases left out."""
        size_of = self._size_of(state)
        return {
            record.name: sum(math.prod(size_of(tensor)) for tensor in record.tensors)
            for record in self._records
            if record.tensors and all(state.get(block, 1) for block in record.blocks)
        }

    def _keys(self, state: State) -> list[tuple[int, tuple[int, ...]]]:
        return [
            (
                number,
                (
                    *(state.get(group, self._widths[group]) for group in record.groups),
                    state.get(float_key(record.name), 0),
                ),
            )
            for number, record in enumerate(self._records)
            if all(state.get(block, 1) for block in record.blocks)
        ]

    def _size_of(self, state: State) -> SizeOf:
        def size_of(tensor: str) -> Shape:
            shape = list(self._shapes[tensor])
            for dim, group, each in self._sides.get(tensor, ()):
                shape[dim] -= round(each * (self._widths[group] - state.get(group, self._widths[group])))
            return tuple(max(1, size) for size in shape)

        return size_of

    def _within(self, name: str) -> tuple[str, ...]:
        return tuple(block_key(block) for block in self._blocks if name == block or name.startswith(f"{block}."))

    def _records_of(self, call: LayerCall, follows: Sequence[Follows]) -> list[_Record]:
        whole = self._record(call, follows)
        if call.kind != "recurrent" or len(call.operators) == 1:
            return [whole]

        def of_layer(layer: int) -> _Record:
            def operators(size_of: SizeOf, state: State) -> list[Operator]:
                return whole.operators(size_of, state)[layer : layer + 1]

            name = layer_name(call.name, layer)
            return replace(whole, name=name, blocks=self._within(name), operators=operators)

        return [of_layer(layer) for layer in range(len(call.operators))]

    def _record(self, call: LayerCall, follows: Sequence[Follows]) -> _Record:
        tensors = [f"{call.name}.{key}" if call.name else key for key in call.tensors]
        groups = {group for tensor in tensors for _, group, _ in self._sides.get(tensor, ())}
        head = self._head_of(call.name) if not call.tensors else None
        if head is not None:
            groups.add(head)
        groups |= {group for each in follows for group in each.groups}
        shapes = {tensor: self._shapes[tensor] for tensor in tensors}

        def operators(size_of: SizeOf, state: State) -> list[Operator]:
            if head is not None:
                share = state.get(head, self._widths[head]) / self._widths[head]
                return [replace(op, batch=max(1, round(op.batch * share))) for op in call.operators]
            if follows:

                def gone(group: str) -> float:
                    return 1 - state.get(group, self._widths[group]) / self._widths[group]

                return [each.narrowed(op, gone) for each, op in zip(follows, call.operators, strict=True)]
            return call.narrowed(shapes, {tensor: size_of(tensor) for tensor in tensors})

        return _Record(
            name=call.name,
            groups=tuple(sorted(groups)),
            blocks=self._within(call.name),
            operators=operators,
            tensors=tuple(tensors),
        )

    def _head_of(self, module: str) -> str | None:
        """The heads that the products in `module` belong to: those of a layer in it, or beside it."""
        for scope in (module, module.rpartition(".")[0]):
            for group, layers in self._heads:
                if any(layer == scope or layer.startswith(f"{scope}.") for layer in layers):
                    return group.name
        return None

    def _parameter_records(self, model: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(name)

        def within(name: str) -> tuple[str, ...]:
            return self._within(self._places.get(name, name))

        # What is tied to a layer outside of a block stays when the block goes.
        return [
            (tied[0], tuple(block for block in within(tied[0]) if all(block in within(name) for name in tied)))
            for tied in names.values()
        ]


def table_times(table: LatencyTable, form: str) -> ModelTimes:
    """What `table` says of models in `form`, "float32" or "int8": every operator is looked up once."""

    def times(models: Sequence[Sequence[Operator]]) -> list[float]:
        rows = [in_one_model(operators, form) for operators in models]
        every = list(dict.fromkeys(operator for row in rows for operator in row))
        known = dict(zip(every, table.milliseconds(every, form), strict=True))
        return [math.fsum(known[operator] for operator in row) for row in rows]

    return times


@dataclass(frozen=True, kw_only=True)
class FileTime:
    """What a table says of a whole file: `whole_ms`, of which `call_ms` go whatever is in it.

    `step_ms` is what the operators between the layers take however small they are, all together.
    """

    whole_ms: float
    call_ms: float = 0.0
    step_ms: float = 0.0


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


class LatencyCosts:
    """Milliseconds of every state: its layers by a table, and what runs between them.

    `times` gives the table's milliseconds of models, `file` what it says of the file with everything in it. What the
    layers and the call do not account for are additions, activations and moves: their starts go with the number of
    layers that are left, the rest with the numbers that these put out. All of it is scaled so that the state with
    everything in it takes the `measured_ms`.
    """

    def __init__(self, costs: StructureCosts, times: ModelTimes, *, file: FileTime, measured_ms: float) -> None:
        self._costs, self._times = costs, times
        (layers_ms,), (elements,) = times([costs.operators({})]), costs.elements([{}])
        between = max(0.0, file.whole_ms - layers_ms - file.call_ms)
        self._call = file.call_ms
        self._step = min(file.step_ms, between) / max(len(costs.operators({})), 1)
        self._move = max(0.0, between - file.step_ms) / max(elements, 1.0)
        whole = layers_ms + self._call + between
        self._scale = measured_ms / whole if whole > 0 else 1.0

    def __call__(self, states: Sequence[State]) -> list[float]:
        """The milliseconds of one call in each state."""
        models = [self._costs.operators(state) for state in states]
        rows = zip(self._times(models), models, self._costs.elements(states), strict=True)
        return [
            self._scale * (layers_ms + self._call + self._step * len(operators) + self._move * elements)
            for layers_ms, operators, elements in rows
        ]


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


def _elements(op: Operator) -> int:
    if op.kind == "light":
        return 0
    rows = math.prod(op.output_size) if op.kind != "linear" else 1
    return op.batch * rows * op.outputs * (2 if "bidirectional" in op.flags else 1)
