"""A student takes the place of the model: judged against its teacher, and what follows works on it."""

import json
import sys

import pytest
import torch
from torch import nn

from compressor import Budget, Effect, Pipeline, load_checkpoint
from compressor.cli.app import app
from compressor.errors import AmplifiedError, RunFolderError, StageError, WorkloadError
from compressor.recipe.recipe import Recipe
from compressor.running import applying
from compressor.running.brought import checking
from compressor.running.order import refuse_for_files, segments
from compressor.running.pipeline import PipelineWarning
from compressor.runtime import OnnxModule
from compressor.stage import stage_name
from compressor.stages import Distill, FineTune, PruneChannels, Quantize
from compressor.testing import check_stage
from compressor.training.optimizers.choices import SGD
from workbench import ROOT
from workbench.comparison import same_weights
from workbench.tiny import TinyResNet

QUICK = {"epochs": 2, "tail_epochs": 0, "optimizer": SGD(rate=0.1), "views": 1}


class Small(nn.Module):
    """Two convolutions, and nothing that the teacher has under the same name."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, stride=2), nn.ReLU())
        self.last = nn.Linear(16, 4)

    def forward(self, images):
        return self.last(self.deep(self.wide(images)).mean((2, 3)))


def small() -> nn.Module:
    torch.manual_seed(7)
    return Small()


def dying(*, after: int, call):
    """`call`, which is interrupted when it was made `after` times."""
    calls = iter(range(after))

    def counted(*given, **more):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return call(*given, **more)

    return counted


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The names of the stages that are applied, and not taken from disk."""
    names: list[str] = []
    apply = applying._made

    def noted(job, stage, *given, **more):
        names.append(stage_name(stage))
        return apply(job, stage, *given, **more)

    monkeypatch.setattr(applying, "_made", noted)
    return names


def test_later_stages_work_on_the_student_and_a_killed_run_goes_on(trained_workload, tmp_path, made) -> None:
    """Pruned and quantized is the student; its checkpoints load into its own class, in a resumed run too.

    The reference stays the teacher, whose multiply-accumulates and parameters the student is held against.
    """
    tuned = FineTune(epochs=1, tail_epochs=0, optimizer=SGD(rate=0.01))
    stages = [Distill(**QUICK, student=small()), PruneChannels(remove=0.25, align=4), tuned, Quantize()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(applying, "measure", dying(after=3, call=applying.measure))
        with pytest.raises(KeyboardInterrupt):
            Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    taught = load_checkpoint(tmp_path / "stages" / "01-distill", Small)
    assert json.loads((tmp_path / "stages" / "01-distill" / "plan.json").read_text()) == []
    assert type(taught) is Small
    assert made == ["distill", "prune_channels", "fine_tune"]
    result = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    assert made[3:] == ["fine_tune", "quantize"]
    reference, distilled, pruned, _, quantized = result.report.steps
    assert isinstance(result.model, OnnxModule)
    assert [step.kept for step in result.report.steps] == [True] * 5
    left = load_checkpoint(tmp_path, small)
    assert parameters(left) < parameters(taught) == parameters(Small())
    assert reference.measurement.parameters > distilled.measurement.parameters > pruned.measurement.parameters
    # By hand: 64 places of 12 maps of 27 weights, 16 of 16 of 108, 4 rows of 16; less for no pool at stride 1.
    assert distilled.measurement.macs == 64 * 12 * 27 + 16 * 16 * 108 + 4 * 16
    assert distilled.details["student"] == "Small"
    assert distilled.details["teacher"] == "TinyResNet"
    assert "Small goes on in place of the model, taught by TinyResNet" in (tmp_path / "report.md").read_text()
    assert quantized.measurement.size_bytes < reference.measurement.size_bytes


def test_a_student_is_part_of_what_a_run_is_given(trained_workload, tmp_path, made) -> None:
    """An equal student is taken from disk, another one is another run."""
    Pipeline([Distill(**QUICK, student=small())]).run(trained_workload, out=tmp_path, progress=False)
    Pipeline([Distill(**QUICK, student=small())]).run(trained_workload, out=tmp_path, progress=False)
    assert made == ["distill"]
    other = small()
    nn.init.zeros_(other.last.bias)
    with pytest.raises(RunFolderError, match="holds a run of something else:\n  stage_inputs"):
        Pipeline([Distill(**QUICK, student=other)]).run(trained_workload, out=tmp_path, progress=False)


def test_the_contract_of_stages_holds_with_a_student(tiny_workload) -> None:
    """Same bits for a seed, a plan that leads from the student, the shape of the output."""
    stage = Distill(epochs=1, tail_epochs=0, views=1, student=small())
    assert (Distill.effect, stage.effect) == (Effect.VALUES, Effect.STRUCTURE)
    assert type(check_stage(stage, tiny_workload)) is Small


def test_what_does_not_fit_is_refused_before_any_work(trained_workload, tmp_path) -> None:
    """A student of other classes, and one that cannot be worked with: no file is written, budget or none."""
    wrong = Small()
    wrong.last = nn.Linear(16, 7)
    broken = Small()
    nn.init.constant_(broken.last.bias, float("nan"))
    for student, message in ((wrong, "tells 7 classes apart"), (broken, "NaN or Inf in last.bias")):
        for budget in (None, Budget(max_drop=0.1)):
            with pytest.raises(StageError, match=f"stage 1, distill: the student Small.*{message}"):
                Pipeline([Distill(student=student)], budget=budget).run(trained_workload, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Knotted(Small):
    """Goes one way or the other by the numbers that it is given, which no file can say."""

    def forward(self, images):
        answer = super().forward(images)
        return answer if float(images.mean()) > 0 else 2 * answer


def test_a_student_that_no_file_can_hold_is_refused_before_any_training(trained_workload, tmp_path, made) -> None:
    """And one whose file cannot be checked because of its untrained weights is not: training may change that."""
    with pytest.raises(StageError, match="stage 1, distill: the student Knotted could not be exported to an ONNX file"):
        Pipeline([Distill(**QUICK, student=Knotted())]).run(trained_workload, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    assert made == []

    def amplifies(*_):
        raise AmplifiedError("amplifies rounding")

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(checking, "export_onnx", amplifies)
        checking.check_brought([Distill(student=small())], trained_workload, lambda *_: None)


def test_compare_gives_a_student_to_the_recipes_that_ask_for_one(tmp_path, monkeypatch) -> None:
    """The others keep their own distill; where none asks, it is refused."""
    from typer.testing import CliRunner

    given: list[Recipe] = []

    def noted(recipes, *_, **__):
        given.extend(recipes)
        raise StageError("noted")

    monkeypatch.setattr("compressor.comparing.comparison.compare", noted)
    command = ["compare", "drop_blocks_distill_int8", "student_int8", "-w", "digits", "--out", str(tmp_path)]
    CliRunner().invoke(app, [*command, "--student", "workbench.tiny:TinyResNet"])
    assert [[getattr(stage, "student", None) for stage in recipe.stages] for recipe in given] == [
        [None, None, None],
        ["workbench.tiny:TinyResNet", None],
    ]
    del command[2]
    refused = CliRunner().invoke(app, [*command, "--student", "workbench.tiny:TinyResNet"])
    assert refused.exit_code == 2
    assert "none of these does: drop_blocks_distill_int8; add student_int8" in " ".join(refused.output.split())


def test_a_student_is_judged_by_itself() -> None:
    """Alone with the training behind it; pruning after it is another segment, and what stands before it is lost."""
    student, cut = Distill(student=small()), PruneChannels(remove=0.5)
    assert segments([student, FineTune(), cut, FineTune(), Quantize()]) == [[0, 1], [2, 3], [4]]
    assert not Pipeline([student, Quantize()]).order_warnings
    with pytest.warns(PipelineWarning, match="distill goes on with a student in place of the model that prune_chan"):
        Pipeline([cut, student])


def test_a_file_can_teach_a_student() -> None:
    """Stages that need layers may follow a student where the model is an ONNX file, and none may come before it."""
    refuse_for_files([Distill(student=small()), FineTune(), Quantize()])
    with pytest.raises(WorkloadError, match="fine_tune needs the layers of a torch model"):
        refuse_for_files([FineTune(), Distill(student=small())])


@pytest.mark.slow
def test_a_student_that_is_rolled_back_leaves_the_model(trained_workload, tmp_path) -> None:
    """One that learned nothing goes over the drop: the stage after it works on the reference again."""
    useless = Distill(epochs=1, tail_epochs=0, optimizer=SGD(rate=1e-9), views=1, student=small())
    budget = Budget(max_drop=0.05, not_slower=False)
    stages = [useless, PruneChannels(remove=0.2, align=4), FineTune(epochs=1, tail_epochs=0, optimizer=SGD(rate=1e-4))]
    result = Pipeline(stages, budget=budget).run(trained_workload, out=tmp_path, progress=False)
    assert not result.report.steps[1].kept
    assert isinstance(result.model, TinyResNet)
    assert type(load_checkpoint(tmp_path, TinyResNet)) is TinyResNet


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (Small, r"got <class .*Small'>; call it, as in Small\(\)"),
        (small, r"call it, as in small\(\)"),
        (3, "student is a torch.nn.Module .* got 3"),
        ("nowhere", "its name, package.module:function; got 'nowhere'"),
        ("math:nothing", "math has no function 'nothing'"),
        ("builtins:dict", "student: builtins:dict gave dict; let it return a torch.nn.Module"),
        ("math:sqrt", "student: math:sqrt raised TypeError"),
    ],
)
def test_what_makes_no_student_is_refused(student, message) -> None:
    """What is no module, and names of functions that make none, as the stage is built."""
    with pytest.raises(ValueError, match=message):
        Distill(student=student)


def test_recipes_and_the_command_line_name_a_student(tmp_path, monkeypatch) -> None:
    """`student:` in a recipe survives its dump, and `--student` goes into the first distill, or is refused."""
    from typer.testing import CliRunner

    (tmp_path / "own_student.py").write_text(
        "import torch\nfrom workbench.tiny import TinyResNet, make_workload\n"
        "def teacher():\n    torch.manual_seed(0)\n"
        "    return make_workload(TinyResNet(width=16).eval(), train=64, test=32, batch_size=16)\n"
        "def small():\n    return TinyResNet(width=8)\n"
        "def wrong():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    recipe = Recipe.loads("stages:\n  - distill: {student: 'own_student:small'}\n")
    assert Recipe.loads(recipe.dump()).stages[0].student == "own_student:small"
    # The same random numbers in every process.
    assert same_weights(*(Distill(student="own_student:small").replacement for _ in range(2)))

    def called(*more: str):
        return CliRunner().invoke(app, ["run", "student_int8", "-w", "own_student:teacher", "--dry-run", *more])

    assert "own_student:small" in called("--student", "own_student:small").output
    refused = called("--student", "own_student:wrong")
    assert refused.exit_code != 0
    assert "tells 3 classes apart" in " ".join(refused.output.split())
    bare = called()
    assert bare.exit_code == 2
    assert "distill.student is left open" in " ".join(bare.output.split())
    none = CliRunner().invoke(app, ["run", "int8", "-w", "own_student:teacher", "--student", "a:b", "--dry-run"])
    assert none.exit_code == 2
    said = " ".join(none.output.split())
    assert "--student is taught by the first distill of a recipe, and int8 has quantize" in said
