"""Turns on one machine: timings one after the other, work that pauses meanwhile, and nobody who waits for ever."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path

import pytest
import torch

from compressor.measuring import quiet
from compressor.measuring.quiet import quiet_machine
from compressor.measuring.timing import Timing
from compressor.training.passes.threads import Threads
from compressor.turns import taking
from compressor.turns.flocks import TIMING, WORKING, Flock
from compressor.turns.taking import between, is_timing, timing_alone
from workbench import ROOT

WORKER = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from compressor.turns.taking import between, timing_alone
mark, times = open(sys.argv[1], "a", buffering=1), "times" in sys.argv
for number in between(range(1000000)):
    mark.write(f"{{time.monotonic()}}\\n")
    if times and number == 20:
        with timing_alone() as met:
            mark.write(f"met {{met.says or 'nothing'}}\\n")
            time.sleep(0.2)
    time.sleep(0.005)
"""


@pytest.fixture(autouse=True)
def _own_place(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPRESSOR_TURNS", str(tmp_path / "turns"))


@pytest.fixture
def start(tmp_path) -> Iterator:
    """Starts worker processes, of which each writes a line a batch into a file."""
    processes = []

    def start(name: str, *options: str) -> tuple[Path, subprocess.Popen]:
        path = tmp_path / name
        processes.append(subprocess.Popen([sys.executable, "-c", WORKER, str(path), *options]))
        wait_for(lambda: len(lines(path)) > 3)
        return path, processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


def test_workers_pause_while_something_is_timed(start) -> None:
    """Two processes: none begins a batch while this one times, both go on afterwards."""
    workers = [start(name)[0] for name in ("a", "b")]
    with timing_alone() as met:
        before = [len(lines(path)) for path in workers]
        time.sleep(0.5)
        assert [len(lines(path)) for path in workers] == before
        assert met.says == ""
    wait_for(lambda: all(len(lines(path)) > had + 3 for path, had in zip(workers, before, strict=True)))


def test_timings_take_turns_and_workers_that_time_wait_for_nobody(start) -> None:
    """Workers that time in the middle of a pass, at once, all find the machine quiet: none waits for another's pass."""
    workers = [start(name, "times")[0] for name in ("a", "b", "c")]
    wait_for(lambda: all(any(line.startswith("met") for line in lines(path)) for path in workers))
    assert [line for path in workers for line in lines(path) if line.startswith("met")] == ["met nothing"] * 3
    stretches = []
    for path in workers:
        told = lines(path)
        at = next(number for number, line in enumerate(told) if line.startswith("met"))
        wait_for(lambda path=path, at=at: len(lines(path)) > at + 1)
        stretches.append((float(told[at - 1]), float(lines(path)[at + 1])))
    # Each slept for 0.2 s alone.
    ends = sorted(end for _, end in stretches)
    assert all(later - earlier > 0.15 for earlier, later in pairwise(ends))


@pytest.mark.parametrize("name", [TIMING, WORKING])
def test_a_holder_that_is_killed_holds_nothing(tmp_path, name) -> None:
    """SIGKILL: the next one takes the lock at once."""
    program = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r})\n"
        "from compressor.turns.flocks import Flock\n"
        f"lock = Flock({name!r})\n"
        "print(lock.take(alone=True), flush=True)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    lock = Flock(name)
    assert lock.there
    assert not lock.take(alone=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lock.take(alone=True)
    lock.close()


def test_a_forked_child_holds_nothing_of_its_parent() -> None:
    """A worker of a loader that outlives a killed training would hold up everybody else."""
    with timing_alone():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, b"y" if Flock(TIMING).take(alone=True) else b"n")
            time.sleep(2)
            os._exit(0)
        assert os.read(reader, 1) == b"n"
    lock = Flock(TIMING)
    assert lock.take(alone=True), "the child, which is there still, holds the lock of its parent"
    lock.close()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_timing_inside_timing_and_inside_work_waits_for_nothing() -> None:
    """In one thread; and scoring inside a timing does not pause."""
    started = time.monotonic()
    seen = []
    for number in between(range(3)):
        with timing_alone() as outer:
            assert is_timing()
            with timing_alone() as inner:
                assert inner is outer
            assert is_timing()
            seen += [number for _ in between(range(2))]
        assert not is_timing()
    assert seen == [0, 0, 1, 1, 2, 2]
    assert time.monotonic() - started < 5


def test_another_thread_of_the_process_pauses_and_times_in_its_turn() -> None:
    """Threads are as separate as processes are."""
    done, ended = count(), threading.Event()
    reached = [0]

    def work() -> None:
        for _ in between(iter(int, 1)):
            reached[0] = next(done)
            time.sleep(0.002)
            if ended.is_set():
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_for(lambda: reached[0] > 3)
    with timing_alone() as met:
        before = reached[0]
        time.sleep(0.3)
        assert reached[0] == before
        assert met.says == ""
    wait_for(lambda: reached[0] > before)
    ended.set()
    thread.join()


def test_who_does_not_pause_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that goes on for longer than one waits for, and a timing that does."""
    monkeypatch.setattr(taking, "LONGEST_BATCH", 0.2)
    monkeypatch.setattr(taking, "LONGEST_TURN", 0.2)
    work, gate = Flock(WORKING), Flock(TIMING)
    assert work.take(alone=False)
    with timing_alone() as met:
        assert "work that did not pause" in met.says
    assert gate.take(alone=True)
    with timing_alone() as met:
        assert "another timing, for more than" in met.says
        assert met.waited >= 0.4
    monkeypatch.setattr(taking, "LONGEST_PAUSE", 0.2)
    assert list(between(range(2))) == [0, 1], "work goes on beside a timing that never ends"
    work.close()
    gate.close()


@pytest.mark.parametrize("place", ["off", "/proc/none", "a file"])
def test_where_nothing_can_be_locked_nobody_waits(tmp_path, monkeypatch: pytest.MonkeyPatch, place) -> None:
    """Turned off, a folder that cannot be made, and one that is a file."""
    (tmp_path / "a file").touch()
    monkeypatch.setenv("COMPRESSOR_TURNS", place if place != "a file" else str(tmp_path / place))
    assert not Flock(TIMING).there
    with timing_alone() as met:
        assert list(between(range(3))) == [0, 1, 2]
        with timing_alone():
            pass
    assert met.says == ""


def test_links_are_not_followed(tmp_path) -> None:
    """A link that another user has put there leads nowhere."""
    (tmp_path / "turns").mkdir()
    (tmp_path / "target").touch()
    (tmp_path / "turns" / "timing.lock").symlink_to(tmp_path / "target")
    (tmp_path / "turns" / "working.lock").mkdir()
    assert not Flock(TIMING).there
    assert not Flock(WORKING).there


def test_others_can_see_the_lock(tmp_path) -> None:
    """Whatever the umask says, another user may open it for reading, and nobody may write."""
    before = os.umask(0o077)
    try:
        Flock(TIMING).close()
    finally:
        os.umask(before)
    assert (tmp_path / "turns" / "timing.lock").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("threads", [1, 2])
def test_passes_of_trainings_and_scores_pause(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Threads.over`, which all of them go through, asks before every batch, with threads to choose and without."""
    asked = []
    monkeypatch.setattr(taking, "_pause", asked.append)
    before = torch.get_num_threads()
    with (chosen := Threads(most=threads, cores=threads, fixed=False, others=lambda: 0, wait=lambda _: None)).kept():
        assert list(chosen.over(range(5), lambda _: 1)) == list(range(5))
    assert torch.get_num_threads() == before
    assert len(asked) >= 5


def test_a_busy_machine_is_waited_for_less_and_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others want is told; half the time after each wait in vain, all of it again where the machine was quiet."""
    monkeypatch.setenv("COMPRESSOR_QUIET_SECONDS", "0.8")
    monkeypatch.setattr(quiet, "_patience", quiet._Patience())
    cores = os.cpu_count() or 1
    others = [cores]
    monkeypatch.setattr(quiet, "others_running", lambda: others[0])
    waits = []
    for _ in range(3):
        with quiet_machine() as met:
            waits.append(met.waited)
            assert met.says.startswith(f"{cores} threads of other programs")
            with quiet_machine() as inner:
                assert inner is met
    assert waits[0] >= 0.8
    assert waits[0] > waits[1] + 0.2 > waits[2] + 0.2
    others[0] = 0
    with quiet_machine() as met, quiet_machine() as inner:
        assert met.says == inner.says == ""
    assert quiet._patience.part == 1.0


def test_waits_in_vain_take_a_small_part_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 100 s of work and 40 of waiting in vain 6 s were to be had; after 1000 more there are 16 left."""
    clock = [140.0]
    monkeypatch.setattr(quiet.time, "monotonic", lambda: clock[0])
    patience = quiet._Patience(began=0.0, in_vain=40.0)
    assert patience.seconds(10) == 0
    clock[0] += 1000
    assert patience.seconds(10) == 10
    assert patience.seconds(100) == pytest.approx(1 + 0.05 * 1100 - 40)
    patience.told_(vain=True, waited=8.0)
    assert patience.seconds(10) == 5
    assert patience.seconds(100) == pytest.approx(1 + 0.05 * 1092 - 48)


def test_what_a_timing_met_is_kept_with_it(tmp_path) -> None:
    """Times of a session on disk hold the words."""
    from compressor.estimate import Estimate
    from compressor.measuring.session_times import Times

    one = Estimate(1.0, 0.9, 1.1)
    timing = Timing(reference_ms=one, candidate_ms=one, speedup=one, met="something")
    Times(tmp_path / "times.json").together("a", lambda: {"x": timing})
    found = Times(tmp_path / "times.json").together("a", dict)
    assert found == {"x": timing}


def test_a_wrong_number_of_seconds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the name of the variable."""
    from compressor.errors import WrongUseError

    monkeypatch.setenv("COMPRESSOR_QUIET_SECONDS", "soon")
    with (
        pytest.raises(WrongUseError, match="COMPRESSOR_QUIET_SECONDS must be a number of at least 0, got 'soon'"),
        quiet_machine(),
    ):
        pass
