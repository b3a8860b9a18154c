"""Counts of trials: what is stored is what was tried, and a wrong one is among it."""

import json
from pathlib import Path

import pytest

from benchmarks import mutations, random_networks
from benchmarks.mutations import counted as files_counted
from benchmarks.random_networks import counted
from workbench.random_networks.check import Trial

CASE = """<testcase name="{}"><properties>
<property name="damaged" value="{}"/><property name="files" value="{}"/>
</properties></testcase>"""
CASES = "".join(CASE.format(*case) for case in (("one", "onnx", 50), ("two", "onnx", 50), ("three", "npz", 300)))
PASSED = f'<testsuites><testsuite>{CASES}<testcase name="four"/></testsuite></testsuites>'


def test_trials_are_counted_by_what_became_of_them() -> None:
    """Two of three are pruned, by 0.2 and 0.4 of their parameters; the third computes something else."""
    trials = [
        Trial(seed=0, outcome="pruned", removed=0.2),
        Trial(seed=1, outcome="wrong", reason="off by 0.1 of the largest value"),
        Trial(seed=2, outcome="pruned", removed=0.4),
        Trial(seed=3, outcome="refused", reason="nothing to prune"),
    ]
    found = counted(trials)
    assert found["networks"] == 4
    assert found["outcomes"] == {"pruned": 2, "refused": 1, "wrong": 1}
    assert found["removed_where_pruned"] == pytest.approx(0.3)
    assert found["refused_share"] == 0.25
    assert found["wrong"] == [{"seed": 1, "reason": "off by 0.1 of the largest value"}]


def test_so_many_networks_are_tried_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes take twenty at a time; of the last ones no more are counted than were asked for."""
    monkeypatch.setattr(random_networks, "RESULT", tmp_path / "counts.json")
    monkeypatch.setattr(random_networks, "all_tried", lambda count, _: [Trial(seed=0, outcome="pruned")] * count)
    monkeypatch.setattr("sys.argv", ["random_networks", "--networks", "3"])
    random_networks.main()
    stored = json.loads((tmp_path / "counts.json").read_text())
    assert (stored["networks"], stored["outcomes"]["pruned"]) == (3, 3)
    assert stored["environment"]["versions"]["torch"]


def test_files_are_counted_by_kind_and_failures_by_name() -> None:
    """What failed, or did not run, is told: nothing is stored then."""
    assert files_counted(PASSED) == ({"onnx": 100, "npz": 300}, [])
    broken = PASSED.replace('<testcase name="four"/>', '<testcase name="four"><failure/></testcase>')
    assert files_counted(broken)[1] == ["four"]
    left_out = PASSED.replace('<testcase name="four"/>', '<testcase name="five"><skipped/></testcase>')
    assert files_counted(left_out)[1] == ["five"]


def test_nothing_is_stored_of_tests_that_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pytest's own exit code decides as well."""

    class Done:
        returncode = 1

    def run(command: list[str], **_: object) -> Done:
        Path(command[-1].partition("=")[2]).write_text(PASSED)
        return Done()

    monkeypatch.setattr(mutations, "RESULT", tmp_path / "mutations.json")
    monkeypatch.setattr(mutations.subprocess, "run", run)
    monkeypatch.setattr("sys.argv", ["mutations"])
    with pytest.raises(SystemExit, match="nothing is stored: pytest ended with 1"):
        mutations.main()
    assert not (tmp_path / "mutations.json").exists()
    Done.returncode = 0
    mutations.main()
    assert json.loads((tmp_path / "mutations.json").read_text())["all"] == 400
