"""Merging: channels that others resemble go, and the layers that read them give their outgoing weights to the others.

A channel whose weights point where another's do computes what that one computes, but for a factor: its outgoing weights
are added to the other's, times the factor, and nothing changes (SimHash finds such pairs: `merging/hashing.py`). What
resembles several is shared out among them by least squares (`merging/elimination.py`). Folding (Wang et al. 2025,
arXiv:2502.10216, sec. 3) puts the mean of a cluster in its place; here a channel of the cluster stays as it is, so that
no variance collapses in it, and what the readers make of the rest is repaired (`merging/repair.py`).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.checks import check_count, check_fraction, check_globs, check_kinds, one_of, told_reasons
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.notes.structure import ChannelsRemoved, Group, Groups, LockedLayers, UnreachedLayers
from compressor.progress.bars import progress_bar
from compressor.pruning.channel_slices import removal_lock
from compressor.pruning.merging.elimination import Reading, alone, elimination, share_of_one, shares
from compressor.pruning.merging.fed import Calibration, Noise
from compressor.pruning.merging.hashing import clusters, similar_pairs
from compressor.pruning.merging.readers import Moments, Reader, moments_of, norms_behind, readers_of
from compressor.pruning.merging.repair import repair_norms_
from compressor.pruning.merging.widths import widths_of_least_loss
from compressor.pruning.narrowing import Gone, multiple_of, prepare_model_, survivors, why
from compressor.stage import Context, Effect
from compressor.structure.calling.shown import shown_by
from compressor.structure.couplings import Coupled
from compressor.structure.graph import StructureGraph, trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.preparing.matching import check_modules_match
from compressor.structure.tensor_ids import tensors_of
from compressor.structure.trials import evaluating
from compressor.training.held_values import clustered_names
from compressor.training.held_zeros import held_names
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class MergeSimilar:
    """Merges the fraction `remove`, in [0, 1), of all channels into others, or those whose `cosine` (0 to 1) is that.

    Exactly one of both is given. With `remove` the channels go that the layers which read them miss least, wherever in
    the network; their outgoing weights are shared out among all that stay. With `cosine` those go whose incoming
    weights, and what the readers are fed of them, have at least that cosine with another's; each goes into that one
    alone. Without training. What the readers are fed is seen `on` calibration data, or `on` noise, without data.

    Channels of convolutions and neurons of linear layers are merged; heads, recurrent units and what a LayerNorm mixes
    are left alone and listed with the reason. Widths that remain are multiples of `align` (None: what the target's
    float kernels are built for; 1: any). Layers that match a glob of `ignore` are left alone.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    remove: float | None = None
    cosine: float | None = None
    on: Calibration | Noise = field(default_factory=Calibration)
    align: int | None = None
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        if (self.remove is None) == (self.cosine is None):
            raise ValueError(
                f"exactly one of remove and cosine says what goes, got remove={self.remove} and cosine={self.cosine}; "
                "write remove=0.25 or cosine=0.95"
            )
        if self.remove is not None:
            check_fraction(self.remove, "remove is the fraction of the channels that goes")
        if self.cosine is not None:
            check_fraction(
                self.cosine, "cosine is how alike merged channels are at least", within="(0, 1]", least_meant=0.5
            )
        check_globs(self.ignore, "ignore")
        if self.align is not None:
            check_count(self.align, "align is what widths are multiples of", way_out="1 rounds nothing")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The narrowed model. Raises StageError, with the reason for every layer, where nothing can be merged."""
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        batches = self.on.inputs(workload, context.seed)
        if not batches:
            raise StageError(
                "channels are compared on batches of at least 2 calibration samples, and there is none; give the "
                "workload some, or set on=Noise()"
            )
        with evaluating(model):
            prepare_model_(model, workload, context, ignore=self.ignore)
            graph = trace_structure(model, shown_by(workload))
            case = _Case(self, model, graph, batches, context)
            gone = case.survivors()
            context.tell(Groups(align=case.align, groups=case.widths(gone)))
            context.tell(LockedLayers.of(case.locked))
            if graph.unreached:
                context.tell(UnreachedLayers.of(graph.unreached))
            total = sum(group.width for group in case.free)
            removed = sum(map(len, gone.values()))
            context.tell(ChannelsRemoved(channel_fraction_removed=removed / total if total else 0.0))
            if not gone:
                raise StageError(case.nothing())
            original = private_copy(model)
            entries = graph.entries(gone)
            for group, entry in zip(gone, entries, strict=True):
                entry["why"] = why(group, repr(self), case.scores[group], gone[group])
                case.take_over_(model, group, gone[group])
            del graph, case.graph
            apply_plan_(model, entries)
            repair_norms_(model, original, case.kept_of_norms(original, gone), batches)
        context.plan.extend(entries)
        return model


class _Case:
    """The groups of a model, what their readers are fed, and which of their channels go."""

    def __init__(
        self,
        stage: MergeSimilar,
        model: nn.Module,
        graph: StructureGraph,
        batches: list[Inputs],
        context: Context,
    ) -> None:
        self.stage, self.graph, self.seed = stage, graph, context.seed
        self.align = context.target.channel_multiple if stage.align is None else stage.align
        self.locked: dict[str, str] = {}
        self.scores: dict[Coupled, Tensor] = {}
        self.best = -1.0
        self._aligns = {group: multiple_of(group, stage.align, self.align) for group in graph.groups}
        self._into: dict[Coupled, dict[int, int]] = {}
        self._readers: dict[Coupled, list[Reader]] = {}
        norm_after = norms_behind(model, batches[0])
        plan = [*context.plan_before, *context.plan]
        held = {*held_names(plan), *clustered_names(plan)}
        for group in graph.groups:
            found = removal_lock(group, model, ignore=stage.ignore, align=self._aligns[group]) or readers_of(
                model, group, norm_after, held
            )
            if isinstance(found, str):
                self.locked[group.name] = found
            else:
                self._readers[group] = found
        everyone = [reader for readers in self._readers.values() for reader in readers]
        self._moments = moments_of(model, everyone, batches) if everyone else {}
        self._readings: dict[Coupled, list[Reading]] = {}
        tensors = tensors_of(model)
        for group, readers in list(self._readers.items()):
            unseen = [reader.module for reader in readers if reader not in self._moments]
            broken = [reader.module for reader in readers if not self._seen(reader) and reader.module not in unseen]
            if unseen or broken:
                self.locked[group.name] = (
                    f"{unseen[0]} is not called in a way that shows what it reads"
                    if unseen
                    else f"what {broken[0]} reads is not finite"
                )
                del self._readers[group]
                continue
            self._readings[group] = [
                self._moments[reader].reading(reader, tensors[reader.tensor]) for reader in readers
            ]
        self._vectors = {group: _incoming(group, tensors) for group in self._readings}

    @property
    def free(self) -> list[Coupled]:
        """The groups that are not locked."""
        return [group for group in self._readings if group.name not in self.locked]

    def survivors(self) -> Gone:
        """What goes, so that the model survives it; what it does not survive is locked, and chosen again."""
        while True:
            wanted = self._wanted()
            gone, faults = survivors(wanted, self.graph.fault_without)
            if not faults:
                return gone
            self.locked.update(faults)

    def widths(self, gone: Gone) -> tuple[Group, ...]:
        """The widths of the free groups before and after."""
        return tuple(
            Group(layer=group.name, before=group.width, after=group.width - len(gone.get(group, ())))
            for group in self.free
        )

    def take_over_(self, model: nn.Module, group: Coupled, gone: list[int]) -> None:
        """The readers of `model` with the weights of the channels that go on those that stay."""
        kept = sorted(set(range(group.width)) - set(gone))
        into = self._into.get(group)
        for reader, reading in zip(self._readers[group], self._readings[group], strict=True):
            moments = self._moments[reader]
            if into is None:
                part = shares(reading.moments, gone, kept)
            else:
                chosen = {channel: into[channel] for channel in gone}
                part = share_of_one(moments.about(holds=reader.holds), chosen, kept)
            reader.take_over_(model, moments, part, gone, kept)

    def kept_of_norms(self, model: nn.Module, gone: Gone) -> dict[str, list[int]]:
        """The features that are left of each batch normalization that loses some."""
        left: dict[str, set[int]] = {}
        for group, channels in gone.items():
            lost = set(channels)
            for part in (part for part in group.parts if part.is_norm):
                features = int(model.get_submodule(part.module).num_features)  # type: ignore[arg-type]  # a norm's
                kept = left.setdefault(part.module, set(range(features)))
                kept -= {index for index, channel in zip(part.indices, part.channels, strict=True) if channel in lost}
        return {name: sorted(kept) for name, kept in left.items()}

    def nothing(self) -> str:
        """Why nothing could be merged, and what may help."""
        stage = self.stage
        reasons = told_reasons(self.locked)
        free = ", ".join(f"{group.name} ({group.width})" for group in self.free)
        by_cosine = stage.cosine is not None
        asked = f"remove={stage.remove}" if not by_cosine else f"cosine={stage.cosine}"
        found = f", the most alike have {self.best:.3f}," if by_cosine and self.best > -1 else ""
        rounded = f"; {asked}{found} with align={self.align} leaves all channels of {free}" if free else ""
        way_out = one_of(
            {
                "raise remove": bool(free) and not by_cosine,
                "lower cosine": bool(free) and by_cosine,
                "set align=1": bool(free) and self.align > 1,
                "ignore fewer layers": any(reason.startswith("ignored by") for reason in self.locked.values()),
                "prune channels or quantize instead": True,
            }
        )
        return f"no channels can be merged{': ' + reasons if reasons else ''}{rounded}; {way_out}"

    def _seen(self, reader: Reader) -> bool:
        moments: Moments | None = self._moments.get(reader)
        return moments is not None and bool(moments.second.isfinite().all())

    def _wanted(self) -> Gone:
        return self._by_fraction(self.stage.remove) if self.stage.remove is not None else self._by_cosine()

    def _by_fraction(self, remove: float) -> Gone:
        free = self.free
        orders, curves = {}, {}
        for group in progress_bar(free, desc="who resembles whom", unit="group"):
            self.scores[group] = alone(self._readings[group])
            orders[group], curves[group.name] = elimination(self._readings[group], group.width - 1)
        widths = widths_of_least_loss(
            {group.name: group.width for group in free},
            curves,
            {group.name: self._aligns[group] for group in free},
            round(remove * sum(group.width for group in free)),
        )
        return {
            group: sorted(orders[group][: group.width - widths[group.name]])
            for group in free
            if widths[group.name] < group.width
        }

    def _by_cosine(self) -> Gone:
        assert self.stage.cosine is not None  # one of both is given
        gone: Gone = {}
        for group in progress_bar(self.free, desc="who resembles whom", unit="group"):
            vectors = self._vectors[group]
            alike = similar_pairs(vectors, self.stage.cosine, self.seed)
            fed = [self._likeness(reader) for reader in self._readers[group]]
            unlike = torch.stack(fed).amin(dim=0)
            both = {pair: min(value, float(unlike[pair])) for pair, value in alike.items()}
            directions = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
            every = torch.minimum(directions @ directions.T, unlike).fill_diagonal_(-1.0)
            self.best = max(self.best, float(every.max()))
            pairs = {pair: value for pair, value in both.items() if value >= self.stage.cosine - 1e-6}
            into = clusters(pairs, vectors.norm(dim=1))
            scores = torch.ones(group.width, dtype=torch.float64)
            for (one, two), value in pairs.items():
                for channel in (one, two):
                    scores[channel] = min(float(scores[channel]), 1 - value)
            self.scores[group], self._into[group] = scores, into
            align = self._aligns[group]
            # The most alike first, as many as an aligned width wants.
            count = group.width - min(group.width, -(-(group.width - len(into)) // align) * align)
            chosen = sorted(into, key=lambda channel: (float(scores[channel]), channel))[:count]
            if chosen:
                gone[group] = sorted(chosen)
        return gone

    def _likeness(self, reader: Reader) -> Tensor:
        """The cosine of what the reader is fed of every two channels, (width, width); 1 where both are nothing."""
        moments = self._moments[reader].about(holds=reader.holds)
        lengths = moments.diagonal().clamp(min=0).sqrt()
        products = torch.outer(lengths, lengths)
        nothing = lengths <= 1e-7 * lengths.max()
        cosines = moments / products.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(torch.outer(nothing, nothing), torch.ones_like(cosines), cosines)


def _incoming(group: Coupled, tensors: dict[str, Tensor]) -> Tensor:
    """The weights that make each channel, of all layers that do, (width, values); every layer counts the same."""
    blocks = []
    for part in (part for part in group.parts if part.makes):
        for name, dim in part.tensors:
            if tensors[name].ndim > 1:
                rows = tensors[name].detach().double().cpu().movedim(dim, 0).flatten(1)
                order = torch.tensor(part.channels).argsort(stable=True)
                block = rows[torch.tensor(part.indices)[order]].reshape(group.width, -1)
                blocks.append(block / block.norm().clamp(min=torch.finfo(torch.float64).tiny))
    return torch.cat(blocks, dim=1)
