"""What an output says, found from a first batch: by shapes, by what the loss does with the outputs, never by a guess.

A loss over classes is the same when every class of a position gains one constant, so its gradients along the classes
add up to 0; one over labels pulls a large logit down by 1 - y and a small one up by y; and what a loss leaves out has a
gradient of 0. All of this holds whatever the loss is called.
"""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.errors import WorkloadError
from compressor.outputs.constants import constants_in
from compressor.outputs.kinds import IGNORED, Classes, Labels, Numbers

Found = Classes | Labels | Numbers
Loss = Callable[[Tensor, Tensor], Tensor]

# Labels that data sets give to what is not to be judged.
_USUAL_IGNORED = (IGNORED, -1, 255)
# Logits so large that a sigmoid or a softmax is 0 or 1, and no square of them overflows.
_FAR = 20.0
# What is added to a label's logits in the draws on which it must be left out each time.
_LIKELY = (0.0, -_FAR, _FAR / 4)
# Of how many gradients classes are read that a batch does not hold.
_READ = 3
# How many numbers that a loss holds are tried as labels that it leaves out.
_CONSTANTS = 16
_SAME = 1e-3


def kind_of(outputs: Tensor, targets: Tensor, loss: Loss, *, classes: bool, axis: int | None = None) -> Found:
    """What `outputs` (batch, ...) say, given their `targets` and the loss; `classes`: that the metric wants classes.

    `axis` is where the metric says that they are, which decides where shapes and loss do not.

    Raises WorkloadError where classes may lie in several dimensions and the loss does not tell in which.
    """
    outputs, targets = outputs.detach().float(), targets.detach()
    if outputs.ndim > 1 and not _counts(targets) and targets.shape == outputs.shape:
        soft = [axis for axis in _axes(outputs) if adds_up(targets.float(), axis)]
        if len(soft) == 1 and soft[0] in _classes_of(loss, outputs, targets):
            return Classes(axis=soft[0], labelled=False, probabilities=adds_up(outputs, soft[0]))
    if outputs.ndim == targets.ndim + 1 and _counts(targets):
        found = _indexed(outputs, targets, loss, classes=classes, axis=axis)
        if found is not None:
            return found
    if _same_but_for_ones(outputs, targets):
        found_labels = _labels(outputs, targets, loss)
        if found_labels is not None:
            return found_labels
    return Numbers()


def taken_twice(kind: Found, outputs: Tensor, targets: Tensor, loss: Loss) -> str:
    """Why `loss` seems to expect logits where the model gives probabilities, in words; "" where it does not."""
    outputs = outputs.detach().float()
    softmax = kind.axis % outputs.ndim if isinstance(kind, Classes) and kind.probabilities else None
    if softmax is not None and softmax in _classes_of(loss, outputs, targets):
        return "ends in Softmax, and the loss takes it again: give the loss logits, or the logarithm to nll_loss"
    if isinstance(kind, Labels) and not kind.probabilities and bool(((outputs >= 0) & (outputs <= 1)).all()):
        return (
            "gives numbers between 0 and 1 alone, and the loss takes Sigmoid again: give the loss logits, or "
            "probabilities to binary_cross_entropy"
        )
    return ""


def _indexed(outputs: Tensor, targets: Tensor, loss: Loss, *, classes: bool, axis: int | None) -> Classes | None:
    """The classes that `targets`, whole numbers of one dimension less, are indices of; None where they are none."""
    fits = [each for each in _axes(outputs) if Classes(axis=each).positions(outputs) == targets.shape]
    told = _classes_of(loss, outputs, targets) or [each for each in _axes(outputs) if _is_distribution(outputs, each)]
    if not fits:
        # Targets of their own length, as CTC has them.
        return _ready(Classes(axis=told[0], labelled=False), outputs) if len(told) == 1 else None
    agreed = [each for each in fits if each in told]
    if not agreed and not classes:
        return None
    said = [fit for fit in fits if axis is not None and fit == axis % outputs.ndim]
    chosen = agreed or said or fits
    if len(chosen) > 1:
        raise WorkloadError(
            f"classes may lie in dimension {' or '.join(map(str, chosen))} of outputs {tuple(outputs.shape)} with "
            f"targets {tuple(targets.shape)}, and the loss does not tell in which; say it: "
            f"Workload(output=compressor.Classes(axis={chosen[0]}))"
        )
    kind = Classes(axis=chosen[0])
    if agreed:
        ignored, shift = _left_out(kind, outputs, targets, loss)
        kind = replace(kind, ignored=ignored, shift=shift)
    return _ready(kind, outputs)


def _ready(kind: Classes, outputs: Tensor) -> Classes:
    return replace(kind, probabilities=adds_up(outputs, kind.axis))


def _left_out(kind: Classes, outputs: Tensor, targets: Tensor, loss: Loss) -> tuple[tuple[int, ...], int]:
    """The labels at which the loss asks nothing, and by how many positions labels are ahead of the outputs."""
    gradient = _gradient(loss, _noise(outputs), targets)
    classes = outputs.shape[kind.axis]
    if gradient is None:
        seen = _values(targets)
        return tuple(sorted({IGNORED} | {label for label in seen if not 0 <= label < classes})), 0
    asked = gradient.abs().sum(dim=kind.axis) > 0
    shift, known = 0, _always_left_out(targets, asked)
    if known is None and targets.ndim > 1 and not bool(asked[:, -1].any()):
        shift, known = 1, _always_left_out(targets[:, 1:], asked[:, :-1])
    if known is None:
        # What the loss leaves out, the hardest or the easiest positions for instance, targets do not tell.
        shift, known = 0, {label for label in _values(targets) if not 0 <= label < classes}
    else:
        # Padding may come in later batches alone.
        known = known | _unseen_left_out(kind, outputs, targets, loss, shift)
    # A class may have been left out by chance: all its margins kept, for instance.
    inside = {label for label in known if 0 <= label < classes}
    told = [label for label in constants_in(loss) if label not in _USUAL_IGNORED and not 0 <= label < classes]
    others = {label for label in (*_USUAL_IGNORED, *told[:_CONSTANTS]) if not (label in known or 0 <= label < classes)}
    left_out = {label for label in inside | others if _ignores(kind, loss, outputs, targets, label)}
    return tuple(sorted(known - inside | left_out)), shift


def _unseen_left_out(kind: Classes, outputs: Tensor, targets: Tensor, loss: Loss, shift: int) -> set[int]:
    """The classes that `targets` do not hold and at which nothing is asked, where they take the place of others.

    The last sample keeps its labels, so that the loss always has some. Of very many classes, only so many are looked
    at as a few gradients show, the first and the last before all others.
    """
    classes, room = outputs.shape[kind.axis], targets[:-1].numel()
    seen = _values(targets)
    unseen = [
        label for label in (0, classes - 1, *range(1, classes - 1)) if label not in seen and _holds(targets, label)
    ]
    found: set[int] = set()
    for start in range(0, min(len(unseen), _READ * room), max(1, room)):
        part = torch.tensor(unseen[start : start + room], dtype=targets.dtype, device=targets.device)
        changed = targets.clone()
        changed[:-1] = part.repeat(math.ceil(room / len(part)))[:room].reshape(targets[:-1].shape)
        gradient = _gradient(loss, _noise(outputs), changed)
        if gradient is None:
            break
        asked, labels = gradient.abs().sum(dim=kind.axis) > 0, changed
        if shift:
            asked, labels = asked[:, :-shift], labels[:, shift:]
        found |= _values(labels[:-1][~asked[:-1]]) - _values(labels[:-1][asked[:-1]])
    return found


def _always_left_out(labels: Tensor, asked: Tensor) -> set[int] | None:
    """The labels at which nothing is asked, ever; None where it is asked at one place and not at another."""
    left_out = _values(labels[~asked])
    return None if left_out & _values(labels[asked]) else left_out


def _ignores(kind: Classes, loss: Loss, outputs: Tensor, targets: Tensor, label: int) -> bool:
    """Whether `loss` asks nothing of the positions of a sample whose labels are `label`, however wrong they are."""
    # On a GPU an index out of range ends the process.
    if len(targets) < 2 or targets.device.type != "cpu" or not _holds(targets, label):
        return False
    changed = targets.clone()
    changed[0] = label
    for seed, likely in enumerate(_LIKELY):
        drawn = _noise(outputs, seed)
        if 0 <= label < outputs.shape[kind.axis]:
            # Losses that look at the hardest samples alone, or at the easiest, leave out others by chance.
            drawn[0].select(kind.axis % outputs.ndim - 1, label).add_(likely)
        gradient = _gradient(loss, drawn, changed)
        if gradient is None or not bool((gradient[1:] != 0).any()) or bool((gradient[0] != 0).any()):
            return False
    return True


def _values(tensor: Tensor) -> set[Any]:
    return set(np.unique(tensor.numpy(force=True)).tolist())


def _holds(targets: Tensor, label: int) -> bool:
    limits = torch.iinfo(targets.dtype)
    return limits.min <= label <= limits.max


def _labels(outputs: Tensor, targets: Tensor, loss: Loss) -> Labels | None:
    """The kind of a loss over yes and no, found by what it does to logits far from 0; None for other losses."""
    values = targets.reshape(outputs.shape).float()
    above = _gradient(loss, torch.full_like(outputs, _FAR), targets)
    below = _gradient(loss, torch.full_like(outputs, -_FAR), targets)
    if above is None or below is None:
        inside = bool(((outputs >= 0) & (outputs <= 1)).all()) and bool(((values >= 0) & (values <= 1)).all())
        # It refuses what is no probability, and takes these.
        refuses = inside and _gradient(loss, outputs.clamp(1e-3, 1 - 1e-3), targets) is not None
        return Labels(probabilities=True) if refuses else None
    middle = _gradient(loss, torch.zeros_like(outputs), targets)
    if middle is not None and bool(((values == 0) | (values == 1)).all()):
        most = max(float(above.abs().max()), float(below.abs().max()))
        if most < _SAME * float(middle.abs().max()):
            return Labels()  # it reads the outputs through a sigmoid, as losses on overlaps do
    weight = above - below
    asked = weight > 0
    answers = values[asked]
    if not answers.numel() or bool(((answers - 0.5).abs() < _SAME).all()) or bool((weight < 0).any()):
        return None
    if not bool(((above[asked] / weight[asked] - (1 - answers)).abs() < _SAME).all()):
        return None
    left_out = {value for value in _values(values[~asked]) if not math.isnan(value)}
    # Labels may be missing in later batches alone.
    left_out |= {value for value in _never_labels(loss) - left_out if _is_left_out(loss, outputs, targets, value)}
    return Labels(ignored=tuple(sorted(left_out - {0.0, 1.0} | {float(IGNORED)})))


def _never_labels(loss: Loss) -> set[float]:
    """Numbers that may stand for a label that is missing: usual ones, and those that the loss holds."""
    told = [float(number) for number in constants_in(loss) if not 0 <= number <= 1]
    return {*map(float, _USUAL_IGNORED), *told[:_CONSTANTS]}


def _is_left_out(loss: Loss, outputs: Tensor, targets: Tensor, value: float) -> bool:
    """Whether `loss` asks nothing of elements whose label is `value`, whatever the outputs, and something of others."""
    if targets.numel() < 2 or not (targets.is_floating_point() or (_counts(targets) and _holds(targets, int(value)))):
        return False
    changed = targets.clone().reshape(-1)
    changed[::2] = value
    changed = changed.reshape(targets.shape)
    for seed, _ in enumerate(_LIKELY):
        gradient = _gradient(loss, _noise(outputs, seed), changed)
        if gradient is None:
            return False
        flat = gradient.reshape(-1)
        if bool((flat[::2] != 0).any()) or not bool((flat[1::2] != 0).any()):
            return False
    return True


def _classes_of(loss: Loss, outputs: Tensor, targets: Tensor) -> list[int]:
    """The dimensions along which the gradients of `loss` add up to 0, though they are not all 0."""
    gradient = _gradient(loss, _noise(outputs), targets)
    if gradient is None or not bool((gradient != 0).any()):
        return []
    return [
        axis
        for axis in _axes(outputs)
        if outputs.shape[axis] > 1
        and float(gradient.sum(dim=axis).abs().max()) < _SAME * float(gradient.abs().sum(dim=axis).max())
    ]


def _gradient(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """The gradient of `loss` at `outputs`; None where it has none."""
    own = outputs.detach().clone().requires_grad_()
    judged = loss
    if isinstance(loss, nn.Module):
        with suppress(Exception):  # its buffers may count calls
            judged = copy.deepcopy(loss)
    try:
        with torch.enable_grad():
            value = judged(own, targets.clone())  # it may write into them
            (gradient,) = torch.autograd.grad(value, own, allow_unused=True)
    except Exception:  # noqa: BLE001 - a loss may raise anything, for outputs that no model gave all the more
        return None
    return gradient if gradient is not None and bool(gradient.isfinite().all()) else None


def _noise(outputs: Tensor, seed: int = 0) -> Tensor:
    """Logits that leave no class certain, so that every position that is asked has a gradient."""
    return torch.randn(outputs.shape, generator=torch.Generator().manual_seed(seed)).to(outputs.device)


def _axes(outputs: Tensor) -> Sequence[int]:
    return range(1, outputs.ndim)


def _counts(targets: Tensor) -> bool:
    return not (targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool)


def _is_distribution(outputs: Tensor, axis: int) -> bool:
    return adds_up(outputs, axis) or (bool((outputs <= 0).all()) and adds_up(outputs.exp(), axis))


def adds_up(values: Tensor, axis: int) -> bool:
    """Whether `values` are probabilities along `axis`."""
    if values.shape[axis] < 2 or not bool((values >= 0).all()):
        return False
    return bool(((values.sum(dim=axis) - 1).abs() < _SAME).all())


def _same_but_for_ones(outputs: Tensor, targets: Tensor) -> bool:
    own, other = ([size for size in tensor.shape if size != 1] for tensor in (outputs, targets))
    return own == other
