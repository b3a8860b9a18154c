"""Rows over classes: hits, answers and labels, wherever the outputs have their classes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.outputs.kinds import IGNORED, Classes
from compressor.scoring.shapes import fitting_targets


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """Rows of a metric over classes: `rows(outputs, targets, kind)`; what is None follows from shapes, or a kind."""

    rows: Callable[[Tensor, Tensor, Classes], Tensor]
    axis: int | None = None
    ignored: tuple[int, ...] | None = None
    shift: int | None = None
    probabilities: bool = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = _class_axis(outputs, targets) if self.axis is None else self.axis
        ignored = (IGNORED,) if self.ignored is None else self.ignored
        kind = Classes(axis=axis, ignored=ignored, shift=self.shift or 0, probabilities=self.probabilities)
        _check_classes(outputs, targets, kind)
        return self.rows(outputs, targets, kind)

    def settled(self, kind: Classes) -> "ByClass":
        """The same, with what is None as `kind` has it."""
        if not kind.labelled:
            # Mixed labels are for training alone: where classes are judged, they may be indices.
            return replace(self, axis=kind.axis if self.axis is None else self.axis)
        return replace(
            self,
            axis=kind.axis if self.axis is None else self.axis,
            ignored=kind.ignored if self.ignored is None else self.ignored,
            shift=kind.shift if self.shift is None else self.shift,
            probabilities=kind.probabilities,
        )


def _class_axis(outputs: Tensor, targets: Tensor) -> int:
    fits = [axis for axis in range(1, outputs.ndim) if Classes(axis=axis).positions(outputs) == targets.shape]
    if len(fits) > 1:
        raise WorkloadError(
            f"classes may lie in dimension {' or '.join(map(str, fits))} of outputs {tuple(outputs.shape)} with "
            f"targets {tuple(targets.shape)}; say it: Metric.accuracy(axis={fits[0]}), or Metric.token_accuracy() for "
            "(batch, tokens, classes) and Metric.pixel_accuracy() for (batch, classes, ...)"
        )
    return fits[0] if fits else 1


def _check_classes(outputs: Tensor, targets: Tensor, kind: Classes) -> None:
    known = outputs.ndim > 1 and -outputs.ndim <= kind.axis < outputs.ndim
    wanted = kind.positions(outputs) if known else outputs.shape
    if not known or targets.shape != wanted:
        one_each = "give the model one output for each class"
        way_out = fitting_targets(wanted, targets.shape) if known else one_each
        if known and targets.shape == outputs.shape:
            way_out = f"of a share for each class, targets.argmax({kind.axis}) is the index"
        raise WorkloadError(
            f"class indices must have the shape of the outputs without their dimension {kind.axis}, got outputs "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}; {way_out}"
        )


def correct(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    """Which part of the positions of each sample is right, (batch,); NaN where none is asked."""
    counts = hits(outputs, targets, kind)
    return counts[:, 0] / counts[:, 1]


def hits(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    """How many positions of each sample are right, and how many were asked, (batch, 2)."""
    answers, labels, asked = kind.predicted(outputs, targets)
    right = (answers == labels) & asked
    return torch.stack([right.reshape(len(right), -1).sum(dim=1), asked.reshape(len(asked), -1).sum(dim=1)], 1).double()


def ratio(rows: Tensor) -> float:
    """The first column over the second, each added up; NaN where nothing was asked."""
    hits, asked = rows.double().sum(dim=0).tolist()
    return hits / asked if asked else float("nan")


def among_best(outputs: Tensor, targets: Tensor, kind: Classes, *, k: int) -> Tensor:
    """Which part of the positions of each sample has its label among the `k` largest outputs, (batch,)."""
    if k > 1 and k >= outputs.shape[kind.axis]:
        raise ValueError(f"top{k} of {outputs.shape[kind.axis]} classes is always right; ask for fewer than there are")
    best = outputs.movedim(kind.axis, 1).topk(k, dim=1).indices
    hits = (best == targets.unsqueeze(1)).any(dim=1).double().where(kind.predicted(outputs, targets)[2], torch.nan)
    return hits if hits.ndim == 1 else hits.flatten(1).nanmean(dim=1)


def answered_and_true(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    """The class that is answered and the label, (batch, 2), -1 for both where nothing is asked.

    Of several positions a sample the counts that `_right_answered_labelled` gives, (batch, 3 * classes).
    """
    if targets.ndim > 1:
        return _right_answered_labelled(outputs, targets, kind)
    answers, labels, asked = kind.predicted(outputs, targets)
    # What is not asked has the class -1, which no output has.
    return torch.stack([answers, labels], dim=1).where(asked.unsqueeze(1), -1)


def macro_f1(rows: Tensor) -> float:
    """The mean of F1 over the classes that occur, of rows of `answered_and_true`; NaN where nothing was asked."""
    if rows.shape[1] > 2:
        right, answered, labelled = rows.double().sum(dim=0).reshape(3, -1)
        total = answered + labelled
        return float((2 * right[total > 0] / total[total > 0]).mean()) if bool((total > 0).any()) else float("nan")
    predicted, true = rows[rows[:, 1] >= 0].long().unbind(dim=1)
    if not len(true):
        return float("nan")
    classes = int(torch.maximum(predicted.max(), true.max())) + 1
    hits = torch.bincount(true[predicted == true], minlength=classes).double()
    total = torch.bincount(predicted, minlength=classes) + torch.bincount(true, minlength=classes)
    present = total > 0
    # F1 = 2 TP / (2 TP + FP + FN), and predicted + true = 2 TP + FP + FN.
    return float((2 * hits[present] / total[present]).mean())


def class_loss(outputs: Tensor, targets: Tensor, *, axis: int) -> Tensor:
    """Cross-entropy of outputs with their classes in dimension `axis`."""
    return F.cross_entropy(outputs.movedim(axis, 1), targets)


def overlaps(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    """Of each sample and class how many positions are right, answered and labelled so, (batch, 3 * classes)."""
    if targets.ndim < 2:
        raise ValueError(
            f"miou judges maps, outputs (batch, classes, ...) by targets (batch, ...), got {tuple(outputs.shape)} and "
            f"{tuple(targets.shape)}; for one label a sample, use accuracy or f1"
        )
    return _right_answered_labelled(outputs, targets, kind)


def _right_answered_labelled(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    answers, truths, asked = (part.flatten(1) for part in kind.predicted(outputs, targets))
    count = outputs.shape[kind.axis]
    answered = _counts(answers, asked, count)
    return torch.cat([_counts(answers, asked & (answers == truths), count), answered, _counts(truths, asked, count)], 1)


def mean_overlap(rows: Tensor) -> float:
    """The mean intersection over union of the classes that occur, of rows that `overlaps` gave."""
    right, answered, labelled = rows.double().sum(dim=0).reshape(3, -1)
    union = answered + labelled - right
    return float((right[union > 0] / union[union > 0]).mean()) if bool((union > 0).any()) else float("nan")


def surprise(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    """The negative log-likelihood of the labels that count, added up, and how many there are, (batch, 2)."""
    _, truths, asked = kind.predicted(outputs, targets)
    logits = kind.logits(outputs.double())
    logits = logits[:, : -kind.shift] if kind.shift else logits
    chosen = truths.where(asked, 0).unsqueeze(-1)
    likely = logits.log_softmax(dim=-1).gather(-1, chosen).squeeze(-1).where(asked, 0.0)
    return torch.stack([-likely.reshape(len(likely), -1).sum(1), asked.reshape(len(asked), -1).sum(1).double()], dim=1)


def perplexity(rows: Tensor) -> float:
    """The exponential of the mean negative log-likelihood, of rows that `surprise` gave."""
    return float(torch.tensor(ratio(rows), dtype=torch.float64).exp())


def _counts(values: Tensor, counted: Tensor, classes: int) -> Tensor:
    """How often each class stands in each row of `values` where it is `counted`, (batch, classes)."""
    found = torch.zeros(len(values), classes, dtype=torch.float64)
    return found.scatter_add_(1, values.where(counted, 0).long(), counted.double())
