"""What recipes had in common, what that saved, and controls as stages."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from compressor.comparing.controls import controls_of
from compressor.comparing.sharing import cost_of
from compressor.running.session import Worked
from compressor.stage import Effect
from compressor.stages import (
    Distill,
    DropBlocks,
    FineTune,
    PruneChannels,
    Quantize,
    Random,
    SparseTraining,
    SparsifyWeights,
)


def worked(run: str, stage: str, key: str, seconds: float, how: str = "made") -> Worked:
    return Worked(run=run, stage=stage, key=key, how=how, seconds=seconds)


def test_the_cost_counts_each_piece_of_work_once() -> None:
    """Two recipes that share 100 of 130 seconds, one of them looked at twice: 130 instead of 230."""
    told = [
        worked("a", "reference", "r", 10),
        worked("a", "distill", "d", 90),
        worked("a", "quantize", "q", 30),
        worked("b", "reference", "r", 10, "store"),
        worked("b", "distill", "d", 90, "store"),
        worked("b", "distill", "d", 90, "folder"),
    ]
    cost = cost_of(told)
    assert (cost.made, cost.alone, cost.spent) == (130, 230, 130)
    assert [(each.stage, each.recipes) for each in cost.shared] == [("distill", ("a", "b"))]
    (said,) = cost.sentences()
    assert said == (
        "The stages took 2 min 10 s; one by one it would have been 3 min 50 s. Made once for several recipes: "
        "distill (1 min 30 s, 2 recipes)."
    )
    assert cost.to_json()["minutes_one_by_one"] == pytest.approx(230 / 60, abs=1e-3)
    assert cost_of(told[:3]).sentences() == []


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """Takes structure in a way that nobody can draw by chance."""

    effect: ClassVar[Effect] = Effect.STRUCTURE


@pytest.mark.parametrize(
    ("stages", "wanted"),
    [
        ([Quantize()], []),
        ([FineTune(), Quantize()], []),
        (
            [PruneChannels(remove=0.4), Distill(epochs=3), Quantize()],
            [
                ("training only", (Distill(epochs=3),)),
                ("random structure", (PruneChannels(remove=0.4, criterion=Random()), Distill(epochs=3), Quantize())),
            ],
        ),
        (
            [DropBlocks(remove=0.5), Quantize()],
            [("random structure", (DropBlocks(remove=0.5, rank_by=Random()), Quantize()))],
        ),
        ([PruneChannels(remove=0.4, criterion=Random()), FineTune()], [("training only", (FineTune(),))]),
        ([Foreign(), FineTune()], [("training only", (FineTune(),))]),
        ([SparseTraining(), PruneChannels(remove=0.4), FineTune()], [("training only", (FineTune(),))]),
        ([SparsifyWeights(sparsity=0.5), FineTune()], [("training only", (FineTune(),))]),
    ],
)
def test_controls(stages, wanted) -> None:
    """Training alone where something trains after structure went; chance only where every choice can be drawn."""
    assert [(control.kind, control.stages) for control in controls_of(stages)] == wanted
