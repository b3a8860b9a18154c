"""Structured pruning: whole channels, neurons, heads and recurrent units go, with all that is coupled to them.

A criterion decides which go (`pruning/ranking/criteria.py`), a fraction or a target decides how many of which layer,
and only what the model demonstrably survives is taken out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.checks import check_count, check_fraction, check_globs, check_kinds, one_of, told_reasons
from compressor.errors import BudgetError, StageError
from compressor.notes.note import Note
from compressor.notes.structure import ChannelsRemoved, Group, Groups, LockedLayers, UnreachedLayers
from compressor.pruning.choice.goals import Goal, goal_of, out_of_reach
from compressor.pruning.choice.knapsack_choice import Cost
from compressor.pruning.choice.measured_choice import Proposal, measured_choice
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.pruning.choice.width_choice import Choose, widths_within
from compressor.pruning.narrowing import (
    Gone,
    gone_channels,
    multiple_of,
    prepare_model_,
    reason_to_lock,
    survivors,
    too_narrow,
    why,
)
from compressor.pruning.ranking.criteria import Random, Taylor
from compressor.pruning.ranking.criterion import Criterion, across_groups, channel_scores, check_criterion, unranked
from compressor.pruning.ranking.scope import Global, Isomorphic, PerLayer, kept_widths
from compressor.pruning.schedules import Cubic, Linear, OneShot, Steps
from compressor.stage import Context, Effect
from compressor.structure.blocks import can_drop_blocks
from compressor.structure.calling.shown import Shown, shown_by
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import Entry, Slices, apply_plan_
from compressor.structure.preparing.matching import check_modules_match
from compressor.structure.trials import evaluating
from compressor.training.other_outputs import train_every_output
from compressor.workload import Workload, free_axes


@dataclass(frozen=True, kw_only=True)
class PruneChannels:
    """Removes the fraction `remove`, in [0, 1), of all channels that may go, or what a `target` asks for.

    Exactly one of both is given. A target is met with the widths of the least importance: predicted, for a latency from
    a table measured on the target, then measured on the exported file, and chosen a second time where that was off.

    Channels are those of convolutions and linear layers, the heads of attention and the units of recurrent layers. In
    the scope Global they are compared across layers: each layer's scores over their mean. Widths that remain are
    multiples of `align` (None: what the target's float kernels are built for, a sixteenth for recurrent units; 1: any;
    heads are never rounded). Layers that match a glob of `ignore`, layers that make the output, and whatever the model
    does not survive are left alone and listed with the reason. `criterion` says by which score channels go, and `scope`
    among which others each is compared. `schedule` spreads the removal over steps with training between them.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    remove: float | None = None
    target: Latency | Macs | Parameters | None = None
    criterion: Criterion = field(default_factory=Taylor)
    scope: Global | PerLayer | Isomorphic = field(default_factory=Global)
    align: int | None = None
    ignore: tuple[str, ...] = ()
    schedule: OneShot | Linear | Cubic | Steps = field(default_factory=OneShot)

    def __post_init__(self) -> None:
        check_kinds(self)
        if (self.remove is None) == (self.target is None):
            raise ValueError(
                f"exactly one of remove and target says how much goes, got remove={self.remove} and "
                f"target={self.target}; write remove=0.4 or target=Latency(0.5)"
            )
        if self.remove is not None:
            check_fraction(self.remove, "remove is the fraction of the channels that goes")
        check_criterion(self.criterion)
        check_globs(self.ignore, "ignore")
        if self.align is not None:
            check_count(self.align, "align is what widths are multiples of", way_out="1 rounds nothing")

    def by_chance(self) -> "PruneChannels":
        """As much removed, of channels drawn at random."""
        return replace(self, criterion=Random())

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The narrowed model. Raises StageError, with the reason for every layer, where no channel can go."""
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        with evaluating(model):
            goal = None if self.target is None else goal_of(self.target, model, workload, context)
            prepare_model_(model, workload, context, ignore=self.ignore)
        book = _Book(shown=shown_by(workload))
        shares = self.schedule.shares
        for step, share in enumerate(shares, start=1):
            with evaluating(model):
                narrowing = _Narrowing(self, model, workload, context, book)
                if goal is None:
                    assert self.remove is not None  # one of both is given
                    fraction = self.remove * share
                    entries = narrowing.entries(partial(narrowing.widths_of, fraction))
                else:
                    entries = self._towards(goal, share, narrowing, context)
            slices = narrowing.release()
            if entries:
                apply_plan_(model, entries, slices=slices)
                slices.clear()
                context.plan.extend(entries)
                book.settle(narrowing)
            if step < len(shares) and not isinstance(self.schedule, OneShot) and entries:
                train_every_output(
                    model,
                    workload,
                    self.schedule.training,
                    context=context,
                    label=f"between pruning steps {step} and {step + 1}",
                )
        for note in book.notes(self._align(context)):
            context.tell(note)
        if book.now == book.before:
            raise StageError(self._nothing(model, book, workload, context))
        return model

    def _towards(self, goal: Goal, share: float, narrowing: "_Narrowing", context: Context) -> list[Entry]:
        """The entries that bring the model `share` of the way to the goal; the last step is measured."""
        target = self.target
        assert target is not None  # where there is a goal, there is a target
        cost = goal.costs(narrowing.model, narrowing.graph)

        def propose(limit: float) -> Proposal:
            try:
                entries = narrowing.entries(partial(narrowing.widths_within, limit, cost, goal.choose))
            except BudgetError as error:
                raise out_of_reach(
                    target,
                    goal,
                    limit,
                    error,
                    least="everything narrowed that may be",
                    locked=narrowing.book.reasons(),
                    way_out=one_of(
                        {
                            "raise the target": True,
                            "set a smaller align": narrowing.book.is_coarse(),
                            "let ShrinkStructure drop blocks too": narrowing.can_drop_blocks(),
                        }
                    ),
                ) from error
            return Proposal(
                entries=entries,
                state=narrowing.widths,
                predicted=cost([narrowing.widths])[0],
                efficiency=goal.predicted_efficiency(cost, narrowing.widths),
            )

        if share < 1:
            return propose(goal.start - share * (goal.start - goal.limit)).entries
        chosen = measured_choice(goal, target, narrowing.model, propose, context.tell)
        narrowing.widths = chosen.state
        return chosen.entries

    def _align(self, context: Context) -> int:
        return context.target.channel_multiple if self.align is None else self.align

    def _nothing(self, model: nn.Module, book: "_Book", workload: Workload, context: Context) -> str:
        reasons = book.reasons()
        free = ", ".join(f"{name} ({width})" for name, width in book.before.items() if name not in book.locked)
        asked = f"remove={self.remove}" if self.target is None else f"target={self.target!r}"
        rounded = f"; {asked} with align={self._align(context)} rounds to no channel of {free}" if free else ""
        blocks = can_drop_blocks(model, workload.example_inputs, free=free_axes(workload))
        way_out = one_of(
            {
                "raise remove": bool(free) and self.target is None,
                "lower the target": bool(free) and self.target is not None,
                "set align=1": book.is_coarse(),
                "ignore fewer layers": any(reason.startswith("ignored by") for reason in book.locked.values()),
                "drop blocks": blocks,
                "quantize instead": True,
            }
        )
        refused = f"no channel of {type(model).__name__} can be removed{': ' + reasons if reasons else ''}{rounded}"
        return f"{refused}; {way_out}"


class _Narrowing:
    """One step: the groups of the model as it is, their scores, and what of them may go."""

    def __init__(
        self, stage: PruneChannels, model: nn.Module, workload: Workload, context: Context, book: "_Book"
    ) -> None:
        self.stage, self.model, self.book = stage, model, book
        self.workload, self.context = workload, context
        self.graph: StructureGraph = trace_structure(model, book.shown, settled=book.settled)
        self.align: Callable[[Coupled], int] = lambda group: multiple_of(
            group, stage.align, context.target.channel_multiple
        )
        book.unreached.update(self.graph.unreached)
        self.widths: dict[str, int] = {}
        self.scores: dict[str, Tensor] = {}
        self._look()

    def can_drop_blocks(self) -> bool:
        """Whether the model has a block that it can do without."""
        return can_drop_blocks(self.model, self.workload.example_inputs, free=free_axes(self.workload))

    def _look(self) -> None:
        """Ranks the channels of the groups as they are, and locks those that are not to be tried."""
        stage, book, groups = self.stage, self.book, self.graph.groups
        self.scores = channel_scores(
            stage.criterion,
            self.model,
            self.graph,
            self.workload,
            self.context.seed,
            progress=self.context.progress,
        )
        for group in groups:
            if group.name in book.before:
                continue
            book.before[group.name] = book.now[group.name] = group.width
            book.aligns[group.name] = self.align(group)
            reason = reason_to_lock(group, self.model, ignore=stage.ignore, align=self.align(group))
            if reason is None and bool(torch.isnan(self.scores[group.name]).all()):
                reason = unranked(stage.criterion)
            if reason is not None:
                book.locked[group.name] = reason

    @property
    def free(self) -> list[Coupled]:
        """The groups that are not locked."""
        return [group for group in self.graph.groups if group.name not in self.book.locked]

    def widths_of(self, fraction: float) -> dict[str, int]:
        """The widths that are left without `fraction` of the first widths."""
        return kept_widths(
            self.stage.scope,
            self.free,
            self.scores,
            fraction,
            before=self.book.before,
            align=self.align,
            across=across_groups(self.stage.criterion),
        )

    def widths_within(self, limit: float, cost: Cost, choose: Choose) -> dict[str, int]:
        """The widths that are left within `limit`; `choose` weighs them where they are compared across layers."""
        return widths_within(
            limit,
            cost,
            scope=self.stage.scope,
            groups=self.free,
            scores=self.scores,
            align=self.align,
            across=across_groups(self.stage.criterion),
            choose=choose,
        )

    def entries(self, choose: Callable[[], dict[str, int]]) -> list[Entry]:
        """The plan entries of the widths that `choose` gives, once the model survives all of them.

        What it does not survive is locked, and chosen again, so that the other layers make up for it.
        """
        while True:
            names = {group.name for group in self.free}
            gone, faults = self._tried(gone_channels(self.graph.groups, self.scores, choose()))
            self.book.locked.update(faults)
            if {group.name for group in self.free} == names and set(gone) <= set(self.graph.groups):
                break
        self.widths = {group.name: group.width - len(gone.get(group, ())) for group in self.graph.groups}
        entries = self.graph.entries(gone)
        for group, entry in zip(gone, entries, strict=True):
            entry["why"] = why(group, repr(self.stage.criterion), self.scores[group.name], gone[group])
        return entries

    def release(self) -> Slices:
        """What the last trial made of the parameters, once the graph is gone, which holds on to what is to be cut."""
        slices = self.graph.slices
        del self.graph
        return slices

    def _tried(self, wanted: Gone) -> tuple[Gone, dict[str, str]]:
        """What of `wanted` can go together, and by group name why the rest cannot."""
        graph = self.graph
        if not graph.settled and wanted:
            # A trial of what is wanted takes the place of trials of everything, where it passes.
            if graph.fault_without(wanted) is None:
                return wanted, {}
            before = graph.groups
            graph.settle()
            self.book.settled = True
            if {(group.name, group.width) for group in graph.groups} != {(group.name, group.width) for group in before}:
                # Some go together only, or in steps of several channels.
                self.book.forget({group.name for group in set(before) - set(graph.groups)})
                self._look()
                return wanted, {}
            faults = {group.name: group.locked for group in graph.groups if group.locked is not None}
            fresh = {name: reason for name, reason in faults.items() if name not in self.book.locked}
            if fresh:
                return {}, fresh
        return survivors(wanted, graph.fault_without)


@dataclass(kw_only=True)
class _Book:
    """What is known of the groups over all steps, as the calls `shown` tell it: widths, and why some stay.

    The next step starts `settled` where one had to be.
    """

    shown: Shown
    before: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    locked: dict[str, str] = field(default_factory=dict)
    unreached: dict[str, str] = field(default_factory=dict)
    aligns: dict[str, int] = field(default_factory=dict)
    settled: bool = False

    def is_coarse(self) -> bool:
        """Whether more could go if widths were not multiples of anything."""
        return any(
            align > 1 and self.locked.get(name) in {None, too_narrow(self.before[name], align)}
            for name, align in self.aligns.items()
        )

    def forget(self, names: set[str]) -> None:
        """Drops what is noted of the groups of these names."""
        for name in names:
            for notes in (self.before, self.now, self.locked, self.aligns):
                notes.pop(name, None)

    def settle(self, narrowing: _Narrowing) -> None:
        """Notes the widths that a step left."""
        self.now.update(narrowing.widths)

    def reasons(self) -> str:
        """Every locked layer with its reason."""
        return told_reasons(self.locked)

    def notes(self, align: int) -> list[Note]:
        """What the report is told."""
        free = [name for name in self.before if name not in self.locked or self.now[name] < self.before[name]]
        total = sum(self.before[name] for name in free)
        groups = tuple(Group(layer=name, before=self.before[name], after=self.now[name]) for name in free)
        removed = 1 - sum(self.now[name] for name in free) / total if total else 0.0
        return [
            Groups(align=align, groups=groups),
            LockedLayers.of(self.locked),
            *([UnreachedLayers.of(self.unreached)] if self.unreached else []),
            ChannelsRemoved(channel_fraction_removed=removed),
        ]
