"""Dask and Ray: real local clusters of several processes, one of which is killed in the middle of its task."""

import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import ExecutorError
from compressor.running.executors import on_dask, versions
from compressor.running.executors.choosing import executor_of
from compressor.running.executors.on_dask import Dask
from compressor.running.executors.on_ray import Ray
from compressor.running.executors.protocol import Pool, Task, as_ended, in_order

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]


def needs(name: str) -> Any:
    library = {"dask": "distributed"}.get(name, name)
    return pytest.mark.skipif(find_spec(library) is None, reason=f"{name} is not installed: make test-clusters")


def added(shared: int, number: int) -> int:
    return shared + number


def refused(shared: int) -> int:
    raise ValueError("no")


def who(shared: int) -> int:
    time.sleep(0.5)
    return os.getpid()


def dies_once(shared: int, mark: str) -> str:
    if Path(mark).exists():
        return "came through"
    Path(mark).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def dies(shared: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(shared: int, mark: str) -> None:
    Path(mark).touch()
    time.sleep(600)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Dask(workers=2), id="dask", marks=needs("dask")),
        pytest.param(Ray(workers=2), id="ray", marks=needs("ray")),
    ],
)
def pool(request) -> Iterator[Pool]:
    with request.param.open(shared=10) as found:
        yield found


@pytest.mark.parametrize(
    ("kind", "address"),
    [
        pytest.param("Dask", "tcp://127.0.0.1:9", marks=needs("dask")),
        pytest.param("Ray", "ray://127.0.0.1:9", marks=needs("ray")),
    ],
)
def test_a_cluster_that_is_not_there_is_refused(kind, address, monkeypatch) -> None:
    """With its address, and what to start."""
    monkeypatch.setattr(on_dask, "_PATIENCE_SECONDS", 2)
    says = f"there is no {kind} cluster at {address}.*start one"
    with pytest.raises(ExecutorError, match=says), executor_of(address).open():
        pass


def test_values_failures_and_order(pool) -> None:
    """Eight tasks by two processes; what one raises ends no other; a lambda is sent as it is."""
    assert pool.workers == 2
    tasks = [Task(key=str(number), work=added, arguments=(number,)) for number in range(8)]
    assert [(end.key, end.value) for end in in_order(pool, tasks)] == [(str(n), 10 + n) for n in range(8)]
    ends = {end.key: end for end in as_ended(pool, [Task(key="bad", work=refused), Task(key="l", work=lambda s: s)])}
    assert str(ends["bad"].failure) == "ValueError: no"
    assert ends["l"].value == 10
    assert pool.under_way == ()
    assert pool.ended() is None
    processes = {end.value for end in as_ended(pool, [Task(key=f"who{n}", work=who) for n in range(4)])}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_what_is_taken_back_holds_nothing_up(tmp_path, pool) -> None:
    """A task in mid-work is ended, and the next ones are worked."""
    pool.submit(Task(key="long", work=sleeps, arguments=(str(tmp_path / "at"),)))
    for _ in range(600):
        if (tmp_path / "at").exists():
            break
        time.sleep(0.05)
    assert pool.ended(0.05) is None
    assert pool.cancel("long")
    assert not pool.cancel("long")
    tasks = [Task(key=f"n{number}", work=added, arguments=(number,)) for number in range(4)]
    assert [end.value for end in in_order(pool, tasks)] == [10, 11, 12, 13]


def test_a_killed_worker_is_replaced_and_poison_is_quarantined(tmp_path, pool) -> None:
    """One death: the next try gives the result. Deaths again and again: the task is given up, the others are not."""
    tasks = [
        Task(key="once", work=dies_once, arguments=(str(tmp_path / "mark"),)),
        *(Task(key=f"ok{number}", work=added, arguments=(number,)) for number in range(3)),
    ]
    ends = {end.key: end for end in as_ended(pool, tasks)}
    assert ends["once"].value == "came through"
    assert [ends[f"ok{number}"].value for number in range(3)] == [10, 11, 12]
    (end,) = as_ended(pool, [Task(key="poison", work=dies)])
    assert end.failure.quarantined
    assert [end.value for end in as_ended(pool, [Task(key="after", work=added, arguments=(1,))])] == [11]


@needs("dask")
def test_workers_with_several_threads_and_of_other_versions_are_refused(monkeypatch) -> None:
    """Before any task: what differs, where, and what is here."""
    import distributed

    for threads, says in ((2, r"has 2 threads.*--nthreads 1"), (1, r"other versions.*has torch .* \(here 1\.0\)")):
        own = versions.facts()
        with distributed.LocalCluster(
            n_workers=1, threads_per_worker=threads, processes=False, dashboard_address=None
        ) as cluster:
            # A worker in this process would say what this process says.
            monkeypatch.setattr(on_dask, "facts", lambda own=own: own)
            monkeypatch.setattr(versions, "facts", lambda own=own: {**own, "torch": "1.0"})
            with pytest.raises(ExecutorError, match=says), Dask(address=cluster.scheduler_address).open():
                pass
        monkeypatch.undo()
