"""A compressed model goes on learning: what it is drawn to, what stays, and what it forgot."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor import Pipeline
from compressor.batches import Batches
from compressor.errors import StageError, StorageError
from compressor.intervals import paired_drop
from compressor.measuring.measure import score_rows
from compressor.metrics import Metric
from compressor.recipe.recipe import Recipe
from compressor.runtime import OnnxModule
from compressor.stage import Context
from compressor.stages import Distill, FineTune, QuantizationAwareTraining, SparsifyWeights
from compressor.training.held_zeros import zeros_entry
from compressor.training.optimizers.choices import SGD, AdamW
from workbench.same_data import same_data
from workbench.tiny import synthetic_images

X = torch.linspace(-1, 1, 20).unsqueeze(1)
LONG = {"epochs": 60, "tail_epochs": 0, "optimizer": SGD(rate=0.1), "weight_decay": 0.0}


def learnt(stage) -> float:
    """The slope of a line that was 1, by old data of slope 1 and new ones of 3, every epoch as good as another."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    same = Metric(name="same", per_sample=lambda outputs, _: torch.ones(len(outputs)))
    workload = same_data(nn.Linear(1, 1, bias=False), [(X[::2], X[::2])], X[:2], loss=F.mse_loss, metric=same)
    context = Context(progress=False)
    slope = float(stage.apply(model, workload, context).weight.detach())
    assert context.details["replay"] == stage.replay
    return slope


def new_line(slope: float = 3.0) -> Batches:
    return Batches((X, slope * X), batch_size=18)


@pytest.mark.parametrize(("soft_weight", "slope"), [(0.0, 3.0), (0.5, 2.0), (0.75, 1.5)])
def test_the_former_model_holds_the_new_one(soft_weight: float, slope: float) -> None:
    """(1 - s) (w - 3)^2 + s (w - 1)^2 is least at 3 - 2 s: Learning without Forgetting, without an old sample."""
    stage = Distill(**LONG, data=new_line(), replay=0.0, soft_weight=soft_weight, views=1)
    assert learnt(stage) == pytest.approx(slope, abs=0.06)


@pytest.mark.parametrize(("replay", "slope"), [(0.0, 3.0), (0.5, 2.0), (1 / 3, 7 / 3)])
def test_old_data_hold_by_their_share(replay: float, slope: float) -> None:
    """New and old batches ask for 3 and 1 in turns: near the mean by their shares, 3 - 2 r."""
    data = [(X[::2], 3 * X[::2])] * 12  # two of them are held out
    assert learnt(FineTune(**LONG, data=data, replay=replay)) == pytest.approx(slope, abs=0.1)


def test_few_new_samples_choose_the_epoch_as_much_as_many_old_ones() -> None:
    """One weight goes from 0 to 3 in equal steps: 200 old samples want it below 1.6, two that are held out above 2.4.

    Each old sample costs a hundredth of what is lost on a new one: by samples the first epochs would be kept, by parts
    the last ones.
    """

    def rows(outputs, targets):
        near = (outputs.flatten() - targets.flatten()).abs() < 0.6
        return torch.where(targets.flatten() == 1, 0.9 + 0.1 * near.double(), near.double())

    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ones = torch.ones(200, 1)
    workload = same_data(nn.Linear(1, 1, bias=False), [(ones, ones)], ones[:2], loss=F.mse_loss)
    workload = replace(workload, metric=Metric(name="near", per_sample=rows))
    data = Batches((torch.ones(20, 1), 3 * torch.ones(20, 1)), batch_size=18)
    context = Context(progress=False)
    stage = FineTune(epochs=40, tail_epochs=0, optimizer=SGD(rate=0.03), weight_decay=0.0, data=data, replay=0.0)
    stage.apply(model, workload, context)
    assert 2.4 < float(model.weight.detach()) < 3.1
    assert context.details["new_after"] == 1.0
    assert context.details["old_after"] == pytest.approx(0.9)


@pytest.mark.parametrize(("soft_weight", "learnt"), [(1.0, False), (0.0, True)])
def test_an_integer_graph_goes_on_with_new_data(soft_weight, learnt) -> None:
    """Two classes whose new labels are the other way round: it is held by the model it was, or follows the labels.

    The workload's own model says the opposite, so that a teacher taken from there would turn it around.
    """
    model, original = nn.Linear(4, 2), nn.Linear(4, 2)
    with torch.no_grad():
        model.bias.zero_(), original.bias.zero_()
        model.weight.copy_(torch.tensor([[0.5, 0, 0, 0], [-0.5, 0, 0, 0]]))
        original.weight.copy_(-model.weight)
    inputs = torch.randn(96, 4, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] < 0).long()
    same = Metric(name="same", per_sample=lambda outputs, _: torch.ones(len(outputs)))
    context = Context(progress=False)
    stage = QuantizationAwareTraining(
        epochs=10,
        optimizer=AdamW(rate=0.05),
        soft_weight=soft_weight,
        data=Batches((inputs, 1 - labels), batch_size=24, shuffle=True),
        replay=0.0,
    )
    workload = same_data(original, [(inputs, labels)], inputs[:2], metric=same)
    trained = stage.apply(model, workload, context)
    assert isinstance(trained, OnnxModule)
    old_score = float((trained(inputs).argmax(1) == labels).float().mean())
    assert (old_score < 0.1) if learnt else (old_score > 0.9)
    assert context.details["teacher"] == "Linear, as it was"
    assert (context.details["replay"], context.details["old_after"]) == (0.0, 1.0)


@pytest.mark.parametrize("held", [True, False])
def test_zeros_of_a_former_run_stay_where_its_folder_is_named(held, tmp_path) -> None:
    """A model that was loaded has its zeros, and no plan: `held` brings it, into the plan of this run too."""
    model = nn.Linear(6, 3)
    with torch.no_grad():
        model.weight[:, ::2] = 0
    data = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(4)]
    workload = same_data(nn.Linear(6, 3), data, data[0][0][:2])
    (tmp_path / "plan.json").write_text(json.dumps([{"kind": "other"}, zeros_entry(["weight"])]))
    context = Context(progress=False)
    stage = FineTune(epochs=2, optimizer=SGD(rate=0.1), data=data, held=str(tmp_path) if held else None)
    stage.apply(model, workload, context)
    assert bool((model.weight[:, ::2] == 0).all()) is held
    assert bool((model.weight[:, 1::2] != 0).all())
    assert context.plan == ([zeros_entry(["weight"])] if held else [])


def test_folders_that_hold_nothing_of_the_model_are_refused(tmp_path) -> None:
    data = [(torch.randn(8, 6), torch.arange(8) % 3) for _ in range(4)]
    workload = same_data(nn.Linear(6, 3), data, data[0][0][:2])

    def going_on():
        FineTune(epochs=1, data=data, held=str(tmp_path)).apply(nn.Linear(6, 3), workload, Context(progress=False))

    with pytest.raises(StorageError, match="held is the folder of the run that made the model"):
        going_on()
    (tmp_path / "plan.json").write_text(json.dumps([zeros_entry(["features.0.weight"])]))
    with pytest.raises(StageError, match=r"zeros or shared values of features\.0\.weight, and Linear has no such"):
        going_on()
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(StorageError, match="must hold a plan, a list; got dict"):
        going_on()


def test_a_run_tells_what_was_forgotten_of_the_old_test_data(trained_workload, tmp_path) -> None:
    """The paired drop between the files before and after, on test; what was learnt; and the zeros are still there."""
    images, labels = synthetic_images(96, seed=11)
    moved = Batches((-images, labels), batch_size=32, shuffle=True)
    quick = {"epochs": 1, "tail_epochs": 0, "optimizer": SGD(rate=0.05)}
    stages = [SparsifyWeights(sparsity=0.5), Distill(**quick, data=moved, replay=0.25, views=1)]
    result = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    before, after = (
        score_rows(
            (tmp_path / "stages" / name / "model.onnx").read_bytes(),
            trained_workload.test,
            trained_workload.metric,
            threads=1,
        )
        for name in ("01-sparsify_weights", "02-distill")
    )
    step = result.report.steps[2]
    assert step.details["forgotten"] == vars(paired_drop(after, before, trained_workload.metric))
    assert step.details["teacher"] == "TinyResNet, as it was"
    assert step.details["old_before"] is not None
    assert step.details["new_after"] is not None
    sparse, gone_on = (each.measurement.nonzero_parameters for each in result.report.steps[1:])
    assert gone_on <= sparse
    told = (tmp_path / "report.md").read_text()
    assert "new data, 25 % of the batches old: accuracy from" in told.replace("25%", "25 %")
    assert "forgotten of the old test data, against the model before: accuracy" in told


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [(torch.randn(8, 3, 8, 8), torch.full((8,), 9))] * 3,
            "new data has labels from 9 to 9, and the model has 4",
        ),
        ([(torch.randn(8, 3, 8), torch.zeros(8).long())] * 3, "the new data must have the form, types and dimensions"),
        ([(torch.randn(8, 3, 8, 8), torch.zeros(7).long())] * 3, "has 8 samples and targets of shape"),
    ],
)
def test_new_data_that_do_not_fit_are_refused_before_any_work(trained_workload, tmp_path, data, message) -> None:
    """Classes that the model has not, inputs of another form, fewer labels than samples: no folder is made."""
    for stage in (FineTune(data=data), Distill(data=data), QuantizationAwareTraining(data=data)):
        with pytest.raises(StageError, match=f"stage 1, .*{message}"):
            Pipeline([stage]).run(trained_workload, out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_recipes_name_a_function_that_gives_new_data(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_new_data.py").write_text(
        "import torch\ndef new():\n    return torch.zeros(20, 3, 8, 8), torch.zeros(20).long()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = "stages:\n  - fine_tune: {data: 'own_new_data:new', replay: 0.2, held: runs/mine}\n"
    recipe = Recipe.loads(Recipe.loads(text).dump())
    stage = recipe.stages[0]
    assert (stage.data, stage.replay, stage.held) == ("own_new_data:new", 0.2, "runs/mine")
    assert len(stage.new_data.validation.indices) == 2
