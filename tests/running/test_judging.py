"""What stays for the time it saves, and what is said of it."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from compressor import Budget, Effect
from compressor.budget import Verdict
from compressor.notes.running import GivenFile
from compressor.running.judging import after_gain, decides_by_gain, sizes_of_given

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


@pytest.mark.parametrize(
    ("reference_bytes", "size_bytes", "says"),
    [
        (
            272_000,
            70_000,
            (
                "model.onnx has 70,000 bytes, more than the given file (sparse.onnx, 20,000 bytes; 272,000 as it was "
                "read, of which ratios of sizes are). Where size counts, keep the given one"
            ),
        ),
        (
            272_000,
            10_000,
            (
                "ratios of sizes are of the given file (sparse.onnx) as it was read, 272,000 bytes; as it was given it "
                "has 20,000, and model.onnx is 2.00x smaller"
            ),
        ),
        (20_100, 5_000, ""),
        (20_100, 20_100, ""),
    ],
)
def test_sizes_are_told_beside_the_file_that_was_given(reference_bytes: int, size_bytes: int, says: str) -> None:
    """What reading made larger is no size to be measured by; some notes in a file's metadata are not worth a word."""
    given = GivenFile(file="sparse.onnx", size_bytes=20_000)
    told = sizes_of_given(given, reference_bytes=reference_bytes, size_bytes=size_bytes, artifact="model.onnx")
    assert told == says
    assert sizes_of_given(None, reference_bytes=2, size_bytes=1, artifact="model.onnx") == ""
