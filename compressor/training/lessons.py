"""The loss of a student on what its teacher says: by the kind of output, where it counts, and besides the task's loss.

loss = soft_weight * distance to the teacher + (1 - soft_weight) * task loss (Hinton et al. 2015, arXiv:1503.02531, sec.
2); the distances are those of `outputs.kinds`, or those of `training.objectives`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.batches import Inputs, Targets, judged_target
from compressor.errors import StageError
from compressor.outputs.finding import Found, adds_up
from compressor.outputs.kinds import Classes, Labels
from compressor.training.objectives.answers import (
    ANY_KIND,
    NEEDS_LABELS,
    AnswerObjective,
    Answers,
    Decoupled,
    SoftTargets,
    needs_classes,
    summed,
)
from compressor.training.precision import at_least_float32
from compressor.workload import Workload

# One's own distance: of (student, teacher, targets), the judged outputs in float32, one number with a gradient.
OwnLoss = Callable[[Tensor, Tensor, Any], Tensor]
# The input in which Hugging Face models are told which positions hold something.
MASK = "attention_mask"


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What a student is taught on its judged output, which says `kind`, in addition to the loss of `workload`.

    `own` replaces the distance of that kind, and so do `objectives`, which add up. Positions whose labels the task's
    loss leaves out, and those that `attention_mask` among the inputs leaves out, are not taught.
    """

    workload: Workload
    kind: Found
    soft_weight: float
    temperature: float
    own: OwnLoss | None = None
    objectives: tuple[AnswerObjective, ...] = ()

    def loss(
        self, outputs: Tensor, references: Tensor, inputs: Inputs, targets: Targets, former: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch; `references` are the teacher's outputs, `former` the student's before the training.

        Raises StageError where shapes differ.
        """
        outputs = at_least_float32(outputs)
        loss: Tensor = (1 - self.soft_weight) * self.workload.loss(outputs, targets)
        if not self.soft_weight:
            return loss
        references = at_least_float32(references).to(outputs.device)
        if self.own is not None:
            return loss + self.soft_weight * self._own_distance(self.own, outputs, references, targets)
        if outputs.shape != references.shape:
            raise StageError(
                f"the teacher's output {tuple(references.shape)} must have the student's shape {tuple(outputs.shape)}; "
                "give a teacher of the same task, or let this one teach inner features alone: soft_weight=0.0 and "
                "features"
            )
        answers = Answers(
            student=outputs,
            teacher=in_form_of(self.kind, references),
            kind=self.kind,
            labels=self._labels(outputs, targets),
            counted=self._counted(outputs, inputs, targets),
            former=None if former is None else at_least_float32(former).to(outputs.device),
        )
        return loss + self.soft_weight * summed(
            self.objectives or (SoftTargets(temperature=self.temperature),), answers
        )

    def check(self) -> None:
        """Raises StageError where an objective does not fit what the outputs say: before any work."""
        for objective in self.objectives:
            if not isinstance(self.kind, Classes) and not isinstance(objective, ANY_KIND):
                raise StageError(needs_classes(type(objective).__name__, self.kind))
            if isinstance(objective, Decoupled) and isinstance(self.kind, Classes) and not self.kind.labelled:
                raise StageError(NEEDS_LABELS)

    def says(self) -> str:
        """How judged outputs are compared, for the report."""
        if not self.soft_weight:
            return "not compared: soft_weight is 0"
        if self.own is not None:
            return "by a loss of one's own"
        return (
            f"{self.kind.says()}; by {', '.join(map(repr, self.objectives))}" if self.objectives else self.kind.says()
        )

    def _labels(self, outputs: Tensor, targets: Targets) -> Tensor | None:
        """The class of every position, of the shape of the outputs without their classes; None where there is none."""
        kind, labels = self.kind, judged_target(targets)
        if not isinstance(kind, Classes) or kind.counted(outputs, labels) is None or labels is None:
            return None
        if not isinstance(labels, Tensor):
            return None
        if not kind.shift:
            return labels
        # The last positions have no label, and are not asked.
        return torch.cat([labels[:, kind.shift :], labels[:, : kind.shift]], dim=1)

    def _own_distance(self, own: OwnLoss, outputs: Tensor, references: Tensor, targets: Targets) -> Tensor:
        value = own(outputs, references, targets)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise StageError(
                f"loss must give one number, a tensor with a gradient, for (student, teacher, targets); got {got}; "
                "give the mean over samples"
            )
        return value.reshape(())

    def _counted(self, outputs: Tensor, inputs: Inputs, targets: Targets) -> Tensor | None:
        labelled = self.kind.counted(outputs, judged_target(targets))
        present = unmasked(self.kind, outputs, inputs)
        if labelled is None or present is None:
            return present if labelled is None else labelled
        return labelled & present.reshape(present.shape + (1,) * (labelled.ndim - present.ndim))


def unmasked(kind: Found, outputs: Tensor, inputs: Inputs) -> Tensor | None:
    """Where `attention_mask` among the inputs says that there is something, the first dimensions of the positions.

    None where no input is called so, and where it says nothing of positions of `outputs`.
    """
    mask = inputs.get(MASK) if isinstance(inputs, Mapping) else None
    positions = kind.positions(outputs) if isinstance(kind, Classes) else outputs.shape
    if mask is None or mask.ndim < 2 or mask.ndim > len(positions) or mask.shape != positions[: mask.ndim]:
        return None
    return mask.to(outputs.device) != 0


def in_form_of(kind: Found, references: Tensor) -> Tensor:
    """`references` as logits or as probabilities, whichever `kind` says: another teacher may end otherwise."""
    if isinstance(kind, Classes):
        theirs = adds_up(references, kind.axis % references.ndim)
        if theirs and not kind.probabilities:
            return references.clamp(min=torch.finfo(references.dtype).tiny).log()
        return references.softmax(dim=kind.axis) if kind.probabilities and not theirs else references
    if isinstance(kind, Labels) and kind.probabilities and bool(((references < 0) | (references > 1)).any()):
        return references.sigmoid()
    return references
