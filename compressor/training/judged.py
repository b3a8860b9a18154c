"""What the judged output of a workload says: as its user named it, or found on the first batch by shapes and loss."""

import math
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Targets, judged_target, map_targets, split_batch, with_judged
from compressor.kept_state import private_copy
from compressor.outputs.finding import Found, Loss, kind_of
from compressor.outputs.kinds import Numbers
from compressor.streams.passes import one_pass
from compressor.structure.calling.draws import kept_randomness
from compressor.training.loss_state import LossState
from compressor.training.precision import Form
from compressor.training.replay import replayed
from compressor.workload import Workload

# How many batches are looked at for one that has a label.
_LOOKED = 16


def output_kind(workload: Workload) -> Found:
    """`workload.output`, or what is found on the first batch of the training data that has a label.

    Raises WorkloadError where classes may lie in several dimensions and the loss does not tell in which.
    """
    if workload.output is not None:
        return workload.output
    with kept_randomness(), replayed(0, 0), torch.no_grad():
        model = private_copy(workload.model).eval()
        first = first_labelled(workload, model, Form.of(model))
        return Numbers() if first is None else found(workload, *first)


def first_labelled(workload: Workload, model: nn.Module, form: Form) -> tuple[Tensor, Targets] | None:
    """(outputs of `model`, targets) of the first training batch whose loss is finite; of the very first without one.

    A batch in which all labels are ignored tells nothing. None where there is no batch.
    """
    first = None
    with LossState.of(workload.loss).kept(), closing(one_pass(workload.train)) as passing:
        for inputs, targets in map(split_batch, islice(passing, _LOOKED)):
            outputs = form.predict(model, inputs)
            first = first or (outputs, targets)
            if has_loss(workload, outputs, form.place_targets(targets)):
                return outputs, targets
    return first


def has_loss(workload: Workload, outputs: Tensor, targets: Targets) -> bool:
    """Whether the loss of a batch is finite, which that of one is not whose labels are all ignored."""
    try:
        with torch.no_grad():  # on copies, for it may write into them
            return math.isfinite(float(workload.loss(outputs.clone(), map_targets(targets, copied))))
    except Exception:  # noqa: BLE001 - whatever is wrong is said by who asks for more
        return True


def found(workload: Workload, outputs: Tensor, targets: Targets) -> Found:
    """What the judged `outputs` of a batch with these `targets` say. Raises WorkloadError as `output_kind`."""
    metric = workload.metric
    outputs, targets = _together(workload, outputs, targets)
    return kind_of(outputs, *judged_by(workload, targets), classes=metric.classes, axis=metric.class_axis)


def copied(value: Any) -> Any:
    """A copy of `value` where it is a tensor: losses may write into their targets."""
    return value.clone() if isinstance(value, Tensor) else value


def _together(workload: Workload, outputs: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """Both in main memory, where labels out of range end no process; where the loss cannot be there, on the device."""
    placed = outputs.cpu(), map_targets(targets, torch.Tensor.cpu)
    if outputs.device.type != "cpu":
        try:
            workload.loss(*placed)
        except RuntimeError:  # weights of classes on the device, for instance
            return outputs, map_targets(targets, lambda tensor: tensor.to(outputs.device))
    return placed


def judged_by(workload: Workload, targets: Targets) -> tuple[Tensor, Loss]:
    """The target of a batch that outputs are judged by, and the loss as a function of outputs and that one alone."""
    judged: Tensor = judged_target(targets)
    if judged is targets:
        return judged, workload.loss
    loss = workload.loss  # in the closure itself, where its numbers are looked for
    return judged, lambda outputs, values: loss(outputs, with_judged(targets, values))


def settled(workload: Workload, kind: Found | None = None) -> Workload:
    """`workload` with its output's `kind`, found where it is None: its metric knows it then, too."""
    if workload.output is not None:
        return workload
    return replace(workload, output=output_kind(workload) if kind is None else kind)
