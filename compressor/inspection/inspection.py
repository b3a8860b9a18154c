"""What of a model can be made smaller: prunable groups and droppable blocks, with their shares of time and parameters.

What is locked is told with the reason and the line of the model's own code. The best case is Amdahl's: what would be
left of the time if everything that can shrink cost nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from compressor.batches import Inputs
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.files.weights import count_parameters
from compressor.inspection.shares import Shares
from compressor.kept_state import private_copy
from compressor.measuring.node_times import NodeTime, node_times
from compressor.pruning.narrowing import Gone, multiple_of, reason_to_lock, survivors
from compressor.runtime import OnnxModule
from compressor.storage import sha256
from compressor.structure.blocks import Block, fault_without_blocks, find_blocks, skipped
from compressor.structure.calling.shown import Shown, shown_by
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.preparing.preparation import fold_, prepare_
from compressor.structure.recurrent_layers import stack_and_layer
from compressor.structure.source_lines import call_lines, error_line, shortened
from compressor.structure.trials import evaluating, outputs_at
from compressor.target import Target
from compressor.tensor_files import raw_bytes
from compressor.workload import Workload, free_axes, input_tensors

_A_FILE = "an ONNX file has no layers to take out; give the torch model that it came from"


@dataclass(frozen=True, kw_only=True)
class PrunableGroup:
    """Layers whose widths go together, or why they cannot (`locked`); `line` is where the first of them is called.

    `layers` make the channels, `coupled` are all whose sizes go with them. `time_fraction` is the part of the time in
    operators whose cost this width decides, and `parameter_fraction` the part of the parameters that the whole width
    holds: an operator or a weight between two groups counts for both. None where the time could not be measured.
    """

    name: str
    kind: str
    width: int
    layers: tuple[str, ...]
    time_fraction: float | None
    parameter_fraction: float
    coupled: tuple[str, ...] = ()
    locked: str | None = None
    line: str | None = None


@dataclass(frozen=True, kw_only=True)
class DroppableBlock:
    """A module or recurrent layer that can go, or why it cannot; `group` is its class and activation shape."""

    name: str
    group: str
    time_fraction: float | None
    parameter_fraction: float
    locked: str | None = None
    line: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """Groups or blocks that are alike: one pattern of names (`layer1.*.conv1`), one width or shape, one lock.

    The fractions are those of all `members` together; what hangs on two of them counts once.
    """

    pattern: str
    members: tuple[str, ...]
    is_block: bool
    what: str
    time_fraction: float | None
    parameter_fraction: float
    locked: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that `inspect` looked at: the groups, the blocks, both again as families.

    `unreached` are the layers and tensors that no input of the workload reaches, each with why that is a danger.
    """

    groups: tuple[PrunableGroup, ...]
    blocks: tuple[DroppableBlock, ...]
    families: tuple[Family, ...]
    unreached: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What can be made smaller, of a model that takes `latency_ms` per call on `target`; None where it was not timed.

    `input_shapes` are those of a sample of each input that it was timed with, without the batch. `remaining` is the
    fraction of the time left if all free "blocks", "widths" or "both" cost nothing. `operators` are the fractions of
    the time by kind of operator, largest first. `refusals` say why there are no "times", "blocks" or "widths", where
    there are none.
    """

    workload: str
    model: str
    parameters: int
    target: Target
    latency_ms: float | None
    input_shapes: tuple[tuple[int, ...], ...]
    found: Findings
    remaining: dict[str, float]
    operators: dict[str, float]
    refusals: dict[str, str]

    @property
    def free_groups(self) -> tuple[PrunableGroup, ...]:
        """The groups that can be narrowed."""
        return tuple(group for group in self.found.groups if group.locked is None)

    @property
    def free_blocks(self) -> tuple[DroppableBlock, ...]:
        """The blocks that can be dropped."""
        return tuple(block for block in self.found.blocks if block.locked is None)

    def to_json(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        data = asdict(self)
        return {**data, **data.pop("found"), "target": {**data["target"], "isa": self.target.isa.value}}


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """An `inspection` with what it found things in: a copy of the `model`, prepared for narrowing, and its `graph`.

    `blocks` are those that can be dropped. `graph` is None where the structure could not be traced.
    """

    inspection: Inspection
    model: nn.Module
    graph: StructureGraph | None
    blocks: Mapping[str, Block]

    @property
    def groups(self) -> tuple[Coupled, ...]:
        """The groups that can be narrowed."""
        names = {group.name for group in self.inspection.free_groups}
        return tuple(group for group in self.graph.groups if group.name in names) if self.graph is not None else ()


def inspect(workload: Workload, *, target: Target, seconds: float = 2.0) -> Inspection:
    """What can be made smaller of the workload's model, timed for about `seconds` on `target`; the model is left as is.

    Whatever cannot be done (traced, exported, timed) is told in the inspection and the rest goes on. Every group is
    proved by taking half of it out of a copy, every block by skipping it: forward and backward have to run.
    """
    return look(workload, target=target, seconds=seconds).inspection


def look(workload: Workload, *, target: Target, seconds: float = 2.0, times: Sequence[NodeTime] = ()) -> Looked:
    """As `inspect`, with what it was found in. `times` are those of the model's exported file, where they are known."""
    model, example = private_copy(workload.model), workload.example_inputs
    refusals: dict[str, str] = {}
    with evaluating(model):
        folded = fold_(model, example)
        lines = call_lines(model, example)
        if not times or folded or not _tells_apart(model):
            times = _times(model, workload, target, seconds, refusals)
        shares = Shares.of(model, times)
        blocks = _blocks(model, workload, refusals)
        prepared = private_copy(model)
        graph, reasons = _structure(prepared, shown_by(workload), target, refusals)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(model, OnnxModule):
        refusals |= dict.fromkeys(("blocks", "widths"), _A_FILE)
        parameters, _ = count_parameters(model.onnx_bytes)
    groups = {group.name: group for group in graph.groups} if graph is not None else {}
    narrow = [group for name, group in groups.items() if name not in reasons]
    dropped = [name for name, (_, reason) in blocks.items() if reason is None]
    remaining = {
        "blocks": shares.time(blocks=dropped),
        "widths": shares.time(narrow),
        "both": shares.time(narrow, dropped),
    }
    prunable = tuple(_prunable(group, shares, reasons, lines) for group in groups.values())
    droppable = tuple(_droppable(name, block, reason, shares, lines) for name, (block, reason) in blocks.items())
    inspection = Inspection(
        workload=workload.name,
        model=type(model).__name__,
        parameters=parameters,
        target=target,
        latency_ms=sum(time.ms for time in shares.times) if shares.times else None,
        input_shapes=tuple(tuple(tensor.shape[1:]) for tensor in input_tensors(workload.example_inputs)),
        found=Findings(
            groups=prunable,
            blocks=droppable,
            families=(*_families(droppable, shares, groups), *_families(prunable, shares, groups)),
            unreached=dict(graph.unreached) if graph is not None else {},
        ),
        remaining={what: max(0.0, 1 - share) for what, share in remaining.items() if share is not None},
        operators=shares.operators(),
        refusals=refusals,
    )
    return Looked(
        inspection=inspection, model=prepared, graph=graph, blocks={name: blocks[name][0] for name in dropped}
    )


def _prunable(group: Coupled, shares: Shares, reasons: dict[str, str], lines: dict[str, str]) -> PrunableGroup:
    return PrunableGroup(
        name=group.name,
        kind=group.kind,
        width=group.width,
        layers=tuple(sorted({part.module for part in group.parts if part.makes})),
        time_fraction=shares.time([group]),
        parameter_fraction=shares.held_by_groups([group]),
        coupled=tuple(dict.fromkeys(part.module for part in group.parts)),
        locked=reasons.get(group.name),
        line=lines.get(group.name),
    )


def _droppable(name: str, block: Block, reason: str | None, shares: Shares, lines: dict[str, str]) -> DroppableBlock:
    return DroppableBlock(
        name=name,
        group=block.group,
        time_fraction=shares.time(blocks=[name]),
        parameter_fraction=shares.held_by_blocks([name]),
        locked=reason,
        # A layer of a stack is called where the stack is.
        line=lines.get(stack_and_layer(name)[0] if block.in_stack else name),
    )


def _families(
    items: Sequence[PrunableGroup | DroppableBlock], shares: Shares, groups: dict[str, Coupled]
) -> list[Family]:
    """Those that are alike together, in the order of the model."""
    alike: dict[tuple[str, str, str | None], list[PrunableGroup | DroppableBlock]] = {}
    for item in items:
        pattern = name_pattern(item.name)
        what = f"{item.width} {item.kind}" if isinstance(item, PrunableGroup) else item.group
        locked = None if item.locked is None else item.locked.replace(item.name, pattern)
        alike.setdefault((pattern, what, locked), []).append(item)
    families = []
    for (pattern, what, locked), members in alike.items():
        names = tuple(member.name for member in members)
        is_block = isinstance(members[0], DroppableBlock)
        coupled = [] if is_block else [groups[name] for name in names]
        families.append(
            Family(
                pattern=pattern if len(names) > 1 else names[0],
                members=names,
                is_block=is_block,
                what=what,
                time_fraction=shares.time(coupled, names if is_block else ()),
                parameter_fraction=shares.held_by_blocks(names) if is_block else shares.held_by_groups(coupled),
                locked=members[0].locked if len(names) == 1 else locked,
                lines=tuple(dict.fromkeys(member.line for member in members if member.line)),
            )
        )
    return families


def name_pattern(name: str) -> str:
    """`name` with every number between dots as a star: `layer1.0.conv1` -> `layer1.*.conv1`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name) or "the model"


def _times(
    model: nn.Module, workload: Workload, target: Target, seconds: float, refusals: dict[str, str]
) -> tuple[NodeTime, ...]:
    try:
        file = export_onnx(_distinct(model), workload).onnx_bytes
        names = [name for name, _ in model.named_modules()]
        return node_times(file, workload.example_inputs, modules=names, target=target, seconds=seconds)
    except Exception as error:  # noqa: BLE001 - exporters and user models raise anything; the rest is worth telling
        line = error_line(error)
        refusals["times"] = shortened(f"{type(error).__name__}: {error}{f' at {line}' if line else ''}")
        return ()


def _tells_apart(model: nn.Module) -> bool:
    """Whether no two parameters hold the same values, so that the file has a tensor of its own for each."""
    seen = [sha256(bytes(raw_bytes(parameter))) for parameter in model.parameters()]
    return len(set(seen)) == len(seen)


def _distinct(model: nn.Module) -> nn.Module:
    """A copy of `model` in which no two parameters hold the same values.

    Exporters store equal tensors once, zero biases and unit scales of untrained models above all, and a stored tensor
    has one name: the time of many layers would be counted for the first.
    """
    changed = private_copy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.is_floating_point():
                noise = torch.rand(parameter.shape, generator=generator).to(parameter)
                parameter.add_(noise, alpha=1e-3 * float(parameter.abs().mean()) + 1e-4)
    return changed


def _blocks(model: nn.Module, workload: Workload, refusals: dict[str, str]) -> dict[str, tuple[Block, str | None]]:
    """The droppable blocks by name, each with why it cannot go, if so."""
    example = workload.example_inputs
    try:
        found = find_blocks(model, example, free=free_axes(workload))
    except StageError as error:
        refusals["blocks"] = str(error)
        return {}
    wanted = outputs_at(model, example)
    blocks: dict[str, tuple[Block, str | None]] = {}
    for name, block in found.items():
        reason = fault_without_blocks(model, {name: block}, example, wanted)
        with skipped(model, {name: block}):
            line = _raising_line(model, example) if reason is not None else None
        place = f" at {line}" if line else ""
        failed = None if reason is None else f"without it the model fails{place}: {reason}"
        blocks[name] = block, block.locked or failed
    return blocks


def _structure(
    model: nn.Module, shown: Shown, target: Target, refusals: dict[str, str]
) -> tuple[StructureGraph | None, dict[str, str]]:
    """The groups of `model`, which ends prepared for narrowing, and by name why some cannot be narrowed."""
    try:
        prepare_(model, shown.example)
        graph = trace_structure(model, shown)
    except StageError as error:
        refusals["widths"] = shortened(str(error))
        return None, {}
    reasons, halves = dict[str, str](), Gone()
    for group in graph.groups:
        align = multiple_of(group, None, target.channel_multiple)
        reason = reason_to_lock(group, model, ignore=(), align=align)
        if reason is None:
            halves[group] = list(range(group.width // 2, group.width))
        else:
            reasons[group.name] = reason
    _, faults = survivors(halves, graph.fault_without)
    for group in graph.groups:
        reason = faults.get(group.name) or reasons.get(group.name)
        if reason is not None:
            failed = group.name in faults or "Error: " in reason
            gone = {group: list(range(group.width // 2, group.width))}
            line = _failing_line(model, graph, gone, shown.example) if failed and ".py:" not in reason else None
            reasons[group.name] = shortened(f"{reason} at {line}" if line else reason)
    return graph, reasons


def _failing_line(model: nn.Module, graph: StructureGraph, gone: Gone, example: Inputs) -> str | None:
    """The line of the model's code that does not run without these channels, None where all of it does."""
    try:
        trial = apply_plan_(private_copy(model), graph.entries(gone))
    except Exception:  # noqa: BLE001 - a graph raises whatever it runs into, and no line of the model's is to blame
        return None
    return _raising_line(trial, example)


def _raising_line(model: nn.Module, example: Inputs) -> str | None:
    try:
        outputs_at(model, example)  # the sizes that `fault` runs, in its order
    except Exception as error:  # noqa: BLE001 - it is expected to fail; where is the question
        return error_line(error)
    return None
