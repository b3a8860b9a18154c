"""How good a model's outputs are, sample by sample where the metric allows it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.checks import check_count
from compressor.errors import WorkloadError


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A score: `per_sample(outputs, targets)` gives one row a sample, `aggregate(rows)` the score of many.

    `per_sample` returns (batch,) or (batch, k) so that intervals and paired tests can resample the samples; most
    metrics are the mean of their rows. `proportion` says that every row is 0 or 1, which gives the Wilson interval.
    `bounded` says that the score lies in [0, 1]: budgets then count absolute points, otherwise fractions of the
    reference's score. `classes` says that targets are class indices below the outputs' dimension 1 (or last, for 2-D).
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

    @staticmethod
    def accuracy() -> "Metric":
        """The fraction of samples whose largest output is the target's class; for (batch, classes, ...) outputs the
        mean over the positions of each sample.
        """
        return Metric(name="accuracy", per_sample=_correct, proportion=True, classes=True)

    @staticmethod
    def top_k(k: int) -> "Metric":
        """The fraction of samples whose target is among the `k` (>= 1) largest of (batch, classes) outputs."""
        check_count(k, "k counts the answers that are allowed")

        def hit(outputs: Tensor, targets: Tensor) -> Tensor:
            _check_classes(outputs, targets)
            best = outputs.topk(min(k, outputs.shape[1]), dim=1).indices
            return (best == targets.unsqueeze(1)).any(dim=1).double()

        return Metric(name=f"top{k}", per_sample=hit, proportion=True, classes=True)

    @staticmethod
    def macro_f1() -> "Metric":
        """The unweighted mean over classes of F1, with classes that occur in targets or predictions."""
        return Metric(name="macro_f1", per_sample=_predicted_and_true, aggregate=_macro_f1, classes=True)

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
        """The metric called `name`: accuracy, top<k>, macro_f1, mse or mae. Raises ValueError for others."""
        if name.startswith("top") and name[3:].isdigit():
            return Metric.top_k(int(name[3:]))
        known = {
            "accuracy": Metric.accuracy,
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


def _check_classes(outputs: Tensor, targets: Tensor) -> None:
    wanted = outputs.shape[:1] + outputs.shape[2:]
    if outputs.ndim < 2 or targets.shape != wanted:
        one_each = "give the model one output for each class"
        way_out = _fitting_targets(wanted, targets.shape) if outputs.ndim > 1 else one_each
        raise WorkloadError(
            f"class indices must have the shape of the outputs without their dimension 1, got outputs "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}; {way_out}"
        )


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    _check_classes(outputs, targets)
    hits = (outputs.argmax(dim=1) == targets).double()
    return hits if hits.ndim == 1 else hits.flatten(1).mean(dim=1)


def _predicted_and_true(outputs: Tensor, targets: Tensor) -> Tensor:
    _check_classes(outputs, targets)
    return torch.stack([outputs.argmax(dim=1), targets], dim=1)


def _macro_f1(rows: Tensor) -> float:
    predicted, true = rows[:, 0].long(), rows[:, 1].long()
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
