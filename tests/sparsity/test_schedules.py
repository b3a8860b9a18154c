"""The polynomial decay of Zhu and Gupta, by hand."""

import pytest

from compressor.errors import StageError
from compressor.sparsity.schedules import Polynomial, polynomial_decay


def test_the_decay_by_hand() -> None:
    """From 0.5 to 0.9 over 1000 steps with power 3: half of the way leaves an eighth of the difference."""
    decay = [polynomial_decay(step, 0.5, 0.9, begin=0, end=1000, power=3) for step in (0, 500, 1000)]
    assert decay == pytest.approx([0.5, 0.9 - 0.4 / 8, 0.9])


def test_zeros_are_chosen_from_begin_to_end() -> None:
    """Every 4 steps from 2 to 12, the last time at 12 itself, at the sparsities of the formula; linear for power 1."""
    schedule = Polynomial(initial=0.2, begin=2, end=12, frequency=4, power=1, epochs=3, tail_epochs=0)
    assert schedule.sparsities(0.7, batches=5) == pytest.approx({2: 0.2, 6: 0.4, 10: 0.6, 12: 0.7})


def test_without_an_end_a_third_of_the_training_recovers() -> None:
    """Of 6 epochs of 10 steps, 40 steps prune, and the last choice is the final sparsity."""
    sparsities = Polynomial(epochs=5, tail_epochs=1).sparsities(0.8, batches=10)
    assert max(sparsities) == 40
    assert sparsities[40] == 0.8
    assert sparsities[0] == 0.0
    assert [*sparsities.values()] == sorted(sparsities.values())


def test_an_end_behind_the_training_is_refused() -> None:
    """Ten steps cannot reach step 11, nor begin at it: the message says how many steps there are."""
    with pytest.raises(StageError, match="has 10 steps"):
        Polynomial(end=11, epochs=2, tail_epochs=0).sparsities(0.5, batches=5)
    with pytest.raises(StageError, match="lower begin"):
        Polynomial(begin=10, epochs=2, tail_epochs=0).sparsities(0.5, batches=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial": 50}, "did you mean 0.5"),
        ({"begin": -1}, "begin"),
        ({"begin": 5, "end": 5}, "end comes after begin"),
        ({"frequency": 0}, "frequency"),
        ({"power": 0}, "power"),
        ({"epochs": 0}, "epochs"),
        ({"freeze": "layer1"}, "tuple of globs"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message: str) -> None:
    """Each is refused where it is written."""
    with pytest.raises(ValueError, match=message):
        Polynomial(**settings)
