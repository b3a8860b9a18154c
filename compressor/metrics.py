"""How good a model's outputs are, sample by sample where the metric allows it."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.checks import check_count
from compressor.errors import WorkloadError
from compressor.outputs.kinds import Classes, OutputKind
from compressor.scoring import boxes, classes, labels, numbers
from compressor.scoring.agreement import Decisions
from compressor.scoring.classes import ByClass
from compressor.scoring.decibels import noise_share
from compressor.scoring.means import mean_of_asked
from compressor.scoring.numbers import squares
from compressor.scoring.relative import Signal

# The name of the metric of a workload without data.
UNSCORED = "not scored"


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _nothing(outputs: Tensor, targets: Tensor) -> Tensor:
    del targets
    return torch.zeros(len(outputs))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score: `per_sample(outputs, targets)` gives one row a sample, `aggregate(rows)` the score of many.

    `per_sample` returns (batch,) or (batch, k) so that intervals and paired tests can resample the samples; most
    metrics are the mean of their rows. `proportion` says that every row is 0 or 1, which gives the Wilson interval.
    `bounded` says that the score lies in [0, 1]: budgets then count absolute points, otherwise fractions of the
    reference's score. `classes` says that targets are class indices, one for each position of outputs (batch, classes,
    ...), (batch, ..., classes) or whatever `Workload.output` says; where shapes leave it open, a run finds out by the
    loss. `decibels` says that the score is signal over noise: budgets then count the noise as a share of the signal,
    0.01 for 20 dB. The metrics below leave out the labels that the loss leaves out, -100 where there is no loss to ask.
    """

    name: str
    per_sample: Callable[[Tensor, Tensor], Tensor]
    aggregate: Callable[[Tensor], float] = _mean
    higher_is_better: bool = True
    proportion: bool = False
    bounded: bool = True
    classes: bool = False
    decibels: bool = False

    def rows(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What `per_sample` gives, checked: (batch,) or (batch, k); arrays become tensors. Raises WorkloadError."""
        found = self.per_sample(outputs, targets)
        rows = found if isinstance(found, Tensor) else torch.as_tensor(found)
        if rows.ndim not in {1, 2} or len(rows) != len(outputs):
            raise WorkloadError(
                f"the metric {self.name} must give one row a sample, ({len(outputs)},) or ({len(outputs)}, k), "
                f"and gives {tuple(rows.shape)} for outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}; "
                "average over what belongs to a sample alone, as in error.flatten(1).mean(dim=1), and leave the mean "
                "over samples to aggregate="
            )
        return rows

    def together(self, rows: Sequence[Tensor]) -> Tensor:
        """The rows of several batches in one tensor. Raises WorkloadError where they are not equally long."""
        other = next((part for part in rows if part.shape[1:] != rows[0].shape[1:]), None)
        if other is not None:
            sizes = " and ".join("1" if part.ndim == 1 else str(part.shape[1]) for part in (rows[0], other))
            raise WorkloadError(
                f"the metric {self.name} is computed of all samples at once, which have to be of one size, and keeps "
                f"{sizes} numbers of a sample in two batches; pad the batches to one length, or give a metric with a "
                "row of its own for each sample, as in error.flatten(1).mean(dim=1)"
            )
        return torch.cat(list(rows))

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The score of one set of outputs."""
        return self.aggregate(self.rows(outputs, targets))

    def drop(self, reference: float, score: float) -> float:
        """How much worse `score` is than `reference`: points for bounded metrics, else a fraction of the reference.

        Of decibels the noise, as a share of the signal, that is added; what is worse than 0 is so without measure.
        """
        if self.decibels:
            return noise_share(score) - noise_share(reference)
        worse = reference - score if self.higher_is_better else score - reference
        if self.bounded or not worse:
            return worse
        return worse / abs(reference) if reference else math.copysign(math.inf, worse)

    @property
    def scored(self) -> bool:
        """Whether there is a score at all: not where there are no data to judge by."""
        return self.name != UNSCORED

    @property
    def class_axis(self) -> int | None:
        """The dimension in which outputs have their classes, where this metric says so."""
        return self.per_sample.axis if isinstance(self.per_sample, ByClass) else None

    def settled(self, kind: OutputKind) -> "Metric":
        """The metric for outputs of that kind, where it leaves open in which dimension they have their classes."""
        if isinstance(self.per_sample, ByClass) and isinstance(kind, Classes):
            return replace(self, per_sample=self.per_sample.settled(kind))
        return self

    def settled_on(self, reference: Tensor) -> "Metric":
        """The metric for outputs like `reference`, (batch, ...), where it leaves open which decisions they hold.

        Raises WorkloadError where they hold none.
        """
        if not isinstance(self.per_sample, Decisions):
            return self
        per_sample = self.per_sample.settled(torch.as_tensor(reference))
        single = per_sample.kind == "classes" and reference.ndim == 2
        aggregate = per_sample.aggregate if per_sample.kind == "order" else mean_of_asked
        return replace(self, per_sample=per_sample, aggregate=aggregate, proportion=single)

    def says(self) -> str:
        """What is compared, in words, where that follows from the outputs; "" where the name says it."""
        return self.per_sample.says() if isinstance(self.per_sample, Decisions) else ""

    def usual_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss that goes with this metric: cross-entropy over classes or labels, mean squared error otherwise."""
        if self.per_sample is labels.right_labels or self.per_sample is labels.told_labels:
            return labels.label_loss
        if self.per_sample is labels.scores_and_truths:
            return labels.either_loss
        if isinstance(self.per_sample, Decisions | Signal):
            return squares
        if isinstance(self.per_sample, boxes.Boxes):
            raise WorkloadError(
                f"loss must be given with the metric {self.name}: how boxes are learnt is the model's own matter; "
                "give a function of (outputs, targets)"
            )
        if isinstance(self.per_sample, ByClass) and self.per_sample.axis not in {None, 1}:
            return partial(classes.class_loss, axis=self.per_sample.axis)
        return F.cross_entropy if self.classes else F.mse_loss

    @staticmethod
    def accuracy(axis: int | None = None) -> "Metric":
        """The fraction of samples whose largest output is the target's class; with classes in dimension `axis` of
        (batch, classes, ...) or (batch, ..., classes) outputs the mean over the positions of each sample.

        Positions with a label that is left out do not count, nor do samples without any other.
        """
        return Metric(
            name="accuracy",
            per_sample=ByClass(rows=classes.correct, axis=axis),
            aggregate=mean_of_asked,
            proportion=True,
            classes=True,
        )

    @staticmethod
    def token_accuracy(axis: int = -1, *, ignored: tuple[int, ...] | None = None, shift: int | None = None) -> "Metric":
        """The fraction of all tokens whose largest output is the target's class, outputs (batch, tokens, classes).

        Targets (batch, tokens); `ignored` are labels that do not count, and labels stand `shift` positions ahead of the
        outputs, as in language models. Both are found by the loss where they are None.
        """
        per_sample = ByClass(rows=classes.hits, axis=axis, ignored=ignored, shift=shift)
        return Metric(name="token_accuracy", per_sample=per_sample, aggregate=classes.ratio, classes=True)

    @staticmethod
    def pixel_accuracy(axis: int = 1, *, ignored: tuple[int, ...] | None = None) -> "Metric":
        """The fraction of all pixels whose largest output is the target's class, outputs (batch, classes, ...).

        Targets (batch, ...); `ignored` as for `token_accuracy`.
        """
        per_sample = ByClass(rows=classes.hits, axis=axis, ignored=ignored, shift=0)
        return Metric(name="pixel_accuracy", per_sample=per_sample, aggregate=classes.ratio, classes=True)

    @staticmethod
    def label_accuracy() -> "Metric":
        """The fraction of labels told rightly by the sign of their logits, each sample's own mean first.

        Outputs and targets (batch,), (batch, 1) or (batch, labels) of one shape, targets 0 or 1; others, and NaN, are
        left out, and samples without any.
        """
        return Metric(name="label_accuracy", per_sample=labels.right_labels, aggregate=mean_of_asked)

    @staticmethod
    def top_k(k: int) -> "Metric":
        """The fraction of samples whose target is among the `k` (>= 1) largest of (batch, classes) outputs; the mean
        over the positions of each sample where there are some.
        """
        check_count(k, "k counts the answers that are allowed")
        return Metric(
            name=f"top{k}",
            per_sample=ByClass(rows=partial(classes.among_best, k=k), shift=0),
            aggregate=mean_of_asked,
            proportion=True,
            classes=True,
        )

    @staticmethod
    def macro_f1() -> "Metric":
        """The unweighted mean over classes of F1, with classes that occur in targets or predictions.

        Of a class a sample, or of one for each of its positions, in which dimension the loss and the shapes say.
        """
        return Metric(
            name="macro_f1",
            per_sample=ByClass(rows=classes.answered_and_true),
            aggregate=classes.macro_f1,
            classes=True,
        )

    @staticmethod
    def mse() -> "Metric":
        """The mean squared error, each sample's own mean first; lower is better.

        Outputs and targets of the same shape, (batch, ...): two shapes that broadcast are refused with WorkloadError.
        """
        return Metric(name="mse", per_sample=numbers.squared_error, higher_is_better=False, bounded=False)

    @staticmethod
    def mae() -> "Metric":
        """The mean absolute error, each sample's own mean first; lower is better. Shapes are those of `mse`."""
        return Metric(name="mae", per_sample=numbers.absolute_error, higher_is_better=False, bounded=False)

    @staticmethod
    def unscored() -> "Metric":
        """No score, for a model without data: its rows are 0, and reports say "not scored" in their place."""
        return Metric(name=UNSCORED, per_sample=_nothing)

    @staticmethod
    def agreement(axis: int | None = None, *, threshold: float = 0.5) -> "Metric":
        """The share of decisions that agree with the targets, which are outputs of the reference: no labels are needed.

        Which decisions outputs (batch, ...) hold, the targets tell: the largest of the classes in dimension `axis`, by
        which probabilities add up to 1 where it is None; which numbers in [0, 1] are above `threshold`, by F1 of every
        sample; which of two samples has the higher score; whole numbers. Others are refused with WorkloadError.
        """
        per_sample = Decisions(kind=None if axis is None else "classes", axis=axis, threshold=threshold)
        return Metric(name="agreement", per_sample=per_sample, aggregate=per_sample.aggregate)

    @staticmethod
    def relative(axis: int | None = None) -> "Metric":
        """The decibels of the targets' signal around its mean over the difference, of the worst channel; at most 200.

        Targets are outputs of the reference; channels lie in dimension `axis`, where None in the last of three
        dimensions and in the second of others. Budgets count the noise: `max_drop=0.01` is 20 dB.
        """
        per_sample = Signal(axis=axis)
        return Metric(
            name="relative", per_sample=per_sample, aggregate=per_sample.aggregate, bounded=False, decibels=True
        )

    @staticmethod
    def auroc() -> "Metric":
        """The area under the ROC curve: of labels, or of class indices (one class against all others), the mean of all.

        Outputs (batch, classes) with targets (batch,), or both of one shape with targets 0 and 1, others left out.
        """
        return Metric(name="auroc", per_sample=labels.scores_and_truths, aggregate=labels.mean_auroc)

    @staticmethod
    def multilabel_f1() -> "Metric":
        """F1 of each label by the sign of its logit, the mean over labels that occur; shapes of `label_accuracy`."""
        return Metric(name="multilabel_f1", per_sample=labels.told_labels, aggregate=labels.mean_label_f1)

    @staticmethod
    def r2() -> "Metric":
        """What part of the targets' variance is explained, the mean over the numbers of a sample; at most 1.

        Outputs and targets of the same shape, (batch, ...).
        """
        return Metric(name="r2", per_sample=numbers.given_and_wanted, aggregate=numbers.explained)

    @staticmethod
    def miou(axis: int = 1, *, ignored: tuple[int, ...] | None = None) -> "Metric":
        """The mean intersection over union of the classes that occur, over all pixels; as for `pixel_accuracy`."""
        rows = ByClass(rows=classes.overlaps, axis=axis, ignored=ignored, shift=0)
        return Metric(name="miou", per_sample=rows, aggregate=classes.mean_overlap, classes=True)

    @staticmethod
    def perplexity(axis: int = -1, *, ignored: tuple[int, ...] | None = None, shift: int | None = None) -> "Metric":
        """The exponential of the mean cross-entropy of all tokens; lower is better. As for `token_accuracy`."""
        return Metric(
            name="perplexity",
            per_sample=ByClass(rows=classes.surprise, axis=axis, ignored=ignored, shift=shift),
            aggregate=classes.perplexity,
            higher_is_better=False,
            bounded=False,
            classes=True,
        )

    @staticmethod
    def mean_average_precision(
        overlaps: tuple[float, ...] = boxes.COCO_OVERLAPS, *, suppress: float | None = 0.5, most: int = 100
    ) -> "Metric":
        """The mean average precision of boxes as COCO has it, over the thresholds `overlaps`, each in (0, 1].

        Outputs (batch, boxes, 4 + classes): x1, y1, x2, y2 and a score for each class. Targets (batch, boxes, 5):
        class, x1, y1, x2, y2, with class -1 for padding. Boxes that overlap a better one of their class by more than
        `suppress` are left out (None: none is), and so is what comes after the `most` best ones of a sample.
        """
        rows = boxes.Boxes(overlaps=overlaps, suppress=suppress, most=most)
        name = "map" if len(overlaps) > 1 else f"map{100 * overlaps[0]:.0f}"
        return Metric(name=name, per_sample=rows, aggregate=rows.average_precision)

    @staticmethod
    def named(name: str) -> "Metric":
        """The metric called `name`, of those above, top5 for the top_k of 5. Raises ValueError for others."""
        rank = re.fullmatch(r"top[-_]?(\d+)(_accuracy)?", name)
        if rank is not None:
            return Metric.top_k(int(rank[1]))
        known: dict[str, Callable[[], Metric]] = {
            "accuracy": Metric.accuracy,
            "token_accuracy": Metric.token_accuracy,
            "pixel_accuracy": Metric.pixel_accuracy,
            "label_accuracy": Metric.label_accuracy,
            "multilabel_accuracy": Metric.label_accuracy,
            "multilabel_f1": Metric.multilabel_f1,
            "macro_f1": Metric.macro_f1,
            "f1": Metric.macro_f1,
            "auroc": Metric.auroc,
            "miou": Metric.miou,
            "map": Metric.mean_average_precision,
            "map50": lambda: Metric.mean_average_precision((0.5,)),
            "perplexity": Metric.perplexity,
            "r2": Metric.r2,
            "mse": Metric.mse,
            "mae": Metric.mae,
            "agreement": Metric.agreement,
            "relative": Metric.relative,
        }
        if name not in known:
            close = get_close_matches(name, known, 1)
            raise ValueError(
                f"metric must be one of {', '.join(known)} or top<k> such as top5, got {name!r}; "
                + (f"did you mean {close[0]!r}? For" if close else "for")
                + " your own, pass a function of (outputs, targets) or Metric(name=..., per_sample=...)"
            )
        return known[name]()
