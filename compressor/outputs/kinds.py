"""The kinds of output: where classes lie, which positions count, and how far two models are apart there.

Metric, loss and teacher read an output through one of these. Distances are those of knowledge distillation (Hinton et
al. 2015, arXiv:1503.02531, sec. 2): softened by a temperature T and scaled by T^2, so that gradients keep their size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.checks import check_count, check_not_negative, explains_settings
from compressor.errors import WorkloadError

# Labels at which torch's losses and most data sets ask nothing.
IGNORED = -100


@runtime_checkable
class OutputKind(Protocol):
    """What an output says, and how far a student's is from a teacher's."""

    def counted(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """True at the positions that count, as far as `targets` tell; None for all."""

    def asked(self, targets: Any) -> int | None:
        """How many labels or numbers of `targets` count; None where they do not tell without the outputs."""

    def distance(
        self, student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None
    ) -> Tensor:
        """The mean distance over the positions that are `counted` (all where None), one number with a gradient."""

    def says(self) -> str:
        """The kind in words, for the report."""


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Classes:
    """One of several classes at every position: logits along `axis` (from 1 on, or from the end by -1).

    `ignored` are labels at which nothing is asked. With `shift` (0 or more) the label of position t stands at
    t + shift, as in language models. `labelled` says that targets hold a label for every position, which those of CTC
    do not. `probabilities` says that the model ends in Softmax: its outputs are compared by their logarithms.
    """

    axis: int = 1
    ignored: tuple[int, ...] = (IGNORED,)
    shift: int = 0
    labelled: bool = True
    probabilities: bool = False

    def __post_init__(self) -> None:
        if self.axis == 0:
            raise ValueError("axis is the dimension that holds the classes, from 1 on or from the end by -1; got 0")
        check_count(self.shift, "shift counts the positions by which labels are ahead", least=0)

    def positions(self, outputs: Tensor) -> torch.Size:
        """The shape of `outputs` without its classes."""
        axis = self._axis(outputs)
        return outputs.shape[:axis] + outputs.shape[axis + 1 :]

    def predicted(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(classes answered, labels, whether each counts), of the positions that have a label, all of one shape.

        Raises WorkloadError where targets hold no label for each position.
        """
        if (
            outputs.ndim < 2
            or not -outputs.ndim <= self.axis < outputs.ndim
            or self.positions(outputs) != targets.shape
        ):
            raise WorkloadError(_misfit(self, outputs, targets))
        answers = outputs.argmax(dim=self._axis(outputs))
        if self.shift:
            answers, targets = answers[:, : -self.shift], targets[:, self.shift :]
        return answers, targets, self._asked(targets)

    def counted(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """Where `targets` hold a label that is not ignored, (batch, ...) without the classes; None for everywhere."""
        if targets is None or not self.labelled or self.positions(outputs) != targets.shape:
            return None
        if targets.is_floating_point() or targets.is_complex():
            return None
        asked = self._asked(targets)
        if self.shift:
            # The last positions have no label: nothing is asked there.
            asked = torch.cat([asked[:, self.shift :], asked.new_zeros(asked[:, : self.shift].shape)], dim=1)
        return asked

    def asked(self, targets: Any) -> int | None:
        """How many positions of `targets` have a label that is not ignored."""
        if not self.labelled or not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
            return None
        return int(self._asked(targets[:, self.shift :] if self.shift else targets).sum())

    def distance(
        self, student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None
    ) -> Tensor:
        """The mean Kullback-Leibler divergence from teacher to student over the positions that count.

        Classes that the student masks with -inf are left out of both, those that the teacher masks have probability 0;
        positions at which all are masked do not count. Zero where nothing counts.
        """
        own, other = (self.logits(outputs) / temperature for outputs in (student, teacher))
        masked = own == -torch.inf
        other = other.masked_fill(masked, -torch.inf)
        alive = ~(other == -torch.inf).all(dim=-1)
        wanted = alive if counted is None else alive & _like(counted, alive)
        # What is left out must be finite before the arithmetic: 0 * inf is NaN in the gradient, too.
        log_student = own.masked_fill(~alive[..., None], 0.0).log_softmax(dim=-1)
        log_teacher = other.masked_fill(~alive[..., None], 0.0).log_softmax(dim=-1)
        share = log_teacher.exp()
        present = share > 0
        apart = share * (log_teacher.where(present, 0.0) - log_student.where(present, 0.0))
        return _mean(apart.sum(dim=-1), wanted) * temperature**2

    def logits(self, outputs: Tensor) -> Tensor:
        """`outputs` as logits, (batch, ..., classes)."""
        moved = outputs.movedim(self._axis(outputs), -1)
        return _log(moved) if self.probabilities else moved

    def says(self) -> str:
        """The kind in words."""
        parts = [f"classes in dimension {self.axis}"]
        if self.probabilities:
            parts.append("probabilities, compared by their logarithms")
        if self.shift:
            parts.append(f"labels {self.shift} position{'s'[: self.shift > 1]} ahead")
        if self.labelled and self.ignored:
            parts.append(f"labels {', '.join(map(str, self.ignored))} left out")
        return "; ".join(parts)

    def _axis(self, outputs: Tensor) -> int:
        return self.axis % outputs.ndim

    def _asked(self, labels: Tensor) -> Tensor:
        asked = torch.ones_like(labels, dtype=torch.bool)
        for label in self.ignored:
            asked &= labels != label
        return asked


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Labels:
    """Yes or no at every element: a logit each, for several labels at once or one, (batch,), (batch, 1), (batch, L).

    Targets lie in [0, 1]; `ignored` are others, at which nothing is asked. `probabilities` says that the model ends in
    Sigmoid.
    """

    ignored: tuple[float, ...] = (float(IGNORED),)
    probabilities: bool = False

    def counted(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """Where `targets` hold an answer, in the shape of `outputs`; None for everywhere."""
        if targets is None or targets.numel() != outputs.numel():
            return None
        values = targets.reshape(outputs.shape)
        asked = ~values.isnan() if values.is_floating_point() else torch.ones_like(values, dtype=torch.bool)
        for value in self.ignored:
            asked &= values != value
        return asked

    def asked(self, targets: Any) -> int | None:
        """How many elements of `targets` hold an answer."""
        counted = self.counted(targets, targets) if isinstance(targets, Tensor) else None
        return None if counted is None else int(counted.sum())

    def distance(
        self, student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None
    ) -> Tensor:
        """The mean Kullback-Leibler divergence of two Bernoulli distributions over the elements that count.

        Elements at which either logit is infinite cannot be moved, and are left out.
        """
        own, other = (self.logits(outputs) / temperature for outputs in (student, teacher))
        alive = own.isfinite() & other.isfinite()
        wanted = alive if counted is None else alive & _like(counted, alive)
        own, other = own.where(alive, 0.0), other.where(alive, 0.0)
        yes = other.sigmoid()
        apart = yes * (F.logsigmoid(other) - F.logsigmoid(own)) + (1 - yes) * (
            F.logsigmoid(-other) - F.logsigmoid(-own)
        )
        return _mean(apart, wanted) * temperature**2

    def logits(self, outputs: Tensor) -> Tensor:
        """`outputs` as logits."""
        if not self.probabilities:
            return outputs
        return _log(outputs) - _log(1 - outputs)

    def says(self) -> str:
        """The kind in words."""
        ends = "; probabilities, compared by their logits" if self.probabilities else ""
        return f"a logit for each label{ends}"


@explains_settings
@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers, whose distance is the mean squared difference."""

    def counted(self, _outputs: Tensor, _targets: Tensor | None) -> Tensor | None:
        """None: all of them."""
        return None

    def asked(self, targets: Any) -> int | None:
        """How many numbers `targets` hold: NaN says that one is missing."""
        return int((~targets.isnan()).sum()) if isinstance(targets, Tensor) else None

    def distance(
        self, student: Tensor, teacher: Tensor, *, temperature: float, counted: Tensor | None = None
    ) -> Tensor:
        """The mean squared difference; `temperature` plays no role."""
        del temperature
        apart = (student - teacher).square()
        return apart.mean() if counted is None else _mean(apart, _like(counted, apart))

    def says(self) -> str:
        """The kind in words."""
        return "numbers, compared by their squared difference"


def _like(counted: Tensor, values: Tensor) -> Tensor:
    """`counted` for every element of `values`, whose first dimensions it has."""
    if counted.shape != values.shape[: counted.ndim]:
        raise WorkloadError(
            f"a mask says of each position whether it counts, and has the first dimensions of {tuple(values.shape)}; "
            f"got {tuple(counted.shape)}"
        )
    return counted.reshape(counted.shape + (1,) * (values.ndim - counted.ndim)).expand_as(values)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of `values` where they are `counted`; 0 where none is, with a gradient of 0."""
    return values.where(counted, 0.0).sum() / counted.sum().clamp(min=1)


def _log(probabilities: Tensor) -> Tensor:
    """The logarithm, with a finite gradient at 0: probabilities below the smallest normal number count as that."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()


def _misfit(kind: Classes, outputs: Tensor, targets: Tensor) -> str:
    return (
        f"class indices must have the shape of the outputs without their classes, dimension {kind.axis}; got outputs "
        f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}"
    )


@explains_settings
@dataclass(frozen=True, kw_only=True)
class OtherOutput:
    """An output besides the judged one: a loss of its own, (output, targets) to one number, or None.

    Targets that are a dict give the entry of the output's name. Without a loss it is held where the reference has it,
    compared by its `kind`, numbers where None. `weight` (>= 0) is a factor on its part of the loss.
    """

    loss: Callable[[Tensor, Any], Tensor] | None = None
    kind: Classes | Labels | Numbers | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self.weight, "weight is a factor on this output's part of the loss")
