"""Shapes of outputs and targets that do not fit each other, and how they are brought together."""

import torch
from torch import Tensor

from compressor.errors import WorkloadError


def fitting(outputs: torch.Size, targets: torch.Size) -> str:
    """How outputs and targets of these shapes, which differ, are brought to one shape."""
    theirs = fitting_targets(outputs, targets)
    axis = _extra_axis(outputs, targets)
    if axis is not None:
        return f"{theirs}, or let the model give output.squeeze({axis})"
    axis = _extra_axis(targets, outputs)
    return theirs if axis is None else f"{theirs}, or let the model give output.unsqueeze({axis})"


def fitting_targets(wanted: torch.Size, targets: torch.Size) -> str:
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


def check_same_shape(outputs: Tensor, targets: Tensor) -> None:
    if outputs.shape != targets.shape:
        raise WorkloadError(
            f"outputs and targets must have one shape, got outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)}; {fitting(outputs.shape, targets.shape)}"
        )
