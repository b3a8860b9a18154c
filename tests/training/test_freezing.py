"""Frozen stays frozen: parameters, statistics of normalizations, dropout, and what the user put into eval mode."""

import copy

import numpy as np
import pytest
import torch
from onnx import load_model_from_string, numpy_helper
from torch import Tensor, nn

from compressor.errors import StageError
from compressor.notes.training import NormsReestimated, Trainings
from compressor.pruning.penalties import GroupLasso, L1Penalty
from compressor.pruning.schedules import Linear
from compressor.recipe.recipe import Recipe
from compressor.stage import Context
from compressor.stages import (
    Distill,
    FineTune,
    PruneChannels,
    QuantizationAwareTraining,
    ReestimateBatchNorm,
    SparseTraining,
)
from compressor.training.freezing import freezing, frozen_names, still_modules
from compressor.training.optimizers.choices import SGD
from compressor.workload import Workload


class Net(nn.Module):
    """A body with a normalization and dropout, and a head with both too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def workload_of(model: nn.Module) -> Workload:
    """Data that is shifted and scaled: running statistics would follow."""
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(160, 10, generator=generator) + 2
    data = x, (x[:, 0] > 2).long()
    return Workload.from_datasets(model, train=data, validation=data, test=data, batch_size=32)


def frozen_body() -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    model.body.requires_grad_(requires_grad=False)
    return model


def body_in_eval_mode() -> nn.Module:
    """Parameters may change; statistics and dropout were switched off by hand."""
    torch.manual_seed(0)
    model = Net().train()
    model.body[1].eval()
    model.body[3].eval()
    return model


def changed(before: nn.Module, after: nn.Module, part: str = "") -> set[str]:
    """The tensors of `part` that differ."""
    old, new = before.state_dict(), after.state_dict()
    return {name for name in old if name.startswith(part) and not torch.equal(old[name], new[name])}


def watched(module: nn.Module) -> list[bool]:
    """Whether `module` itself, not a copy of it, is in training mode, call by call, where gradients are wanted."""
    modes: list[bool] = []

    def look(own, _inputs, _output) -> None:
        if own is module and torch.is_grad_enabled():
            modes.append(own.training)

    module.register_forward_hook(look)
    return modes


def trainings(**settings) -> list:
    return [
        FineTune(epochs=1, tail_epochs=0, optimizer=SGD(rate=0.2), **settings),
        Distill(epochs=1, tail_epochs=0, optimizer=SGD(rate=0.2), views=1, soft_weight=0.1, **settings),
        SparseTraining(epochs=1, penalty=L1Penalty(strength=0.01), **settings),
        SparseTraining(epochs=1, penalty=GroupLasso(strength=0.01), **settings),
    ]


def applied(stage, original: nn.Module, *, given: nn.Module | None = None) -> tuple[nn.Module, Context]:
    context = Context(progress=False, details={})
    return stage.apply(given or copy.deepcopy(original), workload_of(original), context), context


def frozen_told(context: Context) -> tuple[str, ...]:
    return Trainings.from_json(context.details).trainings[0].frozen


@pytest.mark.parametrize("stage", trainings(), ids=lambda stage: type(stage).__name__)
def test_a_module_whose_parameters_are_all_frozen_stays_as_it_is(stage) -> None:
    """Weights, statistics and dropout of a frozen body: nothing changes in any stage that trains; the head learns."""
    original = frozen_body()
    given = copy.deepcopy(original)
    inside, outside = watched(given.body[3]), watched(given.head[3])
    model, context = applied(stage, original, given=given)
    assert changed(original, model, "body") == set()
    assert changed(original, model, "head") >= {"head.0.weight", "head.1.running_mean"}
    assert set(inside) == {False}
    assert True in outside
    assert frozen_told(context) == ("body",)
    assert not model.body[0].weight.requires_grad
    assert model.head[0].weight.requires_grad


@pytest.mark.parametrize("stage", trainings(), ids=lambda stage: type(stage).__name__)
def test_what_the_user_put_into_eval_mode_by_itself_stays_there(stage) -> None:
    """In a model in training mode, a normalization and a dropout in eval mode keep statistics and silence."""
    original = body_in_eval_mode()
    given = copy.deepcopy(original)
    inside, outside = watched(given.body[3]), watched(given.head[3])
    model, context = applied(stage, original, given=given)
    assert changed(original, model, "body") >= {"body.0.weight"}
    assert changed(original, model, "body") & {"body.1.running_mean", "body.1.running_var"} == set()
    assert set(inside) == {False}
    assert True in outside
    assert frozen_told(context) == ("body.1", "body.3")


def test_a_model_in_eval_mode_as_a_whole_is_simply_trained() -> None:
    """Nothing was put into eval mode by itself there, whatever mode a layer that came later is in."""
    torch.manual_seed(0)
    original = Net().eval()
    original.head[4] = nn.Linear(16, 2)  # in training mode, as it is made
    model, context = applied(trainings()[0], original)
    assert changed(original, model) >= {"body.1.running_mean", "head.1.running_mean"}
    assert frozen_told(context) == ()


def test_modes_are_the_users_after_the_model_was_narrowed() -> None:
    """Training between pruning steps, and after a stage that handed on an eval-mode copy, knows the modes by name."""
    original = body_in_eval_mode()
    stage = PruneChannels(remove=0.5, align=4, schedule=Linear(steps=2, optimizer=SGD(rate=0.1)))
    narrow, context = applied(stage, original)
    assert frozen_told(context) == ("body.1", "body.3")
    again = FineTune(epochs=1, tail_epochs=0).apply(
        copy.deepcopy(narrow).eval(), workload_of(original), Context(progress=False)
    )
    assert torch.equal(again.body[1].running_mean, narrow.body[1].running_mean)
    assert not torch.equal(again.head[1].running_mean, narrow.head[1].running_mean)


def test_a_frozen_part_is_still_frozen_when_narrower() -> None:
    """Pruned channels of a frozen body leave the rest of its numbers, statistics too, through the training between."""
    original = frozen_body()
    stage = PruneChannels(remove=0.5, align=4, schedule=Linear(steps=2, optimizer=SGD(rate=0.1)))
    narrow, context = applied(stage, original)
    assert frozen_told(context) == ("body",)
    old, new = (model.body[1].running_mean.tolist() for model in (original, narrow))
    assert len(new) < len(old)
    assert set(new) <= set(old)
    assert not narrow.body[0].weight.requires_grad


@pytest.mark.parametrize("stage", trainings(freeze=("body", "head.0.w*"))[:3], ids=lambda stage: type(stage).__name__)
def test_globs_freeze_modules_and_parameters_for_one_stage(stage) -> None:
    """`freeze` takes modules with all that is in them, and single parameters; afterwards all is as free as before."""
    torch.manual_seed(0)
    original = Net().eval()
    model, context = applied(stage, original)
    assert changed(original, model, "body") == set()
    assert "head.0.weight" not in changed(original, model)
    assert {"head.0.bias", "head.4.weight"} <= changed(original, model)
    assert frozen_told(context) == ("body", "head.0.weight")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_hints_know_the_students_names() -> None:
    """With adapters beside it, the student's frozen body and its globs are found all the same."""
    original = frozen_body()
    stage = Distill(epochs=1, tail_epochs=0, views=1, features=("head.0",), freeze=("head.1",), soft_weight=0.1)
    model, context = applied(stage, original)
    assert frozen_told(context) == ("body", "head.1")
    assert changed(original, model) & {"body.1.running_mean", "head.1.running_mean", "head.1.weight"} == set()


def test_reestimation_leaves_frozen_statistics_alone() -> None:
    """Re-estimated are the norms that may change; where none may, the stage has nothing to do and says why."""
    for original, kept in ((frozen_body(), "body.1"), (body_in_eval_mode(), "body.1")):
        model, context = applied(ReestimateBatchNorm(), original)
        assert changed(original, model, "body") == set()
        assert "head.1.running_mean" in changed(original, model)
        assert NormsReestimated.from_json(context.details).frozen == (kept,)
    still = Net().requires_grad_(requires_grad=False)
    with pytest.raises(StageError, match="every BatchNorm of Net is frozen"):
        applied(ReestimateBatchNorm(), still)


def test_integers_of_frozen_weights_are_the_rounded_originals() -> None:
    """In quantization-aware training the frozen body keeps the integers that rounding gave it; the head's learn."""
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    original[0].requires_grad_(requires_grad=False)
    with torch.no_grad():
        original[4].weight.mul_(0.1)

    def integers(rate: float) -> list[np.ndarray]:
        stage = QuantizationAwareTraining(
            epochs=1, optimizer=SGD(rate=rate), soft_weight=0.0, freeze=("2.bias", "2.weight")
        )
        model, _ = applied(stage, original)
        values = map(numpy_helper.to_array, load_model_from_string(model.onnx_bytes).graph.initializer)
        return [value for value in values if value.dtype == np.int8 and value.ndim == 2]

    pairs = zip(integers(1e-12), integers(1.0), strict=True)
    assert [bool((untrained == trained).all()) for untrained, trained in pairs] == [True, True, False]


def test_a_glob_that_matches_nothing_is_refused_with_a_suggestion() -> None:
    """A misspelt name does not silently train what should have been frozen."""
    with pytest.raises(
        StageError, match=r"freeze: 'boddy' matches no module and no parameter of Net; did you mean body"
    ):
        applied(FineTune(epochs=1, freeze=("boddy",)), Net().eval())
    with pytest.raises(StageError, match="nothing to train: all parameters of Net are frozen"):
        applied(FineTune(epochs=1, freeze=("body", "head*")), Net().eval())
    with pytest.raises(ValueError, match="freeze is a tuple of globs"):
        FineTune(freeze="body")
    with pytest.raises(ValueError, match="freeze is a tuple of globs"):
        Linear(freeze="body")


def test_recipes_name_what_is_frozen() -> None:
    """`freeze` is a list of globs in a recipe, in stages and in schedules."""
    recipe = Recipe.loads(
        "stages:\n"
        "  - prune_channels: {remove: 0.5, schedule: {linear: {freeze: ['body.*']}}}\n"
        "  - fine_tune: {freeze: [body]}\n"
    )
    assert recipe.stages[0].schedule.freeze == ("body.*",)
    assert recipe.stages[1].freeze == ("body",)


class Frozen(nn.Module):
    """Parts of every kind: a norm without parameters, a frozen recurrent layer, a frozen layer among others."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.recurrent = nn.LSTM(4, 4, batch_first=True)
        self.mixed = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
        self.recurrent.requires_grad_(requires_grad=False)
        self.mixed[1].requires_grad_(requires_grad=False)
        self.mixed[0].bias.requires_grad_(requires_grad=False)


@pytest.mark.parametrize("mode", [True, False])
def test_what_is_still_by_hand(mode: bool) -> None:  # noqa: FBT001
    """A norm without parameters is not frozen; a frozen norm is, and its neighbours, the dropout too, are not."""
    model = Frozen().train(mode)
    still = still_modules(model, model)
    assert list(still) == ["recurrent", "mixed.1"]
    assert frozen_names(model, still) == ("recurrent", "mixed.1", "mixed.0.bias")
    with freezing(model, ("norm",)):
        assert list(still_modules(model, model, ("norm",))) == ["norm", "recurrent", "mixed.1"]
    assert model.mixed[0].weight.requires_grad
    assert not model.mixed[0].bias.requires_grad
