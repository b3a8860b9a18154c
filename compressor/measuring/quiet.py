"""A quiet machine to time on: nobody else who times, our own work paused, and no others that want the cores.

As far as that is to be had: it waits for a while, and what is still there then is said of the timing.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from compressor.errors import WrongUseError
from compressor.machine import others_running
from compressor.turns.taking import Met, is_timing, timing_alone

SECONDS = "COMPRESSOR_QUIET_SECONDS"
_SECONDS = 10.0
# A machine is busy where most of so many moments, so many seconds apart, were.
_MOMENTS, _BUSY, _MOMENT = 8, 5, 2e-3
_POLL_SECONDS = 0.2


@dataclass
class _Patience:
    """Which part of its seconds the next wait may last: half of the last one that was in vain, so that all end."""

    part: float = 1.0


_patience = _Patience()


@contextmanager
def quiet_machine(threads: int = 1) -> Iterator[Met]:
    """A stretch in which this machine is as quiet as can be had for a timing with so many `threads`; what it met.

    Timings of this user and of others wait for one another, our trainings and scorings pause at their next batch, and
    other programs are waited for, $COMPRESSOR_QUIET_SECONDS (10) at most, or not looked at where that is 0.
    """
    if is_timing():
        with timing_alone() as met:
            yield met
        return
    most = _asked_seconds() * _patience.part
    with timing_alone() as met:
        if not most:
            yield met
            return
        started = time.monotonic()
        others = _busy_by(threads)
        while others and time.monotonic() - started < most:
            time.sleep(_POLL_SECONDS)
            others = _busy_by(threads)
        _patience.part = _patience.part / 2 if others else 1.0
        waited = time.monotonic() - started
        told = f"{others} threads of other programs that wanted a core" if others else ""
        if told and waited >= 1:
            told += f", for {waited:.0f} s"
        yield replace(met, waited=met.waited + waited, says=" and ".join(filter(None, [met.says, told])))


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
