"""Targets and schedules: what they refuse, and how much has gone after each step."""

import pytest

from compressor.errors import RecipeError
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.pruning.schedules import Cubic, Linear, OneShot, Steps
from compressor.recipe.recipe import Recipe
from compressor.stages import PruneChannels
from compressor.training.optimizers.choices import SGD


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Latency, "exactly one of both; got fraction=None and ms=None"),
        (lambda: Latency(0.5, ms=1.0), "exactly one of both"),
        (lambda: Latency(50), r"in \(0, 1\); got 50; did you mean 0.5\?"),
        (lambda: Latency(ms=0.0), "ms is the time of one call, above 0; got 0.0"),
        (lambda: Latency(0.5, form="int4"), "float32, int8; got 'int4'"),
        (lambda: Macs(1.0), "what is left of the reference's multiply-accumulates, in .0, 1.; got 1.0"),
        (lambda: Macs(0.5, efficiency=95), r"in \(0, 1\]; got 95; write Macs\(0.5, efficiency=0.95\)"),
        (lambda: Macs(0.5, efficiency=0.9, forms=("int4",)), "one or more of float32, int8; got .'int4',."),
        (lambda: Macs(0.5, forms="int8"), "forms is a tuple"),
        (lambda: Parameters(0.0), "parameters, in .0, 1.; got 0.0"),
    ],
)
def test_impossible_targets_are_refused(make, message: str) -> None:
    """Each says what was wanted and got."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "target",
    [
        Latency(0.5),
        Latency(ms=1.2, form="int8"),
        Macs(0.4),
        Macs(0.4, efficiency=0.9, forms=("int8",)),
        Parameters(0.3),
    ],
)
def test_targets_are_data(target) -> None:
    """A target's repr makes an equal one again."""
    assert eval(repr(target)) == target  # noqa: S307 - the target's own repr


def test_shares_by_hand() -> None:
    """Of four steps the second has taken 1/2 linearly, and 1 - (1/2)**3 = 7/8 by the cubic schedule."""
    assert OneShot().shares == (1.0,)
    assert Linear(steps=4).shares == (0.25, 0.5, 0.75, 1.0)
    assert Cubic(steps=4).shares == pytest.approx((37 / 64, 7 / 8, 63 / 64, 1.0))
    assert Steps(fractions=(0.7, 1.0)).shares == (0.7, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(steps=0), "at least 1; got 0"),
        (lambda: Cubic(epochs=0), "epochs"),
        (lambda: Linear(optimizer=SGD(rate=0.0)), "rate is the peak"),
        (lambda: Steps(fractions=(0.5, 0.4, 1.0)), "above 0, rising, the last one 1"),
        (lambda: Steps(fractions=(0.5,)), "the last one 1; got .0.5,."),
        (lambda: Steps(fractions=()), "got ()"),
    ],
)
def test_impossible_schedules_are_refused(make, message: str) -> None:
    """Each says what was wanted and got."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_lone_value_is_that_of_the_first_field() -> None:
    """`latency: 0.5` says what `latency: {fraction: 0.5}` says, and `steps: [0.5, 1.0]` gives the fractions."""
    text = "stages: [{prune_channels: {target: {latency: 0.5}, schedule: {steps: [0.5, 1.0]}}}]"
    (stage,) = Recipe.loads(text).stages
    assert stage == PruneChannels(target=Latency(0.5), schedule=Steps(fractions=(0.5, 1.0)))


def test_an_efficiency_is_written_in_a_recipe() -> None:
    """`macs: {fraction: 0.5, efficiency: 0.9, forms: [int8]}` is the target of the same words."""
    text = "stages: [{prune_channels: {target: {macs: {fraction: 0.5, efficiency: 0.9, forms: [int8]}}}}]"
    (stage,) = Recipe.loads(text).stages
    assert stage == PruneChannels(target=Macs(0.5, efficiency=0.9, forms=("int8",)))


def test_a_lone_value_of_the_wrong_kind_is_refused_at_its_place() -> None:
    """A word where a number belongs is an error that names its place."""
    with pytest.raises(RecipeError, match=r"target\.macs must be a number, got .half."):
        Recipe.loads("stages: [{prune_channels: {target: {macs: half}}}]")
