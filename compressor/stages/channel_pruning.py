"""Structured pruning: whole channels are taken out of layers and of everything that is coupled to them.

An importance decides which channels go (Li et al. 2017, arXiv:1608.08710; Molchanov et al. 2019, arXiv:1906.10771; Liu
et al. 2017, arXiv:1708.06519), and only what the model demonstrably survives is taken out.
"""

import copy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.couplings import Coupled, Couplings
from compressor.importance import (
    aligned_width,
    comparable,
    coupled_importance,
    keep_best,
    kept_by_threshold,
    norm_importance,
    scale_importance,
    taylor_importance,
)
from compressor.plan import Entry, apply_plan_
from compressor.scope import Global, PerLayer
from compressor.stage import Context, Effect, StageError
from compressor.tensor_ids import mask_, tensors_of
from compressor.training import train
from compressor.trials import evaluating, fault, outputs_at
from compressor.workload import Workload, first_batches, predict

# Their statistics run over channels, so that a narrowed network rightly computes something else than a masked one.
_MIXING = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class L1:
    """The sum of the absolute weights that make a channel."""


@dataclass(frozen=True, kw_only=True)
class L2:
    """The Euclidean norm of the weights that make a channel."""


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """What the loss would change by, to first order, measured on `batches` training batches."""

    batches: int = 8

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ValueError(
                f"batches counts the training batches that gradients come from, at least 1; got {self.batches}"
            )


@dataclass(frozen=True, kw_only=True)
class BatchNormScale:
    """The scale that batch normalization gives a channel; layers without one are left alone."""


Criterion = L1 | L2 | Taylor | BatchNormScale


@dataclass(frozen=True, kw_only=True)
class PruneChannels:
    """Removes the fraction `remove`, in [0, 1), of all channels that may be removed.

    Global scope compares channels across layers: each layer's scores over their mean, and one threshold for all.

    Widths that remain are rounded up to a multiple of `align` (None: what the target's float kernels are built for; 1:
    not rounded), so that less may go than was asked for. Layers that match a glob of `ignore`, layers that make the
    output, and whatever the model does not survive are left alone and listed with the reason. With `steps` > 1 the
    fraction is reached in equal parts with `epochs_between` epochs of training at `learning_rate` between them.
    """

    effect: ClassVar[Effect] = Effect.STRUCTURE
    remove: float
    criterion: Criterion = field(default_factory=Taylor)
    scope: Global | PerLayer = field(default_factory=Global)
    align: int | None = None
    ignore: tuple[str, ...] = ()
    steps: int = 1
    epochs_between: int = 1
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.remove < 1:
            hint = f"; did you mean {self.remove / 100:g}?" if 1 < self.remove < 100 else ""
            raise ValueError(f"remove is the fraction of the channels that goes, in [0, 1); got {self.remove}{hint}")
        if isinstance(self.ignore, str):
            message = f"ignore is a tuple of globs such as ('layer1.*',), got the string {self.ignore!r}"
            raise ValueError(message)
        if self.align is not None and self.align < 1:
            raise ValueError(f"align is what widths are multiples of, at least 1 (1: no rounding); got {self.align}")
        if self.steps < 1 or self.epochs_between < 1:
            raise ValueError(
                f"steps and epochs_between are at least 1, got {self.steps} and {self.epochs_between}; steps=1 prunes "
                "at once, without training"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The narrowed model. Raises StageError, with the reason for every layer, where no channel can go."""
        align = context.target.channel_multiple if self.align is None else self.align
        book = _Book(align=align, ignore=self.ignore, needs_norm=isinstance(self.criterion, BatchNormScale))
        for step in range(1, self.steps + 1):
            with evaluating(model):
                entries = self._step(model, workload, context, self.remove * step / self.steps, book)
            if entries:
                apply_plan_(model, entries)
                context.plan.extend(entries)
                if step < self.steps:
                    train(
                        model,
                        workload,
                        epochs=self.epochs_between,
                        learning_rate=self.learning_rate,
                        context=context,
                        label=f"between pruning steps {step} and {step + 1}",
                    )
        context.details.update(book.details())
        if book.now == book.before:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in book.locked.items())
            free = ", ".join(f"{name} ({width})" for name, width in book.before.items() if name not in book.locked)
            rounded = f"; remove={self.remove} with align={align} rounds to no channel of {free}" if free else ""
            raise StageError(
                f"no channel of {type(model).__name__} can be removed{': ' + reasons if reasons else ''}{rounded}; "
                "raise remove, set align=1 or drop blocks instead"
            )
        return model

    def _step(
        self, model: nn.Module, workload: Workload, context: Context, fraction: float, book: "_Book"
    ) -> list[Entry]:
        example = workload.example_inputs
        wanted = outputs_at(model, example)
        couplings = Couplings(model, example)
        scores = self._scores(model, couplings, workload, context.seed)
        for group in couplings.groups:
            if group.name not in book.before:
                book.before[group.name] = book.now[group.name] = group.width
                reason = book.reason_to_lock(group, model)
                if reason is None:
                    reason = _fault_of(
                        model, couplings, {group: book.trial(group, scores, self.remove)}, wanted, example
                    )
                if reason is not None:
                    book.locked[group.name] = reason
        book.locked.update(dict.fromkeys(couplings.unreached, "the example inputs do not reach it"))
        free = [group for group in couplings.groups if group.name not in book.locked]
        widths = self._widths(free, scores, fraction, book) if free else {}
        gone = {
            group: sorted(set(range(group.width)) - set(keep_best(scores[group.name], widths[group.name])))
            for group in free
            if widths[group.name] < group.width
        }
        if _fault_of(model, couplings, gone, wanted, example) is not None:
            # Each is harmless alone: find those that are not harmless together.
            settled: dict[Coupled, list[int]] = {}
            for group, channels in gone.items():
                reason = _fault_of(model, couplings, {**settled, group: channels}, wanted, example)
                if reason is None:
                    settled[group] = channels
                else:
                    book.locked[group.name] = reason
            gone = settled
        entries = couplings.entries(gone)
        for group, entry in zip(gone, entries, strict=True):
            entry["why"] = _why(group, repr(self.criterion), scores[group.name], gone[group])
            book.now[group.name] = group.width - len(gone[group])
        return entries

    def _widths(self, free: list[Coupled], scores: dict[str, Tensor], fraction: float, book: "_Book") -> dict[str, int]:
        if self.scope == PerLayer():
            kept = [max(book.align, group.width - book.due(group, fraction)) for group in free]
        else:
            total = round(fraction * sum(book.before[group.name] for group in free))
            due = total - sum(book.before[group.name] - group.width for group in free)
            kept = kept_by_threshold([comparable(scores[group.name]) for group in free], max(due, 0), book.align)
        return {
            group.name: aligned_width(width, group.width, book.align) for group, width in zip(free, kept, strict=True)
        }

    def _scores(self, model: nn.Module, couplings: Couplings, workload: Workload, seed: int) -> dict[str, Tensor]:
        """The importance of each group's channels, before groups are compared."""
        gradients: dict[str, Tensor] = {}
        if isinstance(self.criterion, Taylor) and couplings.groups:
            gradients = loss_gradients(model, workload, self.criterion.batches, seed)
        weights = tensors_of(model)
        scores = {}
        for group in couplings.groups:
            layers = []
            for part in group.parts:
                if isinstance(self.criterion, BatchNormScale) and part.is_norm and part.tensors:
                    layers.append(part.fold(scale_importance(weights[part.tensors[0][0]]), group.width))
                elif isinstance(self.criterion, L1 | L2) and part.makes:
                    name, dim = part.tensors[0]
                    order = 1 if self.criterion == L1() else 2
                    layers.append(part.fold(norm_importance(weights[name], dim, order), group.width))
                elif isinstance(self.criterion, Taylor):
                    values = [
                        part.fold(taylor_importance(weights[name], gradients[name], dim), group.width)
                        for name, dim in part.tensors
                        if name in gradients
                    ]
                    layers += [torch.stack(values).sum(dim=0)] if values else []
            scores[group.name] = coupled_importance(layers) if layers else torch.zeros(group.width).double()
        return scores


@dataclass(frozen=True, kw_only=True)
class _Book:
    """What is known of the groups over all steps: widths, and why some are left alone."""

    align: int
    ignore: tuple[str, ...]
    needs_norm: bool
    before: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    locked: dict[str, str] = field(default_factory=dict)

    def reason_to_lock(self, group: Coupled, model: nn.Module) -> str | None:
        """Why `group` is left alone without trying, if it is."""
        if group.makes_output:
            return "it makes the model's output"
        if group.opaque:
            return "it is coupled to a recurrent or attention layer, whose own widths are not pruned"
        names = [part.module for part in group.parts]
        for glob in self.ignore:
            if any(fnmatchcase(name, glob) or fnmatchcase(name, f"{glob}.*") for name in names):
                return f"ignored by {glob!r}"
        for name in names:
            module = model.get_submodule(name)
            if hasattr(module, "parametrizations") or hasattr(module, "weight_g"):
                return f"{name} is parametrized; remove the parametrization first"
            if isinstance(module, nn.GroupNorm) and module.num_groups > 1:
                return f"the groups of {name} would hold other channels"
        if self.needs_norm and not any(part.is_norm and part.tensors for part in group.parts):
            return "it has no batch normalization whose scale could rank it"
        if group.width <= self.align:
            return f"width {group.width} is not above the aligned minimum {self.align}"
        return None

    def due(self, group: Coupled, fraction: float) -> int:
        """How many channels of `group` are still to go until `fraction` of its first width is gone."""
        before = self.before[group.name]
        return max(0, round(fraction * before) - (before - group.width))

    def trial(self, group: Coupled, scores: dict[str, Tensor], remove: float) -> list[int]:
        """Channels to take out for a try: the fraction asked for, and at least down to the next multiple of align."""
        kept = aligned_width(group.width - round(remove * group.width), group.width, self.align)
        kept = min(kept, (group.width - 1) // self.align * self.align)
        return sorted(set(range(group.width)) - set(keep_best(scores[group.name], kept)))

    def details(self) -> dict[str, Any]:
        """What the report is told."""
        free = [name for name in self.before if name not in self.locked or self.now[name] < self.before[name]]
        total = sum(self.before[name] for name in free)
        return {
            "align": self.align,
            "groups": [{"layer": name, "before": self.before[name], "after": self.now[name]} for name in free],
            "locked": [{"layer": name, "reason": reason} for name, reason in self.locked.items()],
            "channel_fraction_removed": 1 - sum(self.now[name] for name in free) / total if total else 0.0,
        }


def loss_gradients(model: nn.Module, workload: Workload, batches: int, seed: int) -> dict[str, Tensor]:
    """The gradient of the loss by parameter name, summed over the first `batches` training batches of `seed`.

    Frozen parameters have one, too. The model's own gradients end empty, its flags as they were.
    """
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    # The recurrent kernels of cuDNN have no backward pass in eval mode.
    with torch.random.fork_rng(devices=[]), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        torch.manual_seed(seed)
        try:
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            for inputs, targets in first_batches(workload.train, batches):
                torch.autograd.backward(workload.loss(predict(model, inputs), targets))
            tied = model.named_parameters(remove_duplicate=False)
            return {name: parameter.grad.clone() for name, parameter in tied if parameter.grad is not None}
        finally:
            model.zero_grad(set_to_none=True)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])


def _fault_of(
    model: nn.Module,
    couplings: Couplings,
    gone: dict[Coupled, list[int]],
    wanted: dict[int, Tensor],
    example: Inputs,
) -> str | None:
    """Why these channels cannot go, or None: the network must run, and compute what it computes with them at zero."""
    try:
        entries = couplings.entries(gone)
    except Exception as error:  # noqa: BLE001 - torch-pruning raises whatever its graph runs into
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    try:
        trial = apply_plan_(copy.deepcopy(model), entries)
    except ValueError as error:
        return str(error)
    reason = fault(trial, example, wanted)
    modules = [model.get_submodule(part.module) for group in gone for part in group.parts]
    if reason is not None or any(isinstance(module, _MIXING) for module in modules):
        return reason
    narrow = outputs_at(trial, example, (2,))[2]
    masked = outputs_at(mask_(copy.deepcopy(model), couplings.sizes_without(gone)), example, (2,))[2]
    tolerance = float(masked.abs().max()) * torch.finfo(masked.dtype).eps ** 0.5
    if not float((narrow - masked).abs().max()) <= tolerance:
        return "without these channels it computes something else than with them at zero"
    return None


def _why(group: Coupled, criterion: str, scores: Tensor, gone: list[int]) -> dict[str, Any]:
    short = [float(f"{value:.4g}") for value in scores.tolist()]
    return {
        "group": group.name,
        "criterion": criterion,
        "layers": sorted({part.module for part in group.parts if part.makes}),
        "kept_scores": [value for channel, value in enumerate(short) if channel not in set(gone)],
        "removed_scores": [short[channel] for channel in gone],
    }
