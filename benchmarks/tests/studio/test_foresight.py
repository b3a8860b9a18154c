"""The benchmark of the studio: what a drawn plan is, and what its rows come to."""

import pytest

pytest.importorskip("starlette")

from benchmarks.documents import studio_page
from benchmarks.studio.foresight import chosen, summary
from compressor.studio.choice import Free


def _row(*, off: float, value: float, low: float, high: float) -> dict:
    told = {"value": 0.1, "low": low, "high": high}
    return {
        "refused": 1,
        "foretold": told,
        "drop": {"value": value},
        "inside": low <= value <= high,
        "error": off,
        "error_of_ratio": off / 2,
    }


ROWS = [
    _row(off=-0.04, value=0.12, low=0.0, high=0.2),
    _row(off=0.02, value=0.3, low=0.0, high=0.2),
    _row(off=0.1, value=0.1, low=0.05, high=0.15),
]


def test_shares_and_medians_by_hand() -> None:
    """Two of three drops inside; distances 0.02, 0.2, 0; errors without their signs. Rows may lack either part."""
    found = summary(ROWS)
    assert found["inside"] == pytest.approx(2 / 3)
    assert found["median_off"] == pytest.approx(0.02)
    assert found["median_width"] == pytest.approx(0.2)
    assert found["median_error"] == pytest.approx(0.04)
    assert found["largest_error_of_ratio"] == pytest.approx(0.05)
    assert found["refused"] == 3
    assert summary([{"refused": 0}]) == {"plans": 1, "refused": 0}


def test_a_drawn_plan_is_an_untrained_choice_in_float() -> None:
    """What is whole is left out, so that its recipe names what changes."""
    free = Free(widths={"a": (32, 16), "b": (32, 16)}, blocks=("x", "y"))
    choice = chosen({"a": 16, "b": 32, "block:x": 0, "block:y": 1}, free)
    assert choice.to_json() == {
        "widths": {"a": 16},
        "drop": ["x"],
        "form": "float32",
        "epochs": 0,
        "criterion": "taylor",
        "bits": {},
    }


def test_the_table_has_what_was_run() -> None:
    """A row for each network and one for all; cells of a part that was not run are empty."""
    networks = {"digits": {"summary": summary(ROWS)}, "other": {"summary": summary([{"refused": 0}])}}
    lines = studio_page.section({"networks": networks, "summary": summary(ROWS), "answer": None})
    rows = [line for line in lines if line.startswith(("| digits", "| other", "| all"))]
    assert rows[0] == "| digits | 3 | 67 % | 20.0 | 2.0 | 2.0 % | 5.0 % | 4.0 % |"
    assert rows[1] == "| other | 1 |  |  |  |  |  |  |"
    assert len(rows) == 3
