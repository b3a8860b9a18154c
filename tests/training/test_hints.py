"""Hints between modules of other names and sizes, and teachers of other classes, precision and inputs."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.metrics import Metric
from compressor.recipe.recipe import Recipe
from compressor.stage import Context
from compressor.stages.distillation import Distill
from compressor.training.hints import Hint, Resized, hinted
from compressor.training.judged import settled
from compressor.training.objectives.features import FeatureValues
from compressor.training.optimizers.choices import SGD
from compressor.training.passes.losses import Position
from compressor.training.precision import Float32
from compressor.training.teaching import Teacher
from compressor.workload import Workload, predict

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(64, 3, 8, 8, generator=GENERATOR)
TARGETS = torch.arange(64) % 4


class Net(nn.Module):
    """A convolution with a stride, called `name`, and a linear layer of `classes`."""

    def __init__(self, name: str = "conv", width: int = 6, stride: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.add_module(name, nn.Conv2d(3, width, 3, stride, padding=1))
        self.name, self.last = name, nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(self, self.name)(x).relu().mean((2, 3)))


def workload_of(model: nn.Module) -> Workload:
    data = IMAGES, TARGETS
    return Workload.from_datasets(model, train=data, validation=data, test=data, batch_size=32)


def taught(stage: Distill, student: nn.Module, workload: Workload) -> dict[str, Any]:
    context = Context(progress=False)
    stage.apply(student, workload, context)
    return context.details


@pytest.mark.parametrize(
    ("width", "stride", "maps"),
    [(6, 2, "Identity"), (9, 2, "Conv2d"), (6, 1, "Resized"), (9, 4, "Resized, Conv2d")],
)
def test_modules_of_other_names_and_sizes(width: int, stride: int, maps: str) -> None:
    """The student's maps are averaged or interpolated to the teacher's size, and the report says so."""
    torch.manual_seed(0)
    teacher = Net("stem", width, stride)
    workload, student = workload_of(Net()), Net()
    stage = Distill(epochs=1, features=(Hint(student="conv", teacher="stem"),), teacher=teacher, soft_weight=0.0)
    details = taught(stage, student, workload)
    assert details["adapters"] == {"conv to stem": maps}
    assert details["taught"] == "not compared: soft_weight is 0"
    assert set(student.state_dict()) == set(Net().state_dict())


def test_maps_are_averaged_down_and_interpolated_up() -> None:
    """4 to 2 is the mean of pairs; 2 to 4 what torch interpolates; sequences along the tokens."""
    row = torch.tensor([[[[1.0, 3.0, 5.0, 9.0]]]])
    assert Resized((1, 2))(row).tolist() == [[[[2.0, 7.0]]]]
    up = Resized((1, 4))(row[..., :2])
    assert torch.equal(up, F.interpolate(row[..., :2], (1, 4), mode="bilinear"))
    assert Resized((2,), last=True)(row[0].transpose(1, 2)).flatten().tolist() == [2.0, 7.0]
    # Wider and less high at once.
    assert Resized((2, 4))(torch.ones(1, 1, 4, 2)).tolist() == torch.ones(1, 1, 2, 4).tolist()


@pytest.mark.parametrize(
    ("ours", "theirs", "maps"),
    [
        (nn.Linear(8, 6), nn.Linear(8, 9), "Linear"),
        (nn.Conv1d(3, 6, 1), nn.Conv1d(3, 9, 1, stride=2), "Resized, Conv1d"),
        (nn.Conv1d(3, 6, 1), nn.Conv1d(3, 9, 1), "Conv1d"),
        (nn.Conv3d(3, 6, 1), nn.Conv3d(3, 9, 1, stride=2), "Resized, Conv3d"),
    ],
)
def test_features_of_other_dimensions(ours: nn.Module, theirs: nn.Module, maps: str) -> None:
    """Sequences, signals and volumes get maps of their own; the distance has a gradient for both."""
    shapes: dict[type, tuple[int, ...]] = {nn.Linear: (4, 5, 8), nn.Conv1d: (4, 3, 6), nn.Conv3d: (4, 3, 4, 4, 4)}
    x = torch.randn(shapes[type(ours)])

    class Around(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).flatten(1).mean(1, keepdim=True)

    data = x, torch.zeros(4, 1)
    workload = Workload.from_datasets(
        Around(ours), train=data, validation=data, test=data, metric="mse", calibration_samples=4, batch_size=4
    )
    workload = settled(workload)
    teacher = Teacher(Around(theirs), workload, Float32(), seed=0, remember=False)
    student = hinted(Around(ours), teacher, (Hint.of("inner"),), workload, seed=0, compare=FeatureValues())
    assert student.adapted() == {"inner": maps}
    student.distance({"inner": ours(x)}, {"inner": theirs(x)}).backward()
    assert all(parameter.grad is not None for parameter in student.adapters.parameters())


def test_maps_and_tokens_are_not_compared() -> None:
    """Features of other numbers of dimensions are refused with both shapes."""
    teacher = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    stage = Distill(epochs=1, features=(Hint(student="conv", teacher="1"),), teacher=teacher)
    with pytest.raises(StageError, match=r"conv to 1 gives \(2, 6, 4, 4\) in the student and \(2, 4, 64\)"):
        taught(stage, Net(), workload_of(Net()))


def test_a_teacher_of_other_classes_teaches_by_features_alone() -> None:
    """With soft_weight 0 its outputs are not compared; with more it is refused, and that is the way out."""
    teacher, workload = Net(classes=10), workload_of(Net())
    taught(Distill(epochs=1, features=("conv",), teacher=teacher, soft_weight=0.0), Net(), workload)
    with pytest.raises(StageError, match=r"\(32, 10\) must have the student's shape \(32, 4\).*soft_weight=0.0"):
        taught(Distill(epochs=1, features=("conv",), teacher=teacher), Net(), workload)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_teacher_in_another_precision(dtype: torch.dtype) -> None:
    """It takes the workload's inputs, and answers in float32 what it answers in its own precision."""
    torch.manual_seed(0)
    model = Net().to(dtype)
    workload = workload_of(Net())
    teacher = Teacher(model, workload, Float32(), seed=0, remember=False)
    answer = teacher.outputs(IMAGES[:4], TARGETS[:4], Position(view=0, batch=0))
    exact = predict(copy.deepcopy(model).double().eval(), IMAGES[:4].double())
    assert answer.dtype == torch.float32
    assert torch.allclose(answer.double(), exact, atol=1e-5)
    assert next(model.parameters()).dtype == dtype
    taught(Distill(epochs=1, teacher=model), Net(), workload)


class Grey(nn.Module):
    """A teacher of other inputs: one channel, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4)

    def forward(self, *, grey: Tensor) -> Tensor:
        return self.layer(grey.flatten(1))


def to_grey(images: Any) -> Any:
    return {"grey": images.mean(dim=1, keepdim=True)}


def test_a_teacher_of_other_inputs_is_given_them() -> None:
    """`teacher_inputs` makes them of the workload's; without it the teacher is refused with that way out."""
    torch.manual_seed(0)
    grey, workload = Grey(), workload_of(Net())
    with pytest.raises(StageError, match=r"Grey does not take the inputs of the workload.*give teacher_inputs"):
        taught(Distill(epochs=1, teacher=grey), Net(), workload)
    teacher = Teacher(grey, workload, Float32(), seed=0, remember=True, adapt=to_grey)
    answer = teacher.outputs(IMAGES[:4], TARGETS[:4], Position(view=0, batch=0))
    assert torch.allclose(answer, grey(grey=IMAGES[:4].mean(1, keepdim=True)), atol=1e-6)
    taught(Distill(epochs=1, teacher=grey, teacher_inputs=to_grey), Net(), workload)
    taught(
        Distill(epochs=1, teacher=grey, teacher_inputs=to_grey, features=(Hint(student="last", teacher="layer"),)),
        Net(),
        workload,
    )
    with pytest.raises(StageError, match=r"does not take what teacher_inputs gives.*let it give"):
        taught(Distill(epochs=1, teacher=grey, teacher_inputs=lambda images: images), Net(), workload)


def test_a_teacher_that_ends_in_softmax_teaches_a_student_of_logits() -> None:
    """Its probabilities are taken for what they are: a student of the same logits is at a distance of 0."""
    torch.manual_seed(0)
    student = Net()
    teacher = nn.Sequential(copy.deepcopy(student), nn.Softmax(dim=1))
    before = copy.deepcopy(student)
    constant = Metric(name="constant", per_sample=lambda outputs, _: torch.ones(len(outputs)), classes=True)
    workload = workload_of(Net())
    object.__setattr__(workload, "metric", constant)
    # AdamW would make steps of the rounding that is left of a gradient.
    sgd = SGD(rate=0.05)
    stage = Distill(epochs=2, optimizer=sgd, teacher=teacher, soft_weight=1.0, weight_decay=0.0, precision=Float32())
    taught(stage, student, workload)
    assert all(
        torch.allclose(own, other, atol=1e-4)
        for own, other in zip(student.parameters(), before.parameters(), strict=True)
    )


def test_functions_are_named_in_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:function` is found beside the recipe; hints are written as pairs; wrong names are refused at once."""
    (tmp_path / "lessons_of_ours.py").write_text(
        "def squared(student, teacher, targets):\n    return (student - teacher).square().mean()\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipe = Recipe.loads(
        "stages:\n  - distill:\n      epochs: 1\n      loss: lessons_of_ours:squared\n"
        "      features: [conv, {hint: {student: last, teacher: head}}]\n"
    )
    (stage,) = recipe.stages
    assert isinstance(stage, Distill)
    assert stage.functions[0] is not None
    assert stage.functions[0](torch.ones(2), torch.zeros(2), None).item() == 1
    assert stage.features == ("conv", Hint(student="last", teacher="head"))
    assert "loss: lessons_of_ours:squared" in recipe.dump()
    with pytest.raises(ValueError, match=r"lessons_of_ours has no function 'cubed'"):
        Distill(loss="lessons_of_ours:cubed")
    with pytest.raises(ValueError, match=r"loss is a function of \(student, teacher, targets\).*got 'cubed'"):
        Distill(loss="cubed")
    with pytest.raises(ValueError, match=r"teacher_inputs is a function.*got 3"):
        Distill(teacher_inputs=3)  # type: ignore[arg-type]
