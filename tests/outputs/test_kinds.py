"""Distances between a student's and a teacher's outputs: torch's own on what counts, by hand, finite at -inf."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import WorkloadError
from compressor.outputs.kinds import Classes, Labels, Numbers

INF = float("inf")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> float:
    """Torch's own mean divergence of rows (rows, classes)."""
    own, other = (rows.div(temperature).log_softmax(dim=1) for rows in (student, teacher))
    return float(F.kl_div(own, other, log_target=True, reduction="batchmean")) * temperature**2


def test_classes_by_hand() -> None:
    """Teacher (0.8, 0.2), student (0.5, 0.5) at T = 1: 0.8 ln 1.6 + 0.2 ln 0.4 = 0.19274; T = 2 scales by 4."""
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(4.0), 0.0]])
    expected = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    assert Classes().distance(student, teacher, temperature=1.0).item() == pytest.approx(expected, rel=1e-5)
    # At T = 2 the teacher's odds are 4 ** (1 / 2) = 2 to 1.
    softer = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    assert Classes().distance(student, teacher, temperature=2.0).item() == pytest.approx(softer, rel=1e-5)
    assert Classes().distance(teacher, teacher, temperature=4.0).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 1), ((6, 4, 3), 1), ((6, 3, 4), -1), ((2, 4, 3, 5), 1)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_mean_is_over_samples_and_positions(shape: tuple[int, ...], axis: int, temperature: float) -> None:
    """Wherever the classes lie, the distance is torch's on the rows of classes."""
    student, teacher = drawn(*shape), drawn(*shape, seed=1)
    rows = [tensor.movedim(axis, -1).reshape(-1, 4) for tensor in (student, teacher)]
    found = Classes(axis=axis).distance(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(divergence(*rows, temperature), rel=1e-5)


def test_a_constant_on_all_classes_of_a_token_changes_nothing() -> None:
    """(B, T, C) logits that differ by a constant per token say the same: the distance is 0."""
    logits, shift = drawn(4, 12, 5), drawn(4, 12, 1, seed=1)
    assert Classes(axis=2).distance(logits + shift, logits, temperature=4.0).item() == pytest.approx(0, abs=1e-5)
    assert Classes(axis=1).distance(logits + shift, logits, temperature=4.0).item() > 0.1


@pytest.mark.parametrize(("axis", "shift"), [(2, 0), (1, 0), (2, 1)])
def test_ignored_labels_are_not_distilled(axis: int, shift: int) -> None:
    """The distance is torch's on the rows whose labels count, and gradients elsewhere are exactly 0."""
    student = drawn(3, 6, 5).movedim(2, axis).contiguous().requires_grad_()
    teacher = drawn(3, 6, 5, seed=1).movedim(2, axis)
    labels = torch.arange(18).reshape(3, 6) % 5
    labels[:, 4:], labels[0, 0] = -100, 255
    kind = Classes(axis=axis, ignored=(-100, 255), shift=shift)
    counted = kind.counted(student, labels)
    ahead = torch.full_like(labels, -100)
    ahead[:, : 6 - shift] = labels[:, shift:]
    wanted = (ahead != -100) & (ahead != 255)
    assert counted is not None
    assert torch.equal(counted, wanted)
    distance = kind.distance(student, teacher, temperature=2.0, counted=counted)
    rows = [tensor.detach().movedim(axis, 2)[wanted] for tensor in (student, teacher)]
    assert distance.item() == pytest.approx(divergence(*rows, 2.0), rel=1e-5)
    distance.backward()
    gradient = student.grad.movedim(axis, 2)
    assert bool((gradient[~wanted] == 0).all())
    assert bool((gradient[wanted] != 0).any(dim=1).all())


def test_nothing_that_counts_is_a_distance_of_zero() -> None:
    """A batch of padding alone has no distance, and no NaN in its gradient."""
    student = drawn(2, 3, 4).requires_grad_()
    counted = torch.zeros(2, 3, dtype=torch.bool)
    distance = Classes(axis=2).distance(student, drawn(2, 3, 4, seed=1), temperature=1.0, counted=counted)
    distance.backward()
    assert distance.item() == 0
    assert student.grad.abs().sum().item() == 0


@pytest.mark.parametrize("least", [-INF, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_masked_classes_are_left_out(least: float, temperature: float) -> None:
    """A class that both mask leaves the distance of the others, by -inf or a large number; gradients are finite."""
    student, teacher = drawn(5, 4), drawn(5, 4, seed=1)
    expected = divergence(student[:, :3], teacher[:, :3], temperature)
    student[:, 3], teacher[:, 3] = least, least
    student.requires_grad_()
    distance = Classes().distance(student, teacher, temperature=temperature)
    distance.backward()
    assert distance.item() == pytest.approx(expected, rel=1e-5)
    assert bool(student.grad.isfinite().all())
    assert student.grad[:, 3].abs().sum().item() == 0


def test_classes_masked_by_one_side() -> None:
    """Masked by the teacher a class has probability 0 there; masked by the student it is left out of both."""
    student, teacher = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -INF]])
    # (1/2, 1/2, 0) from (1/3, 1/3, 1/3): ln 1.5.
    assert Classes().distance(student, teacher, temperature=1.0).item() == pytest.approx(math.log(1.5), rel=1e-5)
    # (1/2, 1/2) from (0.8, 0.2), without the third class.
    masking = torch.tensor([[math.log(4.0), 0.0, -INF]]).requires_grad_()
    distance = Classes().distance(masking, torch.zeros(1, 3), temperature=1.0)
    distance.backward()
    assert distance.item() == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2), rel=1e-5)
    assert bool(masking.grad.isfinite().all())


def test_positions_where_all_is_masked_do_not_count() -> None:
    """A row of -inf says nothing: the mean is that of the other row."""
    student, teacher = drawn(2, 3), drawn(2, 3, seed=1)
    expected = divergence(student[1:], teacher[1:])
    student[0], teacher[0] = -INF, -INF
    student.requires_grad_()
    distance = Classes().distance(student, teacher, temperature=1.0)
    distance.backward()
    assert distance.item() == pytest.approx(expected, rel=1e-5)
    assert bool(student.grad.isfinite().all())


def test_probabilities_are_compared_by_their_logarithms() -> None:
    """Outputs of Softmax are as far apart as their logits are, at a temperature too; a zero among them is finite."""
    student, teacher = drawn(6, 4), drawn(6, 4, seed=1)
    kind = Classes(probabilities=True)
    found = kind.distance(student.softmax(dim=1), teacher.softmax(dim=1), temperature=4.0)
    assert found.item() == pytest.approx(divergence(student, teacher, 4.0), rel=1e-4)
    certain = torch.tensor([[1.0, 0.0]]).requires_grad_()
    distance = kind.distance(certain, torch.tensor([[0.5, 0.5]]), temperature=1.0)
    distance.backward()
    assert math.isfinite(distance.item())
    assert bool(certain.grad.isfinite().all())


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 3)])
def test_labels_are_bernoulli(shape: tuple[int, ...]) -> None:
    """The mean divergence of torch's Bernoulli distributions, scaled by the squared temperature."""
    student, teacher = 3 * drawn(*shape), 3 * drawn(*shape, seed=1)
    own, other = (torch.distributions.Bernoulli(logits=logits / 2) for logits in (student, teacher))
    expected = 4 * torch.distributions.kl_divergence(other, own).mean().item()
    assert Labels().distance(student, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-4)
    ended = Labels(probabilities=True)
    found = ended.distance(student.sigmoid(), teacher.sigmoid(), temperature=2.0)
    assert found.item() == pytest.approx(expected, rel=1e-2)


def test_missing_labels_and_infinite_logits_are_left_out() -> None:
    """Labels of -1 or NaN and logits of -inf leave the mean of the rest, and finite gradients."""
    student, teacher = drawn(4, 3), drawn(4, 3, seed=1)
    targets = torch.tensor([[1.0, 0.0, -1.0]]).repeat(4, 1)
    targets[3, 0] = math.nan
    kind = Labels(ignored=(-1.0,))
    wanted = (targets == 0) | (targets == 1)
    wanted[2, 1] = False
    own, other = (torch.distributions.Bernoulli(logits=logits[wanted]) for logits in (student, teacher))
    student[2, 1] = teacher[2, 1] = -INF
    student.requires_grad_()
    distance = kind.distance(student, teacher, temperature=1.0, counted=kind.counted(student, targets))
    distance.backward()
    assert distance.item() == pytest.approx(torch.distributions.kl_divergence(other, own).mean().item(), rel=1e-5)
    assert bool(student.grad.isfinite().all())


def test_numbers_by_hand() -> None:
    """Differences of 1 and 3: 5 on average; with a mask over positions, 9 of the second alone."""
    student, teacher = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
    assert Numbers().distance(student, teacher, temperature=9.0).item() == 5
    counted = torch.tensor([[False, True]])
    assert Numbers().distance(student, teacher, temperature=1.0, counted=counted).item() == 9


def test_a_mask_of_another_shape_is_refused() -> None:
    """A mask has the first dimensions of what it masks."""
    with pytest.raises(WorkloadError, match=r"first dimensions of \(2, 3\); got \(2, 4\)"):
        Classes(axis=2).distance(
            drawn(2, 3, 4), drawn(2, 3, 4), temperature=1.0, counted=torch.ones(2, 4, dtype=torch.bool)
        )


@pytest.mark.parametrize(
    ("build", "message"),
    [(lambda: Classes(axis=0), "from 1 on"), (lambda: Classes(shift=-1), "at least 0; got -1")],
)
def test_impossible_kinds_are_refused(build, message: str) -> None:
    """Classes in the batch's dimension, and labels behind their outputs."""
    with pytest.raises(ValueError, match=message):
        build()
