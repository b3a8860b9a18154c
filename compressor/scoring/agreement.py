"""Whether two models decide alike: what targets are where there are no labels, the outputs of the reference.

A decision is the largest of several classes, a number on the other side of a threshold, a whole number, or which of two
samples has the higher score. Which of these an output holds is found from the reference's outputs, or said.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from compressor.errors import WorkloadError
from compressor.scoring.means import mean_of_asked
from compressor.scoring.shapes import check_same_shape

Kind = Literal["classes", "crossings", "order", "whole numbers"]

# Of probabilities along an axis, how far from 1 their sum may be.
_SUM = 1e-3
# Of vectors of length 1, as embeddings are.
_LENGTH = 1e-3
# Samples of which every pair is compared.
_MOST_ORDERED = 256
_EVEN = 0.5


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Rows and score of how far decisions agree; `kind` None is found on each batch of targets.

    `axis` holds the classes of decisions among them, `threshold` parts numbers.
    """

    kind: Kind | None = None
    axis: int | None = None
    threshold: float = _EVEN

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A row a sample: the share of its decisions that agree, (batch,), or (output, target) where order counts.

        Raises WorkloadError where shapes differ, and where targets are no decisions.
        """
        check_same_shape(outputs, targets)
        known = self.settled(targets)
        flat = len(targets), -1
        if known.kind == "whole numbers":
            return (outputs == targets).reshape(flat).double().mean(dim=1)
        if known.kind == "classes":
            assert known.axis is not None
            alike = outputs.argmax(dim=known.axis) == targets.argmax(dim=known.axis)
            return alike.reshape(flat).double().mean(dim=1)
        if known.kind == "crossings":
            ours, theirs = ((values > self.threshold).reshape(flat).double() for values in (outputs, targets))
            both, either = 2 * (ours * theirs).sum(dim=1), ours.sum(dim=1) + theirs.sum(dim=1)
            return torch.where(either > 0, both / either.clamp(min=1), 1.0)
        return torch.stack([outputs.reshape(len(outputs)), targets.reshape(len(targets))], dim=1).double()

    def settled(self, reference: Tensor) -> "Decisions":
        """The same for outputs like those of `reference`, (batch, ...). Raises WorkloadError for mere numbers."""
        if self.kind is not None:
            return self
        if self.axis is not None:
            return Decisions(kind="classes", axis=self.axis)
        found = decisions_of(reference)
        if found is None:
            raise WorkloadError(
                f"agreement compares decisions, and outputs {tuple(reference.shape)} are numbers without any; use "
                "metric='relative', which compares signals, or say which dimension holds classes: "
                "Metric.agreement(axis=...)"
            )
        return Decisions(kind=found.kind, axis=found.axis, threshold=self.threshold)

    def aggregate(self, rows: Tensor) -> float:
        """The score of many rows: their mean, or the share of pairs of samples that stand in the same order."""
        return _in_order(rows) if rows.ndim == 2 else mean_of_asked(rows)

    def says(self) -> str:
        """The kind in words, for the report."""
        match self.kind:
            case "classes":
                return f"the largest of the classes in dimension {self.axis}"
            case "crossings":
                return f"which numbers are above {self.threshold:g} (F1 of each sample)"
            case "order":
                return "which of two samples has the higher score"
            case "whole numbers":
                return "equal whole numbers"
        return "decisions of a kind that each batch tells"


def decisions_of(reference: Tensor) -> Decisions | None:
    """Which decisions outputs like `reference`, (batch, ...), hold; None for numbers without any.

    Whole numbers; probabilities along a dimension, or their logarithms; rows (batch, classes), unless their length is
    1, as that of embeddings; numbers in [0, 1]; a single number a sample, whose order counts.
    """
    if not reference.is_floating_point():
        return Decisions(kind="whole numbers")
    values = reference.detach().double()
    if not values.numel():
        return None
    spread = [axis for axis in range(1, values.ndim) if _adds_up(values, axis) or _adds_up(values.exp(), axis)]
    if len(spread) == 1:
        return Decisions(kind="classes", axis=spread[0])
    if bool(((values >= 0) & (values <= 1)).all()) and bool((values < 1).any()):
        return Decisions(kind="crossings")
    if values.numel() == len(values):
        return Decisions(kind="order")
    if values.ndim == 2 and not bool(((values.norm(dim=1) - 1).abs() < _LENGTH).all()):
        return Decisions(kind="classes", axis=1)
    return None


def _adds_up(values: Tensor, axis: int) -> bool:
    if values.shape[axis] < 2 or not bool(((values >= 0) & (values <= 1 + _SUM)).all()):
        return False
    return bool(((values.sum(dim=axis) - 1).abs() < _SUM).all())


def _in_order(rows: Tensor) -> float:
    """The share of pairs of samples, of those that differ in the targets, whose outputs differ the same way."""
    given, wanted = rows[:_MOST_ORDERED].double().unbind(dim=1)
    ours, theirs = (torch.sign(values[:, None] - values[None]) for values in (given, wanted))
    asked = theirs > 0
    return float((ours == theirs)[asked].double().mean()) if bool(asked.any()) else 1.0
