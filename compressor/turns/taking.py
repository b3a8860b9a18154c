"""Taking turns: `between` lets work pause at its next batch while something is timed, `timing_alone` times.

Nobody waits for somebody who waits: work that begins to time, inside a pass or beside one, gives back what it holds as
work first. Every wait has an end, after which one goes on and says so.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from compressor.turns.flocks import TIMING, WORKING, Flock

Item = TypeVar("Item")

# Seconds: how long a timing waits for another to end, and for work to come to its next batch.
LONGEST_TURN = 600.0
LONGEST_BATCH = 60.0
# How long work waits for timings, one after the other, before it goes on beside them.
LONGEST_PAUSE = 1800.0
_POLL_SECONDS = 0.05
# Files that were cleaned away meanwhile are opened anew.
_FRESH_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Met:
    """What a timing met: for how many seconds it waited, and in words what it went on beside, "" where nothing."""

    waited: float = 0.0
    says: str = ""


@dataclass
class _Mine:
    """What a thread holds: in how many passes it is, one inside the other, and whether it times."""

    passes: int = 0
    timing: Met | None = None
    gate: Flock | None = None
    work: Flock | None = None
    since: float = 0.0

    def open_(self) -> tuple[Flock, Flock]:
        if self.gate is None or self.work is None or time.monotonic() - self.since > _FRESH_SECONDS:
            self.close_()
            self.gate, self.work, self.since = Flock(TIMING), Flock(WORKING), time.monotonic()
        return self.gate, self.work

    def close_(self) -> None:
        for lock in (self.gate, self.work):
            if lock is not None:
                lock.close()
        self.gate = self.work = None


_threads = threading.local()


def between(items: Iterable[Item]) -> Iterator[Item]:
    """The items, before each of which this thread waits while something is timed on this machine."""
    with working() as pause:
        for item in items:
            pause()
            yield item


@contextmanager
def working() -> Iterator[Callable[[], None]]:
    """A stretch of work; what it gives is to be called before every batch, and waits while something is timed."""
    mine = _mine()
    mine.passes += 1
    try:
        yield lambda: _pause(mine)
    finally:
        mine.passes -= 1
        if not mine.passes:
            mine.close_()


@contextmanager
def timing_alone(meanwhile: Callable[[], object] = lambda: None) -> Iterator[Met]:
    """A stretch in which nobody else times and work of ours pauses; what was met says where that was not to be had.

    It may be taken again inside itself, and inside of work, whose turn it interrupts. `meanwhile` is called again and
    again as long as it waits.
    """
    mine = _mine()
    if mine.timing is not None:
        yield mine.timing
        return
    mine.close_()
    gate, work = Flock(TIMING), Flock(WORKING)
    started = time.monotonic()
    try:
        says = []
        if not _taken(gate, LONGEST_TURN, meanwhile):
            says.append(f"another timing, for more than {LONGEST_TURN:.0f} s")
        if not _taken(work, LONGEST_BATCH, meanwhile):
            says.append(f"work that did not pause within {LONGEST_BATCH:.0f} s")
        mine.timing = Met(waited=time.monotonic() - started, says=" and ".join(says))
        yield mine.timing
    finally:
        mine.timing = None
        work.close()
        gate.close()


def is_timing() -> bool:
    """Whether this thread is in a stretch of `timing_alone`."""
    return _mine().timing is not None


def _mine() -> _Mine:
    found: _Mine | None = getattr(_threads, "mine", None)
    if found is None:
        found = _threads.mine = _Mine()
    return found


def _pause(mine: _Mine) -> None:
    """Waits while something is timed, and holds on as one who works."""
    if mine.timing is not None:
        return
    until = time.monotonic() + LONGEST_PAUSE
    gate, work = mine.open_()
    while not _joined(gate, work) and time.monotonic() < until:
        work.release()
        time.sleep(_POLL_SECONDS)


def _joined(gate: Flock, work: Flock) -> bool:
    """Whether nothing is timed; one is among those who work then, before anything else can be."""
    if not gate.take(alone=False):
        return False
    try:
        return work.take(alone=False)
    finally:
        gate.release()


def _taken(lock: Flock, seconds: float, meanwhile: Callable[[], object]) -> bool:
    until = time.monotonic() + seconds
    while not (taken := lock.take(alone=True)) and time.monotonic() < until:
        meanwhile()
        time.sleep(_POLL_SECONDS)
    return taken
