"""Distances between what student and teacher answer: softened, standardized, decoupled, correlated, relational, former.

    SoftTargets           T^2 KL(p_T || q_T): Hinton et al. 2015, arXiv:1503.02531, sec. 2
    StandardizedLogits    the same of logits less their mean, over their deviation: Sun et al. 2024, arXiv:2403.01683
    Decoupled             alpha TCKD + beta NCKD: Zhao et al. 2022, arXiv:2203.08679, eq. 7
    Correlation           beta (1 - Pearson) of rows + gamma (1 - Pearson) of columns: Huang et al. 2022,
                          arXiv:2205.10536
    Relational            how samples lie to each other: Park et al. 2019, arXiv:1904.05068, eq. 5 to 12
    SelfDistillation      T^2 KL(p_T of the network as it was || q_T): Yuan et al. 2020, arXiv:1909.11723, the loss of
                          Tf-KD by self-training, (1 - alpha) H(y, q) + alpha KL(p_T || q_T)

p is the teacher's softmax, q the student's. Of positions that carry no answer nothing is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.checks import check_not_negative, check_positive
from compressor.errors import StageError
from compressor.outputs.finding import Found
from compressor.outputs.kinds import Classes

NEEDS_LABELS = (
    "Decoupled asks for the class of every position, but the targets hold none; take SoftTargets() or "
    "StandardizedLogits()"
)
_TEMPERATURE = "temperature divides the logits, usually by 1 to 5"
_WEIGHT = "weight is a factor beside the other objectives"
# Keeps roots and quotients of what does not vary at all finite, and their gradients.
_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What both say of one batch: outputs as the models give them, what they say, and where they are asked.

    `labels` hold a class for each position (None: there are none); `counted` is as `Classes.counted` gives it. `former`
    is what the student answered before the training, where an objective asks for it.
    """

    student: Tensor
    teacher: Tensor
    kind: Found
    labels: Tensor | None = None
    counted: Tensor | None = None
    former: Tensor | None = None

    def rows(self, objective: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """(positions, classes) logits of both and (positions,) labels, of those that count.

        Raises StageError for outputs that are no classes, and for logits that are masked.
        """
        if not isinstance(self.kind, Classes):
            raise StageError(needs_classes(objective, self.kind))
        student, teacher = (self.kind.logits(outputs) for outputs in (self.student, self.teacher))
        labels = self.labels
        if self.counted is not None:
            asked = self.counted.reshape(self.counted.shape + (1,) * (student.ndim - 1 - self.counted.ndim))
            asked = asked.expand(student.shape[:-1])
            student, teacher = student[asked], teacher[asked]
            labels = None if labels is None else labels[asked]
        student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
        if not bool(student.isfinite().all() & teacher.isfinite().all()):
            raise StageError(
                f"{objective} compares all classes, but some have logits of -inf; SoftTargets() leaves those out"
            )
        return student, teacher, None if labels is None else labels.flatten()


class Objective(Protocol):
    """A distance to a teacher's answers, which is added up with `weight`."""

    @property
    def weight(self) -> float:
        """The factor of this distance."""

    def distance(self, answers: Answers) -> Tensor:
        """One number with a gradient in the student's answers; 0 where both say the same."""


@dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """The divergence of softened answers, by the kind of output: classes, labels or numbers.

    `temperature` (> 0) softens both; for numbers, whose distance is the mean squared difference, it plays no role.
    """

    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature, self.weight)

    def distance(self, answers: Answers) -> Tensor:
        """Hinton et al. 2015, sec. 2."""
        return answers.kind.distance(
            answers.student, answers.teacher, temperature=self.temperature, counted=answers.counted
        )


@dataclass(frozen=True, kw_only=True)
class StandardizedLogits:
    """The divergence of softened answers whose logits have mean 0 and deviation 1 at every position.

    What the teacher's logits have in size is not asked of the student, only how they lie to each other. Classes only.
    """

    temperature: float = 2.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature, self.weight)

    def distance(self, answers: Answers) -> Tensor:
        """Sun et al. 2024, eq. 8 and 9, algorithm 1: Z(x; T) = (x - mean) / (deviation T)."""
        student, teacher, _ = answers.rows("StandardizedLogits")
        return _divergence(*(_standardized(logits) / self.temperature for logits in (student, teacher))) * (
            self.temperature**2
        )


@dataclass(frozen=True, kw_only=True)
class Decoupled:
    """The divergence of the label's chance against all others, and of the others among themselves, apart.

    With `target` 1 and `others` as large as the teacher's doubt the sum is SoftTargets; a larger weight of the others
    keeps what a sure teacher knows of them. Classes with a label for each position only.
    """

    temperature: float = 4.0
    target: float = 1.0
    others: float = 8.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature, self.weight)
        check_not_negative(self.target, "target is a factor")
        check_not_negative(self.others, "others is a factor")

    def distance(self, answers: Answers) -> Tensor:
        """Zhao et al. 2022, eq. 7: alpha TCKD + beta NCKD, times T^2."""
        student, teacher, labels = answers.rows("Decoupled")
        if labels is None:
            raise StageError(NEEDS_LABELS)
        named = F.one_hot(labels.long(), student.shape[1]).bool()
        pairs, rest = [], []
        for logits in (student, teacher):
            soft = (logits / self.temperature).log_softmax(dim=1)
            # Chances of the label, and of all others together.
            pairs.append(torch.stack([soft[named], soft.masked_fill(named, -torch.inf).logsumexp(dim=1)], dim=1))
            rest.append((logits / self.temperature)[~named].reshape(len(logits), logits.shape[1] - 1))
        apart = self.target * _divergence(*pairs) + self.others * _divergence(*rest)
        return apart * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How answers correlate: over the classes of a position (`between`), and over positions for a class (`within`).

    A student that orders as its teacher does is right, however sure of itself it is. Classes only.
    """

    temperature: float = 4.0
    between: float = 2.0
    within: float = 2.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature, self.weight)
        check_not_negative(self.between, "between is a factor")
        check_not_negative(self.within, "within is a factor")

    def distance(self, answers: Answers) -> Tensor:
        """Huang et al. 2022, eq. 7 to 10, of softmax at the temperature, times T^2."""
        student, teacher, _ = answers.rows("Correlation")
        own, wanted = ((logits / self.temperature).softmax(dim=1) for logits in (student, teacher))
        apart = self.between * _uncorrelated(own, wanted)
        if len(own) > 1:
            apart = apart + self.within * _uncorrelated(own.t(), wanted.t())
        return apart * self.temperature**2


@dataclass(frozen=True, kw_only=True)
class Relational:
    """How the samples of a batch lie to each other: their distances (`lengths`) and the angles of triplets (`angles`).

    Outputs of any kind and, since only proportions count, of any width; at most `most` samples of a batch are related,
    for there are most^3 angles.
    """

    lengths: float = 1.0
    angles: float = 2.0
    most: int = 64
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative(self.weight, _WEIGHT)
        check_not_negative(self.lengths, "lengths is a factor")
        check_not_negative(self.angles, "angles is a factor")
        if self.most < 3:
            raise ValueError(f"most counts the samples that are related, at least 3 for an angle, got {self.most}")

    def distance(self, answers: Answers) -> Tensor:
        """Park et al. 2019, eq. 5 to 8 (lengths) and 9 to 12 (angles), each by the Huber loss."""
        kind = answers.kind
        own, wanted = (
            (kind.logits(outputs) if isinstance(kind, Classes) else outputs).flatten(1)[: self.most]
            for outputs in (answers.student, answers.teacher)
        )
        # What a model masks says nothing of how samples lie.
        own, wanted = (torch.where(values.isfinite(), values, 0.0) for values in (own, wanted))
        if len(own) < 2:
            return own.sum() * 0
        apart = self.lengths * F.smooth_l1_loss(_lengths(own), _lengths(wanted))
        return apart + self.angles * F.smooth_l1_loss(_angles(own), _angles(wanted))


@dataclass(frozen=True, kw_only=True)
class SelfDistillation:
    """The divergence from what the network itself answered when the stage began: no teacher but its own former state.

    Alone it needs no other teacher; beside other objectives it holds what is known already. By the kind of output, as
    SoftTargets.
    """

    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check(self.temperature, self.weight)

    def distance(self, answers: Answers) -> Tensor:
        """Yuan et al. 2020, Tf-KD by self-training: T^2 KL(former_T || student_T)."""
        assert answers.former is not None  # who trains by it gives it
        return answers.kind.distance(
            answers.student, answers.former, temperature=self.temperature, counted=answers.counted
        )


# Those that compare outputs of any kind.
ANY_KIND = (SoftTargets, Relational, SelfDistillation)
# What `Distill(objectives=...)` takes.
AnswerObjective = SoftTargets | StandardizedLogits | Decoupled | Correlation | Relational | SelfDistillation


def needs_classes(objective: str, kind: Found) -> str:
    """Why `objective` cannot compare outputs of `kind`, and the way out."""
    return (
        f"{objective} compares classes, but the judged output says {kind.says()}; take SoftTargets() or Relational(), "
        "or say output=Classes(...) in the workload"
    )


def summed(objectives: Sequence[Objective], answers: Answers) -> Tensor:
    """The distances of all `objectives`, each times its weight."""
    return torch.stack([objective.weight * objective.distance(answers) for objective in objectives]).sum()


def _check(temperature: float, weight: float) -> None:
    check_positive(temperature, _TEMPERATURE)
    check_not_negative(weight, _WEIGHT)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean over rows of KL(softmax of teacher || softmax of student)."""
    if not len(student):
        return student.sum() * 0
    return F.kl_div(student.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="batchmean", log_target=True)


def _standardized(logits: Tensor) -> Tensor:
    away = logits - logits.mean(dim=1, keepdim=True)
    return away / (away.square().mean(dim=1, keepdim=True) + _LEAST).sqrt()


def _uncorrelated(first: Tensor, second: Tensor) -> Tensor:
    """The mean over rows of 1 less Pearson's correlation."""
    own, other = (rows - rows.mean(dim=1, keepdim=True) for rows in (first, second))
    shared = (own * other).sum(dim=1)
    sizes = (own.square().sum(dim=1) * other.square().sum(dim=1) + _LEAST**2).sqrt()
    return (1 - shared / sizes).mean() if len(first) else first.sum() * 0


def _lengths(points: Tensor) -> Tensor:
    """Distances of all pairs over their mean (eq. 6)."""
    squares = (points[:, None] - points[None]).square().sum(dim=2)
    # The root of 0 has no gradient: a point is at no distance from itself.
    apart = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
    return apart / (apart.sum() / (len(points) * (len(points) - 1))).clamp(min=_LEAST)


def _angles(points: Tensor) -> Tensor:
    """The cosine at the middle of every three points (eq. 9)."""
    ways = F.normalize(points[None] - points[:, None], dim=2)
    return torch.einsum("jia,jka->jik", ways, ways)
