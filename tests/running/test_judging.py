"""What stays for the time it saves, and what is said of it."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from compressor import Budget, Effect
from compressor.budget import Verdict
from compressor.running.judging import after_gain, decides_by_gain

SLOWER = Verdict(keep=False, reason="slower: 0.50x")
FASTER = Verdict(keep=True, reason="2.00x faster")


@dataclass(frozen=True)
class Reshape:
    effect: ClassVar[Effect] = Effect.STRUCTURE


@dataclass(frozen=True)
class Train:
    effect: ClassVar[Effect] = Effect.VALUES


@pytest.mark.parametrize(
    ("gain", "budget", "keep", "reason"),
    [
        (SLOWER, Budget(), False, "rolled back: slower: 0.50x"),
        (
            SLOWER,
            Budget(not_slower=False),
            True,
            "does not pay: slower: 0.50x; kept because the budget says not_slower: false",
        ),
        (SLOWER, None, True, "does not pay: slower: 0.50x; kept because no budget forbids it"),
        (FASTER, Budget(), True, "2.00x faster"),
        (None, None, True, "kept: no budget"),
        (None, Budget(), True, ""),
    ],
)
def test_a_stage_that_does_not_pay_goes_only_where_the_budget_says_so(gain, budget, keep, reason):
    """Slower is a reason to roll back under a budget of `not_slower`, and a remark without one."""
    assert after_gain(gain, budget) == Verdict(keep=keep, reason=reason)


def test_only_what_reshapes_or_encodes_is_judged_by_its_time():
    """Training keeps the shapes, so its speed decides nothing; nor does any without a budget."""
    assert decides_by_gain(Budget(), Reshape())
    assert not decides_by_gain(Budget(), Train())
    assert not decides_by_gain(Budget(not_slower=False), Reshape())
    assert not decides_by_gain(None, Reshape())
