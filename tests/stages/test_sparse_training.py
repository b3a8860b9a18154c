"""Training with a penalty gives exact zeros, and together with their removal a smaller network."""

import copy

import pytest
import torch
from torch import nn

from compressor.errors import StageError
from compressor.pruning.penalties import GroupLasso, L1Penalty, L2Penalty, SlimmingPenalty
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.stage import Context
from compressor.stages.sparse_training import SparseTraining
from compressor.stages.zero_removal import RemoveZeroChannels
from compressor.target import Isa, Target
from compressor.testing import check_stage
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer
from compressor.training.optimizers.schedules import Course, OneCycle
from compressor.workload import predict
from workbench.tiny import make_workload

# Widths of 8 suit the tiny network, whichever machine this runs on.
TARGET = Target(isa=Isa.X86_AVX2)


def trained(penalty, workload, *, epochs=2, rate=0.05, folder=None):
    """The model after sparse training, and what the stage told."""
    context = Context(progress=False, target=TARGET, folder=folder)
    stage = SparseTraining(penalty=penalty, epochs=epochs, optimizer=SGD(rate=rate))
    return stage.apply(copy.deepcopy(workload.model), workload, context), context


def test_l1_leaves_single_zeros(trained_workload) -> None:
    """An L1 penalty of 5e-3 makes a good part of the weights exactly zero; the fraction told is the one counted."""
    model, context = trained(L1Penalty(strength=5e-3), trained_workload)
    weights = torch.cat([p.flatten() for name, p in model.named_parameters() if "bn" not in name and p.ndim > 1])
    fraction = float((weights == 0).float().mean())
    assert 0.2 < fraction < 1
    assert context.details["zero_weights_fraction"] == pytest.approx(fraction)


def test_l2_leaves_no_zeros(trained_workload) -> None:
    """An L2 penalty shrinks the weights and makes none of them exactly zero."""
    model, context = trained(L2Penalty(strength=0.05), trained_workload, epochs=1)
    assert context.details["zero_weights_fraction"] == 0
    assert model.layer2[1].conv1.weight.norm() < trained_workload.model.layer2[1].conv1.weight.norm()


@pytest.mark.parametrize("penalty", [GroupLasso(strength=0.1), SlimmingPenalty(strength=0.2)])
def test_whole_channels_become_zero_and_go(penalty, trained_workload) -> None:
    """What a group penalty drove to zero is taken out by the next stage, and the outputs stay what they were."""
    model, context = trained(penalty, trained_workload, epochs=3)
    assert 0 < context.details["zero_channels_fraction"] < 1
    removal = Context(progress=False, target=TARGET)
    narrow = RemoveZeroChannels(align=1).apply(copy.deepcopy(model), trained_workload, removal)
    counted = sum(p.numel() for p in narrow.parameters()) / sum(p.numel() for p in model.parameters())
    assert counted < 0.95
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(predict(narrow, inputs), predict(model.eval(), inputs), atol=1e-4)


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("penalty", [GroupLasso(), SlimmingPenalty()])
def test_default_penalties_reach_zeros_in_few_steps(penalty, epochs: int, trained_workload) -> None:
    """Seven batches an epoch: a fifth to a third of the channels are zero by themselves, and the rest still learns."""
    _, context = trained(penalty, trained_workload, epochs=epochs)
    assert 0.2 < context.details["zero_channels_fraction"] < 0.35
    assert context.details["epochs"][-1]["score"] > (0.5 if epochs == 1 else 0.8)  # a quarter by chance


@pytest.mark.slow
def test_the_recipe_slims_small_data_end_to_end(trained_workload, tmp_path) -> None:
    """`slim_distill_int8` as shipped: training makes zeros, they go with all that hangs on them, and 8 bits follow."""
    recipe = Recipe.load("slim_distill_int8", overrides=["stages.0.epochs=2", "stages.2.epochs=1"])
    result = Pipeline(recipe.stages).run(trained_workload, out=tmp_path, target=TARGET, progress=False)
    sparse, removed, taught, quantized = result.report.steps[1:]
    assert sparse.details["zero_channels_fraction"] > 0.2
    assert removed.measurement.parameters < 0.95 * sparse.measurement.parameters
    assert removed.measurement.macs < sparse.measurement.macs
    assert all(step.measurement is not None for step in (taught, quantized))
    assert result.report.shipped.measurement.size_bytes < 0.5 * result.report.reference.measurement.size_bytes
    assert result.report.shipped.measurement.score.value > 0.8


def test_a_killed_training_goes_on_to_the_same_bits(trained_workload, tmp_path, monkeypatch) -> None:
    """Killed in its second epoch and started again, the training ends with the very weights of an undisturbed one."""
    penalty = GroupLasso(strength=0.1)
    whole, _ = trained(penalty, trained_workload, epochs=3)
    from compressor.training.running import epochs as training

    score = training.validation_rows
    calls = []

    def dies_later(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(training, "validation_rows", dies_later)
    with pytest.raises(KeyboardInterrupt):
        trained(penalty, trained_workload, epochs=3, folder=tmp_path)
    resumed, _ = trained(penalty, trained_workload, epochs=3, folder=tmp_path)
    assert len(calls) == 4
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


class Spare(nn.Module):
    """A classifier of one kind of layer, with a spare layer that nothing reads: only the penalty moves it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.spare, self.last = layer, nn.Linear(1, 1, bias=False), nn.Linear(192, 4)
        nn.init.constant_(self.spare.weight, 10.0)

    def forward(self, x):
        return self.last(self.layer(x).flatten(1))


@pytest.mark.parametrize(
    ("optimizer", "length"),
    [(SGD(rate=0.05), 0.5), (SGD(rate=0.05, momentum=0.0), 0.05), (AdamW(rate=1e-3), 0.1), (AutoOptimizer(), 0.1)],
    ids=["SGD", "without momentum", "AdamW", "found"],
)
def test_a_strength_takes_what_it_says(optimizer, length: float) -> None:
    """A weight without a gradient loses strength times the steps of SGD: its own, or those at 0.01 for any other."""
    workload = make_workload(Spare(nn.Conv2d(3, 3, 1)))
    stage = SparseTraining(penalty=L1Penalty(strength=0.5), epochs=2, optimizer=optimizer)
    model = stage.apply(copy.deepcopy(workload.model), workload, Context(progress=False, target=TARGET))
    fractions = Course(schedule=OneCycle(), updates=2 * len(workload.train)).length(0)
    assert model.spare.weight.item() == pytest.approx(10 - 0.5 * fractions * length, rel=1e-4)


@pytest.mark.parametrize("setting", [{"averaging": 0.9}, {"patience": 1}])
def test_what_would_lose_the_zeros_is_refused(setting) -> None:
    """Averages are never zero, and the score does not see zeros: both are refused before work."""
    with pytest.raises(ValueError, match=f"{next(iter(setting))} has no place in sparse training"):
        SparseTraining(**setting)


@pytest.mark.slow
def test_pipeline_from_zeros_to_a_smaller_file(trained_workload, tmp_path) -> None:
    """Sparse training and removal in one run: the file shrinks, and the report says which scores went."""
    stages = [
        SparseTraining(penalty=SlimmingPenalty(strength=0.2), epochs=3, optimizer=SGD(rate=0.05)),
        RemoveZeroChannels(align=1),
    ]
    result = Pipeline(stages).run(trained_workload, target=TARGET, out=tmp_path, progress=False)
    report = result.report
    assert report.shipped.measurement.parameters < 0.95 * report.reference.measurement.parameters
    scores = report.steps[2].details["scores"]
    assert {score for why in scores for score in why["removed_scores"]} == {0.0}
    assert "driven to zero" in report.to_html()
    assert 'class="score-plot"' in report.to_html()


def test_the_last_epoch_is_kept(trained_workload) -> None:
    """A strong penalty costs accuracy from the first epoch on, and its zeros are kept all the same."""
    _, context = trained(GroupLasso(strength=0.3), trained_workload, epochs=3)
    assert context.details["zero_channels_fraction"] > 0.3
    assert "best_epoch" not in context.details


def test_the_contract_is_kept(small_workload) -> None:
    """Sparse training passes what every stage must pass."""
    check_stage(SparseTraining(penalty=SlimmingPenalty(), epochs=1), small_workload)


def test_wrong_parameters_are_refused() -> None:
    """No epochs, and a string for globs, are refused where they are written."""
    with pytest.raises(ValueError, match="epochs"):
        SparseTraining(epochs=0)
    with pytest.raises(ValueError, match="tuple of globs"):
        SparseTraining(layers="layer1")


def test_nothing_to_penalise_is_an_error(tiny_workload) -> None:
    """Globs that match no layer with weights are an error, not a training without a penalty."""
    stage = SparseTraining(penalty=L1Penalty(), layers=("bn1",))
    with pytest.raises(StageError, match="no trained weight"):
        stage.apply(copy.deepcopy(tiny_workload.model), tiny_workload, Context(progress=False))
