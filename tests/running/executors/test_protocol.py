"""Executors by one protocol: ends by key, failures that end no other, dead workers replaced, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.errors import ExecutorError
from compressor.machine import core_count
from compressor.running.executors.choosing import executor_of
from compressor.running.executors.local import Local, LocalPool
from compressor.running.executors.protocol import TRIES, Task, as_ended, in_order
from compressor.running.executors.serial import Serial
from compressor.storage import is_running
from workbench import ROOT


def added(shared: int, number: int) -> int:
    """What most tasks here do."""
    return shared + number


def refused(shared: int, number: int) -> int:
    raise ValueError(f"no {number}")


def who(shared: int) -> tuple[int, str | None]:
    return os.getpid(), os.environ.get("OMP_NUM_THREADS")


def dies_once(shared: int, mark: str) -> str:
    """Kills its process where `mark` is not there yet."""
    if Path(mark).exists():
        return "came through"
    Path(mark).touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def dies(shared: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(shared: int, mark: str, seconds: float) -> None:
    Path(mark).write_text(str(os.getpid()))
    time.sleep(seconds)


def locks(shared: int) -> object:
    return threading.Lock()


def task(key: str, work=added, *arguments) -> Task:
    return Task(key=key, work=work, arguments=arguments)


@pytest.fixture(scope="module")
def pool() -> Iterator[LocalPool]:
    """Two processes for all tests that leave them as they are; starting one takes a second."""
    with Local(workers=2).open(shared=10) as found:
        yield found


def test_serial_works_in_this_process_when_it_is_asked() -> None:
    """Ends come in order; a failure is told with its class and text; what was taken back is not worked."""
    with Serial().open(shared=10) as pool:
        for number in range(3):
            pool.submit(task(str(number), added, number))
        pool.submit(task("bad", refused, 7))
        assert pool.under_way == ("0", "1", "2", "bad")
        assert pool.cancel("1")
        assert not pool.cancel("1")
        ends = [pool.ended() for _ in range(4)]
    assert [(end.key, end.value, str(end.failure)) for end in ends if end] == [
        ("0", 10, "None"),
        ("2", 12, "None"),
        ("bad", None, "ValueError: no 7"),
    ]
    assert ends[-1] is None
    assert "in refused" in ends[2].failure.traceback


def test_a_key_is_used_once_at_a_time(pool) -> None:
    """A second task of one key is refused, not lost."""
    for each in (pool, *(serial for serial in [Serial().open(shared=1)] for serial in [serial.__enter__()])):
        each.submit(task("a", added, 1))
        with pytest.raises(ValueError, match="'a' is under way"):
            each.submit(task("a", added, 2))
        assert each.ended().key == "a"
        assert each.ended() is None


def test_local_workers_give_every_end(pool) -> None:
    """Eight tasks in two processes that are not this one: all values, by order where that is asked for."""
    tasks = [task(str(number), added, number) for number in range(8)]
    assert [(end.key, end.value) for end in in_order(pool, tasks)] == [(str(n), 10 + n) for n in range(8)]
    assert {end.key for end in as_ended(pool, tasks)} == set(map(str, range(8)))
    (end,) = as_ended(pool, [task("who", who)])
    assert end.value[0] != os.getpid()
    assert end.value[1] == "1"


def test_lambdas_and_local_functions_are_sent(pool) -> None:
    """What no module holds goes as it is."""
    base = 5
    ends = as_ended(pool, [Task(key="a", work=lambda shared, x: shared * x + base, arguments=(2,))])
    assert [end.value for end in ends] == [25]


def test_what_fails_ends_no_other(pool) -> None:
    """A task that raises, one whose result cannot be sent, and one that is fine."""
    ends = {
        end.key: end for end in as_ended(pool, [task("bad", refused, 1), task("lock", locks), task("ok", added, 1)])
    }
    assert str(ends["bad"].failure) == "ValueError: no 1"
    assert "cannot be sent back" in ends["lock"].failure.says
    assert ends["ok"].value == 11


def test_what_cannot_be_sent_is_refused_at_once(pool) -> None:
    """A lock among the arguments, before anything is begun."""
    with pytest.raises(ExecutorError, match="the task 'a' cannot be sent to workers"):
        pool.submit(task("a", added, threading.Lock()))
    assert pool.under_way == ()
    with (
        pytest.raises(ExecutorError, match=r"the workload cannot be sent to workers.*package\.module:function"),
        Local().open(shared=threading.Lock()),
    ):
        pass


def test_a_task_whose_worker_dies_is_tried_again_and_one_that_kills_is_quarantined(tmp_path, pool) -> None:
    """SIGKILL in mid-task: the next try gives the result; after three deaths a task is given up, the others are not."""
    tasks = [task("once", dies_once, str(tmp_path / "mark")), task("poison", dies), task("ok", added, 1)]
    ends = {end.key: end for end in as_ended(pool, tasks)}
    assert (ends["once"].value, ends["once"].tries) == ("came through", 2)
    assert ends["poison"].failure.quarantined
    assert ends["poison"].tries == TRIES
    assert f"its worker died {TRIES} times" in ends["poison"].failure.says
    assert ends["ok"].value == 11


def wait_for(path: Path) -> int:
    for _ in range(600):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def wait_until_gone(process: int) -> None:
    for _ in range(200):
        if not is_running(process) or Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} is still there")


def test_what_is_taken_back_ends_at_once_and_nothing_is_told(tmp_path, pool) -> None:
    """A task in mid-work: its process ends, another one works what comes next."""
    pool.submit(task("long", sleeps, str(tmp_path / "at"), 600.0))
    process = wait_for(tmp_path / "at")
    assert pool.ended(0.05) is None
    assert pool.cancel("long")
    wait_until_gone(process)
    assert [end.value for end in as_ended(pool, [task("next", added, 2)])] == [12]


PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests_of_orphans import sleeps
from compressor.running.executors.local import Local
from compressor.running.executors.protocol import Task
with Local(workers=1).open() as pool:
    pool.submit(Task(key="a", work=sleeps, arguments=(sys.argv[1], 600.0)))
    pool.ended()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_program(tmp_path, number) -> None:
    """Killed, or stopped by Ctrl-C: its worker is gone a moment later. The script is not run again by the worker."""
    text = "import os, time\nfrom pathlib import Path\n"
    text += "def sleeps(shared, mark, seconds):\n    Path(mark).write_text(str(os.getpid()))\n    time.sleep(seconds)\n"
    (tmp_path / "tests_of_orphans.py").write_text(text, encoding="utf-8")
    # SIGINT is ignored in processes that a shell started in the background.
    head = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    (tmp_path / "main.py").write_text(head + PROGRAM, encoding="utf-8")
    mark = tmp_path / "at"
    process = subprocess.Popen(
        [sys.executable, "main.py", str(mark)], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    worker = wait_for(mark)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    wait_until_gone(worker)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"workers": 0}, "workers counts.*at least 1; got 0"),
        ({"workers": -2}, "got -2"),
        ({"workers": True}, "got True"),
        ({"name": "serial", "workers": 2}, "serial has one worker"),
        ({"name": "slurm"}, "unknown executor 'slurm'.*dask:local"),
    ],
)
def test_wrong_executors_are_refused(asked, says) -> None:
    """Before any work, with what there is."""
    with pytest.raises(ExecutorError, match=says):
        executor_of(**asked)


def test_no_more_workers_than_cores() -> None:
    """Eight are asked for on four cores; two workers share four cores out; one is no pool at all."""
    assert executor_of(workers=8, cores=4) == Local(workers=4, threads=1)
    assert executor_of(workers=2, cores=4) == Local(workers=2, threads=2)
    assert executor_of("local", cores=3) == Local(workers=3, threads=1)
    assert executor_of(workers=1) == executor_of() == Serial()
    assert executor_of("local", workers=1).workers == 1 <= core_count()
