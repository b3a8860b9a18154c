"""How batches count in an update of several, so that the update is that of one batch of them all.

A loss that is a mean over samples wants each batch to count by its samples, a mean over tokens or pixels by those that
have a label, and a sum by 1. Which one a loss is, is seen by it: the losses of two unequal parts of a batch, put
together in one of these ways, give that of the whole.
"""

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

from compressor.batches import Targets, judged_target, map_targets, target_rows, with_judged
from compressor.outputs.finding import Found
from compressor.outputs.kinds import IGNORED, Classes
from compressor.structure.calling.draws import kept_randomness
from compressor.training.judged import copied, first_labelled
from compressor.training.precision import Form, at_least_float32
from compressor.training.replay import kept_modes, replayed
from compressor.workload import Workload

_SAME = 1e-3
_REMARK = (
    "accumulated batches are not quite as one: their loss is no sum, and no mean over samples or labels; each counts "
    "by its samples"
)


class Counts(Enum):
    """What a batch counts by."""

    SAMPLES = "samples"
    LABELS = "labels that count"
    ALIKE = "nothing: losses are added"


@dataclass(frozen=True, kw_only=True)
class Weighing:
    """What a batch counts by in an update of several, where its judged output says `kind`; `remark` is to be told."""

    by: Counts = Counts.SAMPLES
    kind: Found | None = None
    remark: str = ""

    def weight(self, samples: int, targets: Targets) -> float:
        """What a batch of so many samples with these targets counts."""
        if self.by is Counts.ALIKE:
            return 1
        asked = self.kind.asked(judged_target(targets)) if self.by is Counts.LABELS and self.kind is not None else None
        return samples if asked is None else asked

    @property
    def divides(self) -> bool:
        """Whether an update is divided by all that its batches count."""
        return self.by is not Counts.ALIKE


def weighing_of(model: nn.Module, workload: Workload, form: Form, *, seed: int) -> Weighing:
    """The weighing under which the loss of `workload` is the same for a batch as a whole and in parts.

    It is tried on the outputs of `model` for the first batch of the training data; samples where it has a single one.
    """
    with replayed(seed, 0), kept_randomness(), kept_modes(model), torch.no_grad():
        model.eval()
        first = first_labelled(workload, model, form)
        if first is None or len(first[0]) < 2:
            return Weighing()
        # In main memory, where labels out of range end no process.
        outputs, targets = at_least_float32(first[0]).cpu(), map_targets(first[1], copied)
        found = [_fitting(workload, outputs, each) for each in _variants(workload.output, targets)]
    seen = [each for each in found if each is not None]
    # Where all labels count, samples and labels are alike: those that are left out tell them apart.
    fits = [by for by in (Counts.LABELS, Counts.SAMPLES, Counts.ALIKE) if seen and all(by in each for each in seen)]
    return Weighing(by=fits[0], kind=workload.output) if fits else Weighing(remark=_REMARK if seen else "")


def _variants(kind: Found | None, targets: Targets) -> list[Targets]:
    """The targets, and the same with half of the labels of the first samples left out."""
    labels = judged_target(targets)
    # A label that yes and no are usually not given says nothing of this loss.
    left_out = [value for value in getattr(kind, "ignored", ()) if isinstance(kind, Classes) or value != IGNORED]
    if not left_out or (isinstance(kind, Classes) and not kind.labelled) or not isinstance(labels, Tensor):
        return [targets]
    fewer = labels.clone()
    if fewer.ndim == 1:
        fewer[: max(1, len(fewer) // 4)] = left_out[0]
    else:
        fewer[: max(1, len(fewer) // 2), labels.shape[1] // 2 :] = left_out[0]
    return [targets, fewer if labels is targets else with_judged(targets, fewer)]


def _fitting(workload: Workload, outputs: Tensor, targets: Targets) -> set[Counts] | None:
    """The weighings by which the losses of a third and the rest give that of all; None where they tell nothing."""
    samples, first = len(outputs), max(1, len(outputs) // 3)
    parts = [slice(first), slice(first, None)]
    try:
        whole = float(workload.loss(outputs, targets))
        own = [target_rows(targets, part, samples) for part in parts]
        losses = [float(workload.loss(outputs[part], each)) for part, each in zip(parts, own, strict=True)]
    except Exception:  # noqa: BLE001 - a loss may want all samples at once, and say so as it likes
        return None
    if not all(map(math.isfinite, [whole, *losses])) or not whole:
        return None
    asked = None if workload.output is None else [workload.output.asked(judged_target(each)) for each in own]
    weights: dict[Counts, list[float]] = {
        Counts.SAMPLES: [first / samples, 1 - first / samples],
        Counts.ALIKE: [1.0, 1.0],
    }
    if asked is not None and None not in asked and sum(map(int, asked)):  # type: ignore[arg-type] # none is None
        weights[Counts.LABELS] = [each / sum(asked) for each in asked]  # type: ignore[arg-type,operator]
    return {
        by
        for by, shares in weights.items()
        if abs(sum(share * loss for share, loss in zip(shares, losses, strict=True)) - whole) <= _SAME * abs(whole)
    }
