"""How good a model's outputs are, sample by sample where the metric allows it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.checks import check_count
from compressor.errors import WorkloadError
from compressor.outputs.kinds import IGNORED, Classes, OutputKind


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def mean_of_asked(values: Tensor) -> float:
    """The mean of rows without those that are NaN: samples of which nothing was asked."""
    return float(values.double().nanmean())


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score: `per_sample(outputs, targets)` gives one row a sample, `aggregate(rows)` the score of many.

    `per_sample` returns (batch,) or (batch, k) so that intervals and paired tests can resample the samples; most
    metrics are the mean of their rows. `proportion` says that every row is 0 or 1, which gives the Wilson interval.
    `bounded` says that the score lies in [0, 1]: budgets then count absolute points, otherwise fractions of the
    reference's score. `classes` says that targets are class indices, one for each position of outputs (batch, classes,
    ...), (batch, ..., classes) or whatever `Workload.output` says; where shapes leave it open, a run finds out by the
    loss. The metrics below leave out the labels that the loss leaves out, -100 where there is no loss to ask.
    """

    name: str
    per_sample: Callable[[Tensor, Tensor], Tensor]
    aggregate: Callable[[Tensor], float] = _mean
    higher_is_better: bool = True
    proportion: bool = False
    bounded: bool = True
    classes: bool = False

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

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The score of one set of outputs."""
        return self.aggregate(self.rows(outputs, targets))

    def drop(self, reference: float, score: float) -> float:
        """How much worse `score` is than `reference`: points for bounded metrics, else a fraction of the reference."""
        worse = reference - score if self.higher_is_better else score - reference
        if self.bounded:
            return worse
        return worse / abs(reference) if reference else worse

    @property
    def class_axis(self) -> int | None:
        """The dimension in which outputs have their classes, where this metric says so."""
        return self.per_sample.axis if isinstance(self.per_sample, _ByClass) else None

    def settled(self, kind: OutputKind) -> "Metric":
        """The metric for outputs of that kind, where it leaves open in which dimension they have their classes."""
        if isinstance(self.per_sample, _ByClass) and isinstance(kind, Classes):
            return replace(self, per_sample=self.per_sample.settled(kind))
        return self

    def usual_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss that goes with this metric: cross-entropy over classes or labels, mean squared error otherwise."""
        if self.per_sample is _right_labels:
            return _label_loss
        if isinstance(self.per_sample, _ByClass) and self.per_sample.axis not in {None, 1}:
            return partial(_class_loss, axis=self.per_sample.axis)
        return F.cross_entropy if self.classes else F.mse_loss

    @staticmethod
    def accuracy(axis: int | None = None) -> "Metric":
        """The fraction of samples whose largest output is the target's class; with classes in dimension `axis` of
        (batch, classes, ...) or (batch, ..., classes) outputs the mean over the positions of each sample.

        Positions with a label that is left out do not count, nor do samples without any other.
        """
        return Metric(
            name="accuracy",
            per_sample=_ByClass(rows=_correct, axis=axis),
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
        per_sample = _ByClass(rows=_hits, axis=axis, ignored=ignored, shift=shift)
        return Metric(name="token_accuracy", per_sample=per_sample, aggregate=_ratio, classes=True)

    @staticmethod
    def pixel_accuracy(axis: int = 1, *, ignored: tuple[int, ...] | None = None) -> "Metric":
        """The fraction of all pixels whose largest output is the target's class, outputs (batch, classes, ...).

        Targets (batch, ...); `ignored` as for `token_accuracy`.
        """
        per_sample = _ByClass(rows=_hits, axis=axis, ignored=ignored, shift=0)
        return Metric(name="pixel_accuracy", per_sample=per_sample, aggregate=_ratio, classes=True)

    @staticmethod
    def label_accuracy() -> "Metric":
        """The fraction of labels told rightly by the sign of their logits, each sample's own mean first.

        Outputs and targets (batch,), (batch, 1) or (batch, labels) of one shape, targets 0 or 1; others, and NaN, are
        left out, and samples without any.
        """
        return Metric(name="label_accuracy", per_sample=_right_labels, aggregate=mean_of_asked)

    @staticmethod
    def top_k(k: int) -> "Metric":
        """The fraction of samples whose target is among the `k` (>= 1) largest of (batch, classes) outputs; the mean
        over the positions of each sample where there are some.
        """
        check_count(k, "k counts the answers that are allowed")
        return Metric(
            name=f"top{k}",
            per_sample=_ByClass(rows=partial(_among_best, k=k), shift=0),
            aggregate=mean_of_asked,
            proportion=True,
            classes=True,
        )

    @staticmethod
    def macro_f1() -> "Metric":
        """The unweighted mean over classes of F1, with classes that occur in targets or predictions."""
        return Metric(
            name="macro_f1", per_sample=_ByClass(rows=_predicted_and_true, axis=1), aggregate=_macro_f1, classes=True
        )

    @staticmethod
    def mse() -> "Metric":
        """The mean squared error, each sample's own mean first; lower is better.

        Outputs and targets of the same shape, (batch, ...): two shapes that broadcast are refused with WorkloadError.
        """
        return Metric(name="mse", per_sample=_squared_error, higher_is_better=False, bounded=False)

    @staticmethod
    def mae() -> "Metric":
        """The mean absolute error, each sample's own mean first; lower is better. Shapes are those of `mse`."""
        return Metric(name="mae", per_sample=_absolute_error, higher_is_better=False, bounded=False)

    @staticmethod
    def named(name: str) -> "Metric":
        """The metric called `name`, of those above, top5 for the top_k of 5. Raises ValueError for others."""
        if name.startswith("top") and name[3:].isdigit():
            return Metric.top_k(int(name[3:]))
        known: dict[str, Callable[[], Metric]] = {
            "accuracy": Metric.accuracy,
            "token_accuracy": Metric.token_accuracy,
            "pixel_accuracy": Metric.pixel_accuracy,
            "label_accuracy": Metric.label_accuracy,
            "macro_f1": Metric.macro_f1,
            "mse": Metric.mse,
            "mae": Metric.mae,
        }
        if name not in known:
            raise ValueError(
                f"metric must be one of {', '.join(known)} or top<k> such as top5, got {name!r}; "
                "for your own, pass Metric(name=..., per_sample=...)"
            )
        return known[name]()


def fitting(outputs: torch.Size, targets: torch.Size) -> str:
    """How outputs and targets of these shapes, which differ, are brought to one shape."""
    theirs = _fitting_targets(outputs, targets)
    axis = _extra_axis(outputs, targets)
    if axis is not None:
        return f"{theirs}, or let the model give output.squeeze({axis})"
    axis = _extra_axis(targets, outputs)
    return theirs if axis is None else f"{theirs}, or let the model give output.unsqueeze({axis})"


def _fitting_targets(wanted: torch.Size, targets: torch.Size) -> str:
    axis = _extra_axis(wanted, targets)
    if axis is not None:
        return f"use targets.unsqueeze({axis})"
    axis = _extra_axis(targets, wanted)
    if axis is not None:
        return f"use targets.squeeze({axis})"
    if [size for size in wanted if size != 1] == [size for size in targets if size != 1]:
        return f"use targets.reshape({', '.join(map(str, (-1, *wanted[1:])))})"
    return "give one target for each number that the model gives"


def _extra_axis(longer: torch.Size, shorter: torch.Size) -> int | None:
    """The axis of size 1 (the last of several) without which `longer` is `shorter`."""
    axes = [axis for axis, size in enumerate(longer) if size == 1 and longer[:axis] + longer[axis + 1 :] == shorter]
    return axes[-1] if axes else None


def _check_same_shape(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise WorkloadError(
            f"outputs and targets must have one shape, got outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)}; {fitting(outputs.shape, targets.shape)}"
        )


@dataclass(frozen=True, kw_only=True)
class _ByClass:
    """Rows of a metric over classes: `rows(outputs, targets, kind)`; what is None follows from shapes, or a kind."""

    rows: Callable[[Tensor, Tensor, Classes], Tensor]
    axis: int | None = None
    ignored: tuple[int, ...] | None = None
    shift: int | None = None

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        axis = _class_axis(outputs, targets) if self.axis is None else self.axis
        ignored = (IGNORED,) if self.ignored is None else self.ignored
        kind = Classes(axis=axis, ignored=ignored, shift=self.shift or 0)
        _check_classes(outputs, targets, kind)
        return self.rows(outputs, targets, kind)

    def settled(self, kind: Classes) -> "_ByClass":
        if not kind.labelled:
            # Mixed labels are for training alone: where classes are judged, they may be indices.
            return replace(self, axis=kind.axis if self.axis is None else self.axis)
        return replace(
            self,
            axis=kind.axis if self.axis is None else self.axis,
            ignored=kind.ignored if self.ignored is None else self.ignored,
            shift=kind.shift if self.shift is None else self.shift,
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
        way_out = _fitting_targets(wanted, targets.shape) if known else one_each
        raise WorkloadError(
            f"class indices must have the shape of the outputs without their dimension {kind.axis}, got outputs "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}; {way_out}"
        )


def _correct(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    counts = _hits(outputs, targets, kind)
    return counts[:, 0] / counts[:, 1]


def _hits(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    """How many positions of each sample are right, and how many were asked, (batch, 2)."""
    answers, labels, asked = kind.predicted(outputs, targets)
    right = (answers == labels) & asked
    return torch.stack([right.reshape(len(right), -1).sum(dim=1), asked.reshape(len(asked), -1).sum(dim=1)], 1).double()


def _ratio(rows: Tensor) -> float:
    hits, asked = rows.double().sum(dim=0).tolist()
    return hits / asked if asked else float("nan")


def _among_best(outputs: Tensor, targets: Tensor, kind: Classes, *, k: int) -> Tensor:
    best = outputs.movedim(kind.axis, 1).topk(min(k, outputs.shape[kind.axis]), dim=1).indices
    hits = (best == targets.unsqueeze(1)).any(dim=1).double().where(kind.predicted(outputs, targets)[2], torch.nan)
    return hits if hits.ndim == 1 else hits.flatten(1).nanmean(dim=1)


def _predicted_and_true(outputs: Tensor, targets: Tensor, kind: Classes) -> Tensor:
    answers, labels, asked = kind.predicted(outputs, targets)
    # What is not asked has the class -1, which no output has.
    return torch.stack([answers, labels], dim=1).where(asked.unsqueeze(1), -1)


def _right_labels(outputs: Tensor, targets: Tensor) -> Tensor:
    _check_same_shape(outputs, targets)
    asked = (targets == 0) | (targets == 1)
    right = ((outputs > 0) == (targets == 1)).double().where(asked, torch.nan)
    return right.flatten(1).nanmean(dim=1) if right.ndim > 1 else right


def _class_loss(outputs: Tensor, targets: Tensor, *, axis: int) -> Tensor:
    return F.cross_entropy(outputs.movedim(axis, 1), targets)


def _label_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype))


def _macro_f1(rows: Tensor) -> float:
    predicted, true = rows[rows[:, 1] >= 0].long().unbind(dim=1)
    if not len(true):
        return float("nan")
    classes = int(torch.maximum(predicted.max(), true.max())) + 1
    hits = torch.bincount(true[predicted == true], minlength=classes).double()
    total = torch.bincount(predicted, minlength=classes) + torch.bincount(true, minlength=classes)
    present = total > 0
    # F1 = 2 TP / (2 TP + FP + FN), and predicted + true = 2 TP + FP + FN.
    return float((2 * hits[present] / total[present]).mean())


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    _check_same_shape(outputs, targets)
    return _sample_means((outputs.double() - targets.double()).square())


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    _check_same_shape(outputs, targets)
    return _sample_means((outputs.double() - targets.double()).abs())


def _sample_means(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1) if values.ndim > 1 else values
