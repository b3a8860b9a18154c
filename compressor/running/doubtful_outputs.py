"""What of a workload's outputs and data is more often a mistake than meant: warned of, or refused, before work."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batch, Inputs, Targets, judged_target
from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.outputs.finding import taken_twice
from compressor.outputs.kinds import Classes
from compressor.scoring.agreement import Decisions
from compressor.scoring.relative import Signal
from compressor.training.judged import judged_by
from compressor.training.lessons import MASK, unmasked
from compressor.workload import Workload, batch_size_of, input_names, input_tensors, predict

# How many times as large as those of train the inputs of another set may be: 8 bits against [0, 1] are 255.
_OTHER_SCALE = 30


def warn_of_outputs(workload: Workload, inputs: Inputs, outputs: Tensor, targets: Targets) -> None:
    """Warns, with WorkloadWarning, where a loss takes Softmax or Sigmoid again, and where padding has labels.

    `workload` is settled; `outputs` and `targets` are those of the first batch, whose inputs are `inputs`.
    """
    assert workload.output is not None  # it is settled
    says = taken_twice(workload.output, outputs, *judged_by(workload, targets))
    if says:
        _warn(f"{type(workload.model).__name__} {says}; it learns little otherwise. If that is meant, all is well")
    present = unmasked(workload.output, outputs, inputs)
    labelled = workload.output.counted(outputs, judged_target(targets))
    if not isinstance(workload.output, Classes) or present is None or labelled is None:
        return
    padding = int((labelled & ~present.reshape(present.shape + (1,) * (labelled.ndim - present.ndim))).sum())
    if padding:
        _warn(
            f"{MASK} leaves out {padding} positions of the first batch that have labels: loss and metric count them, "
            f"the teacher does not; label padding -100, as in labels.masked_fill({MASK} == 0, -100). If that is meant, "
            "all is well"
        )


def check_classes(label: str, targets: Tensor, outputs: Tensor, workload: Workload) -> None:
    """Raises WorkloadError where `targets`, called `label`, are no indices of the classes that `outputs` have."""
    # Of wide numbers without a sign torch finds neither the largest nor those that are labels.
    unfit = {torch.bool, torch.uint16, torch.uint32, torch.uint64}
    if targets.is_floating_point() or targets.is_complex() or targets.dtype in unfit:
        way_out = "use targets.long(), or a metric such as mse"
        if (
            targets.is_floating_point()
            and targets.shape == outputs.shape
            and bool((targets.sum(dim=-1) - 1).abs().max() < 1e-3)
        ):
            way_out = "of a share for each class, targets.argmax(1) is the index"
        raise WorkloadError(
            f"{label}: the metric {workload.metric.name} wants class indices, got targets of {targets.dtype}; {way_out}"
        )
    kind = workload.output if isinstance(workload.output, Classes) else Classes()
    if not -outputs.ndim <= kind.axis < outputs.ndim or not outputs.shape[kind.axis]:
        raise WorkloadError(
            f"the metric {workload.metric.name} wants outputs (batch, classes, ...), got {tuple(outputs.shape)}; "
            "give the model one output for each class"
        )
    classes = outputs.shape[kind.axis]
    asked = targets[~torch.isin(targets, targets.new_tensor(_held(kind.ignored, targets)))]
    low, high = (int(asked.min()), int(asked.max())) if asked.numel() else (0, 0)
    if low < 0 or high >= classes:
        more = f"Renumber the labels, or give the model {high + 1} outputs"
        if classes == 1 and high == 1:
            more = (
                "One output for two classes is the logit of a label: give float targets of the output's shape and "
                "metric='label_accuracy'"
            )
        way_out = (
            more
            if low >= 0
            else f"Leave samples without a class out, let the loss leave them out (cross_entropy with "
            f"ignore_index={low}), or give them a class of their own"
        )
        raise WorkloadError(
            f"{label} has labels from {low} to {high}, and the model has {classes} outputs: labels must lie in "
            f"[0, {classes - 1}]. {way_out}"
        )


def _held(labels: tuple[int, ...], targets: Tensor) -> list[int]:
    """Those of `labels` that the type of `targets` can hold."""
    limits = torch.iinfo(targets.dtype) if targets.dtype != torch.bool else torch.iinfo(torch.uint8)
    return [label for label in labels if limits.min <= label <= limits.max]


def check_finite_targets(label: str, inputs: Inputs, targets: Tensor, workload: Workload) -> None:
    """Raises WorkloadError where `targets`, called `label`, are NaN or Inf and cannot be compared with.

    Where the model's own answers stand in for labels, infinities are what it masks, and metrics that compare two models
    count them as equal or not.
    """
    if not targets.is_floating_point() or bool(targets.isfinite().all()):
        return
    if isinstance(workload.metric.per_sample, Decisions | Signal) and not bool(targets.isnan().any()):
        return
    answers = predict(workload.model, inputs)
    if answers.shape != targets.shape or not torch.equal(answers.double().nan_to_num(), targets.double().nan_to_num()):
        raise WorkloadError(f"{label} has targets that are NaN or Inf; leave those samples out or fill them in")
    if bool(targets.isnan().any()):
        raise WorkloadError(
            f"{type(workload.model).__name__} gives NaN for {label}, and what it answers is to be compared; check the "
            "inputs for NaN and scale, and leave out those for which it has no answer"
        )
    raise WorkloadError(
        f"{type(workload.model).__name__} gives infinities for {label}, as masked logits are, of which the metric "
        f"{workload.metric.name} has no number; metric='agreement' and metric='relative' compare what is finite"
    )


def check_log_probabilities(workload: Workload, outputs: Tensor) -> None:
    """Raises WorkloadError where a loss of log-probabilities is given logits: it falls without end."""
    takes = workload.loss is F.nll_loss or isinstance(workload.loss, nn.NLLLoss)
    axis = workload.output.axis if isinstance(workload.output, Classes) else 1
    if takes and outputs.ndim > 1 and float(outputs.logsumexp(dim=axis).abs().max()) > 1e-2:
        raise WorkloadError(
            "the loss nll_loss takes log-probabilities, and the outputs are none (their exponentials do not add up to "
            "1); use torch.nn.functional.cross_entropy, or end the model with log_softmax"
        )


def check_enough(name: str, batches: Sequence[Batch]) -> None:
    """Raises WorkloadError where the `batches` of a set that is scored are one sample: its spread is not known."""
    if name in {"validation", "test"} and sum(batch_size_of(inputs) for inputs, _ in batches) == 1:
        raise WorkloadError(
            f"{name} holds 1 sample, of whose score no interval can be told; give at least 2, better some hundreds"
        )


def telling(batches: Sequence[Batch]) -> Batch:
    """The first of `batches` whose judged targets are not all equal, else the first: sorted data begin with one."""
    for batch in batches:
        targets = judged_target(batch[1])
        if isinstance(targets, Tensor) and targets.numel() and bool((targets != targets.flatten()[0]).any()):
            return batch
    return batches[0]


def warn_of_scale(name: str, inputs: Inputs, example: Inputs) -> None:
    """Warns where the numbers of a set are far larger or smaller than those of `example`, which come from train."""
    # By name: the sets of a stream hold no states.
    others = dict(zip(input_names(example), input_tensors(example), strict=True))
    for label, one in zip(input_names(inputs), input_tensors(inputs), strict=True):
        other = others.get(label)
        if other is None or not one.is_floating_point() or one.numel() < 16:
            continue
        here, there = (float(values.detach().double().square().mean().sqrt()) for values in (one, other))
        ratio = here / there if there else 1.0
        if here and math.isfinite(ratio) and not 1 / _OTHER_SCALE <= ratio <= _OTHER_SCALE:
            _warn(
                f"the inputs of {name} are {ratio:.3g} times as large as those of train; give all sets the same "
                "preprocessing. If that is meant, all is well"
            )
            return


def _warn(text: str) -> None:
    warnings.warn(text, WorkloadWarning, stacklevel=4)
