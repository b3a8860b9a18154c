"""Optimizers, rates and schedules as said: what is used is what the user wrote, or what a range test found."""

import copy
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.errors import RecipeError, StageError
from compressor.metrics import Metric
from compressor.recipe.recipe import Recipe
from compressor.stage import Context, stage_parameters
from compressor.stages import Distill, FineTune
from compressor.training.held_zeros import zeros_entry
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, OwnOptimizer
from compressor.training.optimizers.composition import suits_sgd
from compressor.training.optimizers.schedules import Constant, Cosine, Course, OneCycle
from compressor.training.passes.range_test import Found, batches_of_test, judged
from compressor.training.passes.rate_trials import PARTS, best_of, tries_rates
from compressor.training.settings import TrainingSettings
from compressor.training.snapshots import capture, read_snapshot
from compressor.workload import Workload, predict
from workbench.comparison import same_weights
from workbench.same_data import same_data

QUIET = Context(progress=False)
FLAT = {"schedule": Constant(), "weight_decay": 0.0, "clip": None}


def line(model: nn.Module, *, batch_size: int = 4, count: int = 16, data=None) -> Workload:
    """Regression on y = 2 x in one dimension, never shuffled."""
    x = torch.linspace(-1, 1, count).unsqueeze(1)
    data = Batches((x, 2 * x), batch_size=batch_size) if data is None else data
    return same_data(model, data, x[:2], loss=F.mse_loss, metric=Metric.mse())


def weight_of(model: nn.Linear) -> float:
    return model.weight.item()


def start(weight: float = 0.0) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, weight)
    return model


def told(context: Context) -> dict:
    return context.details["trainings"][-1]


class RMSNormOfSomebody(nn.Module):
    """A norm that is none of torch's: models bring their own."""


class OwnRMSNorm(RMSNormOfSomebody):
    """Named as such classes are."""


@pytest.mark.parametrize(
    ("model", "sgd", "says"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), True, "convolutions with BatchNorm"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 2)), True, "convolutions with BatchNorm"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)), False, "GroupNorm"),
        (nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3))), False, "convolutions without normalization"),
        (nn.Sequential(nn.BatchNorm2d(3), *(nn.Conv2d(3, 3, 3) for _ in range(3))), False, "without normalization"),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), False, "layers without convolution"),
        (nn.Linear(3, 4), False, "layers without normalization"),
        (nn.LSTM(3, 4), False, "recurrent layers"),
        (nn.GRUCell(3, 4), False, "recurrent layers"),
        (nn.TransformerEncoderLayer(8, 2, 16), False, "attention, LayerNorm"),
        (nn.Sequential(nn.Embedding(5, 4), nn.RMSNorm(4)), False, "embeddings, RMSNorm"),
        (nn.Sequential(nn.Linear(4, 4), OwnRMSNorm()), False, "RMSNorm"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4)), False, "LayerNorm"),
    ],
)
def test_what_a_network_is_made_of_decides_who_trains_it(model: nn.Module, sgd: bool, says: str) -> None:  # noqa: FBT001 - a table
    """SGD takes convolutions with BatchNorm and nothing else; the reason names what was found."""
    found, why = suits_sgd(model)
    assert found is sgd
    assert says in why


@pytest.mark.parametrize(
    ("optimizer", "moved"),
    [
        # The gradient of the mean of (w x - 2 x)^2 at w = 0 is -4 mean(x^2).
        (SGD(rate=0.01, momentum=0.0), lambda square: 0.01 * 4 * square),
        # Nesterov: the first step is (1 + momentum) times the gradient's.
        (SGD(rate=0.01, momentum=0.5), lambda square: 0.01 * 1.5 * 4 * square),
        # AdamW's first step is its rate, whatever the gradient.
        (AdamW(rate=0.01), lambda _square: 0.01),
    ],
)
def test_the_rate_that_is_written_is_used(optimizer, moved) -> None:
    """One update moves the weight as the formula says with this very number, and the report names both."""
    model, context = start(), Context(progress=False)
    x = torch.linspace(-1, 1, 16)
    train(model, line(model, batch_size=16), TrainingSettings(optimizer=optimizer, **FLAT), context=context)
    assert weight_of(model) == pytest.approx(moved(float(x.square().mean())), rel=1e-4)
    assert told(context)["rate"] == 0.01
    assert told(context)["optimizer"] == str(optimizer)
    assert told(context)["rate_from"] == "asked for"


def test_schedules_are_the_curves_that_they_say() -> None:
    """Values by hand at the start, in the warm-up, in the middle and at the end."""
    assert [Cosine().fraction(at) for at in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [Constant().fraction(at) for at in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    warm = Constant(warm_up=0.5)
    assert [warm.fraction(at) for at in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.04, 0.52, 1.0, 1.0])
    assert Cosine(warm_up=0.2).fraction(0.6) == pytest.approx(0.5)
    assert OneCycle(warm_up=0.0).fraction(0.0) == 1.0
    course = Course(schedule=Constant(), updates=2)
    assert [course.fraction(update) for update in range(4)] == [1.0, 1.0, 0.01, 0.01]
    assert course.length(2) == pytest.approx(2.02)


@pytest.mark.parametrize(
    ("optimizer", "epochs", "schedule", "peak", "tail"),
    [
        (SGD(rate=1e-3), 4, OneCycle(), 5, True),  # 0.3 of 16 updates
        (AdamW(rate=1e-3), 4, OneCycle(), 2, False),  # 0.1 of 20 updates, the tail among them
        (AdamW(rate=1e-3), 4, OneCycle(warm_up=0.3), 5, True),  # what is asked for stays
        (AdamW(rate=1e-3), 64, OneCycle(), 77, True),  # 0.3 of 256 updates: 260 in all are not short
    ],
)
def test_short_trainings_by_adamw_rise_sooner(optimizer, epochs, schedule, peak: int, *, tail: bool) -> None:
    """Where the rate is highest, counted by hand, and whether an epoch at a hundredth of it follows."""
    model, made = start(), []
    settings = TrainingSettings(epochs=epochs, tail_epochs=1, optimizer=optimizer, schedule=schedule)
    train(model, line(model), settings, context=QUIET, after_step=made.append)
    assert made.index(max(made)) == peak
    assert (made[-4:] == pytest.approx([0.01] * 4)) == tail
    assert made[-1] == pytest.approx(0.01)


@pytest.mark.parametrize(("steps", "rounds"), [(3, 1), (4, 1), (5, 2), (8, 2), (9, 3)])
def test_steps_take_the_place_of_epochs(steps: int, rounds: int) -> None:
    """Four batches a pass: so many updates are made, and the passes that they need are the epochs of the log."""
    model, made = start(), []
    settings = TrainingSettings(steps=steps, epochs=7, tail_epochs=3, optimizer=SGD(rate=0.01))
    logs = train(model, line(model), settings, context=QUIET, after_step=made.append)
    assert len(made) == steps
    assert len(logs) == rounds
    assert made[-1] == pytest.approx(0.01 if steps > 1 else 0.04)


class Endless:
    """Batches without an end and without a length, drawn at random."""

    def __iter__(self):
        while True:
            x = torch.randn(4, 1)
            yield x, 2 * x


def endless(model: nn.Module) -> Workload:
    workload = line(model)
    object.__setattr__(workload, "train", Endless())
    return workload


def test_data_without_an_end_are_trained_on_for_so_many_steps(tmp_path: Path, monkeypatch) -> None:
    """Thirty updates on a stream in ten rounds, each of them on new data; killed in the middle, to the same bits."""
    monkeypatch.setattr("compressor.training.streams.LONGEST", 100)
    seen: list[float] = []

    def objective(model: nn.Module, inputs: Tensor, targets: Tensor, _position) -> Tensor:
        seen.append(float(inputs.sum()))
        if len(seen) == dies_at:
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    settings = TrainingSettings(steps=30, optimizer=SGD(rate=0.01))
    steady, resumed, dies_at = start(), start(), 0
    logs = train(steady, endless(steady), settings, context=QUIET, objective=objective)
    assert len(logs) == 10
    assert len(set(seen)) == 30
    seen.clear()
    dies_at, context = 17, Context(progress=False, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(start(), endless(resumed), settings, context=context, objective=objective)
    dies_at = 0
    train(resumed, endless(resumed), settings, context=context, objective=objective)
    assert weight_of(resumed) == weight_of(steady)


def test_data_that_end_without_saying_so_begin_again() -> None:
    """Five batches and no length: seven steps read them all, and two of them twice."""

    class Short:
        def __iter__(self):
            for number in range(5):
                x = torch.full((4, 1), float(number))
                yield x, 2 * x

    seen: list[float] = []

    def objective(model: nn.Module, inputs: Tensor, targets: Tensor, _position) -> Tensor:
        seen.append(float(inputs[0]))
        return F.mse_loss(predict(model, inputs), targets)

    model = start()
    workload = line(model)
    object.__setattr__(workload, "train", Short())
    train(model, workload, TrainingSettings(steps=7, optimizer=SGD(rate=0.01)), context=QUIET, objective=objective)
    assert seen == [0, 1, 2, 3, 4, 0, 1]


def test_data_without_an_end_need_steps(monkeypatch) -> None:
    """Epochs of a stream that does not end are refused, and the way out is named."""
    monkeypatch.setattr("compressor.training.streams.LONGEST", 100)
    model = start()
    with pytest.raises(StageError, match="set steps="):
        train(model, endless(model), TrainingSettings(epochs=2), context=QUIET)


@pytest.mark.parametrize(("batch_size", "accumulate", "count"), [(4, 4, 16), (5, 4, 16), (4, 3, 16)])
def test_accumulated_batches_are_one_large_batch(batch_size: int, accumulate: int, count: int) -> None:
    """Batches of 4, or of 5, 5, 5 and 1, give the update of all their samples; what is left over gives one as well."""
    model, whole, made = start(), start(), []
    settings = TrainingSettings(optimizer=SGD(rate=0.01, momentum=0.0), accumulate=accumulate, **FLAT)
    train(model, line(model, batch_size=batch_size, count=count), settings, context=QUIET, after_step=made.append)
    x = torch.linspace(-1, 1, count).unsqueeze(1)
    parts = [x] if accumulate == 4 else [x[:12], x[12:]]
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.01)
    for part in parts:
        optimizer.zero_grad()
        F.mse_loss(whole(part), 2 * part).backward()
        optimizer.step()
    assert len(made) == len(parts)
    assert weight_of(model) == pytest.approx(weight_of(whole), rel=1e-5)


@pytest.mark.parametrize(("clip", "moved"), [(0.5, 0.1 * 0.5), (None, 0.1 * 4.0), (100.0, 0.1 * 4.0)])
def test_gradients_are_clipped_as_said(clip: float | None, moved: float) -> None:
    """A gradient of -4 is shortened to the norm that is set, and to none where none is."""
    model = start()
    x = torch.ones(4, 1)
    data = Batches((x, 2 * x), batch_size=4)
    settings = TrainingSettings(optimizer=SGD(rate=0.1, momentum=0.0), **{**FLAT, "clip": clip})
    train(model, line(model, data=data), settings, context=QUIET)
    assert weight_of(model) == pytest.approx(moved, rel=1e-4)


def two_layers() -> nn.Sequential:
    return nn.Sequential(start(1.0), start(1.0))


def test_layers_learn_at_their_part_of_the_rate() -> None:
    """Both layers have the same gradient; the one that a glob names moves a tenth as far. The last glob counts."""
    model = two_layers()
    settings = TrainingSettings(optimizer=SGD(rate=1e-3, momentum=0.0), layer_rates=(("*", 0.5), ("0", 0.05)), **FLAT)
    train(model, line(model, batch_size=16), settings, context=QUIET)
    first, second = (weight_of(layer) - 1 for layer in model)
    assert first == pytest.approx(second / 10, rel=1e-2)
    with pytest.raises(StageError, match=r"layer_rates: 'body\.\*' matches no module"):
        train(model, line(model), TrainingSettings(layer_rates=(("body.*", 0.1),)), context=QUIET)


class Tied(nn.Module):
    """Two layers of one weight, that go by other names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = start(1.0), start(1.0)
        self.head.weight = self.table.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.table(inputs))


@pytest.mark.parametrize("rates", [(("head", 0.1),), (("table", 0.1),), (("table", 3.0), ("head.weight", 0.1))])
def test_a_shared_weight_learns_at_the_part_of_either_name(rates) -> None:
    """It has the rate that a glob gives to any of its layers, of several the last; alone it moves ten times as far."""
    plain, model = Tied(), Tied()
    for trained, parts in ((plain, ()), (model, rates)):
        settings = TrainingSettings(optimizer=SGD(rate=1e-4, momentum=0.0), layer_rates=parts, **FLAT)
        train(trained, line(trained, batch_size=16), settings, context=QUIET)
    assert model.head.weight is model.table.weight
    assert weight_of(model.head) - 1 == pytest.approx((weight_of(plain.head) - 1) / 10, rel=1e-2)


def test_an_average_is_kept_where_it_is_better(tmp_path: Path) -> None:
    """Weights that jump over the minimum and back average near it: that state is kept, its score is the epoch's."""
    model, plain = start(), start()
    x = torch.ones(4, 1)
    data = Batches((x, 2 * x), batch_size=1)
    small = TrainingSettings(
        epochs=4, optimizer=SGD(rate=0.95, momentum=0.0), averaging=0.9, schedule=Constant(), weight_decay=0.0
    )
    logs = train(model, line(model, data=data), small, context=QUIET)
    # By hand: w' = w - 0.95 * 2 (w - 2), and the average of what comes of it.
    weight, average, scores = 0.0, 0.0, []
    for update in range(1, 17):
        weight -= 0.95 * max(-5.0, min(5.0, 2 * (weight - 2)))
        keep = min(0.9, (1 + update) / (10 + update))
        average = keep * average + (1 - keep) * weight
        if update % 4 == 0:
            scores.append(min((weight - 2) ** 2, (average - 2) ** 2))
    assert [log.score for log in logs] == pytest.approx(scores, rel=1e-3)
    assert (weight_of(model) - 2) ** 2 == pytest.approx(min(scores), rel=1e-3)
    train(plain, line(plain, data=data), TrainingSettings(**{**vars(small), "averaging": None}), context=QUIET)
    assert abs(weight_of(model) - 2) < abs(weight_of(plain) - 2)
    # Killed after two epochs, the average goes on as well.
    resumed, context, epochs = start(), Context(progress=False, folder=tmp_path), []

    def dying(model: nn.Module, inputs: Tensor, targets: Tensor, position) -> Tensor:
        if position.view == 2 and not epochs:
            epochs.append(position)
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    with pytest.raises(KeyboardInterrupt):
        train(start(), line(resumed, data=data), small, context=context, objective=dying)
    train(resumed, line(resumed, data=data), small, context=context, objective=dying)
    assert weight_of(resumed) == weight_of(model)


def test_training_ends_where_it_gets_no_better() -> None:
    """Two epochs without a better score after the first end the training; one that goes on learning is not ended."""
    model = start(2.0)
    # At the minimum already: every epoch has the score of the first, and equal is no better.
    settings = TrainingSettings(epochs=9, optimizer=SGD(rate=0.01), patience=2, weight_decay=0.0)
    logs = train(model, line(model), settings, context=QUIET)
    assert [log.epoch for log in logs] == [0, 1, 2]
    learning = start(0.0)
    assert len(train(learning, line(learning), settings, context=QUIET)) == 9


def adagrad(groups: list) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(groups)


class Counting(torch.optim.SGD):
    """Keeps a number beside its tensors, as optimizers of one's own do."""

    def step(self, closure=None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["calls"] = self.state[parameter].get("calls", 0) + 1


class Sharp(torch.optim.SGD):
    """Computes the loss again inside of its step, as sharpness-aware ones do."""

    def step(self, closure) -> None:
        closure()
        super().step()


class Backtracking(torch.optim.SGD):
    """Is told the loss by name."""

    def step(self, closure=None, *, loss) -> None:
        super().step(closure)


def test_an_optimizer_of_ones_own_trains_and_resumes(tmp_path: Path) -> None:
    """A factory gets groups with rates; what it keeps, numbers too, goes on to the same bits."""
    settings = TrainingSettings(
        epochs=3, optimizer=OwnOptimizer(factory=lambda groups: Counting(groups, momentum=0.5), rate=0.05)
    )
    steady, resumed, died = start(), start(), []

    def dying(model: nn.Module, inputs: Tensor, targets: Tensor, position) -> Tensor:
        if position.view == 2 and not died:
            died.append(position)
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    train(steady, line(steady), settings, context=QUIET)
    assert abs(weight_of(steady) - 2) < 1.5
    context = Context(progress=False, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(start(), line(resumed), settings, context=context, objective=dying)
    _, facts = read_snapshot(tmp_path / "training.safetensors")
    assert facts["optimizer"] == {"0.calls": 8}
    train(resumed, line(resumed), settings, context=context, objective=dying)
    assert weight_of(resumed) == weight_of(steady)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (torch.optim.SGD, "asked for"),
        (lambda groups: torch.optim.SGD([own for group in groups for own in group["params"]], lr=0.2), "takes 0.2 in"),
        (
            lambda groups: torch.optim.SGD([{**group, "lr": 0.3 - group["lr"]} for group in groups]),
            "takes 0.25, 0.275 in",
        ),
    ],
)
def test_rates_that_a_factory_takes_by_itself_are_told(make, says: str) -> None:
    """The report says of the rate that was asked for where it is not the one that was used."""
    model, context = two_layers(), Context(progress=False)
    settings = TrainingSettings(optimizer=OwnOptimizer(factory=make, rate=0.05), layer_rates=(("1", 0.5),))
    train(model, line(model), settings, context=context)
    rate_from = told(context)["rate_from"]
    assert rate_from == (says if says == "asked for" else f"asked for; its factory {says} its place")


class Slowing(torch.optim.SGD):
    """Counts its steps, and what it makes of them, in each group of parameters, as those without a schedule do."""

    def __init__(self, groups: list, *, as_tensor: bool, known: bool) -> None:
        super().__init__(groups, lr=0.05)
        if known:  # as defaults of its own
            self.defaults["count"] = self._number(0, as_tensor=as_tensor)
        for group in self.param_groups:
            group["count"] = self._number(0, as_tensor=as_tensor)
            group["speed"] = 1.0

    @staticmethod
    def _number(value: int, *, as_tensor: bool) -> Any:
        return torch.tensor(value) if as_tensor else value

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            group["count"] = group["count"] + 1
            group["speed"] = 1 / float(group["count"])
            for parameter in group["params"]:
                parameter.sub_(parameter.grad, alpha=group["lr"] * group["speed"])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_what_an_optimizer_keeps_in_its_groups_goes_on(as_tensor: bool, known: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A killed training takes as many smaller steps as one that was not."""
    settings = TrainingSettings(
        epochs=3,
        optimizer=OwnOptimizer(factory=lambda groups: Slowing(groups, as_tensor=as_tensor, known=known), rate=0.05),
        layer_rates=(("1", 0.5),),
    )
    steady, resumed, died = two_layers(), two_layers(), []

    def dying(model: nn.Module, inputs: Tensor, targets: Tensor, position) -> Tensor:
        if position.view == 2 and not died:
            died.append(position)
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    train(steady, line(steady), settings, context=QUIET)
    context = Context(progress=False, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(two_layers(), line(resumed), settings, context=context, objective=dying)
    train(resumed, line(resumed), settings, context=context, objective=dying)
    assert [weight_of(layer) for layer in resumed] == [weight_of(layer) for layer in steady]


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        (lambda groups: groups, "must return a torch.optim.Optimizer, it returned list"),
        (lambda groups: torch.optim.LBFGS(groups[0]["params"]), "LBFGS, whose steps need a closure"),
        (Sharp, "Sharp, whose steps need a closure"),
        (Backtracking, "Backtracking, whose steps need a closure"),
        (lambda groups: torch.optim.SGD(groups[:1]), "must take all parameters"),
        ("no_such_module_anywhere:make", "no module 'no_such_module_anywhere'"),
        ("math:no_such_function", "math has no function 'no_such_function'"),
    ],
)
def test_factories_that_cannot_train_are_refused(factory, says: str) -> None:
    """The sentence names what came back, and what was wanted."""
    model = nn.Linear(1, 1)
    with pytest.raises(StageError, match=says):
        train(model, line(model), TrainingSettings(optimizer=OwnOptimizer(factory=factory, rate=0.1)), context=QUIET)


class Asserting(torch.optim.SGD):
    """Takes a closure by its signature, and cannot do without one, as SAM does."""

    def step(self, closure=None) -> None:
        assert closure is not None, "requires closure, but it was not provided"


class Calling(torch.optim.SGD):
    """The same without a word."""

    def step(self, closure=None) -> None:
        closure()


class Announced(torch.optim.SGD):
    """Wants another call before its steps."""

    def step(self, closure=None) -> None:
        raise RuntimeError("call first_step() before step()")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Asserting, "Asserting, .* does not step: requires closure, but it was not provided; take one whose steps"),
        (Calling, "Calling, .* does not step: 'NoneType' object is not callable; take one whose steps need no closure"),
        (Announced, r"Announced, .* does not step: call first_step\(\) before step\(\); take one"),
    ],
)
def test_an_optimizer_that_does_not_step_is_refused_at_its_first_batch(kind: Any, says: str) -> None:
    """What its signature does not tell is said by name, with the way out."""
    model = nn.Linear(1, 1)
    with pytest.raises(StageError, match=says):
        train(model, line(model), TrainingSettings(optimizer=OwnOptimizer(factory=kind, rate=0.1)), context=QUIET)


class ScheduleFree(torch.optim.Optimizer):
    """Steps at z, learns at y = 0.1 z + 0.9 x, and ends with x, the mean of all z (Defazio et al. 2024, eq. 3 to 5)."""

    def __init__(self, groups: list) -> None:
        super().__init__(groups, {"learns": False, "count": 0})

    def train(self) -> None:
        self._turn(learns=True, weight=0.1)

    def eval(self) -> None:
        self._turn(learns=False, weight=1 - 1 / 0.9)

    @torch.no_grad()
    def _turn(self, *, learns: bool, weight: float) -> None:
        for group in self.param_groups:
            for own in group["params"]:
                if group["learns"] != learns and self.state[own]:
                    own.lerp_(self.state[own]["z"], weight)
            group["learns"] = learns

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            assert group["learns"], "not in train mode"
            group["count"] += 1
            for own in group["params"]:
                state = self.state[own]
                z = state.setdefault("z", own.clone())
                x = own.lerp(z, 1 - 1 / 0.9)
                z.sub_(own.grad, alpha=group["lr"])
                own.copy_(x.lerp_(z, 1 / group["count"]).lerp_(z, 0.1))


def test_an_optimizer_that_learns_with_other_weights_is_told_when_it_does(tmp_path: Path) -> None:
    """The model that is judged and kept is the mean x, as a loop by hand has it; a killed training ends alike."""
    settings = TrainingSettings(
        epochs=3, optimizer=OwnOptimizer(factory=ScheduleFree, rate=0.05), schedule=Constant(), clip=None
    )
    by_hand, steady = start(), start()
    z, x = ([own.detach().clone() for own in by_hand.parameters()] for _ in range(2))
    batches = list(line(by_hand).train)
    for count in range(1, 3 * len(batches) + 1):
        inputs, targets = batches[(count - 1) % len(batches)]
        with torch.no_grad():
            for own, one, mean in zip(by_hand.parameters(), z, x, strict=True):
                own.copy_(0.1 * one + 0.9 * mean)
        gradients = torch.autograd.grad(F.mse_loss(by_hand(inputs), targets), list(by_hand.parameters()))
        z = [one - 0.05 * gradient for one, gradient in zip(z, gradients, strict=True)]
        x = [mean + (one - mean) / count for one, mean in zip(z, x, strict=True)]
    train(steady, line(steady), settings, context=QUIET, keep_last=True)
    for own, mean in zip(steady.parameters(), x, strict=True):
        torch.testing.assert_close(own.detach(), mean, rtol=1e-4, atol=1e-5)
    died, resumed, context = [], start(), Context(progress=False, folder=tmp_path)

    def dying(model: nn.Module, inputs: Tensor, targets: Tensor, position) -> Tensor:
        if position.view == 2 and not died:
            died.append(position)
            raise KeyboardInterrupt
        return F.mse_loss(predict(model, inputs), targets)

    with pytest.raises(KeyboardInterrupt):
        train(start(), line(resumed), settings, context=context, objective=dying, keep_last=True)
    train(resumed, line(resumed), settings, context=context, objective=dying, keep_last=True)
    assert weight_of(resumed) == weight_of(steady)


class Drifting(ScheduleFree):
    """Ends an epoch with weights that are none of those it stepped to."""

    @torch.no_grad()
    def eval(self) -> None:
        super().eval()
        for group in self.param_groups:
            for own in group["params"]:
                own.add_(0.01)


@pytest.mark.parametrize("kind", [ScheduleFree, Drifting])
def test_zeros_stay_zero_where_the_weights_that_learn_are_others(kind: Any) -> None:
    """What the plan holds is zero in what is kept, too, whatever the optimizer makes of it at the end of an epoch."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight[0, 1] = 0.0
    data = Batches((torch.randn(16, 4), torch.randn(16, 1)), batch_size=4)
    workload = same_data(copy.deepcopy(model), data, torch.randn(2, 4), loss=F.mse_loss, metric=Metric.mse())
    context = Context(progress=False, plan_before=(zeros_entry(["weight"]),))
    settings = TrainingSettings(optimizer=OwnOptimizer(factory=kind, rate=0.05))
    train(model, workload, settings, context=context, keep_last=True)
    assert (model.weight == 0).tolist() == [[False, True, False, False]]


def test_a_recipe_names_a_factory_in_a_file(tmp_path: Path, monkeypatch) -> None:
    """`module:function` is found in the current folder; the recipe and the report hold the name."""
    (tmp_path / "my_optimizers_here.py").write_text(
        "import torch\ndef make(groups):\n    return torch.optim.Adagrad(groups)\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipe = Recipe.loads(
        "stages:\n  - fine_tune: {optimizer: {own_optimizer: {factory: 'my_optimizers_here:make', rate: 0.5}}}\n"
    )
    (stage,) = recipe.stages
    assert stage.optimizer == OwnOptimizer(factory="my_optimizers_here:make", rate=0.5)
    model, context = start(), Context(progress=False)
    stage.apply(model, line(model), context)
    assert told(context)["optimizer"] == "the optimizer of my_optimizers_here:make"
    assert weight_of(model) > 1
    own = stage_parameters(FineTune(optimizer=OwnOptimizer(factory=adagrad, rate=0.5)))["optimizer"]
    assert own["own_optimizer"]["factory"].endswith(":adagrad")
    by_path = FineTune(optimizer=OwnOptimizer(factory="my_optimizers_here.py:make", rate=0.5))
    with pytest.raises(StageError, match=r"did you mean 'my_optimizers_here:make'\?"):
        by_path.apply(model, line(model), context)


def test_the_old_key_tells_the_new_form() -> None:
    """A recipe with learning_rate is refused with what to write in its place."""
    with pytest.raises(RecipeError, match=r"optimizer: \{sgd: \{rate: 0\.05\}\}"):
        Recipe.loads("stages:\n  - distill: {learning_rate: 0.05}\n")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "steps counts the updates"),
        ({"optimizer": "sgd"}, r"optimizer is AutoOptimizer\(\), SGD"),
        ({"schedule": "cosine"}, r"schedule is OneCycle\(\), Cosine"),
        ({"layer_rates": (("a", 0.0),)}, "the factor of 'a', above 0"),
        ({"layer_rates": ("a", 0.1)}, "layer_rates are pairs"),
        ({"clip": 0.0}, "clip is the largest norm"),
        ({"accumulate": 0}, "accumulate counts the batches"),
        ({"averaging": 1.0}, r"averaging is what an average keeps in an update, in \(0, 1\)"),
        ({"patience": 0}, "patience counts the epochs"),
    ],
)
def test_settings_that_describe_no_training_are_refused(change, says: str) -> None:
    """Every stage that trains refuses them when it is made."""
    for kind in (TrainingSettings, FineTune, Distill):
        with pytest.raises(ValueError, match=says):
            kind(**change)


@pytest.mark.parametrize("make", [lambda: SGD(rate=0.0), lambda: AdamW(rate=math.nan), lambda: SGD(rate=-1)])
def test_rates_are_positive(make) -> None:
    """Zero, NaN and negative rates are refused where they are written."""
    with pytest.raises(ValueError, match="rate is the peak of the schedule, above 0"):
        make()


RATES = [10.0**power for power in range(-4, 2)]


@pytest.mark.parametrize(
    ("after", "rate"),
    [
        # Falls up to 0.1, averaged over three, and is above where it was from 1: midway lies their geometric mean.
        ([1.0, 0.99, 0.9, 0.6, 0.5, 3.0], 10**-0.5),
        # A single lucky batch among worse ones is not believed.
        ([1.0, 0.9, 0.8, 0.95, 0.3, 9.0], 10**-0.5),
        # Nothing to learn: a third of the rate from which harm is done, here 1 (of three, one above is harm).
        ([1.0, 1.0, 1.0, 1.0, 1.0, 2.0], 1.0 / 3),
        # Infinite from the fourth on.
        ([1.0, 0.95, 0.8], 1e-2),
    ],
)
def test_a_range_test_is_read_by_what_learning_changed(after: list[float], rate: float) -> None:
    """What counts are the losses against those of the same batches before any learning."""
    found, _ = judged(RATES, [1.0] * len(RATES), after)
    assert found == pytest.approx(rate)


def test_a_range_test_without_numbers_finds_nothing() -> None:
    """No finite losses: None, so that a usual rate is taken and the training says what is wrong itself."""
    assert judged(RATES, [1.0] * 6, [])[0] is None
    assert judged(RATES, [math.nan] * 6, [1.0] * 6)[0] is None


def test_a_range_test_is_a_small_part_of_a_training() -> None:
    """None below 24 updates, at least 16 batches, an eighth of the training, never more than 48."""
    assert [batches_of_test(updates) for updates in (1, 23, 24, 160, 320, 10**6)] == [0, 0, 16, 20, 40, 48]


def noisy_classes(model: nn.Module) -> Workload:
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (192,), generator=generator)
    inputs = torch.randn(192, 6, generator=generator) + F.one_hot(targets, 6) * 2.0
    return same_data(model, Batches((inputs, targets), batch_size=8, shuffle=True), inputs[:2])


def mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3))


def test_what_is_found_is_told_and_used_again(tmp_path: Path) -> None:
    """AdamW's rate is found the same way twice; a resumed training takes it from the snapshot without a test."""
    calls, runs = [], []

    def objective(model: nn.Module, inputs: Tensor, targets: Tensor, position) -> Tensor:
        calls.append(position)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return F.cross_entropy(predict(model, inputs), targets)

    settings, dies_at = TrainingSettings(epochs=3), 0
    for _ in range(2):
        model, context = mlp(), Context(progress=False)
        workload = noisy_classes(model)
        train(model, workload, settings, context=context, objective=objective)
        runs.append((model, told(context)))
    (first, said), (second, again) = runs
    assert said == again
    assert same_weights(first, second)
    assert "range test of 16 batches" in said["rate_from"]
    assert 3e-5 < said["rate"] <= 0.1
    assert len(calls) == 2 * (2 * 16 + 3 * 72 + 72)
    # Killed in the second epoch: after 32 of the test, three trials of 72, 24 of the first epoch, and some more.
    calls.clear()
    dies_at, context = 32 + 216 + 28, Context(progress=False, folder=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(mlp(), noisy_classes(mlp()), settings, context=context, objective=objective)
    calls.clear()
    dies_at, resumed, context = 0, mlp(), Context(progress=False, folder=tmp_path)
    train(resumed, noisy_classes(resumed), settings, context=context, objective=objective)
    assert len(calls) == 2 * 24
    assert told(context)["rate"] == said["rate"]
    assert same_weights(resumed, first)


def test_a_range_test_leaves_nothing_behind() -> None:
    """Weights, BatchNorm statistics and random numbers are as if there had been no test."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(16, 3)
        )
    found, by_hand, context = copy.deepcopy(model), copy.deepcopy(model), Context(progress=False)
    train(found, noisy_classes(model), TrainingSettings(epochs=2), context=context)
    assert told(context)["optimizer"] == "SGD with Nesterov momentum"
    rate = told(context)["rate"]
    train(by_hand, noisy_classes(model), TrainingSettings(epochs=2, optimizer=SGD(rate=rate)), context=QUIET)
    assert same_weights(found, by_hand)


class Scripted:
    """Scores of trainings by the rates that they are tried at, which it remembers."""

    def __init__(self, *scores: float | None) -> None:
        self.scores, self.rates = list(scores), []

    def __call__(self, optimizer: Any) -> float | None:
        self.rates.append(optimizer.rate)
        return self.scores[len(self.rates) - 1]


@pytest.mark.parametrize(
    ("metric", "scores", "rate"),
    [
        (Metric.accuracy(), (0.7, 0.9, 0.8), 0.3),
        (Metric.mse(), (0.7, 0.9, 0.8), 0.9),
        (Metric.mse(), (0.7, 0.6, 0.5), 0.1),
        # Of equals the first, and one that does not converge is none.
        (Metric.accuracy(), (0.5, 0.9, 0.9), 0.3),
        (Metric.accuracy(), (0.9, 0.9, 0.9), 0.9),
        (Metric.mse(), (None, 0.9, 0.8), 0.1),
        (Metric.accuracy(), (None, None, None), 0.9),
    ],
)
def test_the_best_of_three_rates_by_validation_is_taken(metric: Metric, scores: Any, rate: float) -> None:
    """What was found, a third and a ninth of it are tried, once each; the words name all three."""
    tried = Scripted(*scores)
    found = best_of(Found(optimizer=AdamW(rate=0.9, betas=(0.8, 0.9)), why="so"), tried, metric)
    assert tried.rates == pytest.approx([0.9, 0.3, 0.1])
    assert found.optimizer.rate == pytest.approx(rate)
    assert found.optimizer.betas == (0.8, 0.9)
    if any(score is not None for score in scores):
        assert found.why.startswith("so; the whole training was tried on copies")
        assert "0.1 gives" in found.why


def test_trials_are_for_short_trainings_that_find_their_rate() -> None:
    """None below 24 updates, nor above 256, nor where the user names the rate."""
    assert [tries_rates(TrainingSettings(), updates) for updates in (23, 24, 256, 257)] == [False, True, True, False]
    assert not tries_rates(TrainingSettings(optimizer=AdamW(rate=1e-3)), 100)


class LearnsByHeart(nn.Module):
    """Sums its inputs by weights of which the first alone says something; many more fit noise."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(24, 96), nn.Linear(96, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


def few_samples(model: nn.Module) -> Workload:
    """48 samples to learn from, a third of their labels wrong, and 600 to be judged by."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(648, 24, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    noisy = torch.where(torch.rand(48, generator=generator) < 0.3, 1 - targets[:48], targets[:48])
    learned, judged_by = Batches((inputs[:48], noisy), batch_size=8), Batches((inputs[48:], targets[48:]))
    return replace(same_data(model, learned, inputs[:2]), validation=judged_by, test=judged_by)


def test_few_samples_are_not_learned_by_heart() -> None:
    """The rate that lowers the training loss fastest is not taken where a lower one is better on validation.

    Each of the three scores is that of the training at this rate by itself.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LearnsByHeart()
    workload, context = few_samples(model), Context(progress=False)
    with torch.no_grad():
        # What pruning leaves of a trained network: right, and not by much.
        model.up.weight.mul_(0.3)
        model.up.weight[0], model.up.weight[1] = torch.eye(24)[0], -torch.eye(24)[0]
        model.down.weight.mul_(0.1)
        model.down.weight[:, 0], model.down.weight[:, 1] = torch.tensor([-0.3, 0.3]), torch.tensor([0.3, -0.3])
    settings = TrainingSettings(epochs=8)
    trained = copy.deepcopy(model)
    logs = train(trained, workload, settings, context=context)
    said = told(context)
    found = float(said["rate_from"].split("(accuracy) ")[1].split(" gives")[0])
    assert said["rate"] < 0.5 * found
    own = {}
    for part in PARTS:
        at = replace(settings, optimizer=AdamW(rate=3 * said["rate"] * part))
        own[part] = max(log.score for log in train(copy.deepcopy(model), workload, at, context=QUIET))
    assert max(log.score for log in logs) == own[1 / 3]


def test_a_training_for_zeros_is_not_chosen_by_its_score() -> None:
    """What keeps its last epoch aims at what no score sees: no trials, and the rate of the range test."""
    model, context = mlp(), Context(progress=False)
    train(model, noisy_classes(model), TrainingSettings(epochs=2), context=context, keep_last=True)
    assert "range test" in told(context)["rate_from"]
    assert "tried" not in told(context)["rate_from"]


def test_short_trainings_take_a_usual_rate() -> None:
    """Four updates: a test would cost more than the training, and the report says so."""
    model, context = start(), Context(progress=False)
    train(model, line(model), TrainingSettings(), context=context)
    assert told(context)["rate"] == 1e-3
    assert "too few updates" in told(context)["rate_from"]


@pytest.mark.parametrize("stage", [FineTune(epochs=3), Distill(epochs=3)], ids=["fine_tune", "distill"])
@pytest.mark.parametrize("norm", [lambda: nn.GroupNorm(2, 8), nn.Identity], ids=["GroupNorm", "no norm"])
def test_networks_without_batch_norm_are_not_wrecked(stage, norm) -> None:
    """A trained network, trained on by defaults, has lost nothing on its data: no rate of another family is taken."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(4, (256,), generator=generator)
    images = torch.randn(256, 1, 6, 6, generator=generator)
    images += torch.eye(4)[targets].repeat_interleave(9, dim=1).view(-1, 1, 6, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 8, 3), norm(), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _, rows in itertools.product(range(12), torch.arange(256).split(32)):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), targets[rows]).backward()
            optimizer.step()
    workload = same_data(model.eval(), Batches((images, targets), batch_size=32, shuffle=True), images[:2])
    context = Context(progress=False)
    before = capture(model)
    trained = stage.apply(copy.deepcopy(model), workload, context).eval()
    with torch.no_grad():
        losses = [float(F.cross_entropy(each(images), targets)) for each in (model, trained)]
    assert losses[1] < 1.05 * losses[0]
    assert told(context)["optimizer"] == "AdamW"
    assert not told(context)["failed"]
    assert all(torch.equal(before[name], tensor) for name, tensor in capture(model).items())


def test_settings_are_in_the_identity_of_a_snapshot(tmp_path: Path, capsys) -> None:
    """Another optimizer, schedule or clip is another training: its snapshot is not gone on with, and why is told."""
    for change in (
        {},
        {"optimizer": SGD(rate=0.02)},
        {"schedule": Cosine()},
        {"clip": 1.0},
        {"averaging": 0.9},
        {"optimizer": AutoOptimizer()},
    ):
        model = start()
        settings = TrainingSettings(**{"optimizer": SGD(rate=0.01), **change})
        train(model, line(model), settings, context=Context(folder=tmp_path))
        assert ("is of another training" in capsys.readouterr().err) is bool(change)
