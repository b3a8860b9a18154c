"""The benchmark of an hour's search: what it stores, and how its page tells it."""

from dataclasses import replace

import pytest

from benchmarks.compare import headline
from benchmarks.documents import searching_page
from compressor import search
from workbench.searches import FakeRuns, fake_runs  # noqa: F401 - pytest finds fixtures by their names here
from workbench.two_layers import small_workload

SPACE = """
name: small
stages:
  - prune_channels: {remove: {sweep: [0.2, 0.4]}}
  - distill: {epochs: 9, tail_epochs: 0}
"""


@pytest.mark.usefixtures("fake_runs")
def test_what_is_told_of_a_search(tmp_path) -> None:
    """The finalists against the reference's bytes, one that ships, and every trial with its minutes."""
    path = tmp_path / "space.yaml"
    path.write_text(SPACE, encoding="utf-8")
    found = search(small_workload(), path, out=tmp_path / "search", max_drop=0.5)
    told = headline.told_of(found)
    assert [row["ships"] for row in told["finalists"]].count(True) == 1
    assert told["finalists"][0]["smaller"] == 1.0
    for row in told["finalists"]:
        assert row["smaller"] == pytest.approx(told["finalists"][0]["size_bytes"] / row["size_bytes"], abs=0.01)
    assert len(told["trials"]) == len(found.trials)
    assert told["recipe"] == found.recipe.dump()
    # Nothing to ship is told as nothing.
    assert headline.told_of(replace(found, recipe=None))["recipe"] is None


def test_the_page_tells_the_hour() -> None:
    """Finalists on test data with the one that ships, trials that ended, and what was not begun; by hand."""
    interval = {"value": 0.0082, "low": 0.001, "high": 0.0154}
    speed = {"value": 4.5, "low": 4.25, "high": 4.75}
    row = {"name": "small", "ships": True, "drop": interval, "speedup": speed, "smaller": 12.5, "size_bytes": 80}
    trial = {
        "name": "small",
        "rung": 2,
        "error": "",
        "drop": 0.0071,
        "speedup": 4.4,
        "size_bytes": 80,
        "minutes": 21.26,
    }
    result = {
        "workload": "resnet56", "minutes": 60.0, "max_drop": 0.01, "goals": headline.GOALS,
        "environment": {"cores": 2, "cpu": "a CPU", "isa": "x86_avx2"},
        "finalists": [{"name": "reference", "ships": False, "drop": None, "size_bytes": 1000}, row],
        "trials": [trial, {**trial, "name": "failed", "error": "out of memory"}], "told": ["Not begun: one."],
    }  # fmt: skip
    lines = searching_page.hour(result)
    assert "| **`small`** ships | 0.82 [0.10, 1.54] | 4.50x [4.25, 4.75] | 12.5x |" in lines
    assert "| `small` | 2 | 0.71 | 4.40x | 12.5x | 21.3 |" in lines
    assert not any("failed" in line for line in lines)
    assert lines[-1] == "Not begun: one."
