"""Distances to a teacher's answers, against hand-made numbers, identities of their papers and numpy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes, Labels, Numbers
from compressor.stage import Context
from compressor.stages import (
    SGD,
    Correlation,
    Decoupled,
    Distill,
    Relational,
    SelfDistillation,
    SoftTargets,
    StandardizedLogits,
)
from compressor.training.objectives.answers import Answers, summed
from workbench.same_data import same_data

EVERY = [
    SoftTargets(),
    StandardizedLogits(),
    Decoupled(),
    Correlation(),
    Relational(),
]


def answers(student, teacher, labels=None, **settings):
    return Answers(student=student, teacher=teacher, kind=settings.pop("kind", Classes()), labels=labels, **settings)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("objective", EVERY)
def test_equal_answers_are_at_no_distance_and_others_are_drawn_nearer(objective):
    """Zero where both say the same; a step along the gradient makes it less; every gradient is finite."""
    teacher, labels = 3 * drawn(8, 5), torch.arange(8) % 5
    same = answers(teacher.clone(), teacher, labels)
    assert float(objective.distance(same)) == pytest.approx(0, abs=1e-9)
    student = drawn(8, 5, seed=1).requires_grad_()
    before = objective.distance(answers(student, teacher, labels))
    before.backward()
    assert student.grad.isfinite().all()
    nearer = (student - 1e-3 * student.grad).detach()
    assert 0 < float(objective.distance(answers(nearer, teacher, labels))) < float(before.detach())


def test_soft_targets_are_the_divergence_at_the_temperature():
    """Chances 3/4 and 1/4 against halves: 3/4 ln 3/2 + 1/4 ln 1/2; T^2 as much of a T-th of logits."""
    teacher = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    student = torch.zeros(1, 2, dtype=torch.float64)
    wanted = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(SoftTargets(temperature=1.0).distance(answers(student, teacher))) == pytest.approx(wanted)
    assert float(SoftTargets(temperature=2.0).distance(answers(student, 2 * teacher))) == pytest.approx(4 * wanted)


def test_self_distillation_is_the_divergence_from_the_former_answers():
    """Chances 3/4 and 1/4 of old against halves now; what another teacher says plays no part."""
    former = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    student = torch.zeros(1, 2, dtype=torch.float64)
    found = SelfDistillation(temperature=1.0).distance(answers(student, 9 * drawn(1, 2), former=former))
    assert float(found) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))


def slopes(*objectives, teacher=3.0, former=1.0):
    """The slope that a line through 0 learns without labels, from a teacher and from its own `former` slope."""
    taught, student = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(taught.weight, teacher)
    nn.init.constant_(student.weight, former)
    x = torch.linspace(-1, 1, 16).unsqueeze(1)
    # Every slope is as good by the metric, so that the last epoch is kept.
    same = Metric(name="same", per_sample=lambda outputs, _: torch.ones(len(outputs)))
    workload = same_data(taught, [(x, -x)], x[:2], loss=F.mse_loss, metric=same)
    settings = {"epochs": 40, "tail_epochs": 0, "optimizer": SGD(rate=0.3), "weight_decay": 0.0, "soft_weight": 1.0}
    context = Context(progress=False)
    stage = Distill(**settings, views=1, objectives=objectives)
    return float(stage.apply(student, workload, context).weight.detach()), context.details["teacher"]


def test_a_network_holds_on_to_itself_and_to_its_teacher_by_weight():
    """Squared distances: alone nothing moves from 1; beside a teacher of 3 as strong 2; at three to one 1.5."""
    assert slopes(SelfDistillation()) == (1.0, "Linear, as it was")
    both, name = slopes(SoftTargets(), SelfDistillation())
    assert (both, name) == (pytest.approx(2.0, abs=1e-3), "Linear")
    assert slopes(SoftTargets(), SelfDistillation(weight=3.0))[0] == pytest.approx(1.5, abs=1e-3)


def test_standardized_logits_ask_for_proportions_alone():
    """A teacher's answers in another size and place teach the same; by hand for logits of mean 0 and deviation 1."""
    teacher, student = drawn(6, 4), drawn(6, 4, seed=1)
    objective = StandardizedLogits(temperature=1.5)
    found = objective.distance(answers(student, teacher))
    torch.testing.assert_close(objective.distance(answers(student, 7 * teacher - 3)), found)
    torch.testing.assert_close(objective.distance(answers(0.1 * student + 2, teacher)), found)
    own, other = torch.tensor([[1.0, -1.0]]).double(), torch.tensor([[-1.0, 1.0]]).double()
    # At temperature 1 the chances are e / (e + 1/e) and the rest, exchanged: their divergence is 2 (p - q).
    chance = float(torch.sigmoid(torch.tensor(2.0)))
    got = StandardizedLogits(temperature=1.0).distance(answers(own, other))
    assert float(got) == pytest.approx(2 * (chance - (1 - chance)), rel=1e-6)


def test_decoupled_with_the_teachers_doubt_is_the_whole_divergence():
    """Zhao et al. 2022, eq. 5: KD = TCKD + (1 - p_label) NCKD, sample by sample."""
    student, teacher, labels = drawn(7, 5), drawn(7, 5, seed=1), torch.arange(7) % 5
    for row in range(7):
        one = answers(student[row : row + 1], teacher[row : row + 1], labels[row : row + 1])
        doubt = 1 - float((teacher[row] / 4).softmax(0)[labels[row]])
        whole = SoftTargets(temperature=4.0).distance(one)
        torch.testing.assert_close(Decoupled(target=1.0, others=doubt).distance(one), whole)


def test_decoupled_parts_by_hand():
    """Chances (1/2, 1/4, 1/4) and (1/2, 3/8, 1/8), label 0: nothing for the label, and a divergence of the others."""
    teacher = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log()
    student = torch.tensor([[4.0, 3.0, 1.0]], dtype=torch.float64).log()
    labels = torch.tensor([0])
    only_target = Decoupled(temperature=1.0, target=1.0, others=0.0).distance(answers(student, teacher, labels))
    only_others = Decoupled(temperature=1.0, target=0.0, others=1.0).distance(answers(student, teacher, labels))
    assert float(only_target) == pytest.approx(0, abs=1e-12)
    assert float(only_others) == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25))


def test_correlation_is_numpys():
    """1 - Pearson of the softened chances, of rows and of columns, times T^2."""
    student, teacher = drawn(6, 4), drawn(6, 4, seed=1)
    own, other = ((logits / 2).softmax(1).numpy() for logits in (student, teacher))
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(own, other, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(own.T, other.T, strict=True)])
    objective = Correlation(temperature=2.0, between=0.5, within=3.0)
    assert float(objective.distance(answers(student, teacher))) == pytest.approx(4 * (0.5 * rows + 3 * columns))


def test_relations_stay_where_samples_are_turned_moved_and_scaled():
    """Distances over their mean and angles do not see it; three points by hand."""
    teacher = drawn(6, 3)
    turn = torch.linalg.qr(drawn(3, 3, seed=2))[0]
    moved = 5 * teacher @ turn + 2
    assert float(Relational().distance(answers(moved, teacher, kind=Numbers()))) == pytest.approx(0, abs=1e-9)
    # Sides 3, 4, 5 against 1, 1, sqrt(2), over their means, squared halves of the differences for each ordered pair.
    own = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    other = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    sides = np.array([3, 4, 5]) / 4 - np.array([1, 1, 2**0.5]) / ((2 + 2**0.5) / 3)
    lengths = Relational(lengths=1.0, angles=0.0).distance(answers(own, other, kind=Numbers()))
    assert float(lengths) == pytest.approx(2 * np.sum(sides**2 / 2) / 9)
    # Cosines at the corners: 0, 3/5, 4/5 against 0, 1/sqrt 2 twice; each stands twice among the 27.
    cosines = np.array([0.6, 0.8]) - 0.5**0.5
    angles = Relational(lengths=0.0, angles=1.0).distance(answers(own, other, kind=Numbers()))
    assert float(angles) == pytest.approx(2 * np.sum(cosines**2 / 2) / 27)


def test_relations_do_not_ask_for_the_same_width():
    own, other = drawn(5, 3).requires_grad_(), drawn(5, 7, seed=1)
    Relational().distance(answers(own, other, kind=Numbers())).backward()
    assert own.grad.isfinite().all()
    assert own.grad.abs().sum() > 0


@pytest.mark.parametrize("objective", EVERY)
def test_positions_that_do_not_count_teach_nothing(objective):
    """Of tokens with ignored labels only those that count have a gradient; relations take whole samples."""
    student, teacher = drawn(3, 4, 5).requires_grad_(), drawn(3, 4, 5, seed=1)
    labels = torch.arange(12).reshape(3, 4) % 5
    counted = torch.tensor([[True, True, False, False]] * 3)
    kind = Classes(axis=-1)
    objective.distance(answers(student, teacher, labels, kind=kind, counted=counted)).backward()
    if not isinstance(objective, Relational):
        assert student.grad[~counted].abs().sum() == 0
    assert student.grad[counted].abs().sum() > 0


@pytest.mark.parametrize("objective", [StandardizedLogits(), Decoupled(), Correlation()])
def test_nothing_that_counts_is_no_nan(objective):
    student = drawn(2, 3).requires_grad_()
    counted = torch.zeros(2, dtype=torch.bool)
    found = objective.distance(answers(student, drawn(2, 3, seed=1), torch.zeros(2).long(), counted=counted))
    found.backward()
    assert float(found.detach()) == 0
    assert student.grad.abs().sum() == 0


def test_alike_answers_everywhere_are_no_nan():
    """Logits that do not vary, samples that coincide: finite distances and gradients."""
    for objective in EVERY:
        student = torch.ones(4, 3, dtype=torch.float64).requires_grad_()
        objective.distance(answers(student, drawn(4, 3), torch.zeros(4).long())).backward()
        assert student.grad.isfinite().all(), objective


def test_objectives_add_up_by_their_weights():
    student, teacher, labels = drawn(6, 4), drawn(6, 4, seed=1), torch.arange(6) % 4
    given = answers(student, teacher, labels)
    both = summed((Decoupled(weight=0.5), Relational(weight=2.0)), given)
    torch.testing.assert_close(both, 0.5 * Decoupled().distance(given) + 2 * Relational().distance(given))


@pytest.mark.parametrize(
    ("objective", "kind", "labels", "message"),
    [
        (
            StandardizedLogits(),
            Numbers(),
            None,
            "StandardizedLogits compares classes, but the judged output says numbers",
        ),
        (
            Correlation(),
            Labels(),
            None,
            "Correlation compares classes, but the judged output says a logit for each label",
        ),
        (Decoupled(), Classes(), None, "the targets hold none; take SoftTargets"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(objective, kind, labels, message):
    with pytest.raises(StageError, match=message):
        objective.distance(answers(drawn(4, 3), drawn(4, 3), labels, kind=kind))


def test_masked_classes_are_refused_where_all_are_compared():
    student = drawn(4, 3)
    student[:, 0] = -torch.inf
    with pytest.raises(StageError, match=r"some have logits of -inf; SoftTargets\(\) leaves those out"):
        Correlation().distance(answers(student, drawn(4, 3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"objectives": Decoupled()},
            r"objectives is a tuple of .* got Decoupled\(.*; write \(Decoupled",
        ),
        ({"objectives": (Decoupled(weight=0.0),)}, "would not be used: all have the weight 0"),
        ({"features": (3,)}, r"names of modules, or Hint\(.*got 3"),
        ({"teacher": "resnet"}, "teacher is a torch.nn.Module that was trained; got 'resnet'"),
        ({"objectives": (F.mse_loss,)}, "a function of your own goes into loss="),
        ({"objectives": (Decoupled(),), "soft_weight": 0.0}, "would not be used: soft_weight is 0"),
        ({"objectives": (Decoupled(),), "loss": F.mse_loss}, "would not be used: loss replaces them"),
        ({"objectives": (SelfDistillation(),), "student": nn.Linear(2, 2)}, "and a student was nowhere yet"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Distill(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Decoupled(temperature=0.0), "temperature divides the logits"),
        (lambda: StandardizedLogits(weight=-1.0), "weight is a factor"),
        (lambda: Relational(most=2), "at least 3 for an angle"),
        (lambda: Correlation(within=-1.0), "within is a factor"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("objective", EVERY)
def test_a_student_learns_by_each(objective):
    """A student of random weights, taught without labels' loss: it comes to say what its teacher says."""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2.0)
    rows = torch.randn(12, 6)
    data = [(part, teacher(part).argmax(dim=1)) for part in rows.split(6)]
    workload = same_data(teacher.eval(), data, rows[:2])
    student = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    stage = Distill(objectives=(objective,), soft_weight=0.9, epochs=15, tail_epochs=0, views=1)
    context = Context(seed=0, progress=False)
    inputs = torch.cat([batch[0] for batch in workload.train])
    labels = torch.cat([batch[1] for batch in workload.train])
    wanted = teacher(inputs).detach()
    before = objective.distance(answers(student(inputs), wanted, labels))
    learnt = stage.apply(student, workload, context).eval()
    assert objective.distance(answers(learnt(inputs), wanted, labels)) < before
    assert repr(objective) in context.details["taught"]


def test_an_objective_that_does_not_fit_is_refused_before_any_training():
    """Numbers have no classes: refused by the stage with the way out, and no epoch is told."""
    model = nn.Linear(4, 2)
    data = [(torch.randn(6, 4), torch.randn(6, 2)) for _ in range(2)]
    context = Context(seed=0, progress=False)
    numbers = same_data(model, data, data[0][0][:2], loss=F.mse_loss, metric=Metric.mse())
    with pytest.raises(StageError, match="Decoupled compares classes, but the judged output says numbers"):
        Distill(objectives=(Decoupled(),), epochs=1).apply(model, numbers, context)
    assert "epochs" not in context.details
