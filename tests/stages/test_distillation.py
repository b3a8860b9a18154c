"""Distill: soft targets, remembered teacher outputs, feature hints."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor import stages
from compressor.batches import Batches
from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.stage import Context, Effect
from compressor.stages import distillation
from compressor.stages.distillation import Distill
from compressor.training import remembered
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.snapshots import capture
from compressor.workload import Workload
from workbench.comparison import same_weights

SHORT = {"epochs": 2, "optimizer": SGD(rate=0.02), "tail_epochs": 1}


@pytest.fixture
def augmented(trained_workload) -> Workload:
    """The trained workload with mirrored images, drawn anew at every pass."""

    def mirror(images: Tensor, generator: torch.Generator) -> Tensor:
        flipped = torch.rand(len(images), generator=generator) < 0.5
        return torch.where(flipped[:, None, None, None], images.flip(3), images)

    source = trained_workload.train
    train_batches = Batches(
        source.samples, indices=source.indices.tolist()[:96], batch_size=32, shuffle=True, augment=mirror
    )
    object.__setattr__(trained_workload, "train", train_batches)
    return trained_workload


def student_of(kind: type[nn.Module], width: int = 8) -> nn.Module:
    torch.manual_seed(3)
    return kind(width).eval()


def test_a_student_learns_from_its_teacher(augmented, tiny_cnn) -> None:
    """With the teacher's outputs alone (soft_weight 1) an untrained student comes to agree with the targets."""
    context, reference = Context(progress=False), capture(augmented.model)
    student = Distill(epochs=6, optimizer=SGD(rate=0.1), soft_weight=1.0, tail_epochs=1).apply(
        student_of(tiny_cnn), augmented, context
    )
    epochs, best = context.details["epochs"], context.details["best_epoch"]
    assert len(epochs) == 7
    assert epochs[best]["score"] > 0.8
    assert context.details["teacher"] == "TinyResNet"
    assert not student.training
    assert all(torch.equal(reference[name], value) for name, value in capture(augmented.model).items())


def test_remembered_outputs_give_the_bits_of_computed_ones(augmented, tiny_cnn, monkeypatch) -> None:
    """With one view every later epoch is answered from memory, and the student is the same to the bit without it."""
    cached, computed = student_of(tiny_cnn), student_of(tiny_cnn)
    context = Context(progress=False)
    Distill(**SHORT, views=1).apply(cached, augmented, context)
    # 3 batches of 32 x 4 logits; the teacher computes view 0 once, epochs 1 and 2 replay it.
    assert context.details["teacher_cache"].startswith("6 of 9 batches answered from")
    monkeypatch.setattr(remembered, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(remembered, "free_disk_bytes", lambda _: 0)
    context = Context(progress=False)
    Distill(**SHORT, views=1).apply(computed, augmented, context)
    assert context.details["teacher_cache"].startswith("0 of 9 batches")
    assert same_weights(cached, computed)


def test_a_stream_that_does_not_replay_is_noticed(augmented, tiny_cnn) -> None:
    """Batches mirrored by an iterator that goes on, with equal sums, are not mixed up with the remembered ones."""
    flips = itertools.cycle([True, False, True, True, False])
    batches = augmented.train

    class Restless:
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self):
            for images, targets in batches:
                yield (images.flip(3) if next(flips) else images), targets

    object.__setattr__(augmented, "train", Restless())
    student, context = student_of(tiny_cnn), Context(progress=False)
    Distill(epochs=3, optimizer=SGD(rate=0.02), views=1).apply(student, augmented, context)
    assert context.details["teacher_cache"].startswith("given up: the training data does not replay")
    assert all(bool(value.isfinite().all()) for value in capture(student).values())


def test_a_killed_distillation_resumes_to_the_same_bits(augmented, tiny_cnn, tmp_path: Path, monkeypatch):
    """What the teacher had answered before a kill is computed again, to the same end."""
    steady, resumed = student_of(tiny_cnn), student_of(tiny_cnn)
    stage = Distill(**SHORT, views=1)
    stage.apply(steady, augmented, Context(progress=False))

    def dying_train(*args, objective, **kwargs):
        def dying(model, inputs, targets, position):
            calls.append(position)
            if len(calls) == 5:
                raise RuntimeError("killed")
            return objective(model, inputs, targets, position)

        return train(*args, objective=dying, **kwargs)

    calls: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "train", dying_train)
        with pytest.raises(RuntimeError, match="killed"):
            stage.apply(student_of(tiny_cnn), augmented, Context(progress=False, folder=tmp_path))
    context = Context(progress=False, folder=tmp_path)
    stage.apply(resumed, augmented, context)
    assert context.details["teacher_cache"].startswith("3 of 6 batches")
    assert same_weights(resumed, steady)


def test_a_regression_student_is_drawn_to_the_teachers_output() -> None:
    """Without classes the soft loss is the squared distance: with soft_weight 1 the student becomes y = 3 x."""
    teacher, student = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.constant_(teacher.weight, 3.0)
    nn.init.zeros_(teacher.bias)
    x = torch.linspace(-1, 1, 64).unsqueeze(1)
    data = Batches((x, -x), batch_size=8, shuffle=True)

    def distance(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - 3 * x).abs().mean(dim=1)

    workload = Workload(
        name="line",
        model=teacher,
        example_inputs=x[:2],
        train=data,
        calibration=data,
        validation=Batches((x, -x), batch_size=64),
        test=data,
        loss=F.mse_loss,
        metric=Metric(name="distance", per_sample=distance, higher_is_better=False),
    )
    Distill(epochs=30, optimizer=SGD(rate=10.0), soft_weight=1.0, weight_decay=0.0).apply(
        student, workload, Context(progress=False)
    )
    assert student.weight.item() == pytest.approx(3.0, abs=0.1)


def test_feature_hints_fit_widths_and_leave_nothing_behind(augmented, tiny_cnn) -> None:
    """A student of half the width learns through a 1x1 convolution, which is not part of what comes back."""
    student, context = student_of(tiny_cnn), Context(progress=False)
    names = set(capture(student))
    result = Distill(**SHORT, features=("layer1", "linear")).apply(student, augmented, context)
    assert result is student
    assert set(capture(result)) == names
    assert not any(module._forward_hooks for module in result.modules())
    assert context.details["adapters"] == {"layer1": "Conv2d", "linear": "Identity"}
    assert context.details["teacher_cache"].startswith("not used")


def test_feature_hints_alone_pull_the_features_together(augmented, tiny_cnn) -> None:
    """With no other loss, the hinted layer of a fresh student comes closer to the teacher's than it was."""
    images = next(iter(augmented.validation))[0]
    # The task says nothing: its loss is 0, and as all epochs are equals the last one is kept.
    object.__setattr__(augmented, "loss", lambda outputs, targets: 0.0 * outputs.sum())
    constant = Metric(name="constant", per_sample=lambda outputs, targets: torch.ones(len(targets)), classes=True)
    object.__setattr__(augmented, "metric", constant)

    @torch.no_grad()
    def features(model: nn.Module) -> Tensor:
        return model.layer1(F.relu(model.bn1(model.conv1(images))))

    student = student_of(tiny_cnn, 16)
    before = F.mse_loss(features(student), features(augmented.model))
    stage = Distill(epochs=8, optimizer=SGD(rate=0.05), soft_weight=0.0, features=("layer1",))
    stage.apply(student, augmented, Context(progress=False))
    assert F.mse_loss(features(student), features(augmented.model)) < before / 2


def test_unknown_features_are_refused_with_a_suggestion(augmented, tiny_cnn) -> None:
    """A misspelt module name raises StageError that names the near one."""
    with pytest.raises(StageError, match=r"student has no module 'layr1'; did you mean layer1"):
        Distill(**SHORT, features=("layr1",)).apply(student_of(tiny_cnn), augmented, Context(progress=False))


def test_a_teacher_of_another_task_is_refused(augmented, tiny_cnn) -> None:
    """A teacher with 10 outputs cannot teach a student with 4."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    with pytest.raises(StageError, match=r"\(32, 10\) must have the student's shape \(32, 4\)"):
        Distill(**SHORT, teacher=teacher).apply(student_of(tiny_cnn), augmented, Context(progress=False))


def test_distillation_is_a_stage_that_survives_its_repr() -> None:
    """The stage changes values only; eval(repr(stage)) gives it back, without its teacher."""
    stage = Distill(features=("layer1",), teacher=nn.Linear(1, 1))
    assert stage.effect is Effect.VALUES
    assert eval(repr(stage), vars(stages)) == stage  # noqa: S307 - the promise under test


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"soft_weight": 90}, r"in \[0, 1\]; got 90; did you mean 0\.9\?"),
        ({"temperature": 0.0}, "above 0"),
        ({"views": 0}, "at least 1; got 0"),
        ({"features": "layer1"}, r"write \('layer1',\)"),
        ({"feature_weight": -1.0}, "at least 0; got -1.0"),
        ({"epochs": 0}, "at least 1; got 0"),
    ],
)
def test_wrong_settings_are_refused(change, message: str) -> None:
    """A stage with impossible settings cannot be built."""
    with pytest.raises(ValueError, match=message):
        Distill(**change)
