"""How products outside of layers shrink with each group: found by running the model with half of a group gone.

Kernels that a network computes (mixed experts, modulated convolutions, dynamic filters) and products of activations
have no weight of their own whose sizes would say it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from compressor.batches import Inputs
from compressor.latency.operators import Operator
from compressor.pruning.choice.layer_calls import LayerCall, calls_of
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph
from compressor.structure.model_copies import sharing_copy
from compressor.structure.plan import apply_plan_

# Of all multiply-accumulates: what products outside of layers must be, together, to be worth a run for every group.
_WORTH = 0.01


@dataclass(frozen=True, kw_only=True)
class Follows:
    """By how much the sizes of one operator shrink with each group, as fractions of its channels' fraction."""

    slopes: dict[str, dict[str, float]]

    @property
    def groups(self) -> set[str]:
        """The groups that it depends on."""
        return {group for slopes in self.slopes.values() for group in slopes}

    def narrowed(self, operator: Operator, gone: Callable[[str], float]) -> Operator:
        """`operator` once the fraction `gone(group)` of each group's channels went."""
        sizes = _sizes(operator)
        for key, slopes in self.slopes.items():
            for group, slope in slopes.items():
                sizes[key] *= 1 - slope * gone(group)
        return _with_sizes(operator, sizes)


def followed(
    model: nn.Module, inputs: Inputs, graph: StructureGraph, calls: Sequence[LayerCall], loose: Sequence[int]
) -> dict[int, tuple[Follows, ...]]:
    """What the operators of the `loose` ones among `calls` follow, by number; `calls` are those of `model`.

    A group without which the model does not run the same calls is not followed.
    """
    total = sum(operator.macs for call in calls for operator in call.operators)
    if sum(operator.macs for number in loose for operator in calls[number].operators) <= _WORTH * total:
        return {}
    slopes: dict[int, list[dict[str, dict[str, float]]]] = {
        number: [{} for _ in calls[number].operators] for number in loose
    }
    for group in graph.groups:
        if group.locked is not None or group.makes_output or group.opaque or group.width < 2:
            continue
        count, narrow = _narrowed(model, inputs, graph, group, _steps(calls))
        for number in loose if narrow else ():
            pairs = zip(slopes[number], calls[number].operators, narrow[number].operators, strict=True)
            for found, before, after in pairs:
                now = _sizes(after)
                for key, size in _sizes(before).items():
                    if now.get(key, size) != size:
                        found.setdefault(key, {})[group.name] = (1 - now[key] / size) / (count / group.width)
    return {number: tuple(Follows(slopes=found) for found in rows) for number, rows in slopes.items()}


def _narrowed(
    model: nn.Module, inputs: Inputs, graph: StructureGraph, group: Coupled, steps: Sequence[object]
) -> tuple[int, list[LayerCall]]:
    """The calls without so many channels of `group`, at best a half: fewer where the model does not run without."""
    for count in dict.fromkeys((group.width // 2, group.width // 4, 1)):
        narrow = _calls_without(model, inputs, graph, group, count) if count else []
        if narrow and _steps(narrow) == steps:
            return count, narrow
    return 1, []


def _steps(calls: Sequence[LayerCall]) -> list[object]:
    return [(call.name, call.kind, len(call.operators)) for call in calls]


def _calls_without(
    model: nn.Module, inputs: Inputs, graph: StructureGraph, group: Coupled, count: int
) -> list[LayerCall]:
    try:
        narrow = apply_plan_(sharing_copy(model), graph.entries({group: list(range(count))}))
        return calls_of(narrow, inputs)
    except Exception:  # noqa: BLE001 - a user's model may raise anything; what it survives is tried elsewhere
        return []


def _sizes(operator: Operator) -> dict[str, float]:
    sizes: dict[str, float] = {"inputs": operator.inputs, "outputs": operator.outputs, "batch": operator.batch}
    return sizes | {f"size {place}": size for place, size in enumerate(operator.size)}


def _with_sizes(operator: Operator, sizes: dict[str, float]) -> Operator:
    whole = {key: max(1, round(size)) for key, size in sizes.items()}
    return replace(
        operator,
        inputs=whole["inputs"],
        outputs=whole["outputs"],
        batch=whole["batch"],
        size=tuple(whole[f"size {place}"] for place in range(len(operator.size))),
    )
