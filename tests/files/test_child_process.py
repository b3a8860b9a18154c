"""Work that never ends is ended, by time or memory, whichever way this system runs it, and leaves nothing behind."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from compressor.files import child_process
from compressor.files.child_process import ChildError, Limit, LimitError, can_fork, run_limited
from workbench import ROOT

forks = pytest.mark.skipif(not can_fork(), reason="children are forks, and this system does not fork safely")
SHORT = Limit(seconds=0.2, memory=1_000_000_000)
LONG = Limit(seconds=30.0, memory=1_000_000_000)


def spin() -> bytes:
    while True:
        pass


@pytest.fixture(params=[pytest.param(True, marks=forks, id="child"), pytest.param(False, id="thread")])
def forking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "can_fork", lambda: request.param)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
@pytest.mark.usefixtures("forking")
def test_the_result_comes_back_whole(size: int) -> None:
    """Nothing, little and more than a pipe holds, of objects that could not be pickled."""
    data = os.urandom(size)
    assert run_limited(lambda: data, LONG) == data


@pytest.mark.usefixtures("forking")
def test_work_without_end_is_ended_at_its_time() -> None:
    """The message is the limit, and work that ends in time is not touched afterwards."""
    with pytest.raises(LimitError, match=r"^0\.2 s of CPU time$"):
        run_limited(spin, SHORT)
    assert run_limited(lambda: b"done", SHORT) == b"done"
    finished = time.process_time() + 0.4
    while time.process_time() < finished:
        pass


@pytest.mark.usefixtures("forking")
def test_work_that_catches_everything_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """`except Exception` around the loop is passed, and a bare `except:` meets the interruption again."""
    monkeypatch.setattr(child_process, "_INSIST", 0.05)

    def stubborn() -> bytes:
        for _ in range(3):
            with contextlib.suppress(BaseException):  # libraries do
                spin()
        return spin()

    with pytest.raises(LimitError):
        run_limited(stubborn, SHORT)


@pytest.mark.usefixtures("forking")
def test_an_error_of_the_work_is_told_as_one() -> None:
    """Work is to catch its own errors; one that does not is no result, and no error of the limit."""
    with pytest.raises(ChildError):
        run_limited(lambda: bytes(1 // 0), LONG)


@forks
def test_memory_without_end_is_ended() -> None:
    """Memory counts from what the process had when the work began."""

    def fill() -> bytes:
        held = []
        while True:
            held.append(bytearray(b"x" * 10_000_000))

    with pytest.raises(LimitError, match=r"^0\.2 GB of memory$"):
        run_limited(fill, Limit(seconds=30.0, memory=200_000_000))


@forks
def test_a_crash_is_an_error_with_its_name() -> None:
    """What kills an exporter does not kill the run."""
    with pytest.raises(ChildError, match="SIGABRT"):
        run_limited(lambda: os.kill(os.getpid(), signal.SIGABRT) or b"", LONG)


@forks
def test_work_that_waits_for_nobody_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another thread held when the process was forked stays held in the child."""
    monkeypatch.setattr(child_process, "_STALLED", 0.2)
    lock, held, release = threading.Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait()

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    here = os.getpid()

    def work() -> bytes:
        if os.getpid() == here:
            release.set()
        with lock:
            return b"done"

    assert run_limited(work, LONG) == b"done"
    other.join()


@forks
def test_nothing_of_a_child_is_left(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No process, no open file, no output, no finalizer of the parent's objects, and no change of its objects."""

    class Guard:
        def __init__(self) -> None:
            self.itself = self  # only the collector frees it

        def __del__(self) -> None:
            (tmp_path / str(os.getpid())).touch()

    value, descriptors = [1], set(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names of open files are wanted
    Guard()

    def work() -> bytes:
        value.append(2)
        os.write(1, b"printed")
        gc.collect()
        return b"done"

    assert run_limited(work, LONG) == b"done"
    with pytest.raises(LimitError):
        run_limited(spin, SHORT)
    assert (value, children(), set(os.listdir("/proc/self/fd"))) == ([1], set(), descriptors)  # noqa: PTH208 - the same
    assert capfd.readouterr().out == ""
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]


@forks
def test_a_child_computes_beside_threads_of_the_parent() -> None:
    """Pools of the parent's threads do not exist in the child: products and convolutions come out all the same.

    Python 3.12 warns of forks beside threads, and warnings are errors here.
    """
    threads = torch.get_num_threads()
    x = torch.randn(4, 8, 32, 32)
    weight = torch.randn(8, 8, 3, 3)
    torch.set_num_threads(2)
    try:
        expected = torch.nn.functional.conv2d(x, weight).sum()

        def work() -> bytes:
            return bytes(
                str(bool(torch.allclose(torch.nn.functional.conv2d(x, weight).sum(), expected, rtol=1e-3))), "ascii"
            )

        results: list[bytes] = []
        # Not the main thread: handlers of signals can be set there alone, and a fork has a new main thread.
        other = threading.Thread(target=lambda: results.append(run_limited(work, LONG)))
        other.start()
        other.join()
        assert (results, run_limited(work, LONG)) == ([b"True"], b"True")
    finally:
        torch.set_num_threads(threads)


@forks
def test_the_warning_of_a_fork_beside_threads_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python 3.12 words it; any other warning of the fork still is one."""
    fork, text = os.fork, "This process (pid=1) is multi-threaded, use of fork() may lead to deadlocks in the child."

    def warning_fork() -> int:
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return fork()

    monkeypatch.setattr(os, "fork", warning_fork)
    assert run_limited(lambda: b"done", LONG) == b"done"
    text = "something else"
    with pytest.raises(DeprecationWarning, match="something else"):
        run_limited(lambda: b"done", LONG)


@forks
def test_a_system_without_processes_left_does_the_work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process to be had is no reason to give up."""

    def no_fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", no_fork)
    here = os.getpid()
    assert run_limited(lambda: str(os.getpid()).encode(), LONG) == str(here).encode()


PARENT = """
    import os, signal, sys
    from compressor.files.child_process import Limit, run_limited

    # A shell's background jobs begin with SIGINT ignored, and hand that on.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def work():
        os.write(told, str(os.getpid()).encode() + b"\\n")
        while True:
            pass

    told = os.dup(1)
    run_limited(work, Limit(seconds=60.0, memory=10**9))
"""


@forks
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_parent_ends_the_child(number: signal.Signals) -> None:
    """Ctrl-C is an interruption of the caller; a parent that is killed takes the child with it."""
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # a terminal sends it to all
    else:
        parent.send_signal(number)
    _, errors = parent.communicate(timeout=60)
    assert (b"KeyboardInterrupt" in errors) == (number == signal.SIGINT)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.01)
