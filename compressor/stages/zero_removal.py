"""Removal of what reached zero: channels without weights are taken out, and the model computes what it computed before.

The step after sparse training: Liu et al. 2017, arXiv:1708.06519, sec. 3; Wen et al. 2016, arXiv:1608.03665.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from compressor.batches import Inputs
from compressor.checks import check_count, check_globs, check_not_negative, one_of, told_reasons
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.notes.structure import (
    ChannelsRemoved,
    FoldedConstants,
    Group,
    Groups,
    LockedLayer,
    LockedLayers,
    UnreachedLayers,
)
from compressor.pruning.channel_slices import removal_lock
from compressor.pruning.constant_channels import ZeroChannels, fold_, hindrance, read_inputs, zero_channels_
from compressor.pruning.narrowing import Gone, fold_model_, multiple_of, survivors, too_narrow, why
from compressor.pruning.ranking.importance import aligned_width
from compressor.stage import Context, Effect
from compressor.structure.calling.shown import shown_by
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import Entry, apply_plan_
from compressor.structure.preparing.matching import check_modules_match
from compressor.structure.trials import evaluating, fault, outputs_at
from compressor.workload import Workload, batch_size_of, first_batches


@dataclass(frozen=True, kw_only=True)
class RemoveZeroChannels:
    """Removes the channels whose weights, or whose batch normalization's scale, reached zero, in all coupled layers.

    What is at most `threshold` (>= 0) in absolute value counts as zero. A constant that a channel still gives is folded
    into the layers that read it, or the channel stays: the outputs on calibration data end the same. Widths that remain
    are rounded up to a multiple of `align` (None: what the target's float kernels are built for; 1: not rounded), so
    that some zeros may stay. Layers that match a glob of `ignore` are left alone.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE

    threshold: float = 1e-6
    align: int | None = None
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_not_negative(self.threshold, "threshold is the absolute weight that counts as zero")
        check_globs(self.ignore, "ignore")
        if self.align is not None:
            check_count(self.align, "align is what widths are multiples of", way_out="1 rounds nothing")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The narrowed model. Raises StageError, with the reasons, where no channel is zero or none of them can go."""
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        multiple = context.target.channel_multiple
        batches = first_batches(workload.calibration, 1)
        inputs = batches[0][0] if batches else workload.example_inputs
        with evaluating(model):
            fold_model_(model, workload, context, ignore=self.ignore)
            graph = trace_structure(model, shown_by(workload))
            search = _Search(model=model, graph=graph, inputs=inputs, threshold=self.threshold)
            aligns = {group: multiple_of(group, self.align, multiple) for group in graph.groups}
            for group, align in aligns.items():
                reason = removal_lock(group, model, ignore=self.ignore, align=align)
                if reason is not None:
                    search.locked.append((group.name, reason))
            done = search.settled(search.found(aligns))
        _tell(context, search, done)
        if done is None:
            zeros = sum(len(zero.silent) + len(zero.unread) for zero in search.zeros.values())
            reasons = told_reasons(search.locked)
            way_out = one_of(
                {
                    "train with sparse_training first or with a larger strength": True,
                    "raise threshold": True,
                    "ignore fewer layers": any(reason.startswith("ignored by") for _, reason in search.locked),
                    "set align=1": any(
                        align > 1
                        and (
                            bool(group in search.zeros and zeros)
                            or (group.name, too_narrow(group.width, align)) in search.locked
                        )
                        for group, align in aligns.items()
                    ),
                }
            )
            raise StageError(
                f"{zeros} channels of {type(model).__name__} are zero (at most {self.threshold:g}), and none can go "
                f"with widths that are multiples of {self.align or multiple}{': ' + reasons if reasons else ''}; "
                f"{way_out}"
            )
        context.plan.extend(done.entries)
        return done.model.train(model.training)


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A model without the channels of `gone`, the plan that leads to it, and which layers took over constants."""

    model: nn.Module
    entries: list[Entry]
    gone: Gone
    folded: list[str]
    output_change: float


@dataclass(kw_only=True)
class _Search:
    """What is known while channels are looked for and taken out; `locked` are names and reasons."""

    model: nn.Module
    graph: StructureGraph
    inputs: Inputs
    threshold: float
    locked: list[tuple[str, str]] = field(default_factory=list)
    zeros: dict[Coupled, ZeroChannels] = field(default_factory=dict)
    norm_after: dict[str, str] = field(default_factory=dict)

    def found(self, aligns: dict[Coupled, int]) -> Gone:
        """The channels that are zero and whose constants can be folded, rounded to the widths that may remain."""
        names = {name for name, _ in self.locked}
        free = [group for group in self.graph.groups if group.name not in names]
        still = private_copy(self.model)
        self.norm_after = read_inputs(still, self.inputs).norm_after
        self.zeros = {group: self._zeros_(still, group) for group in free}
        readings = read_inputs(still, self.inputs)
        gone = {}
        for group, zero in self.zeros.items():
            against = {channel: hindrance(still, group, channel, readings) for channel in zero.silent}
            reasons = [reason for reason in against.values() if reason is not None]
            for reason in dict.fromkeys(reasons):
                count = reasons.count(reason)
                self.locked.append((group.name, f"{count} channel{'s'[: count > 1]} without weights stay: {reason}"))
            able = [*(channel for channel in zero.silent if against[channel] is None), *zero.unread]
            count = group.width - aligned_width(group.width - len(able), group.width, aligns[group])
            # The smallest first; of equals the later ones.
            able.sort(key=lambda channel: (float(zero.size[channel]), -channel))
            if count:
                gone[group] = sorted(able[:count])
        return gone

    def settled(self, gone: Gone) -> _Done | None:
        """The model without as many of `gone` as it survives; None where that is nothing."""
        done: list[_Done] = []

        def fault_of(some: Gone) -> str | None:
            tried = self._attempt(some)
            if isinstance(tried, str):
                return tried
            # Every trial that succeeds holds what was settled before, so that the last one counts.
            done[:] = [tried]
            return None

        self.locked += survivors(gone, fault_of)[1].items()
        return done[0] if done else None

    def _attempt(self, gone: Gone) -> _Done | str:
        """The model without `gone`, or why there is none that computes the same."""
        zeroed = private_copy(self.model)
        for group, channels in gone.items():
            self._zeros_(zeroed, group, keep=frozenset(range(group.width)) - set(channels))
        sizes = (1, 2, max(2, batch_size_of(self.inputs)))
        before = outputs_at(self.model, self.inputs, sizes)
        wanted = outputs_at(zeroed, self.inputs, sizes)
        readings = read_inputs(zeroed, self.inputs)
        folded = {name for group, channels in gone.items() for name in fold_(zeroed, group, channels, readings)}
        try:
            entries = self.graph.entries(gone)
            trial = apply_plan_(zeroed, entries)
        except Exception as error:  # noqa: BLE001 - a plan of a user's model may fail in any way
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        reason = fault(trial, self.inputs, wanted)
        if reason is not None:
            return reason
        narrow = outputs_at(trial, self.inputs, sizes)
        for size, output in wanted.items():
            tolerance = float(output.abs().max()) * torch.finfo(output.dtype).eps ** 0.5
            if not float((narrow[size] - output).abs().max()) <= tolerance:
                return "without the channels that are zero it computes something else than with them"
        for (group, channels), entry in zip(gone.items(), entries, strict=True):
            entry["why"] = why(group, "largest absolute weight", self.zeros[group].size, channels)
        change = max(float((narrow[size] - before[size]).abs().max()) for size in sizes)
        return _Done(model=trial, entries=entries, gone=gone, folded=sorted(folded), output_change=change)

    def _zeros_(self, model: nn.Module, group: Coupled, keep: frozenset[int] = frozenset()) -> ZeroChannels:
        return zero_channels_(model, group, self.norm_after, self.threshold, keep=keep)


def _tell(context: Context, search: _Search, done: _Done | None) -> None:
    gone = done.gone if done else {}
    total = sum(group.width for group in search.zeros)
    groups = tuple(
        Group(layer=group.name, before=group.width, after=group.width - len(gone.get(group, [])))
        for group in search.zeros
    )
    context.tell(Groups(groups=groups))
    if search.graph.unreached:
        context.tell(UnreachedLayers.of(search.graph.unreached))
    context.tell(LockedLayers(locked=tuple(LockedLayer(layer=name, reason=reason) for name, reason in search.locked)))
    context.tell(ChannelsRemoved(channel_fraction_removed=sum(map(len, gone.values())) / total if total else 0.0))
    folded, change = (tuple(done.folded), done.output_change) if done else ((), 0.0)
    context.tell(FoldedConstants(constants_folded_into=folded, largest_output_change=change))
