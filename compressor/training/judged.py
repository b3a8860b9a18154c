"""What the judged output of a workload says: as its user named it, or found on the first batch by shapes and loss."""

from dataclasses import replace

import torch
from torch import Tensor

from compressor.batches import Targets, judged_target, map_targets, with_judged
from compressor.kept_state import private_copy
from compressor.outputs.finding import Found, Loss, kind_of
from compressor.outputs.kinds import Numbers
from compressor.structure.calling.draws import kept_randomness
from compressor.training.precision import Form
from compressor.training.replay import replayed
from compressor.workload import Workload, first_batches


def output_kind(workload: Workload) -> Found:
    """`workload.output`, or what is found on the first batch of the training data.

    Raises WorkloadError where classes may lie in several dimensions and the loss does not tell in which.
    """
    if workload.output is not None:
        return workload.output
    with kept_randomness(), replayed(0, 0), torch.no_grad():
        batches = first_batches(workload.train, 1)
        if not batches:
            return Numbers()
        inputs, targets = batches[0]
        model = private_copy(workload.model).eval()
        return found(workload, Form.of(model).predict(model, inputs), targets)


def found(workload: Workload, outputs: Tensor, targets: Targets) -> Found:
    """What the judged `outputs` of a batch with these `targets` say. Raises WorkloadError as `output_kind`."""
    metric = workload.metric
    outputs, targets = _together(workload, outputs, targets)
    return kind_of(outputs, *judged_by(workload, targets), classes=metric.classes, axis=metric.class_axis)


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
