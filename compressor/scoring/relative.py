"""How much of a reference's signal outputs keep: decibels around the mean, of its worst channel."""

from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.scoring.decibels import MOST_DB, Sums
from compressor.scoring.shapes import check_same_shape

# Sums of more channels than these are kept for all of them together.
_MOST_CHANNELS = 128
_PARTS = 6


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Rows and score of `Metric.relative`; channels lie in dimension `axis`, in the last one of three and the second of
    other outputs where that is None.
    """

    axis: int | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sums over the values of each sample and channel, (batch, 6 * channels). Raises WorkloadError."""
        check_same_shape(outputs, targets)
        ours, theirs = (self._by_channel(values.double()) for values in (outputs, targets))
        alive = theirs.isfinite()
        # What is infinite in one alone, or on the other side, is lost altogether.
        apart = torch.where(alive, (ours - theirs).nan_to_num(torch.inf, torch.inf, torch.inf), 0.0)
        alike = (ours == theirs) | (ours.isnan() & theirs.isnan())
        apart = torch.where(alive | alike, apart, torch.inf)
        known = theirs.where(alive, 0.0)
        parts = [
            alive.double().sum(dim=2),
            known.sum(dim=2),
            known.square().sum(dim=2),
            apart.square().sum(dim=2),
            theirs.where(alive, torch.inf).amin(dim=2),
            theirs.where(alive, -torch.inf).amax(dim=2),
        ]
        return torch.cat(parts, dim=1)

    def _by_channel(self, values: Tensor) -> Tensor:
        """(batch, channels, values)."""
        axis = self.axis
        if axis is None:
            axis = None if values.ndim < 2 else 2 if values.ndim == 3 else 1
        if axis is None or values.shape[axis] > _MOST_CHANNELS:
            return values.reshape(len(values), 1, -1)
        return values.movedim(axis, 1).reshape(len(values), values.shape[axis], -1)

    @staticmethod
    def aggregate(rows: Tensor) -> float:
        """The decibels that the signal keeps, the least of the whole and of its channels; from -200 to 200."""
        count, first, second, noise, low, high = rows.double().reshape(len(rows), _PARTS, -1).unbind(dim=1)
        total = count.sum(dim=0)
        # Around the mean, so that squares of a large mean do not hide what varies.
        center = first.sum(dim=0) / total.clamp(min=1)
        varied = (second - 2 * center * first + count * center**2).sum(dim=0)
        sums = Sums(
            count=total.numpy(),
            center=center.numpy(),
            first=torch.zeros_like(total).numpy(),
            second=varied.numpy(),
            noise=noise.sum(dim=0).numpy(),
            low=low.amin(dim=0).numpy(),
            high=high.amax(dim=0).numpy(),
        )
        worst = sums.worst_channel()
        return min(sums.whole_db(), worst[1] if worst else MOST_DB)
