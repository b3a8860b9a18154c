"""Which channels a network can do without, and the reasons why some stay.

What every stage stands on that takes coupled channels, neurons, heads or recurrent units out.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from compressor.notes.structure import FoldedWeight, FoldedWeights
from compressor.pruning.ranking.importance import keep_best
from compressor.stage import Context
from compressor.structure.bisection import bisected
from compressor.structure.couplings import Coupled
from compressor.structure.plan import Entry
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.structure.preparing.matching import matching_glob
from compressor.structure.preparing.preparation import fold_, prepare_, project_
from compressor.workload import Workload

Gone = dict[Coupled, list[int]]

# Recurrent units come in steps of this fraction of a layer's width: their kernels have no stairs between (measured on
# AVX-512 with VNNI: multiples of 16 are the best by a few per cent, from 64 to 256 units, in float32 and int8).
_UNIT_STEPS = 16


def prepare_model_(model: nn.Module, workload: Workload, context: Context, *, ignore: tuple[str, ...]) -> None:
    """`model` itself made ready to be narrowed, but for layers that match a glob of `ignore`; told and planned."""
    empty_caches_(model, workload.example_inputs)
    _put_down(context, prepare_(model, workload.example_inputs, ignore=ignore))


def project_model_(model: nn.Module, workload: Workload, context: Context, *, ignore: tuple[str, ...]) -> None:
    """`model` itself, prepared, with the projections of its attention layers as layers of their own; planned."""
    _put_down(context, project_(model, workload.example_inputs, ignore=ignore))


def fold_model_(
    model: nn.Module,
    workload: Workload,
    context: Context,
    *,
    layers: tuple[str, ...] = ("*",),
    ignore: tuple[str, ...] = (),
) -> None:
    """`model` itself with plain weights in place of computed ones, in modules that match `layers` and not `ignore`."""
    empty_caches_(model, workload.example_inputs)
    _put_down(context, fold_(model, workload.example_inputs, layers=layers, ignore=ignore))


def _put_down(context: Context, entries: list[Entry]) -> None:
    context.plan.extend(entries)
    folded = [
        FoldedWeight(layer=name, tensor=tensor, by=by)
        for entry in entries
        if entry["kind"] == "fold"
        for name, tensors in entry["tensors"].items()
        for tensor, by in tensors.items()
    ]
    if folded:
        context.tell(FoldedWeights(parametrizations_folded=tuple(folded)))


def survivors(gone: Gone, fault_of: Callable[[Gone], str | None]) -> tuple[Gone, dict[str, str]]:
    """What of `gone` can go together, and by group name why the rest cannot.

    `fault_of` tries a choice and gives the reason why the network does not survive it, or None.
    """
    kept, faults = bisected(list(gone), lambda groups: fault_of({group: gone[group] for group in groups}))
    return {group: gone[group] for group in kept}, {group.name: reason for group, reason in faults.items()}


def reason_to_lock(group: Coupled, model: nn.Module, *, ignore: tuple[str, ...], align: int) -> str | None:
    """Why `group` is left alone without trying, if it is. `align` is what its width is rounded to."""
    if group.locked is not None:
        return group.locked
    if group.makes_output:
        return "it makes the model's output"
    if group.opaque:
        return "it is coupled to a recurrent or attention layer, whose own widths are not pruned"
    names = [part.module for part in group.parts]
    called = [part.module or part.tensors[0][0] for part in group.parts]
    ignored = next((glob for glob in ignore if any(matching_glob(name, (glob,)) for name in called)), None)
    if ignored is not None:
        return f"ignored by {ignored!r}"
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.GroupNorm) and 1 < module.num_groups < module.num_channels:
            return f"the groups of {name} would hold other channels"
    if group.width <= align:
        return too_narrow(group.width, align)
    return None


def too_narrow(width: int, align: int) -> str:
    """Why nothing of `width` channels may go where widths are multiples of `align`."""
    return "one channel has to stay" if align == 1 else f"width {width} is not above the aligned minimum {align}"


def multiple_of(group: Coupled, align: int | None, channel_multiple: int) -> int:
    """What the width of `group` is rounded to: `align` where it is given, else what suits its kind.

    Channels and neurons: `channel_multiple`, what the target's kernels are built for. Recurrent units: the largest
    power of two within a sixteenth of the width. Heads: one, whatever `align` is.
    """
    if group.kind == "heads":
        return 1
    if align is not None:
        return align
    if group.kind == "units":
        return int(2 ** ((max(group.width // _UNIT_STEPS, 1)).bit_length() - 1))
    return channel_multiple


def why(group: Coupled, criterion: str, scores: Tensor, gone: list[int]) -> dict[str, Any]:
    """Why the channels `gone` of `group` went, for a plan entry: the (width,) `scores` of what is kept and removed."""
    short = [float(f"{value:.4g}") for value in scores.tolist()]
    lost = set(gone)
    return {
        "group": group.name,
        "criterion": criterion,
        "layers": sorted({part.module for part in group.parts if part.makes}),
        "kept_scores": [value for channel, value in enumerate(short) if channel not in lost],
        "removed_scores": [short[channel] for channel in gone],
    }


def gone_channels(groups: tuple[Coupled, ...], scores: Mapping[str, Tensor], widths: Mapping[str, int]) -> Gone:
    """The least important channels of each group that is to have fewer than it has, ascending; of equals, the last."""
    return {
        group: sorted(set(range(group.width)) - set(keep_best(scores[group.name], widths[group.name])))
        for group in groups
        if widths.get(group.name, group.width) < group.width
    }
