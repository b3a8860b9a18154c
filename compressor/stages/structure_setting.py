"""Structure as somebody chose it: these layers get these widths, and these blocks go.

What of a layer goes is up to a criterion; how much is not. Such choices are made by looking (`compressor studio`), or
read from another run, and have to be repeatable to the byte.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.checks import check_kinds, did_you_mean
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.notes import structure as notes
from compressor.pruning.narrowing import Gone, gone_channels, prepare_model_, reason_to_lock, why
from compressor.pruning.ranking.criteria import Taylor
from compressor.pruning.ranking.criterion import Criterion, channel_scores, check_criterion, unranked
from compressor.stage import Context, Effect
from compressor.structure.blocks import Block, entries_without, fault_without_blocks, find_blocks, skipped
from compressor.structure.calling.shown import shown_by
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.tensor_ids import mask_
from compressor.structure.trials import evaluating, outputs_at, same_outputs
from compressor.workload import Workload, free_axes

_WIDTH = re.compile(r"(.+)=(\d{1,9})")


@dataclass(frozen=True, kw_only=True)
class SetStructure:
    """Narrows layers to `widths` and takes the blocks `drop` out, as they are named, at least one of either.

    `widths` are texts `name=width`: the name is that of a group of coupled layers, as `compressor doctor` and the
    studio list it, and the width what is left of it, at least 1. `drop` holds names of blocks. `criterion` says which
    channels go. Training has to follow.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    widths: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    criterion: Criterion = field(default_factory=Taylor)

    def __post_init__(self) -> None:
        check_kinds(self)
        check_criterion(self.criterion)
        wanted = self.wanted
        if not wanted and not self.drop:
            raise ValueError('widths and drop are both empty; name a width, widths=("conv1=16",), or a block')
        for what, names in (("widths", [*map(_name_of, self.widths)]), ("drop", self.drop)):
            if len(set(names)) < len(names):
                raise ValueError(f"{what} names something twice, got {names}")

    @property
    def wanted(self) -> dict[str, int]:
        """The widths by name. Raises ValueError for a text that is none."""
        found = {}
        for text in self.widths:
            matched = _WIDTH.fullmatch(text)
            if matched is None or int(matched[2]) < 1:
                raise ValueError(f"a width is written name=width, such as conv1=16, at least 1; got {text!r}")
            found[matched[1]] = int(matched[2])
        return found

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The smaller model. Raises StageError where a name is not the model's, or what it names has to stay."""
        example = workload.example_inputs
        with evaluating(model):
            blocks = self._blocks(model, workload)
            wanted_outputs = outputs_at(model, example) if blocks else {}
            prepare_model_(model, workload, context, ignore=())
            graph = trace_structure(model, shown_by(workload))
            gone, scores = self._gone(model, graph, workload, context, inside=tuple(blocks))
            reason = graph.fault_without(gone) if gone else None
            if reason is not None:
                raise StageError(f"the model does not survive these widths together: {reason}; narrow fewer layers")
            entries = graph.entries(gone)
            for group, entry in zip(gone, entries, strict=True):
                entry["why"] = why(group, repr(self.criterion), scores[group.name], gone[group])
            if blocks:
                narrowed = apply_plan_(private_copy(model), entries)
                masked = mask_(private_copy(model), graph.sizes_without(gone))
                _check_without(narrowed, masked, blocks, workload, wanted_outputs)
            for entry, names in entries_without(model, blocks):
                entries.append(entry | {"why": {"criterion": "chosen", "scores": dict.fromkeys(names)}})
            slices = graph.slices
            before = {group.name: group.width for group in graph.groups}
            del graph
            apply_plan_(model, entries, slices=None if blocks else slices)
        context.plan.extend(entries)
        self._tell(context, before, blocks, gone)
        return model

    def _blocks(self, model: nn.Module, workload: Workload) -> dict[str, Block]:
        if not self.drop:
            return {}
        found = find_blocks(model, workload.example_inputs, free=free_axes(workload))
        for name in self.drop:
            if name not in found:
                raise StageError(
                    f"{type(model).__name__} has no block {name!r} that could go{did_you_mean(name, found)}; "
                    "compressor doctor lists them"
                )
            if (reason := found[name].locked) is not None:
                raise StageError(f"the block {name!r} has to stay: {reason}; leave it out of drop")
        return {name: found[name] for name in found if name in self.drop}

    def _gone(
        self, model: nn.Module, graph: StructureGraph, workload: Workload, context: Context, *, inside: tuple[str, ...]
    ) -> tuple[Gone, dict[str, Tensor]]:
        """What goes of which group, and the scores by which it goes."""
        wanted, known = self.wanted, {group.name: group for group in graph.groups}
        for name, width in wanted.items():
            group = known.get(name)
            if group is None:
                raise StageError(
                    f"{type(model).__name__} has no group of coupled layers {name!r}{did_you_mean(name, known)}; "
                    "compressor doctor lists them"
                )
            # Whoever chooses a width knows what it costs: it is no multiple of anything.
            reason = reason_to_lock(group, model, ignore=(), align=1)
            if reason is not None and width < group.width:
                raise StageError(f"{name!r} has to keep its {group.width} {group.kind}: {reason}; leave it out")
            if width > group.width:
                raise StageError(
                    f"{name!r} has {group.width} {group.kind}, and {width} are asked for; ask for fewer or leave it out"
                )
        narrower = {name for name, width in wanted.items() if width < known[name].width}
        if not narrower and not self.drop:
            raise StageError(
                f"{type(model).__name__} has these widths already: {', '.join(self.widths)}; leave this stage out"
            )
        if not narrower:
            return {}, {}
        scores = channel_scores(self.criterion, model, graph, workload, context.seed, progress=context.progress)
        blind = next((name for name in narrower if bool(torch.isnan(scores[name]).all())), None)
        if blind is not None:
            raise StageError(f"{blind!r} cannot be narrowed: {unranked(self.criterion)}; take another criterion")
        # What goes with a block need not be narrowed before.
        groups = tuple(group for group in graph.groups if not any(_within(group, block) for block in inside))
        return gone_channels(groups, scores, wanted), scores

    def _tell(self, context: Context, before: Mapping[str, int], blocks: Mapping[str, Block], gone: Gone) -> None:
        lost = {group.name: len(channels) for group, channels in gone.items()}
        groups = [
            notes.Group(layer=name, before=width, after=width - lost.get(name, 0)) for name, width in before.items()
        ]
        context.tell(notes.Groups(groups=tuple(groups)))
        if blocks:
            told = [
                notes.Block(block=name, group=block.group, score=None, kept=False) for name, block in blocks.items()
            ]
            context.tell(notes.Blocks(blocks=tuple(told), dropped_in_order=tuple(blocks)))
        removed = sum(lost.values()) / max(1, sum(before.values()))
        context.tell(notes.ChannelsRemoved(channel_fraction_removed=removed))


def _within(group: Coupled, block: str) -> bool:
    """Whether all of `group` lies inside of the module `block`."""
    return all(part.module.startswith(f"{block}.") for part in group.parts)


def _name_of(text: str) -> str:
    return text.rpartition("=")[0]


def _check_without(
    narrowed: nn.Module, masked: nn.Module, blocks: Mapping[str, Block], workload: Workload, wanted: dict[int, Tensor]
) -> None:
    """Raises StageError where the narrowed model cannot do without `blocks`, or computes something else then."""
    example = workload.example_inputs
    reason = fault_without_blocks(narrowed, dict(blocks), example, wanted)
    if reason is None:
        with skipped(narrowed, blocks), skipped(masked, blocks):
            narrow, zero = (outputs_at(model, example, (2,))[2] for model in (narrowed, masked))
            if same_outputs(narrow, zero) is not None:
                reason = "the channels left before and after them are not the same ones"
    if reason is not None:
        raise StageError(f"the model does not survive without {', '.join(blocks)}: {reason}; keep one of them")
