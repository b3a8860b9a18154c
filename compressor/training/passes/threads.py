"""How many threads compute a pass over data: chosen by timing its batches where others want the cores.

Threads of one operator wait for one another at its end. Where another process keeps a core busy they wait for the one
that is not running: with two threads on two cores, a network can train at a tenth of what a single thread does. Which
number is best changes with what else the machine does, so it is found out in the pass itself, whose batches are
computed anyway.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import TypeVar

import torch

from compressor.batches import Batch
from compressor.machine import core_count, others_running
from compressor.turns.taking import working
from compressor.workload import batch_size_of

Item = TypeVar("Item")

# Batches that each number of threads is tried on; the first is not counted, for kernels are prepared in it.
_TRIED = 3
# How much slower than the best a number may be in its first and its second batch to be tried on.
_HOPELESS = (4.0, 2.0)
# How much faster fewer threads have to be.
_FASTER = 1.1
# Batches shorter than this, in seconds, hardly use more than one thread.
_SHORT = 2e-3
# The part of the time that may go into trying the others again, in a later pass and where the rate has fallen.
_SPENT, _SPENT_SLOW = 0.1, 0.3
# Batches whose mean tells that the rate has fallen, and how much longer they then take than when it was chosen.
_RECENT, _FALLEN = 6, 1.3
# Moments that are looked at, one a batch, and how many of them make the machine busy.
_MOMENTS, _BUSY = 8, 5
# Seconds between those before the first batch.
_MOMENT = 2e-3
_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_heard: ContextVar[list[str] | None] = ContextVar("what rankings said of their threads", default=None)


@dataclass(kw_only=True)
class Threads:
    """The number of threads of the passes of one training, one ranking or all scores of a run.

    It is at most `most`, which is torch's number at the start.

    Where nobody else wants the cores it is `most`, so that equal runs give equal bits; where others do, it is found out
    by trying. Where the environment sets a number (OMP_NUM_THREADS, MKL_NUM_THREADS) it stays. `clock` tells seconds,
    and `others` how many threads of other processes want a core, None where that is not known. Passes wait while
    something is timed, but for those that do not `pauses`, whose team pauses with rank 0.
    """

    most: int = field(default_factory=lambda: max(1, min(torch.get_num_threads(), core_count())))
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    fixed: bool = field(default_factory=lambda: any(os.environ.get(name) for name in _SETTINGS))
    clock: Callable[[], float] = perf_counter
    others: Callable[[], int | None] = others_running
    wait: Callable[[float], None] = sleep
    pauses: bool = True
    _current: int = 0
    _moments: list[bool] = field(default_factory=list)
    _waiting: list[int] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)
    _costs: dict[int, float] = field(default_factory=dict)
    _since: float = 0.0
    _recent: list[float] = field(default_factory=list)
    _batches: int = 0
    _aside: float = 0.0
    _said: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._current = self.most

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within it torch has as many threads as `over` chooses, and behind it as many as before."""
        before = torch.get_num_threads()
        try:
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    @property
    def number(self) -> int:
        """With how many threads the present batch is to be computed."""
        return self._waiting[0] if self._waiting else self._current

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done within is no part of a batch's time: it is done once, whatever comes after."""
        started = self.clock()
        try:
            yield
        finally:
            self._aside += self.clock() - started

    def timed(self, batches: Iterable[Batch]) -> list[Batch]:
        """The `batches` as a list, every pass over which is one of `over`."""
        return _Timed(batches, self)

    def over(self, items: Iterable[Item], size: Callable[[Item], float]) -> Iterator[Item]:
        """The items, batches of `size` samples (or labels); what is done until the next one is asked for is timed.

        Before each the pass waits while something is timed on this machine (`compressor.turns`).
        """
        with working() if self.pauses else nullcontext(lambda: None) as pause:
            if self.fixed or self.most == 1:
                for item in items:
                    pause()
                    yield item
                return
            yield from self._chosen(items, size, pause)

    def _chosen(
        self, items: Iterable[Item], size: Callable[[Item], float], pause: Callable[[], None]
    ) -> Iterator[Item]:
        if not self._batches:
            for _ in range(_MOMENTS):
                self._look()
                self.wait(_MOMENT)
            if self._is_busy():
                self._try()
        elif self._costs and self._is_busy() and not self._waiting and self._may_try_again(_SPENT):
            self._try()
        passing = iter(items)
        while True:
            pause()
            started, self._aside = self.clock(), 0.0
            try:
                item = next(passing)
            except StopIteration:
                return
            yield item
            self._took(self.clock() - started - self._aside, size(item))

    @property
    def told(self) -> str | None:
        """What was chosen, in words, None where torch's own number stayed."""
        if not self._said:
            return None
        changes = ", ".join(f"{number} from batch {batch} on" for batch, number in self._said)
        return (
            f"threads by timing, as other processes wanted the cores: {self.most}, {changes}; other numbers round sums "
            "in another order, so an equal run may differ in the last digits (OMP_NUM_THREADS fixes the number)"
        )

    def _look(self) -> None:
        others = self.others()
        self._moments = [*self._moments[1 - _MOMENTS :], others is not None and others + self.most > self.cores]

    def _is_busy(self) -> bool:
        return sum(self._moments) >= _BUSY

    def _took(self, seconds: float, samples: float) -> None:
        self._batches += 1
        each = seconds / max(1, samples)
        self._look()
        if self._waiting:
            self._times.append(each)
            self._tried()
            return
        self._since += each
        self._recent = [*self._recent[1 - _RECENT :], each]
        if not self._is_busy():
            self._costs.clear()
            self._take(self.most)
        elif (not self._costs and seconds > _SHORT) or (self._has_fallen() and self._may_try_again(_SPENT_SLOW)):
            self._try()

    def _has_fallen(self) -> bool:
        """Whether batches have come to take longer than those that the present number was chosen by."""
        chosen = self._costs.get(self._current, math.inf)
        return len(self._recent) == _RECENT and sum(self._recent) / _RECENT > _FALLEN * chosen

    def _may_try_again(self, part: float) -> bool:
        """Whether trying the others is no more than this part of what was computed since the last choice."""
        again = _TRIED * sum(cost for number, cost in self._costs.items() if number != self._current)
        return again <= part * self._since

    def _try(self) -> None:
        """Every number of threads comes next, few first, for many may take very long."""
        self._costs, self._times, self._waiting = {}, [], _candidates(self.most)
        self._use(self._waiting[0])

    def _tried(self) -> None:
        """What the last batch says of the number that is tried."""
        number, best = self._waiting[0], min(self._costs.values(), default=math.inf)
        tries = len(self._times)
        if tries < _TRIED and self._times[-1] <= _HOPELESS[tries - 1] * best:
            return
        # Their mean: among others a batch of several threads is fast by chance, and many are slow.
        counted = self._times[1:] or self._times
        self._costs[number] = sum(counted) / len(counted)
        self._waiting, self._times = self._waiting[1:], []
        if self._waiting:
            self._use(self._waiting[0])
        else:
            self._take(min(self._costs, key=lambda each: self._costs[each] * (1 if each == self.most else _FASTER)))

    def _take(self, number: int) -> None:
        if number != self._current:
            self._said.append((self._batches, number))
            self._current = number
        self._since, self._recent = 0.0, []
        self._use(number)

    def _use(self, number: int) -> None:
        if torch.get_num_threads() != number:
            torch.set_num_threads(number)


class _Timed(list[Batch]):
    """Batches that are computed by as many threads as `threads` chooses, in every pass over them."""

    def __init__(self, batches: Iterable[Batch], threads: Threads) -> None:
        super().__init__(batches)
        self._threads = threads

    def __iter__(self) -> Iterator[Batch]:
        return self._threads.over(super().__iter__(), lambda batch: batch_size_of(batch[0]))


@contextmanager
def ranking() -> Iterator[Threads]:
    """The threads of one ranking, for `timed` and `over`; behind it torch has as many as before.

    What was chosen is told to the `heard_rankings` around it.
    """
    threads = Threads()
    with threads.kept():
        yield threads
    heard = _heard.get()
    if heard is not None and threads.told and threads.told not in heard:
        heard.append(threads.told)


@contextmanager
def heard_rankings() -> Iterator[list[str]]:
    """What every ranking within it says of its threads, in words; nothing where torch's own number stayed."""
    found: list[str] = []
    token = _heard.set(found)
    try:
        yield found
    finally:
        _heard.reset(token)


def _candidates(most: int) -> list[int]:
    """One, and so on up to `most`, which is halved down."""
    return [*(_candidates(most // 2) if most > 1 else []), most]
