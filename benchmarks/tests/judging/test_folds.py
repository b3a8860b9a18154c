"""The benchmark of folds: cheap tries of the verdict, and its tables."""

import torch

from benchmarks.documents import folds_page
from benchmarks.judging import verdicts


def test_verdicts_are_of_the_same_folds_and_follow_from_the_seeds() -> None:
    """Two classes that a line parts: equal seeds give equal scores, and every sample tests once."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(40) % 2
    rows = torch.randn(40, 3, generator=generator) + 3 * targets[:, None]
    first, other = verdicts.crossed(rows, targets, folds=4, parting=1, seeds=(0, 1), epochs=20)
    again, _ = verdicts.crossed(rows, targets, folds=4, parting=1, seeds=(0, 1), epochs=20)
    assert first.score.value > 0.9
    assert sum(row.tested for row in first.rows) == 40
    assert [row.score for row in first.rows] == [row.score for row in again.rows]
    assert first.difference(again).value == 0
    assert [row.split for row in first.rows] == [row.split for row in other.rows]


def test_the_page_says_how_often_nothing_was_called_something() -> None:
    def estimate(value: float) -> dict:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    row = {"reference": estimate(0.97), "score": estimate(0.96), "drop": estimate(0.01), "tries": 2}
    row["claimed"] = {"count": 0, "low": 0.0, "high": 0.66}
    result = {
        "folds": 5,
        "verdicts": {
            "tries": 300,
            "epochs": 12,
            "shorter_epochs": 6,
            "shorter_by": 0.02,
            "claimed": {"count": 3, "low": 0.003, "high": 0.029},
            "found": {"count": 90, "low": 0.25, "high": 0.354},
        },
        "data": {"digits": {"recipes": {"prune": row}, "second_below_first": estimate(0.0)}},
    }
    text = folds_page.page("before\n<!-- results -->\nstale words\n<!-- /results -->\nafter", result)
    assert "called different from itself in\n3 of 300 tries (95 % interval 0.3 to 2.9 %" in text
    assert "| digits | prune | 97.00 [96.00, 98.00] | 96.00 [95.00, 97.00] | +1.00 [+0.00, +2.00] | 0 of 2 |" in text
    assert "stale words" not in text
    assert "Recipes were not cross-validated in this run." in "\n".join(folds_page.section({**result, "data": {}}))
