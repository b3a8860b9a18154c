"""How good a model's outputs are, sample by sample where the metric allows it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.checks import check_count


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

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The score of one set of outputs."""
        return self.aggregate(self.per_sample(outputs, targets))

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
            best = outputs.topk(min(k, outputs.shape[1]), dim=1).indices
            return (best == targets.unsqueeze(1)).any(dim=1).double()

        return Metric(name=f"top{k}", per_sample=hit, proportion=True, classes=True)

    @staticmethod
    def macro_f1() -> "Metric":
        """The unweighted mean over classes of F1, with classes that occur in targets or predictions."""
        return Metric(name="macro_f1", per_sample=_predicted_and_true, aggregate=_macro_f1, classes=True)

    @staticmethod
    def mse() -> "Metric":
        """The mean squared error, each sample's own mean first; lower is better."""
        return Metric(name="mse", per_sample=_squared_error, higher_is_better=False, bounded=False)

    @staticmethod
    def mae() -> "Metric":
        """The mean absolute error, each sample's own mean first; lower is better."""
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


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    hits = (outputs.argmax(dim=1) == targets).double()
    return hits if hits.ndim == 1 else hits.flatten(1).mean(dim=1)


def _predicted_and_true(outputs: Tensor, targets: Tensor) -> Tensor:
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
    return (outputs.double() - targets.double()).square().flatten(1).mean(dim=1)


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.double() - targets.double()).abs().flatten(1).mean(dim=1)
