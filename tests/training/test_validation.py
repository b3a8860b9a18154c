"""Trainings do no harm: the model before is a candidate, and what does not beat it is undone and told as failed."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.metrics import Metric
from compressor.notes.training import Training, Trainings
from compressor.pruning.schedules import Linear
from compressor.stage import Context
from compressor.stages import Distill, FineTune, PruneChannels, QuantizationAwareTraining, SparseTraining
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.running import epochs
from compressor.training.settings import TrainingSettings
from compressor.training.validation import compare
from compressor.workload import Workload, predict
from workbench.comparison import same_weights
from workbench.same_data import same_data


def quiet(folder: Path | None = None) -> Context:
    return Context(progress=False, folder=folder, details={})


def told(context: Context) -> Training:
    note = Trainings.from_json(context.details)
    assert note is not None
    return note.trainings[-1]


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 1))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
    )


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 1))


def solved(model: nn.Module) -> Workload:
    """A regression that `model` solves as well as it can be: the targets are its own outputs, times 30, and noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 1, 8, 8, generator=generator)
    with torch.no_grad():
        model[-1].weight.mul_(30)
        targets = model.eval()(images)
        targets += 0.1 * torch.randn(targets.shape, generator=generator)
    train_data = Batches((images[:64], targets[:64]), batch_size=16, shuffle=True)
    held_out = Batches((images[64:], targets[64:]), batch_size=16)
    found = same_data(model, held_out, images[:2], loss=F.mse_loss, metric=Metric.mse())
    object.__setattr__(found, "train", train_data)
    return found


def error(model: nn.Module, workload: Workload) -> float:
    with torch.no_grad():
        rows = [workload.metric.rows(predict(model.eval(), x), y) for x, y in workload.validation]
    return workload.metric.aggregate(torch.cat(rows))


@pytest.mark.parametrize("build", [convolutions, group_norm, perceptron])
@pytest.mark.parametrize("kind", [FineTune, Distill])
def test_a_good_model_is_never_made_worse(build, kind) -> None:
    """Rates that wreck networks without BatchNorm leave them as they were, and the note has the interval."""
    torch.manual_seed(0)
    workload, context = solved(build()), quiet()
    stage = kind(epochs=1, tail_epochs=0, optimizer=SGD(rate=0.5))
    model = stage.apply(copy.deepcopy(workload.model), workload, context)
    note = told(context)
    assert note.before == pytest.approx(error(workload.model, workload), rel=1e-4)
    assert note.best > note.before
    assert note.failed
    assert "no epoch was better than the model before it, at best validation mse rose" in note.says
    assert "[" in note.says
    assert same_weights(model, workload.model)


def test_a_training_that_helps_is_kept(trained_workload) -> None:
    """A classifier whose head was set to zero recovers: no failure, and the change of accuracy is told."""
    model, context = copy.deepcopy(trained_workload.model), quiet()
    nn.init.zeros_(model.linear.weight)
    FineTune(epochs=1, optimizer=SGD(rate=0.05), tail_epochs=0).apply(model, trained_workload, context)
    note = told(context)
    assert note.before < 0.5 < note.best
    assert not note.failed
    assert note.says.startswith("validation accuracy rose")
    assert float(model.linear.weight.detach().abs().max()) > 0


def test_a_tie_is_no_failure() -> None:
    """Where every answer is right before and after, there was nothing to win; what was learned stays."""
    right = torch.ones(20)
    found = compare(right, right, Metric.accuracy(), seed=0)
    assert not found.failed
    assert compare(right, right - 0.1, Metric.accuracy(), seed=0).failed
    assert not compare(right - 0.1, right, Metric.accuracy(), seed=0).failed
    assert compare(right, right + 0.1, Metric.mse(), seed=0).failed


def test_a_model_that_gave_no_numbers_is_beaten_by_any() -> None:
    """NaN or an infinite error before the training compares with nothing."""
    assert compare(None, torch.ones(4), Metric.mse(), seed=0) is None
    assert compare(torch.tensor([1.0, math.inf]), torch.ones(2), Metric.mse(), seed=0) is None


def test_shuffled_validation_data_is_paired_sample_by_sample() -> None:
    """In shuffled order too, a model that changed nothing has a drop of exactly 0 on every resample."""
    torch.manual_seed(0)
    workload = solved(perceptron())
    images, targets = torch.randn(64, 1, 8, 8), torch.randn(64, 1)
    object.__setattr__(workload, "validation", Batches((images, targets), batch_size=16, shuffle=True))
    context = quiet()
    train(
        copy.deepcopy(workload.model),
        workload,
        TrainingSettings(epochs=1, optimizer=SGD(rate=1e-9), weight_decay=0.0),
        context=context,
    )
    assert "[0.0, 0.0]" in told(context).says or "[-0.0, 0.0]" in told(context).says


def test_a_killed_training_that_failed_ends_the_same(tmp_path: Path, monkeypatch) -> None:
    """The scores before the training are in the snapshot: they are not computed again, and the verdict is the same."""
    torch.manual_seed(0)
    workload, passes, rows = solved(convolutions()), [], epochs.validation_rows

    def counted(*arguments):
        passes.append(1)
        return rows(*arguments)

    monkeypatch.setattr(epochs, "validation_rows", counted)

    def run(context, objective=None):
        model = copy.deepcopy(workload.model)
        train(
            model, workload, TrainingSettings(epochs=3, optimizer=SGD(rate=0.5)), context=context, objective=objective
        )
        return model

    def dying(model, inputs, targets, position) -> Tensor:
        if position.view == 1:
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    whole = quiet()
    run(whole)
    assert len(passes) == 4
    with pytest.raises(KeyboardInterrupt):
        run(quiet(tmp_path), dying)
    for expected in (2, 0):  # what is left, and a finished one
        passes.clear()
        resumed = quiet(tmp_path)
        assert same_weights(run(resumed), workload.model)
        assert told(resumed) == told(whole)
        assert told(resumed).failed
        assert len(passes) == expected


def test_what_aims_at_zeros_is_not_undone() -> None:
    """Sparse training keeps its zeros though the score falls: it is not asked to beat the model before."""
    torch.manual_seed(0)
    workload, context = solved(convolutions()), quiet()
    model = SparseTraining(epochs=1, optimizer=SGD(rate=0.01)).apply(copy.deepcopy(workload.model), workload, context)
    assert not told(context).failed
    assert told(context).before is None
    assert not same_weights(model, workload.model)


@pytest.mark.parametrize(
    ("stage", "rate"),
    [
        (lambda rate: PruneChannels(remove=0.5, align=1, schedule=Linear(steps=2, optimizer=SGD(rate=rate))), 0.5),
        (lambda rate: QuantizationAwareTraining(epochs=1, optimizer=SGD(rate=rate)), 3.0),
    ],
    ids=["pruned", "integers"],
)
def test_training_between_pruning_steps_and_of_integers_does_no_harm_either(stage, rate: float) -> None:
    """The pruned and the quantized model of before the training remain where that only made them worse."""
    torch.manual_seed(0)
    workload, context = solved(convolutions()), quiet()
    model = stage(rate).apply(copy.deepcopy(workload.model), workload, context)
    assert told(context).failed
    # As if it had not been trained.
    untrained = stage(1e-12).apply(copy.deepcopy(workload.model), workload, quiet())
    assert error(model, workload) == pytest.approx(error(untrained, workload), rel=1e-3)


def test_one_validation_pass_more_is_the_cost(tiny_workload, monkeypatch) -> None:
    """Two epochs read the validation data three times."""
    passes, rows = [], epochs.validation_rows
    monkeypatch.setattr(epochs, "validation_rows", lambda *arguments: passes.append(1) or rows(*arguments))
    train(
        copy.deepcopy(tiny_workload.model),
        tiny_workload,
        TrainingSettings(epochs=2, optimizer=SGD(rate=0.01)),
        context=quiet(),
    )
    assert len(passes) == 3
