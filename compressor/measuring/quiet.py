"""A quiet machine to time on: nobody else who times, our own work paused, and no others that want the cores.

As far as that is to be had: it waits for a while, and what is still there then is said of the timing.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from compressor.errors import WrongUseError
from compressor.machine import others_running
from compressor.progress.bars import tick, waiting
from compressor.turns.taking import Met, is_timing, timing_alone

SECONDS = "COMPRESSOR_QUIET_SECONDS"
_SECONDS = 10.0
# A machine is busy where most of so many moments, so many seconds apart, were.
_MOMENTS, _BUSY, _MOMENT = 8, 5, 2e-3
_POLL_SECONDS = 0.2
# Of the time that a process has worked, and beside it: what it waits in vain altogether.
_SHARE, _BESIDE_SECONDS = 0.05, 1.0


@dataclass
class _Patience:
    """How long the next wait may last: half of the last one that was in vain, and all in vain a part of the work."""

    part: float = 1.0
    in_vain: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def seconds(self, asked: float) -> float:
        """At most so many of the seconds that are `asked` for."""
        worked = time.monotonic() - self.began - self.in_vain
        return min(asked * self.part, max(0.0, _BESIDE_SECONDS + _SHARE * worked - self.in_vain))

    def told_(self, *, vain: bool, waited: float) -> None:
        """Heeds that one wait took so long, and whether others were still there in the end."""
        self.part = self.part / 2 if vain else 1.0
        self.in_vain += waited if vain else 0.0


_patience = _Patience()
_met: ContextVar[Met | None] = ContextVar("what the stretch around this one met", default=None)


@contextmanager
def quiet_machine(threads: int = 1) -> Iterator[Met]:
    """A stretch in which this machine is as quiet as can be had for a timing with so many `threads`; what it met.

    Timings of this user and of others wait for one another, our trainings and scorings pause at their next batch, and
    other programs are waited for: $COMPRESSOR_QUIET_SECONDS (10) at most, and a twentieth of the work so far and a
    second altogether where they stay. They are not looked at where that is 0.
    """
    if is_timing():
        with timing_alone() as met:
            yield _met.get() or met
        return
    asked = _asked_seconds()
    with ExitStack() as stack:
        with waiting("waiting for a quiet machine", at_once=False):
            met = stack.enter_context(timing_alone(tick))
            both = _waited(met, threads, asked) if asked else met
        token = _met.set(both)
        try:
            yield both
        finally:
            _met.reset(token)


def _waited(met: Met, threads: int, asked: float) -> Met:
    """What was `met`, and the others that want cores, who are waited for: `asked` seconds at most."""
    started, most = time.monotonic(), _patience.seconds(asked)
    others = _busy_by(threads)
    while others and time.monotonic() - started < most:
        tick()
        time.sleep(_POLL_SECONDS)
        others = _busy_by(threads)
    waited = time.monotonic() - started
    _patience.told_(vain=bool(others), waited=waited)
    told = f"{others} threads of other programs that wanted a core" if others else ""
    if told and waited >= 1:
        told += f", for {waited:.0f} s"
    return replace(met, waited=met.waited + waited, says=" and ".join(filter(None, [met.says, told])))


def _busy_by(threads: int) -> int:
    """How many threads of other programs want cores that `threads` would need; 0 where there are enough for all."""
    cores = os.cpu_count() or 1
    moments = []
    for _ in range(_MOMENTS):
        moments.append(others_running() or 0)
        time.sleep(_MOMENT)
    busy = [others for others in moments if others + threads > cores]
    return max(1, round(sum(busy) / len(busy))) if len(busy) >= _BUSY else 0


def _asked_seconds() -> float:
    text = os.environ.get(SECONDS, "").strip()
    try:
        value = float(text) if text else _SECONDS
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise WrongUseError(f"{SECONDS} must be a number of at least 0, got {text[:100]!r}; unset it for {_SECONDS:g}")
    return value
