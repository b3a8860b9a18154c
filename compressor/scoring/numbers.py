"""Rows over numbers: errors of single samples, and what of the spread of the targets is explained."""

import torch
from torch import Tensor

from compressor.scoring.shapes import check_same_shape


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared error of each sample, (batch,)."""
    check_same_shape(outputs, targets)
    return _sample_means((outputs.double() - targets.double()).square())


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean squared difference, one number with a gradient; whole numbers are counted as numbers."""
    check_same_shape(outputs, targets)
    if not outputs.is_floating_point():
        outputs, targets = outputs.double(), targets.double()
    return (outputs - targets).nan_to_num(0.0, 0.0, 0.0).square().mean()


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean absolute error of each sample, (batch,)."""
    check_same_shape(outputs, targets)
    return _sample_means((outputs.double() - targets.double()).abs())


def _sample_means(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.ndim > 1 else values


def given_and_wanted(outputs: Tensor, targets: Tensor) -> Tensor:
    """The numbers of each sample, outputs first, (batch, 2 * numbers)."""
    check_same_shape(outputs, targets)
    return torch.cat([values.double().reshape(len(values), -1) for values in (outputs, targets)], dim=1)


def explained(rows: Tensor) -> float:
    """R squared, 1 minus the squared errors over the squares around the targets' mean, the mean over the numbers.

    Of rows that `given_and_wanted` gave. Numbers that are the same in every sample are left out; NaN where all are.
    """
    given, wanted = rows.double().reshape(len(rows), 2, -1).unbind(dim=1)
    errors = (given - wanted).square().sum(dim=0)
    spread = (wanted - wanted.mean(dim=0)).square().sum(dim=0)
    varies = spread > 0
    return float((1 - errors[varies] / spread[varies]).mean()) if bool(varies.any()) else float("nan")
