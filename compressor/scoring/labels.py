"""Rows over labels that are yes or no: by the sign of their logits, and by the order in which logits put samples."""

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.scoring.shapes import check_same_shape

# How far from 1 probabilities may add up.
_SAME = 1e-3


def right_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Which part of the labels of each sample is told rightly, (batch,); NaN where none is asked."""
    check_same_shape(outputs, targets)
    asked = (targets == 0) | (targets == 1)
    right = ((outputs > 0) == (targets == 1)).double().where(asked, torch.nan)
    return right.flatten(1).nanmean(dim=1) if right.ndim > 1 else right


def label_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of logits."""
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


def told_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Of each label whether it is answered and whether it is true, (batch, 2 * labels); NaN where nothing is asked."""
    check_same_shape(outputs, targets)
    asked = (targets == 0) | (targets == 1)
    pair = [(outputs > 0).double().where(asked, torch.nan), targets.double().where(asked, torch.nan)]
    return torch.cat([values.reshape(len(values), -1) for values in pair], dim=1)


def mean_label_f1(rows: Tensor) -> float:
    """The mean of F1 over the labels that occur in answers or targets, of rows that `told_labels` gave."""
    answered, true = rows.double().reshape(len(rows), 2, -1).unbind(dim=1)
    right = (answered * true).nansum(dim=0)
    total = answered.nansum(dim=0) + true.nansum(dim=0)
    # F1 = 2 TP / (2 TP + FP + FN), and answered + true = 2 TP + FP + FN.
    return float((2 * right[total > 0] / total[total > 0]).mean()) if bool((total > 0).any()) else float("nan")


def scores_and_truths(outputs: Tensor, targets: Tensor) -> Tensor:
    """What speaks for every label, and whether it is true, (batch, 2 * labels); NaN where nothing is asked.

    Targets of the outputs' shape are labels of 0 and 1. Targets (batch,) of outputs (batch, classes) are class indices:
    probabilities speak for each class against all others, of two classes for the second alone.
    """
    if outputs.ndim == 2 and targets.ndim == 1 and outputs.shape[1] > 1 and not targets.is_floating_point():
        count = outputs.shape[1]
        sums = outputs.double().sum(dim=1)
        ready = bool((outputs >= 0).all()) and bool(((sums - 1).abs() < _SAME).all())
        scores = outputs.double() if ready else outputs.double().softmax(dim=1)
        asked = (targets >= 0) & (targets < count)
        truths = F.one_hot(targets.where(asked, 0), count).double().where(asked[:, None], torch.nan)
        if count == 2:
            # One of two is as certain as the other is not; logits keep apart what rounds to a probability of 1.
            scores = (outputs[:, 1:] - outputs[:, :1]).double()
            truths = truths[:, 1:]
        return torch.cat([scores, truths], dim=1)
    check_same_shape(outputs, targets)
    asked = (targets == 0) | (targets == 1)
    pair = [outputs.double(), targets.double().where(asked, torch.nan)]
    return torch.cat([values.reshape(len(values), -1) for values in pair], dim=1)


def mean_auroc(rows: Tensor) -> float:
    """The area under the ROC curve, the mean over the labels that are true of some samples and not of all.

    Of rows that `scores_and_truths` gave. It is the part of pairs of a true and a false sample that scores put in
    order, ties counting half (Hanley and McNeil 1982, Radiology 143). NaN where no label has both.
    """
    scores, truths = rows.double().reshape(len(rows), 2, -1).unbind(dim=1)
    found = []
    for column in range(scores.shape[1]):
        asked = ~truths[:, column].isnan()
        values, true = scores[asked, column], truths[asked, column] == 1
        positives, negatives = int(true.sum()), int((~true).sum())
        if positives and negatives:
            _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
            ranks = (counts.cumsum(0).double() - (counts - 1) / 2)[places]
            above = float(ranks[true].sum()) - positives * (positives + 1) / 2
            found.append(above / (positives * negatives))
    return sum(found) / len(found) if found else float("nan")


def either_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of class indices, binary cross-entropy of labels in the outputs' shape."""
    return label_loss(outputs, targets) if outputs.shape == targets.shape else F.cross_entropy(outputs, targets)
