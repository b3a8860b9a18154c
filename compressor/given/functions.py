"""Plain functions as metric and loss: what they give on a first batch says how they are taken."""

import inspect
import math
import numbers
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import judged_target
from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.metrics import Metric

Function = Callable[[Any, Any], Any]
# What scikit-learn and others call the first and the second of (y_true, y_pred): theirs come the other way round.
_TRUTHS = {"y_true", "target", "targets", "label", "labels", "true", "truth", "ground_truth", "gt"}
_ANSWERS = {
    "y_pred", "y_score", "y_prob", "y_proba", "pred", "preds", "prediction", "predictions", "output", "outputs",
    "logits", "input",
}  # fmt: skip
_ERRORS = ("loss", "error", "mse", "mae", "distance", "perplexity", "deviation")


def metric_named(metric: Any) -> Metric | None:
    """The metric that `metric` is or names; None for a plain function, which a first batch has to be shown.

    Raises ValueError for unknown names, WorkloadError for what is neither.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, str):
        return Metric.named(metric)
    if isinstance(metric, type) or not callable(metric):
        got = f"the class {metric.__name__}" if isinstance(metric, type) else f"{type(metric).__name__} {metric!r}"
        raise WorkloadError(
            f"metric must be a name such as 'accuracy', a Metric, or a function of (outputs, targets), got {got}"
            + ("; make an object of it" if isinstance(metric, type) else "")
        )
    return None


def metric_of(function: Function, outputs: Tensor, given: Any, higher_is_better: bool | None) -> Metric:  # noqa: FBT001 # it has no default
    """The metric that is `function(outputs, targets)`, tried on a batch of at least 2 samples.

    Of the targets that are `given` it sees the one that is judged by.
    One row a sample, (batch,) or (batch, k), is averaged over samples; one number a batch is computed on all samples at
    once, and its intervals resample them. Functions whose parameters are (y_true, y_pred) are given them so. Where
    `higher_is_better` is None the name decides: an error or a loss is better the lower. Drops count as fractions of the
    reference's score. All that is told in one WorkloadWarning. Raises WorkloadError where `function` fails, or gives
    what is no number.
    """
    name, targets = _name(function), judged_target(given)
    judged = _in_order(function)
    try:
        found = _tried(name, judged, outputs, targets)
    except WorkloadError as error:
        if targets is given:
            raise
        keys = given if isinstance(given, Mapping) else ()
        entry = next((repr(key) for key in keys if given[key] is targets), "first")
        raise WorkloadError(
            f"{error}. Of several targets a metric sees the one that is judged by, the {entry} one, and the "
            "loss sees all"
        ) from error
    lower = any(part in name.lower() for part in _ERRORS) if higher_is_better is None else not higher_is_better
    by_sample = found.ndim in {1, 2} and len(found) == len(outputs) and len(outputs) > 1
    if not by_sample and found.numel() != 1:
        raise WorkloadError(
            f"the metric {name} must give one number, or one row for each of the {len(outputs)} samples, got the "
            f"shape {tuple(found.shape)}; average over what belongs to a sample alone, as in "
            "error.flatten(1).mean(dim=1)"
        )
    said = "" if higher_is_better is not None else f", {'lower' if lower else 'higher'} is better"
    how = "one row a sample, averaged" if by_sample else "one number for all samples, whose intervals resample them"
    swapped = ", called as (targets, outputs) by the names of its parameters" if judged is not function else ""
    warnings.warn(
        f"the metric is your function {name}: {how}{said}{swapped}; a drop is a fraction of the reference's score. "
        "compressor.Metric(name=..., per_sample=..., higher_is_better=..., bounded=...) says it otherwise",
        WorkloadWarning,
        stacklevel=3,
    )
    if by_sample:
        return Metric(name=name, per_sample=_Rows(judged), higher_is_better=not lower, bounded=False)
    return Metric(name=name, per_sample=packed, aggregate=_OfAll(judged), higher_is_better=not lower, bounded=False)


def checked_loss(loss: Any) -> Any:
    """`loss`, a function of (outputs, targets). Raises WorkloadError for a name, a class, or what cannot be called."""
    if isinstance(loss, type):
        way_out = f"; make an object of it: loss={loss.__name__}()" if issubclass(loss, nn.Module) else ""
        raise WorkloadError(f"loss must be a function of (outputs, targets), got the class {loss.__name__}{way_out}")
    if loss is not None and not callable(loss):
        raise WorkloadError(
            f"loss must be a function of (outputs, targets), got {type(loss).__name__} {loss!r}; give the function "
            "itself, such as torch.nn.functional.cross_entropy"
        )
    return loss


def answered(model: nn.Module, call: Callable[[], Tensor]) -> Tensor:
    """What `call()` gives, which calls `model`, in eval mode without gradients. Raises WorkloadError where it fails."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model.eval()
            return call()
    except Exception as error:
        raise WorkloadError(
            f"{type(model).__name__} must take the first batch of train, on which a function as metric is tried, and "
            f"fails: {type(error).__name__}: {error}; give inputs of the shape and type that it was trained with"
        ) from error
    finally:
        for module, training in modes:
            module.training = training


@dataclass(frozen=True)
class OfJudged:
    """A loss of the target that metrics judge by, where targets hold others besides."""

    loss: Function

    def __call__(self, outputs: Tensor, targets: Any) -> Any:
        return self.loss(outputs, judged_target(targets))


def of_judged(loss: Function, targets: Any) -> Function:
    """`loss`, which nobody gave, for targets like these: of the judged one where they hold several tensors."""
    return loss if isinstance(targets, Tensor) else OfJudged(loss)


def usual_loss(metric: Metric, outputs: Tensor, targets: Tensor) -> Any:
    """The loss that goes with a function as metric: cross-entropy where targets are class indices, mean squared error
    for numbers of the outputs' shape. Raises WorkloadError for anything else.
    """
    whole = not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)
    if whole and targets.ndim == outputs.ndim - 1 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        return F.cross_entropy
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return F.mse_loss
    raise WorkloadError(
        f"loss must be given with the metric {metric.name}: outputs {tuple(outputs.shape)} and targets "
        f"{tuple(targets.shape)} leave open which it is; give a function of (outputs, targets)"
    )


def check_settings(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises TypeError, as Python does, for an argument that is not `known`, with the nearest one that is."""
    for name in given:
        if name not in known:
            close = get_close_matches(
                name, [*known, "train", "test", "validation", "metric", "loss", "judge", "name"], 1
            )
            raise TypeError(
                f"a workload takes {', '.join(known)} besides its data, model, metric and loss, got {name!r}"
                + (f"; did you mean {close[0]!r}?" if close else "; leave it out")
            )


def packed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets of every sample in one row, (batch, k) in float64, from which `unpacked` has both again."""
    columns = []
    for values in (outputs, targets):
        whole = not (values.is_floating_point() or values.is_complex())
        shape = values.shape[1:]
        head = torch.tensor([float(whole), len(shape), *shape], dtype=torch.float64)
        columns += [head.expand(len(values), -1), values.detach().cpu().double().reshape(len(values), -1)]
    return torch.cat(columns, dim=1)


def unpacked(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, targets) of the rows that `packed` made: float32, and int64 where they were whole numbers."""
    found, start = [], 0
    for _ in range(2):
        whole, dimensions = bool(rows[0, start]), int(rows[0, start + 1])
        shape = [int(size) for size in rows[0, start + 2 : start + 2 + dimensions]]
        start += 2 + dimensions
        values = rows[:, start : start + math.prod(shape)].reshape(len(rows), *shape)
        found.append(values.long() if whole else values.float())
        start += math.prod(shape)
    return found[0], found[1]


@dataclass(frozen=True)
class _Rows:
    function: Function

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _as_tensor(_asked(self.function, outputs, targets))


@dataclass(frozen=True)
class _OfAll:
    function: Function

    def __call__(self, rows: Tensor) -> float:
        return float(_as_tensor(_asked(self.function, *unpacked(rows))))


@dataclass(frozen=True)
class _Swapped:
    function: Function

    def __call__(self, outputs: Tensor, targets: Tensor) -> Any:
        return self.function(targets, outputs)


def _in_order(function: Function) -> Function:
    try:
        names = list(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):  # built into C
        return function
    return _Swapped(function) if len(names) == 2 and names[0] in _TRUTHS and names[1] in _ANSWERS else function


def _asked(function: Function, outputs: Tensor, targets: Tensor) -> Any:
    inner = function.function if isinstance(function, _Swapped) else function
    found = function(outputs, targets)
    reset = getattr(inner, "reset", None)
    if isinstance(inner, nn.Module) and callable(reset):
        reset()  # metrics of torchmetrics add up what they are given
    return found


def _as_tensor(found: Any) -> Tensor:
    return found.detach().cpu() if isinstance(found, Tensor) else torch.as_tensor(np.asarray(found))


def _tried(name: str, function: Function, outputs: Tensor, targets: Any) -> Tensor:
    shapes = f"outputs {tuple(outputs.shape)} and targets {tuple(getattr(targets, 'shape', ()))}"
    try:
        found = _asked(function, outputs, targets)
    except Exception as error:
        raise WorkloadError(
            f"the metric {name} must take (outputs, targets) and fails on {shapes}: {type(error).__name__}: {error}; a "
            "function for classes wants lambda outputs, targets: metric(targets, outputs.argmax(1))"
        ) from error
    known = isinstance(found, Tensor | np.ndarray | np.generic | numbers.Number) and not isinstance(found, complex)
    if isinstance(found, list | tuple) and found and all(isinstance(item, numbers.Number) for item in found):
        known = True
    if not known:
        raise WorkloadError(
            f"the metric {name} must give one number, or one row a sample, on {shapes}, got "
            f"{'None' if found is None else type(found).__name__}; return the number itself"
        )
    rows = _as_tensor(found)
    if rows.numel() == 1 and not math.isfinite(float(rows)):
        way_out = (
            "0 / 0, and the root or logarithm of less than 0, are none: return what such samples count as"
            if math.isnan(float(rows))
            else "check the scale"
        )
        raise WorkloadError(f"the metric {name} must give a finite number on {shapes}, got {float(rows)}; {way_out}")
    _check_same_again(name, function, outputs, targets, rows)
    return rows


def _check_same_again(name: str, function: Function, outputs: Tensor, targets: Any, rows: Tensor) -> None:
    """Raises WorkloadError where `rows` were no answer to the arguments alone: others lie in between."""
    with suppress(Exception):
        _asked(function, outputs.flip(0), targets)
    again = _as_tensor(_asked(function, outputs, targets))
    if again.shape != rows.shape or not torch.allclose(again, rows, equal_nan=True):
        told = f", {float(rows):.4g} and then {float(again):.4g}" if rows.numel() == again.numel() == 1 else ""
        raise WorkloadError(
            f"the metric {name} must give the same again for the same outputs and targets, got another{told}: it draws "
            "at random, or adds up what it was shown before. Let it compute from its arguments alone"
        )


def _name(function: Function) -> str:
    inner = function.func if isinstance(function, partial) else function
    name: str = getattr(inner, "__name__", type(inner).__name__)
    return "score" if name == "<lambda>" else name.strip("_")
