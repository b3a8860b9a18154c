"""Trainings and scores know where outputs have their classes, which labels are ignored, and what is masked."""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.given.notices import WorkloadWarning
from compressor.metrics import Metric
from compressor.outputs.kinds import Classes, Labels
from compressor.running.preflight import check_workload
from compressor.stage import Context
from compressor.stages.distillation import Distill
from compressor.stages.fine_tuning import FineTune
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.training.judged import output_kind, settled
from compressor.training.lessons import Lessons
from compressor.training.optimizers.choices import AdamW
from compressor.workload import Workload, batches_of, predict
from workbench.same_data import same_data

QUIET = Context(progress=False)


class Tagger(nn.Module):
    """A table of words: the class of word w is w % 5, outputs (batch, tokens, 5)."""

    def __init__(self, scale: float = 9.0) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 5)
        self.table.weight.data = F.one_hot(torch.arange(20) % 5, 5).float() * scale

    def forward(self, words: Tensor) -> Tensor:
        return self.table(words)


def per_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def sentences(tokens: int, *, padded: int = 0) -> tuple[Tensor, Tensor]:
    words = torch.randint(1, 20, (64, tokens), generator=torch.Generator().manual_seed(0))
    tags = words % 5
    if padded:
        tags[:, tokens - padded :] = -100
    return words, tags


def tagging(tokens: int, *, padded: int = 0, metric: str | Metric = "accuracy", **more: Any) -> Workload:
    data = sentences(tokens, padded=padded)
    more.setdefault("loss", per_token)
    return Workload.from_datasets(Tagger(), train=data, test=data, metric=metric, batch_size=16, **more)


@pytest.mark.parametrize("tokens", [5, 12])
@pytest.mark.parametrize("padded", [0, 3])
def test_a_perfect_tagger_scores_1(tokens: int, padded: int) -> None:
    """Also with as many tokens as classes, and with ignored labels, by accuracy and by token accuracy."""
    for metric in ("accuracy", "token_accuracy"):
        workload = tagging(tokens, padded=padded, metric=metric)
        check_workload(workload)
        assert output_kind(workload) == Classes(axis=2)
        inputs, targets = sentences(tokens, padded=padded)
        assert settled(workload).metric.score(workload.model(inputs), targets) == 1.0


def test_as_many_tokens_as_classes_without_a_loss_that_tells_is_refused() -> None:
    """Neither shapes nor loss say where the classes lie: refused before work; a metric that says it, or the user."""
    with pytest.raises(Exception, match="classes may lie in dimension 1 or 2"):
        check_workload(tagging(5, loss=lambda outputs, _: outputs.square().mean()))
    check_workload(tagging(5, loss=lambda outputs, _: outputs.square().mean(), metric="token_accuracy"))
    check_workload(tagging(5, loss=lambda outputs, _: outputs.square().mean(), output=Classes(axis=2)))


def taught(workload: Workload, student: nn.Module, teacher: nn.Module, **settings: Any) -> list[Tensor]:
    """The gradients of a student's parameters on the first batch, by the teacher alone."""
    lessons = Lessons(workload=workload, kind=output_kind(workload), soft_weight=1.0, temperature=4.0, **settings)
    inputs, targets = next(iter(batches_of(workload.validation)))
    with torch.no_grad():
        references = predict(teacher, inputs)
    lessons.loss(predict(student, inputs), references, inputs, targets).backward()
    return [parameter.grad for parameter in student.parameters()]


def test_soft_targets_are_over_the_classes_of_each_token() -> None:
    """The gradient is that of torch's divergence over the rows of tokens that have a label."""
    workload = tagging(
        12, padded=4, metric=Metric(name="own", per_sample=lambda o, t: (o.argmax(-1) == t).double().mean(1))
    )
    student, teacher, again = Tagger(1.0), Tagger(2.0), Tagger(1.0)
    (found,) = taught(workload, student, teacher)
    inputs, targets = next(iter(batches_of(workload.validation)))
    rows = [model(inputs)[targets != -100] / 4 for model in (again, teacher)]
    wanted = 16 * F.kl_div(rows[0].log_softmax(1), rows[1].detach().softmax(1), reduction="batchmean")
    wanted.backward()
    assert torch.allclose(found, again.table.weight.grad, rtol=1e-4, atol=1e-8)
    assert found.abs().sum() > 0


def test_padding_that_only_the_mask_tells_is_not_distilled() -> None:
    """With `attention_mask` among the inputs, words that occur in the padding alone get no gradient."""

    class Masked(Tagger):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(input_ids)

    words = torch.randint(1, 10, (32, 6), generator=torch.Generator().manual_seed(0))
    words[:, 4:] = 0
    data = [{"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": ids % 5} for ids in words.split(16)]
    workload = Workload(
        name="masked",
        model=Masked(),
        example_inputs={"input_ids": words[:2], "attention_mask": (words[:2] > 0).long()},
        train=data,
        calibration=data,
        validation=data,
        test=data,
        loss=per_token,
        metric=Metric.token_accuracy(),
    )
    (gradient,) = taught(workload, Masked(1.0), Masked(2.0))
    assert gradient[0].abs().sum() == 0
    assert gradient[1:10].abs().sum(dim=1).min() > 0


def test_padding_with_labels_is_warned_of() -> None:
    """What the mask leaves out has labels that loss and metric count; labelled -100, nothing is said."""

    class Masked(Tagger):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(input_ids) + 0 * attention_mask[..., None]

    words, labels = sentences(6)
    words = torch.cat([words[:, :4], torch.zeros_like(words[:, 4:])], dim=1)
    mask = (words > 0).long()

    def batches(labels: Tensor) -> list[Any]:
        rows = zip(words.split(16), mask.split(16), labels.split(16), strict=True)
        return [{"input_ids": ids, "attention_mask": own, "labels": tags} for ids, own, tags in rows]

    def workload(data: list[Any]) -> Workload:
        example = {"input_ids": words[:2], "attention_mask": mask[:2]}
        return same_data(Masked().eval(), data, example, loss=per_token, metric=Metric.token_accuracy())

    with pytest.warns(WorkloadWarning, match=r"leaves out 32 positions.*masked_fill\(attention_mask == 0, -100\)"):
        check_workload(workload(batches(labels)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_workload(workload(batches(labels.masked_fill(mask == 0, -100))))


def test_batches_of_other_lengths_are_scored_by_what_the_first_one_told() -> None:
    """Twelve tokens tell where the five classes lie; a later batch of five tokens would not, and scores 1 as well."""
    data = [sentences(12), sentences(5)]
    workload = check_workload(same_data(Tagger().eval(), data, data[0][0][:2], loss=per_token))
    assert [workload.metric.score(workload.model(words), tags) for words, tags in data] == [1.0, 1.0]
    context = Context(progress=False)
    Distill(epochs=1, tail_epochs=0).apply(
        Tagger(1.0), same_data(Tagger().eval(), data, data[0][0], loss=per_token), context
    )
    assert context.details["trainings"][0]["best"] == 1.0


@pytest.mark.parametrize(
    "stage", [FineTune(epochs=1, tail_epochs=0), Distill(epochs=1, tail_epochs=0), Distill(epochs=1, soft_weight=1.0)]
)
@pytest.mark.parametrize("least", [-math.inf, -1e9])
def test_masked_classes_can_be_trained(stage: FineTune | Distill, least: float) -> None:
    """A model that masks a class with -inf, or with a large number, trains and ends finite."""

    class Masking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).masked_fill(torch.tensor([False, False, False, True]), least)

    x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    data = x, (x[:, 0] > 0).long()
    workload = Workload.from_datasets(Masking(), train=data, test=data)
    check_workload(workload)
    student = copy.deepcopy(workload.model)
    with torch.no_grad():
        student.layer.weight += 0.5
    stage.apply(student, workload, QUIET)
    assert bool(student.layer.weight.isfinite().all())


@dataclass(frozen=True)
class Kind:
    """A task: its model's outputs and targets for inputs (64, 8), loss, metric, and what teaching should say."""

    targets: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    loss: Callable[..., Tensor] | None
    metric: str | Metric
    says: str
    ends: Callable[[Tensor], Tensor] = torch.clone


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    lengths = [torch.full((len(outputs),), size) for size in (outputs.shape[1], targets.shape[1])]
    return F.ctc_loss(outputs.log_softmax(2).transpose(0, 1), targets, *lengths)


def next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return per_token(outputs[:, :-1], targets[:, 1:])


SMOOTH = Metric(name="loss", per_sample=lambda o, t: o.flatten(1).square().mean(1), bounded=False)
KINDS = {
    "classes": Kind(lambda x: x.argmax(1) % 4, (4,), None, "accuracy", "classes in dimension 1"),
    "tokens": Kind(lambda x: (x[:, :6] > 0).long(), (6, 4), per_token, "token_accuracy", "classes in dimension 2"),
    "pixels": Kind(
        lambda x: (x[:, :6].reshape(-1, 2, 3) > 0).long(), (4, 2, 3), None, "pixel_accuracy", "classes in dimension 1"
    ),
    "labels": Kind(lambda x: (x[:, :3] > 0).float(), (3,), None, "label_accuracy", "a logit for each label"),
    "one label": Kind(lambda x: (x[:, 0] > 0).float(), (), None, "label_accuracy", "a logit for each label"),
    "a label in a column": Kind(
        lambda x: (x[:, :1] > 0).float(), (1,), None, "label_accuracy", "a logit for each label"
    ),
    "language model": Kind(
        lambda x: (x[:, :6] > 0).long(), (6, 4), next_token, "token_accuracy", "labels 1 position ahead"
    ),
    "CTC": Kind(lambda x: (x[:, :2] > 0).long() + 1, (6, 4), ctc, SMOOTH, "classes in dimension 2"),
    "softmax at the end": Kind(
        lambda x: x.argmax(1) % 4,
        (4,),
        lambda o, t: F.nll_loss(o.clamp(min=1e-9).log(), t),
        "accuracy",
        "probabilities, compared by their logarithms",
        lambda outputs: outputs.softmax(1),
    ),
    "log softmax at the end": Kind(
        lambda x: x.argmax(1) % 4, (4,), F.nll_loss, "accuracy", "classes in dimension 1", lambda o: o.log_softmax(1)
    ),
    "sigmoid at the end": Kind(
        lambda x: (x[:, :3] > 0).float(),
        (3,),
        F.binary_cross_entropy,
        SMOOTH,
        "probabilities, compared by their logits",
        lambda outputs: outputs.sigmoid(),
    ),
    "numbers": Kind(lambda x: x[:, :3], (3,), None, "mse", "numbers, compared by their squared difference"),
}


class Small(nn.Module):
    """One linear layer whose output has the shape of the kind."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.layer = nn.Linear(8, math.prod(kind.shape))
        self.shape, self.ends = kind.shape, kind.ends

    def forward(self, x: Tensor) -> Tensor:
        return self.ends(self.layer(x).unflatten(1, self.shape) if self.shape else self.layer(x).squeeze(1))


def workload_of(kind: Kind) -> Workload:
    torch.manual_seed(0)
    x = torch.randn(96, 8)
    data = x, kind.targets(x)
    return Workload.from_datasets(
        Small(kind), train=data, test=data, validation=data, metric=kind.metric, loss=kind.loss, batch_size=32
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_student_comes_to_its_teacher_on_every_kind_of_output(name: str) -> None:
    """With the teacher alone a student's distance to it becomes a tenth and less; the report says how it is judged."""
    workload = workload_of(KINDS[name])
    check_workload(workload, [Distill()])
    kind, context = output_kind(workload), Context(progress=False)
    torch.manual_seed(1)
    student = Small(KINDS[name])
    x, targets = next(iter(batches_of(workload.validation)))

    def distance() -> float:
        with torch.no_grad():
            outputs = student(x)
            counted = kind.counted(outputs, targets)
            return float(kind.distance(outputs, workload.model(x), temperature=1.0, counted=counted))

    # The score may say nothing of that: the last epoch is as good as any.
    constant = Metric(name="constant", per_sample=lambda o, _: torch.ones(len(o)), classes=workload.metric.classes)
    before = distance()
    Distill(epochs=30, optimizer=AdamW(rate=0.05), tail_epochs=0, soft_weight=1.0, temperature=1.0, views=1).apply(
        student, replace(workload, metric=constant, output=kind), context
    )
    assert distance() < 0.1 * before
    assert KINDS[name].says in context.details["taught"]


@pytest.mark.parametrize("name", ["tokens", "labels", "numbers"])
def test_quantization_aware_training_has_the_same_lessons(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The integer graph is taught by the kind of its output, too."""
    kinds: list[Any] = []
    loss = Lessons.loss

    def watched(self: Lessons, *args: Any) -> Tensor:
        kinds.append(self.kind)
        return loss(self, *args)

    monkeypatch.setattr(Lessons, "loss", watched)
    workload, context = workload_of(KINDS[name]), Context(progress=False)
    QuantizationAwareTraining(epochs=1).apply(copy.deepcopy(workload.model), workload, context)
    assert kinds == [output_kind(workload)] * 3
    assert KINDS[name].says in context.details["taught"]


def test_cross_entropy_of_probabilities_is_warned_of() -> None:
    """A model that ends in Softmax before a loss that takes it again; with the right loss nothing is said."""
    twice = replace(workload_of(KINDS["softmax at the end"]), loss=F.cross_entropy)
    with pytest.warns(WorkloadWarning, match="ends in Softmax.*takes it again"):
        check_workload(twice)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_workload(workload_of(KINDS["softmax at the end"]))
        check_workload(workload_of(KINDS["log softmax at the end"]))
    again = replace(workload_of(KINDS["sigmoid at the end"]), loss=F.binary_cross_entropy_with_logits)
    with pytest.warns(WorkloadWarning, match="between 0 and 1.*Sigmoid again"):
        check_workload(again)


def test_one_s_own_distance() -> None:
    """A function of (student, teacher, targets) replaces the divergence: here it draws the student to zero."""
    workload, context = workload_of(KINDS["classes"]), Context(progress=False)
    constant = Metric(name="constant", per_sample=lambda o, _: torch.ones(len(o)), classes=True)
    seen: list[tuple[Any, ...]] = []

    def to_zero(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        seen.append((student.shape, teacher.shape, targets.shape, teacher.requires_grad))
        return student.square().mean()

    student = Small(KINDS["classes"])
    stage = Distill(epochs=20, optimizer=AdamW(rate=0.05), soft_weight=1.0, weight_decay=0.0, loss=to_zero)
    stage.apply(student, replace(workload, metric=constant), context)
    assert set(seen) == {((32, 4), (32, 4), (32,), False)}
    assert student.layer.weight.abs().max() < 0.1
    assert context.details["taught"] == "by a loss of one's own"


def test_one_s_own_distance_must_be_a_number() -> None:
    """A loss that gives one value a sample is refused with the way out."""
    workload = workload_of(KINDS["classes"])
    stage = Distill(epochs=1, loss=lambda student, teacher, _: (student - teacher).square().mean(1))
    with pytest.raises(StageError, match=r"one number.*got shape \(32,\); give the mean over samples"):
        stage.apply(copy.deepcopy(workload.model), workload, QUIET)


def test_the_kind_can_be_said() -> None:
    """What the user says is taken, whatever shapes and loss tell."""
    workload = replace(workload_of(KINDS["numbers"]), output=Labels())
    assert output_kind(workload) == Labels()
