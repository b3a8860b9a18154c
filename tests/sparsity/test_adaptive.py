"""A schedule that goes on where training recovers, and takes back what it does not."""

import copy

import pytest
import torch

from compressor.errors import StageError
from compressor.intervals import paired_drop
from compressor.sparsity.adaptive import Adaptive
from compressor.sparsity.patterns import Rows
from compressor.sparsity.scores import Wanda
from compressor.stage import Context
from compressor.stages.weight_sparsifying import SparsifyWeights
from compressor.training.optimizers.choices import SGD
from compressor.training.precision import Form
from compressor.training.validation import validation_rows


def sparse(workload, *, sparsity=0.9, **settings):
    """The model after adaptive pruning, and what was told."""
    context = Context(progress=False)
    given = {name: settings.pop(name) for name in ("pattern", "score") if name in settings}
    stage = SparsifyWeights(sparsity=sparsity, schedule=Adaptive(**settings), **given)
    return stage.apply(copy.deepcopy(workload.model), workload, context), context.details


def drop(model, workload) -> float:
    """How much worse the model is on validation than the workload's, sample by sample."""
    rows = [validation_rows(own, workload, Form.of(own)) for own in (model, workload.model)]
    return paired_drop(*rows, workload.metric).value


def test_it_goes_as_far_as_it_recovers(trained_workload) -> None:
    """The last kept step is within what may be lost, layers end at different sparsities, and all adds up as told."""
    model, told = sparse(trained_workload, rounds=4, optimizer=SGD(rate=0.02), max_drop=0.02)
    kept = [one for one in told["sparsity_rounds"] if one["kept"]]
    assert kept
    assert drop(model, trained_workload) <= 0.02
    own = torch.cat([p.flatten() for p in model.parameters() if p.ndim > 1])
    assert float((own == 0).float().mean()) == pytest.approx(kept[-1]["sparsity"], abs=0.01)
    assert len({round(value, 2) for value in told["layer_sparsity"].values()}) > 1


def test_a_step_that_does_not_recover_is_undone(trained_workload) -> None:
    """Nine tenths at once and a training that changes nothing: that step goes, smaller ones stay, each told."""
    model, told = sparse(trained_workload, stride=0.9, slower=0.3, rounds=6, optimizer=SGD(rate=1e-7), max_drop=0.02)
    rounds = told["sparsity_rounds"]
    assert not rounds[0]["kept"]
    assert "the budget allows 2.0 points" in rounds[0]["says"]
    assert any(one["kept"] for one in rounds)
    assert drop(model, trained_workload) <= 0.02
    first, last = rounds[0]["sparsity"], max(one["sparsity"] for one in rounds if one["kept"])
    assert last < first


def test_strides_follow_the_harm_of_each_layer(trained_workload) -> None:
    """After a step that stays, the layers that did least harm went furthest by the next."""
    _, told = sparse(trained_workload, rounds=2, stride=0.2, faster=2.0, optimizer=SGD(rate=0.02), max_drop=0.05)
    assert [one["kept"] for one in told["sparsity_rounds"]] == [True, True]
    # A fifth, then a fifth or two fifths of what is left.
    assert {round(value, 1) for value in told["layer_sparsity"].values()} == {0.4, 0.5}


def test_the_aim_is_not_passed(trained_workload) -> None:
    """With strides beyond it, the network ends at the sparsity that was asked for."""
    model, told = sparse(trained_workload, sparsity=0.3, stride=0.25, rounds=5, optimizer=SGD(rate=0.02), max_drop=0.2)
    own = torch.cat([p.flatten() for p in model.parameters() if p.ndim > 1])
    assert float((own == 0).float().mean()) == pytest.approx(0.3, abs=2e-3)
    assert told["sparsity_rounds"][-1]["sparsity"] == pytest.approx(0.3, abs=1e-3)


def test_rows_and_scores_with_data_adapt_too(trained_workload) -> None:
    """Whole rows by magnitude, and single weights by Wanda."""
    rows, _ = sparse(trained_workload, sparsity=0.2, pattern=Rows(), rounds=1, max_drop=0.5)
    assert (rows.layer2[1].conv1.weight.flatten(1) == 0).all(dim=1).any()
    sparse(trained_workload, sparsity=0.2, score=Wanda(batches=1), rounds=1, max_drop=0.5)


def test_nothing_that_recovers_is_an_error(trained_workload) -> None:
    """Where every step costs too much the stage refuses, with what was tried."""
    with pytest.raises(StageError, match=r"no step recovers within max_drop=0 .*fell"):
        sparse(trained_workload, stride=0.95, slower=0.95, rounds=2, optimizer=SGD(rate=1e-7), max_drop=0.0)


@pytest.mark.parametrize(
    "settings",
    [{"stride": 0}, {"rounds": 0}, {"max_drop": 2}, {"faster": 0.5}, {"slower": 1}, {"least": 0}, {"epochs": 0}],
    ids=str,
)
def test_wrong_settings_are_refused(settings) -> None:
    """Each is refused by its name."""
    with pytest.raises(ValueError, match=next(iter(settings))):
        Adaptive(**settings)
