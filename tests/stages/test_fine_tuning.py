"""FineTune: retraining on the workload's own loss."""

import copy

import pytest
import torch
from torch import nn

from compressor import stages
from compressor.stage import Context, Effect, Stage
from compressor.stages.fine_tuning import FineTune
from compressor.training.optimizers.choices import SGD
from compressor.training.snapshots import capture


def test_fine_tuning_repairs_a_damaged_model(trained_workload) -> None:
    """A trained model whose head was set to zero (25 % by chance) scores well again, and the reference is untouched."""
    model = copy.deepcopy(trained_workload.model)
    nn.init.zeros_(model.linear.weight)
    reference = capture(trained_workload.model)
    context = Context(progress=False)
    tuned = FineTune(epochs=2, optimizer=SGD(rate=0.05), tail_epochs=1).apply(model, trained_workload, context)
    assert tuned is model
    epochs, best = context.details["epochs"], context.details["best_epoch"]
    assert len(epochs) == 3
    assert epochs[best]["score"] == max(entry["score"] for entry in epochs) > 0.8
    assert all(torch.equal(reference[name], value) for name, value in capture(trained_workload.model).items())


def test_fine_tuning_is_a_stage_that_survives_its_repr() -> None:
    """The stage changes values only, and eval(repr(stage)) gives it back."""
    stage = FineTune(epochs=3, optimizer=SGD(rate=0.02))
    assert isinstance(stage, Stage)
    assert stage.effect is Effect.VALUES
    assert eval(repr(stage), vars(stages)) == stage  # noqa: S307 - the promise under test


def test_fine_tuning_without_epochs_is_refused() -> None:
    """Zero epochs would be a stage that does nothing."""
    with pytest.raises(ValueError, match="epochs counts the passes"):
        FineTune(epochs=0)
