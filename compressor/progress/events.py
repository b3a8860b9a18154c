"""Events of a run, for a function that wants to know: what began, what an epoch gave, what became of a stage."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A run begins: the workload's name, the stages by name, the seed, and the folder of the result."""

    workload: str
    stages: tuple[str, ...]
    seed: int
    out: str


@dataclass(frozen=True, kw_only=True)
class StageStarted:
    """Stage `number` of a run begins, counted from 1."""

    number: int
    stage: str


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch of the training of that name: its number from 0, its mean loss, its score on validation data.

    `learning_rate` is that of its last update; loss and score may be NaN.
    """

    training: str
    epoch: int
    loss: float
    score: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StageFinished:
    """What became of stage `number`, 0 for the reference: whether it stands for now and why, and its file in numbers.

    `score` is on test data, `latency_ms` milliseconds, `speedup` against the reference; None where there is no file. A
    stage that stands may still be rolled back with its segment: `RolledBack`.
    """

    number: int
    stage: str
    kept: bool
    reason: str
    seconds: float
    score: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class RolledBack:
    """The stages of these numbers are undone together."""

    numbers: tuple[int, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """A run is over: the file that ships, its score on test data, its speed-up and its size."""

    artifact: str
    budget_met: bool
    score: float
    latency_ms: float
    speedup: float
    size_bytes: int


Event = RunStarted | StageStarted | EpochFinished | StageFinished | RolledBack | RunFinished
Listener = Callable[[Event], object]


class ListenerWarning(UserWarning):
    """What listens to a run failed, and is told nothing more."""


_listener: ContextVar[Listener | None] = ContextVar("what listens to a run", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Within it, `listener` is told every event; None leaves whoever listens already."""
    if listener is None:
        yield
        return
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def emit(event: Event) -> None:
    """Tells `event` to whoever listens.

    What the listener raises ends no run: it becomes a ListenerWarning, and the listener is told nothing more.
    """
    listener = _listener.get()
    if listener is None:
        return
    try:
        listener(event)
    except Exception as error:  # noqa: BLE001 - hours of work do not hang on a tracker
        _listener.set(None)
        warnings.warn(
            f"on_event failed at {type(event).__name__} and is told nothing more: {type(error).__name__}: {error}",
            ListenerWarning,
            stacklevel=2,
        )
