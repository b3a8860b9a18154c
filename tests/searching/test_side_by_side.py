"""Trials of a search side by side: the same trials, finalists and sentence as one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from compressor.errors import ExecutorError, RunFolderError, WriteError
from compressor.recipe.recipe import Recipe
from compressor.running.executors.local import Local
from compressor.running.executors.protocol import Ended, Task
from compressor.running.executors.sending import called
from compressor.searching.search import search
from compressor.workload import Workload
from workbench.searches import SPACE, FakeRuns
from workbench.tiny import TinyResNet, make_workload
from workbench.two_layers import small_workload


@dataclass(kw_only=True)
class Backwards:
    """An executor and its pool in one: so many workers in this process, of which the last to begin ends first."""

    workers: int = 2
    name: str = "backwards"
    shared: Any = None
    begun: list[str] = field(default_factory=list)
    most: int = 0
    _tasks: dict[str, Task] = field(default_factory=dict)

    @contextmanager
    def open(self, shared: Any = None) -> Iterator["Backwards"]:
        self.shared = shared
        yield self

    @property
    def under_way(self) -> tuple[str, ...]:
        return tuple(self._tasks)

    def submit(self, task: Task) -> None:
        self._tasks[task.key] = task
        self.begun.append(task.key)
        self.most = max(self.most, len(self._tasks))

    def ended(self, seconds: float | None = None) -> Ended | None:
        return called(self._tasks.popitem()[1], self.shared) if self._tasks else None

    def cancel(self, key: str) -> bool:
        return self._tasks.pop(key, None) is not None


def found(out, **changes):
    return search(small_workload(), Recipe.loads_all(SPACE), out=out, progress=False, max_drop=0.1, **changes)


def told(result) -> Any:
    """All but seconds."""
    clocks = dict.fromkeys(("seconds", "ended_at", "made_seconds", "predicted_seconds"), 0)
    trials = [vars(trial) | clocks for trial in result.trials]
    rows = [replace(row, seconds=0) for row in result.rows]
    return trials, result.why, rows, list(result.finalists)


def test_two_workers_find_what_one_does(tmp_path, fake_runs: FakeRuns) -> None:
    """Whatever ends first: trials in the same order, the same finalists, sentence and recipe."""
    one = found(tmp_path / "one")
    executor = Backwards()
    assert told(found(tmp_path / "two", executor=executor)) == told(one)
    assert executor.most == 2
    recipes = [(tmp_path / name / "best.yaml").read_text() for name in ("one", "two")]
    assert recipes[0] == recipes[1]
    assert not (tmp_path / "two" / ".workers").exists()
    # Asked again, nothing of it is tried again.
    again = Backwards(workers=3)
    assert told(found(tmp_path / "two", executor=again)) == told(one)
    assert again.begun == ["workload"]


def test_workers_see_no_test_data(tmp_path, fake_runs: FakeRuns) -> None:
    """Neither where they are sent the workload nor where they make it."""
    found(tmp_path / "sent", trials=2, rungs=1, executor=Backwards())
    found(tmp_path / "made", trials=2, rungs=1, executor=Backwards(), workload_from=small_workload)
    assert len(fake_runs.workloads) >= 4
    assert all(given.test is given.validation for given in fake_runs.workloads)


def test_what_begins_alike_does_not_begin_together(tmp_path, fake_runs: FakeRuns) -> None:
    """Two workers begin with two structures, not with two forms of one, which would wait for its training."""
    executor = Backwards()
    found(tmp_path, rungs=1, executor=executor)
    first, second = (name.split("-")[1] for name in executor.begun[1:3])
    assert first != second


def test_a_failure_in_a_worker_is_told(tmp_path, fake_runs: FakeRuns) -> None:
    """With its sentence; what begins as it did fails with it, and the others go on."""
    fake_runs.broken = 0.7
    result = found(tmp_path, rungs=1, executor=Backwards())
    failed = [trial for trial in result.trials if not trial.ended]
    assert {trial.candidate for trial in failed} == {"space-remove_0.8-without", "space-remove_0.8-quantize"}
    assert failed[0].error == "no channel is left"
    assert failed[0].failed_stage == 1
    assert result.recipe is not None


def test_a_disk_that_is_full_ends_the_search(tmp_path, monkeypatch, fake_runs: FakeRuns) -> None:
    """No other trial could do better; what had ended is kept."""
    whole = fake_runs.run

    def run(*given: Any, **asked: Any) -> Any:
        if len(fake_runs.asked) == 3:
            raise WriteError("the disk is full")
        return whole(*given, **asked)

    monkeypatch.setattr(fake_runs, "run", run)
    with pytest.raises(Exception, match="the disk is full"):
        found(tmp_path, executor=Backwards())
    assert len(list((tmp_path / "trials").glob("*.json"))) >= 1


def test_one_search_at_a_time_in_a_folder(tmp_path, fake_runs: FakeRuns) -> None:
    """A second one is refused by name of the process, and spoils nothing."""

    class Nested(Backwards):
        def ended(self, seconds: float | None = None) -> Ended | None:
            if len(self.begun) == 3:
                with pytest.raises(RunFolderError, match="is being written by process"):
                    found(tmp_path)
                told.append(len(self.begun))
            return super().ended(seconds)

    told: list[int] = []
    assert found(tmp_path, trials=3, rungs=1, executor=Nested()).recipe is not None
    assert told


def test_workers_that_cannot_be_had_are_refused(tmp_path, fake_runs: FakeRuns) -> None:
    """By the executor's name, before any trial."""
    with pytest.raises(ExecutorError, match="unknown executor 'cloud'"):
        found(tmp_path, executor="cloud")
    with pytest.raises(ExecutorError, match="at least 1; got 0"):
        found(tmp_path, workers=0)
    assert fake_runs.asked == []


def tiny() -> Workload:
    """What workers make for themselves."""
    torch.manual_seed(0)
    return make_workload(TinyResNet().eval(), train=256)


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_processes_find_what_this_one_does(tmp_path, monkeypatch) -> None:
    """Real trials in two processes: the same files, scores and names; times are each their own."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    text = """
    name: space
    stages: [{drop_blocks: {remove: 0.5}}, {sweep: [{distill: {epochs: 1}}, {fine_tune: {epochs: 1}}]}]
    """
    try:
        results = [
            search(
                tiny(),
                Recipe.loads_all(text),
                out=tmp_path / str(number),
                progress=False,
                max_drop=None,
                rungs=1,
                **more,
            )
            for number, more in enumerate(({}, {"executor": Local(workers=2), "workload_from": tiny}))
        ]
    finally:
        torch.set_num_threads(threads)
    files = [
        {trial.recipe_name: (tmp_path / str(number) / "trials" / trial.name / "model.onnx").read_bytes()
         for trial in result.trials}
        for number, result in enumerate(results)
    ]  # fmt: skip
    assert files[0] == files[1]
    told_ = [[(one.name, one.score, one.drop, one.size_bytes) for one in each.trials] for each in results]
    assert told_[0] == told_[1]
