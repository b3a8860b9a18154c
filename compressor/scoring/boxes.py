"""Mean average precision of boxes: which detections hit, sample by sample, and the precision of all of them.

As COCO computes it (Lin et al. 2014, arXiv:1405.0312, and its evaluation code): detections in the order of their scores
take the box of their class that they overlap most and that no better one has taken; precision is read at 101 recalls,
as the largest at this recall or beyond, and averaged over them, over classes that occur, and over thresholds.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.checks import check_count
from compressor.errors import WorkloadError

Array = NDArray[np.float64]

# COCO's ten thresholds of overlap.
COCO_OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
# Detections of a class in one sample that are looked at, the best ones, as in torchvision's detectors.
_CANDIDATES = 1000
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Rows of detections: outputs (batch, boxes, 4 + classes), targets (batch, most boxes of a sample, 5).

    An output is x1, y1, x2, y2 and a score for each class, logits or probabilities; a target is its class and x1, y1,
    x2, y2, with class -1 for padding. Of boxes of one class that overlap by more than `suppress` only the best counts
    (None: all of them do). The `most` best detections of a sample count. `overlaps` are the thresholds from which a
    detection hits.
    """

    overlaps: tuple[float, ...] = COCO_OVERLAPS
    suppress: float | None = 0.5
    most: int = 100

    def __post_init__(self) -> None:
        if not self.overlaps or not all(0 < least <= 1 for least in self.overlaps):
            raise ValueError(
                f"overlaps are the intersections over union from which a detection hits, each in (0, 1], got "
                f"{self.overlaps}; half is 0.5"
            )
        if self.suppress is not None and not 0 < self.suppress <= 1:
            raise ValueError(f"suppress is an intersection over union in (0, 1], or None, got {self.suppress}")
        check_count(self.most, "most counts the detections of a sample")

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(batch, 3 * most + classes): class, score and hits as bits of each detection; true boxes of each class."""
        if outputs.ndim != 3 or outputs.shape[2] < 5 or targets.ndim != 3 or targets.shape[2] != 5:
            raise WorkloadError(
                "boxes need outputs (batch, boxes, 4 + classes) with x1, y1, x2, y2 and a score for each class, and "
                f"targets (batch, boxes, 5) with class, x1, y1, x2, y2 and class -1 for padding, got outputs "
                f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}; say judge=lambda out: "
                "torch.cat([out.boxes, out.scores], -1) where the model gives both apart"
            )
        pairs = zip(outputs.detach().double().numpy(), targets.detach().double().numpy(), strict=True)
        return torch.from_numpy(np.stack([self._row(given, wanted) for given, wanted in pairs]))

    def average_precision(self, rows: Tensor) -> float:
        """The mean over thresholds and over classes that occur in the targets, of such rows; NaN where none does."""
        table = rows.double().numpy()
        detections = table[:, : 3 * self.most].reshape(-1, 3)
        detections = detections[detections[:, 0] >= 0]
        truths = table[:, 3 * self.most :].sum(axis=0)
        found = [
            self._of_class(detections[detections[:, 0] == number], count)
            for number, count in enumerate(truths)
            if count
        ]
        return float(np.mean(found)) if found else float("nan")

    def _of_class(self, detections: Array, truths: float) -> float:
        order = np.argsort(-detections[:, 1], kind="stable")
        bits = detections[order, 2].astype(np.int64)
        ranks = np.arange(1, len(bits) + 1)
        found = []
        for place in range(len(self.overlaps)):
            hits = np.cumsum((bits >> place) & 1)
            # The best precision at this recall or beyond.
            precision = np.maximum.accumulate((hits / ranks)[::-1])[::-1]
            reached = np.searchsorted(hits / truths, _RECALLS, side="left")
            found.append(np.append(precision, 0.0)[np.minimum(reached, len(bits))].mean())
        return float(np.mean(found))

    def _row(self, given: Array, wanted: Array) -> Array:
        count = given.shape[1] - 4
        kinds = wanted[:, 0]
        if ((kinds >= count) | (kinds != np.round(kinds))).any():
            raise WorkloadError(
                f"boxes of targets must have a class from 0 to {count - 1}, or -1 for padding, got "
                f"{sorted(set(kinds[(kinds >= count) | (kinds != np.round(kinds))].tolist()))[:5]}; renumber them, or "
                "give the model more scores"
            )
        boxes, scores = given[:, :4], given[:, 4:]
        detections = []
        for number in range(count):
            kept = self._kept(boxes, scores[:, number])
            hits = self._hits(boxes[kept], wanted[kinds == number, 1:])
            detections += [(float(number), scores[index, number], bits) for index, bits in zip(kept, hits, strict=True)]
        detections.sort(key=lambda detection: -detection[1])
        row = np.full(3 * self.most + count, -1.0)
        chosen = np.array(detections[: self.most], dtype=np.float64).reshape(-1)
        row[: len(chosen)] = chosen
        row[3 * self.most :] = [(kinds == number).sum() for number in range(count)]
        return row

    def _kept(self, boxes: Array, scores: Array) -> list[int]:
        """The detections of one class that count, best first (Girshick et al. 2014, arXiv:1311.2524, sec. 2.2)."""
        finite = np.isfinite(scores)
        order = [int(index) for index in np.argsort(-scores, kind="stable") if finite[index]]
        if self.suppress is None:
            return order[: self.most]
        order = order[:_CANDIDATES]
        kept: list[int] = []
        free = np.ones(len(order), dtype=bool)
        for place, index in enumerate(order):
            if free[place]:
                kept.append(index)
                free &= overlaps_of(boxes[[index]], boxes[order])[0] <= self.suppress
            if len(kept) == self.most:
                break
        return kept

    def _hits(self, boxes: Array, wanted: Array) -> list[float]:
        """Of every detection, best first, at which thresholds it hits, as bits."""
        overlap = overlaps_of(boxes, wanted)
        bits = np.zeros(len(boxes), dtype=np.int64)
        for place, least in enumerate(self.overlaps):
            free = np.ones(len(wanted), dtype=bool)
            for index in range(len(boxes)):
                fits = np.where(free, overlap[index], -1.0)
                best = int(fits.argmax()) if len(fits) else -1
                if best >= 0 and fits[best] >= min(least, 1 - 1e-10):
                    free[best] = False
                    bits[index] |= 1 << place
        return [float(number) for number in bits]


def overlaps_of(first: Array, second: Array) -> Array:
    """The intersection over union of every box of `first` with every one of `second`, (first, second)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    found: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return found
