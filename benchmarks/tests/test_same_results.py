"""What counts as the same result of two commits, on reports made by hand."""

import copy
from typing import Any

import pytest

from benchmarks.same_results import comparable, compare_runs, first_difference, for_digits, is_change, table
from compressor.storage import write_json

REPORT: dict[str, Any] = {
    "environment": {"date": "2026-01-01", "load": 3.0},
    "final": 1,
    "steps": [
        {"stage": "reference", "seconds": 2.0, "measurement": {"score": {"value": 0.9}, "latency_ms": {"value": 1.0}}},
        {
            "stage": "quantize",
            "reason": "1.50x [1.39, 1.62] faster",
            "pays": True,
            "measurement": {"score": {"value": 0.8}, "speedup": {"value": 1.5}},
            "details": {"sqnr_db": 31.0, "notes": ["first", "second"], "versus_base": {"value": 1.5}},
        },
    ],
}


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """REPORT with another value at `path`."""
    report = copy.deepcopy(REPORT)
    place = report
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return report


@pytest.mark.parametrize(
    "path",
    [
        ("environment", "load"),
        ("steps", 0, "seconds"),
        ("steps", 0, "measurement", "latency_ms"),
        ("steps", 1, "reason"),
        ("steps", 1, "pays"),
        ("steps", 1, "measurement", "speedup"),
        ("steps", 1, "details", "versus_base"),
    ],
)
def test_times_and_the_machine_are_no_difference(path):
    """What a clock or the machine decides may differ between two runs of the same code."""
    assert first_difference(comparable(REPORT), comparable(changed(*path, to=99))) is None


@pytest.mark.parametrize(
    ("path", "to", "told"),
    [
        (("steps", 1, "details", "sqnr_db"), 30.0, "steps[1].details.sqnr_db: 31.0 and 30.0"),
        (("steps", 1, "details", "notes"), ["second", "first"], "steps[1].details.notes[0]: 'first' and 'second'"),
        (("steps", 1, "details", "notes"), ["first"], "steps[1].details.notes: 2 and 1 entries"),
        (("final",), 1.0, "final: 1 and 1.0"),
        (("steps", 0, "kept"), True, "steps[0]: without [], with ['kept']"),
    ],
)
def test_everything_else_is_a_difference_and_named(path, to, told):
    """A value, its type, the order of notes and the keys count; the first difference is told with its place."""
    assert first_difference(comparable(REPORT), comparable(changed(*path, to=to))) == told


def test_the_order_of_keys_counts():
    """A report with the same keys in another order is another file."""
    assert (
        first_difference({"a": 1, "b": 2}, {"b": 2, "a": 1}) == "top: keys in another order, ['a', 'b'] and ['b', 'a']"
    )


def test_two_folders_of_runs(tmp_path):
    """Equal bytes are the same, other bytes are told by their digests, and a missing file is absent."""
    for name, data, report in (("old", b"x", REPORT), ("new", b"y", changed("environment", to={}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(data)
        write_json(tmp_path / name / "report.json", report)
    found = compare_runs(tmp_path / "old", tmp_path / "new")
    # The first digits of the digests of b"x" and b"y".
    assert found == {"model.onnx": "sha256 2d711642b726... and a1fce4363854...", "report.json": "same"}
    assert compare_runs(tmp_path / "old", tmp_path / "none")["report.json"] == "absent"


def test_what_differs_from_run_to_run_is_no_change():
    """A file that two runs of the old code do not share says nothing of the new code; an absent one is a change."""
    differs, same = (
        {"model.onnx": "sha256 1 and 2", "report.json": "same"},
        {"model.onnx": "same", "report.json": "same"},
    )
    assert is_change({"int8": differs}, {})
    assert is_change({"int8": differs}, {"int8": same})
    assert not is_change({"int8": differs}, {"int8": differs})
    assert is_change({"int8": {"model.onnx": "absent", "report.json": "same"}}, {"int8": differs})
    lines = table({"int8": differs, "int4": same}, {"int8": differs}).splitlines()
    assert lines[1].split() == ["int8", "not", "stable", "same", "model.onnx", "sha256", "1", "and", "2"]
    assert lines[2].split() == ["int4", "same", "same", "-"]


def test_recipes_lose_their_budget_and_long_trainings():
    """No budget may roll back by a measured time; epochs are cut, but not those that drive channels to zero."""
    stages = ["quantize", {"distill": {"epochs": 36, "views": 9}}, {"sparse_training": {"epochs": 6}}]
    recipe = {"name": "one", "budget": {"max_drop": 0.02}, "stages": stages}
    cut = ["quantize", {"distill": {"epochs": 2, "views": 9}}, stages[2]]
    assert for_digits(recipe, 2) == {"name": "one", "stages": cut}
    assert for_digits(recipe, 0)["stages"] == stages
