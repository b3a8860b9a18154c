"""Changes by class: which classes a compressed classifier lost, with intervals, and which samples flipped.

Q. McNemar, Psychometrika 12, 1947: of the samples of a class on which two classifiers differ, under no difference half
are right by each, so their number follows a binomial distribution with 1/2, taken exactly. S. Holm, Scandinavian
Journal of Statistics 6, 1979: p-values of many classes adjusted, so that with 95 % none is called lost by chance.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.checks import check_count, explains_settings
from compressor.estimate import Estimate
from compressor.evaluations.corruptions import Range, kind_of, range_of
from compressor.evaluations.evaluation import Answers, Subject
from compressor.evaluations.pictures import png
from compressor.intervals import holm, mcnemar, paired_drop
from compressor.metrics import Metric
from compressor.notes.evaluations import ClassChanges, Flip, OneClass
from compressor.training.replay import replayed
from compressor.workload import batches_of, input_tensors

_MOST_FLIPS = 100
_MOST_CLASSES = 1000


@explains_settings
@dataclass(frozen=True, kw_only=True)
class ByClass:
    """What became of every class on test data, and of the samples whose answer changed from right to wrong.

    Of these the first `pictures` (0 to 100), by how sure the reference was, stand in the report: by their places in the
    data and, where inputs are images, as pictures. With 0 no sample is in the report.
    """

    pictures: int = 16

    def __post_init__(self) -> None:
        check_count(self.pictures, "pictures counts the samples that are shown", least=0)
        if self.pictures > _MOST_FLIPS:
            raise ValueError(f"pictures is at most {_MOST_FLIPS}, or the page becomes too large; got {self.pictures}")

    def evaluate(self, subject: Subject) -> Sequence[ClassChanges]:
        """One note; see `Evaluation`."""
        if subject.is_reference:
            return []
        own, base = (subject.known.answers(file) for file in (subject.onnx_bytes, subject.reference))
        lost = (base.right == 1) & (own.right == 0)
        won = (base.right == 0) & (own.right == 1)
        order = torch.where(lost)[0]
        order = order[base.confidences[order].argsort(descending=True, stable=True)][: self.pictures]
        shown = _pictures(subject, base.places[order]) if len(order) else {}
        return [
            ClassChanges(
                classes=tuple(classes(own, base, seed=subject.seed)),
                lost=int(lost.sum()),
                won=int(won.sum()),
                other=int(((base.answers != own.answers) & ~lost & ~won).sum()),
                flips=tuple(
                    Flip(
                        index=int(base.places[index]),
                        label=str(int(base.labels[index])),
                        before=str(int(base.answers[index])),
                        after=str(int(own.answers[index])),
                        picture=shown.get(int(base.places[index]), ""),
                    )
                    for index in order.tolist()
                ),
            )
        ]


def classes(own: Answers, base: Answers, *, seed: int = 0) -> list[OneClass]:
    """A row for each class, those that lost most first; at most 1000 of them."""
    metric = Metric.accuracy()
    found: list[tuple[int, int, float, float, Estimate, float]] = []
    for label in sorted(set(base.labels.tolist())):
        mask = base.labels == label
        before, after = base.right[mask], own.right[mask]
        lost, won = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
        drop = paired_drop(after, before, metric, seed=seed)
        found.append((label, len(before), float(before.mean()), float(after.mean()), drop, mcnemar(lost, won)))
    adjusted = holm([each[-1] for each in found])
    rows = [
        OneClass(
            label=str(label),
            samples=samples,
            before=before,
            after=after,
            drop=drop,
            p=p,
            lost=drop.value > 0 and p <= 0.05,
        )
        for (label, samples, before, after, drop, _), p in zip(found, adjusted, strict=True)
    ]
    return sorted(rows, key=lambda row: row.after - row.before)[:_MOST_CLASSES]


def _pictures(subject: Subject, wanted: Tensor) -> dict[int, str]:
    """PNG files in base64 of the samples at these places of the test data; none where inputs are no images."""
    try:
        if kind_of(subject.workload) != "images":
            return {}
    except ValueError:
        return {}
    extent, places = range_of(subject.workload), set(wanted.tolist())
    found: dict[int, str] = {}
    start = 0
    with replayed(0, 0):
        for inputs, _ in batches_of(subject.workload.test):
            images = input_tensors(inputs)[0]
            for row in range(len(images)):
                if start + row in places:
                    found[start + row] = _encoded(images[row], extent)
            start += len(images)
    return found


def _encoded(image: Tensor, extent: Range) -> str:
    return base64.b64encode(png(extent.normed(image))).decode()
