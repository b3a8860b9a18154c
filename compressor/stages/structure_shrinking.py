"""Blocks and widths in one decision: which blocks go and how wide the rest stays, for the least loss within a target.

Every way to shrink the network is measured in one currency, the growth of the calibration loss, and paid for in the
unit of the target; a knapsack chooses (`pruning/choice/knapsack_choice.py`). Losses do not add up when much goes at
once, so the target is approached in rounds, and everything is measured again around the choice of the round before.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.checks import check_count, check_globs, check_kinds, one_of, told_reasons
from compressor.errors import BudgetError, StageError
from compressor.kept_state import private_copy
from compressor.notes import structure as notes
from compressor.notes.note import Note
from compressor.pruning.choice.costs import block_key
from compressor.pruning.choice.goals import Goal, goal_of, out_of_reach
from compressor.pruning.choice.knapsack_choice import Cost, Item
from compressor.pruning.choice.losses import StructureLosses
from compressor.pruning.choice.measured_choice import Proposal, measured_choice
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.pruning.narrowing import (
    gone_channels,
    multiple_of,
    prepare_model_,
    reason_to_lock,
    survivors,
    too_narrow,
    why,
)
from compressor.pruning.ranking.criteria import Taylor
from compressor.pruning.ranking.criterion import Criterion, channel_scores, check_criterion, unranked
from compressor.stage import Context, Effect
from compressor.structure.bisection import bisected
from compressor.structure.blocks import Block, entries_without, fault_without_blocks, find_blocks, skipped
from compressor.structure.calling.shown import shown_by
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import Entry, apply_plan_
from compressor.structure.preparing.matching import check_modules_match
from compressor.structure.tensor_ids import mask_
from compressor.structure.trials import evaluating, outputs_at, same_outputs
from compressor.training.passes.threads import Threads, ranking
from compressor.workload import Workload, first_batches, free_axes


@dataclass(frozen=True, kw_only=True)
class ShrinkStructure:
    """Drops blocks and narrows layers, whichever costs less loss, until the model is within `target`.

    `blocks` are globs of the modules and recurrent layers that may go, as in DropBlocks; `()` narrows alone. Widths are
    multiples of `align` (None: what the target's float kernels are built for; for latencies in 8 bits, and for layers
    no wider, half of it, because the measured staircase says what pays), a sixteenth for recurrent units, whole heads.
    Which channels of a layer go is up to `criterion`. Losses are measured on `batches` calibration batches, anew in
    each of `rounds`. Layers that match a glob of `ignore` keep their width. Training has to follow.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    target: Latency | Macs | Parameters
    criterion: Criterion = field(default_factory=Taylor)
    blocks: tuple[str, ...] = ("*",)
    align: int | None = None
    ignore: tuple[str, ...] = ()
    batches: int = 8
    rounds: int = 4

    def __post_init__(self) -> None:
        check_kinds(self)
        check_globs(self.blocks, "blocks")
        check_criterion(self.criterion)
        check_globs(self.ignore, "ignore")
        if self.align is not None:
            check_count(self.align, "align is what widths are multiples of", way_out="1 rounds nothing")
        check_count(self.batches, "batches counts the calibration batches that losses are measured on")
        check_count(self.rounds, "rounds counts how often losses are measured")

    def multiple_of_width(self, width: int, channel_multiple: int) -> int:
        """What a layer of `width` channels is narrowed in steps of, on a target of that multiple."""
        integer = isinstance(self.target, Latency) and self.target.form == "int8"
        if integer or (isinstance(self.target, Latency) and width <= channel_multiple):
            # Integer kernels have smaller steps; float ones run half a block well, but no block and a half.
            return max(1, channel_multiple // 2)
        return channel_multiple

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The smaller model. Raises StageError, with what is locked and why, where the target is out of reach."""
        check_modules_match("blocks", self.blocks, model, context.began_with(workload))
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        with evaluating(model), ranking() as threads:
            goal = goal_of(self.target, model, workload, context)
            prepare_model_(model, workload, context, ignore=self.ignore)
            search = _Search(self, model, workload, context, goal, threads=threads)
            approach = max(1, self.rounds - 1)
            for number in range(1, self.rounds + 1):
                share = min(1.0, number / approach)
                search.choose(goal.start * (goal.limit / goal.start) ** share, f"round {number} of {self.rounds}")
            chosen = measured_choice(goal, self.target, model, search.settle, context.tell)
            search.state = chosen.state
            apply_plan_(model, chosen.entries)
        context.plan.extend(chosen.entries)
        for note in search.notes():
            context.tell(note)
        return model


class _Search:
    """What may go, what it loses and costs, and the choice at hand."""

    def __init__(
        self,
        stage: ShrinkStructure,
        model: nn.Module,
        workload: Workload,
        context: Context,
        goal: Goal,
        *,
        threads: Threads,
    ) -> None:
        self.stage, self.model, self.example, self.goal = stage, model, workload.example_inputs, goal
        self._free_axes = free_axes(workload)
        self.wanted = outputs_at(model, self.example)
        self.graph: StructureGraph = trace_structure(model, shown_by(workload))
        self.locked: dict[str, str] = {}
        blocks = self._free_blocks()
        self.scores: dict[str, Tensor] = channel_scores(
            stage.criterion, model, self.graph, workload, context.seed, progress=context.progress
        )
        align = {
            group.name: multiple_of(
                group, stage.align, stage.multiple_of_width(group.width, context.target.channel_multiple)
            )
            for group in self.graph.groups
        }
        self.aligned = {group.name: (group.width, align[group.name]) for group in self.graph.groups}
        for group in self.graph.groups:
            reason = reason_to_lock(group, model, ignore=stage.ignore, align=align[group.name])
            if reason is None and bool(torch.isnan(self.scores[group.name]).all()):
                reason = unranked(stage.criterion)
            if reason is not None:
                self.locked[group.name] = reason
        groups = [group for group in self.graph.groups if group.name not in self.locked]
        if not groups and not blocks:
            raise StageError(
                f"{type(model).__name__} has no block to drop and no width to narrow: {self._reasons()}; quantize "
                "instead"
            )
        self.losses = StructureLosses(
            model,
            groups,
            blocks,
            scores=self.scores,
            align=align,
            data=threads.timed(first_batches(workload.calibration, stage.batches)),
            loss=workload.loss,
            progress=context.progress,
        )
        self.cost: Cost = goal.costs(model, self.graph, list(blocks))
        self.state = self.losses.whole
        self.predicted = goal.start
        self.items: list[Item] = []
        self.rounds: list[notes.Round] = []
        self._visited: list[tuple[dict[str, int], float]] = []

    def choose(self, limit: float, label: str) -> None:
        """Measures every change of the choice at hand, and makes the best one within `limit`."""
        self.items = self.losses.items(self.state, label)
        self._take(limit)
        self.rounds.append(
            notes.Round(
                limit=float(f"{limit:.5g}"),
                predicted=float(f"{self.predicted:.5g}"),
                loss=float(f"{self.losses.of(self.state):.5g}"),
            )
        )

    def settle(self, limit: float) -> Proposal:
        """The choice within `limit` that loses least, of those that the model survives.

        The choices of all rounds, and one more by the last measurements, compete by their losses as measured.
        """
        while True:
            self._take(limit)
            within = [state for state, cost in self._visited if cost <= limit]
            self.state = min(within, key=self.losses.of)
            self.predicted = self.cost([self.state])[0]
            locked = len(self.locked)
            gone, faults = survivors(
                gone_channels(self.losses.standing(self.state), self.scores, self.state),
                self.graph.fault_without,
            )
            entries = self.graph.entries(gone)
            for group, entry in zip(gone, entries, strict=True):
                entry["why"] = why(group, repr(self.stage.criterion), self.scores[group.name], gone[group])
            self.locked.update(faults)
            narrowed = apply_plan_(private_copy(self.model), entries)
            masked = mask_(private_copy(self.model), self.graph.sizes_without(gone))
            _, broken = bisected(self.dropped, lambda names: self._fault_without_blocks(narrowed, masked, names))  # noqa: B023 - called at once
            self.locked.update(broken)
            if len(self.locked) == locked:
                entries += self._drops()
                return Proposal(
                    entries=entries,
                    state=self.state,
                    predicted=self.predicted,
                    efficiency=self.goal.predicted_efficiency(self.cost, self.state),
                )
            # What turned out to be locked stays whole, and the rest makes up for it.
            self._visited.clear()
            self.items = [
                _without_locked(item, {*faults, *map(block_key, broken)}, self.losses.whole) for item in self.items
            ]

    @property
    def dropped(self) -> list[str]:
        """The blocks that the choice at hand drops, in the order of the model."""
        return [name for name in self.losses.blocks if not self.state[block_key(name)]]

    def notes(self) -> list[Note]:
        """What the report is told."""
        groups = self.losses.standing(self.state)
        total = sum(group.width for group in groups)
        kept = sum(self.state[group.name] for group in groups)
        losses = self._block_losses()
        narrowed = [notes.Group(layer=group.name, before=group.width, after=self.state[group.name]) for group in groups]
        blocks = [
            notes.Block(block=name, group=block.group, score=losses.get(name), kept=bool(self.state[block_key(name)]))
            for name, block in self.losses.blocks.items()
        ]
        return [
            notes.Groups(groups=tuple(narrowed)),
            notes.Blocks(blocks=tuple(blocks)),
            notes.LockedLayers.of(self.locked),
            *([notes.UnreachedLayers.of(self.graph.unreached)] if self.graph.unreached else []),
            notes.ChannelsRemoved(channel_fraction_removed=1 - kept / total if total else 0.0),
            notes.Rounds(rounds=tuple(self.rounds)),
        ]

    def _take(self, limit: float) -> None:
        try:
            chosen = self.goal.choose(self.items, self.cost, limit, self.state)
        except BudgetError as error:
            raise out_of_reach(
                self.stage.target,
                self.goal,
                limit,
                error,
                least="everything gone that may go",
                locked=self._reasons(),
                way_out=one_of(
                    {
                        "raise the target": True,
                        "set a smaller align": any(
                            align > 1 and self.locked.get(name) in {None, too_narrow(width, align)}
                            for name, (width, align) in self.aligned.items()
                        ),
                    }
                ),
            ) from error
        self.state = self.losses.whole | chosen.state
        self.predicted = chosen.cost
        self._visited.append((self.state, self.predicted))

    def _free_blocks(self) -> dict[str, Block]:
        if not self.stage.blocks:
            return {}
        try:
            found = find_blocks(self.model, self.example, self.stage.blocks, free=self._free_axes)
        except StageError:
            return {}
        kept, broken = bisected(
            list(found), lambda names: self._fault_of_skipping({name: found[name] for name in names})
        )
        self.locked.update(broken)
        return {name: found[name] for name in found if name in kept}

    def _fault_of_skipping(self, blocks: dict[str, Block]) -> str | None:
        return fault_without_blocks(self.model, blocks, self.example, self.wanted)

    def _fault_without_blocks(self, narrowed: nn.Module, masked: nn.Module, names: list[str]) -> str | None:
        """Why these blocks cannot go from the narrowed model: around them, other channels may be left than before."""
        gone = {name: self.losses.blocks[name] for name in names}
        reason = fault_without_blocks(narrowed, gone, self.example, self.wanted)
        if reason is not None:
            return reason
        with skipped(narrowed, gone), skipped(masked, gone):
            narrow, zero = (outputs_at(model, self.example, (2,))[2] for model in (narrowed, masked))
            differ = same_outputs(narrow, zero) is not None
        return "the channels left before and after it are not the same ones" if differ else None

    def _drops(self) -> list[Entry]:
        losses = self._block_losses()
        entries = []
        for entry, names in entries_without(self.model, {name: self.losses.blocks[name] for name in self.dropped}):
            scores = {name: losses.get(name) for name in names}
            entries.append(entry | {"why": {"criterion": "loss increase, measured", "scores": scores}})
        return entries

    def _block_losses(self) -> dict[str, float | None]:
        """What each block is worth by the last measurement: the loss without it over that with it."""
        found: dict[str, float | None] = {}
        for item in self.items:
            if item.kept is not None and item.dropped is not None:
                name = next(iter(item.kept.changes)).removeprefix(block_key(""))
                value = item.dropped.loss - item.kept.loss
                found[name] = float(f"{value:.4g}") if math.isfinite(value) else None
        return found

    def _reasons(self) -> str:
        return told_reasons(self.locked)


def _without_locked(item: Item, locked: set[str], whole: dict[str, int]) -> Item:
    """`item` with what is locked at its whole width, and its block standing where that is locked."""
    parts = tuple(
        tuple(
            choice
            for choice in part
            if not any(choice.changes[name] != whole[name] for name in locked & {*choice.changes})
        )
        for part in item.parts
    )
    stays = item.kept is not None and bool(locked & {*item.kept.changes})
    return Item(parts=parts, kept=item.kept, dropped=None if stays else item.dropped)
