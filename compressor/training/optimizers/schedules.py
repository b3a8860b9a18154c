"""How the rate moves over a training: its fraction of the peak in every update.

One cycle (Smith & Topin 2017, arXiv:1708.07120), half a cosine (Loshchilov & Hutter 2016, arXiv:1608.03983, eq. 5,
without restarts), or no movement; a warm-up (Goyal et al. 2017, arXiv:1706.02677, sec. 2.2) may stand before each. A
tail at a low rate may follow: after pruning, accuracy returns in the last epochs at a low rate. The schedule moves the
rate alone; momentum stays constant.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from compressor.checks import check_fraction

START = 1 / 25  # rate at the start of a warm-up, as a fraction of the peak, the default of torch's OneCycleLR
# The share of the updates in which the rate rises, as a rule and in short trainings by AdamW.
RISE, BRIEF_RISE = 0.3, 0.1
LOW = 1 / 100  # rate at the end of a cycle and in the tail, as a fraction of the peak


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Up in a line during the share `warm_up` in [0, 1) of the updates, then down in a cosine to a hundredth.

    None is 0.3 as a rule, and 0.1 in a short training by AdamW, whose tail then is part of the cycle: its steps have
    their size from the first update on, and of few updates none is spent on waiting. On eight kinds of small networks
    (`make bench-training`) that was better on validation for recurrent networks and perceptrons.
    """

    warm_up: float | None = None

    def __post_init__(self) -> None:
        if self.warm_up is not None:
            _check_warm_up(self.warm_up)

    def fraction(self, progress: float) -> float:
        """The rate over its peak, at `progress` in [0, 1]."""
        rise = RISE if self.warm_up is None else self.warm_up
        return _warmed(progress, rise, lambda rest: LOW + (1 - LOW) * _half_cosine(rest))


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """From the peak to zero in half a cosine, after a rise in a line during the share `warm_up` in [0, 1)."""

    warm_up: float = 0.0

    def __post_init__(self) -> None:
        _check_warm_up(self.warm_up)

    def fraction(self, progress: float) -> float:
        """The rate over its peak, at `progress` in [0, 1]."""
        return _warmed(progress, self.warm_up, _half_cosine)


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same rate throughout, after a rise in a line during the share `warm_up` in [0, 1)."""

    warm_up: float = 0.0

    def __post_init__(self) -> None:
        _check_warm_up(self.warm_up)

    def fraction(self, progress: float) -> float:
        """The rate over its peak, at `progress` in [0, 1]."""
        return _warmed(progress, self.warm_up, lambda _rest: 1.0)


Schedule = OneCycle | Cosine | Constant


@dataclass(frozen=True, kw_only=True)
class Course:
    """A schedule laid over a training: `updates` of the optimizer by `schedule`, then constantly a hundredth."""

    schedule: Schedule
    updates: int

    def fraction(self, update: int) -> float:
        """The rate over its peak in one update, counted from 0."""
        if update >= self.updates:
            return LOW
        return self.schedule.fraction(update / max(1, self.updates - 1))

    def length(self, tail: int) -> float:
        """The sum of the fractions of all updates, those of a tail of `tail` updates included."""
        return sum(map(self.fraction, range(self.updates + tail)))


def _warmed(progress: float, warm_up: float, after: Callable[[float], float]) -> float:
    if progress < warm_up:
        return START + (1 - START) * progress / warm_up
    return after((progress - warm_up) / (1 - warm_up))


def _half_cosine(progress: float) -> float:
    return (1 + math.cos(math.pi * progress)) / 2


def _check_warm_up(warm_up: float) -> None:
    check_fraction(warm_up, "warm_up is the share of the updates in which the rate rises")
