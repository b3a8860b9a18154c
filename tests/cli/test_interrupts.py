"""Ctrl-C and SIGTERM in real processes: the first ends in order, the second at once, and neither with a traceback."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workbench import ROOT

BEGIN = """\
import sys, time
from compressor.cli.interrupts import Terminated, interruptible

def say(word):
    print(word, flush=True)

"""
CLEANING = """\
with interruptible():
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt as error:
        say(type(error).__name__)
        try:
            time.sleep(60)
        finally:
            say("cleaned")
"""
BUSY = """\
import hashlib

def compute():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)  # minutes in which Python runs no handler

with interruptible():
    try:
        say("ready")
        compute()
    except KeyboardInterrupt:  # it came before the call
        compute()
"""
LATE = """\
import atexit

def late():
    say("late")
    time.sleep(60)

atexit.register(late)
with interruptible():
    try:
        say("ready")
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
"""
WORKERS = """\
import multiprocessing

def work():
    say("ready")
    time.sleep(60)

with interruptible():
    worker = multiprocessing.get_context("fork").Process(target=work)
    try:
        worker.start()
        worker.join()
    except KeyboardInterrupt:
        time.sleep(0.2)
        say(f"stopped, worker {'lives' if worker.is_alive() else 'is gone'}")
        worker.terminate()
        worker.join()
        say(f"code {worker.exitcode}")
        sys.exit(130)
"""


class Program:
    """A running Python program in a process group of its own, as a terminal starts it."""

    def __init__(self, source: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + textwrap.dedent(source)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            # A shell that starts the tests in the background has interrupts ignored, and children inherit it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no threads
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def send(self, number: int) -> None:
        """The signal to the whole group, as a terminal sends Ctrl-C."""
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """(exit code, rest of stdout, stderr); the program has seconds to end."""
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Starts programs, and ends what is left of them."""
    programs: list[Program] = []

    def begin(source: str) -> Program:
        programs.append(Program(source, tmp_path))
        assert programs[-1].line() == "ready"
        return programs[-1]

    yield begin
    for program in programs:
        with program.process:  # which closes what is open
            program.process.kill()


@pytest.mark.parametrize(
    ("first", "second", "met", "code"),
    [
        (signal.SIGINT, signal.SIGINT, "KeyboardInterrupt", 130),
        (signal.SIGTERM, signal.SIGTERM, "Terminated", 143),
        (signal.SIGINT, signal.SIGTERM, "KeyboardInterrupt", 143),
        (signal.SIGTERM, signal.SIGINT, "Terminated", 130),
    ],
)
def test_the_second_ends_what_the_first_began_to_end(start, first: int, second: int, met: str, code: int) -> None:
    """The first is an exception that code can clean up after; the second waits for nothing and prints nothing."""
    program = start(CLEANING)
    program.send(first)
    assert program.line() == met
    program.send(second)
    assert program.end() == (code, "", "")


def test_the_second_ends_a_call_that_python_cannot_interrupt(start) -> None:
    """Inside a long call of a library the first waits for its end, and the second does not."""
    program = start(BUSY)
    program.send(signal.SIGINT)
    time.sleep(0.3)
    assert program.process.poll() is None
    program.send(signal.SIGINT)
    assert program.end() == (130, "", "")


def test_the_second_ends_a_process_that_is_ending(start) -> None:
    """What runs at the exit of Python is no reason for a traceback either."""
    program = start(LATE)
    program.send(signal.SIGINT)
    assert program.line() == "late"
    program.send(signal.SIGINT)
    assert program.end() == (130, "", "")


def test_workers_leave_the_first_to_their_parent(start) -> None:
    """A worker that the terminal interrupts as well prints nothing, counts as no second one, and its parent ends it."""
    program = start(WORKERS)
    program.send(signal.SIGINT)
    assert program.end() == (130, "stopped, worker lives\ncode 143\n", "")


def test_the_second_ends_workers_too(start) -> None:
    """Nobody is left behind when the parent goes at once."""
    program = start(WORKERS.replace("time.sleep(0.2)", "say('first'); time.sleep(60)"))
    program.send(signal.SIGINT)
    assert program.line() == "first"
    program.send(signal.SIGINT)
    assert program.end() == (130, "", "")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(program.process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a worker goes on")


def test_ignored_interrupts_stay_ignored_and_handlers_come_back(start) -> None:
    """`nohup` and background jobs keep what they asked for; without an interrupt everything is as before."""
    program = start(
        """
        import signal
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before = signal.getsignal(signal.SIGTERM)
        with interruptible():
            say("ready")
            time.sleep(0.5)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
        say("whole")
        """
    )
    program.send(signal.SIGINT)
    assert program.end() == (0, "whole\n", "")


def test_a_program_that_goes_on_counts_its_own_interrupts(start) -> None:
    """After a stretch without one, two interrupts are two exceptions again."""
    program = start(
        """
        with interruptible():
            pass
        for _ in range(2):
            try:
                say("ready")
                time.sleep(60)
            except KeyboardInterrupt:
                say("caught")
        """
    )
    program.send(signal.SIGINT)
    assert (program.line(), program.line()) == ("caught", "ready")
    program.send(signal.SIGINT)
    assert program.end() == (0, "caught\n", "")


LOST = """\
class Finalized:
    def __del__(self):
        say("ready")
        time.sleep(60)

with interruptible():
    try:
        PLACE
        time.sleep(60)
    except KeyboardInterrupt as error:
        say(type(error).__name__)
        sys.exit(130)
"""
PLACES = {
    "a finalizer": "del [Finalized()][:]",
    "a callback of a weak reference": """
        import weakref
        held = {1, 2}
        class Held: pass
        held = Held()
        reference = weakref.ref(held, lambda _: (say("ready"), time.sleep(60)))
        del held""",
    "a callback before a fork": """
        import os
        os.register_at_fork(before=lambda: (say("ready"), time.sleep(60)))
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)""",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("number", "met"), [(signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, "Terminated")])
def test_what_comes_where_exceptions_are_lost_comes_again(start, place: str, number: int, met: str) -> None:
    """Python prints what a finalizer raises and goes on: the interrupt would be gone, with a traceback."""
    program = start(LOST.replace("PLACE", PLACES[place]))
    program.send(number)
    assert program.end() == (130, f"{met}\n", "")


def test_the_second_ends_a_finalizer_too(start) -> None:
    """The first is lost in a finalizer that goes on; the second ends the process at once."""
    program = start(
        LOST.replace("PLACE", "del [Finalized()][:]")
        .replace("time.sleep(60)\n\n", "BUSY\n\n")
        .replace("BUSY", "[x for x in iter(lambda: time.sleep(0.01), 1)]")
    )
    program.send(signal.SIGINT)
    program.send(signal.SIGTERM)
    code, _, err = program.end()
    assert code in {130, 143}
    assert "Traceback" not in err
