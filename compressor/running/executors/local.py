"""Worker processes on this machine: fresh interpreters that end with this process, whatever ends it.

Every worker is a pool of one process of loky (which joblib brings along), so that it is known of which task one died.
Interpreters are started, not forked: threads of torch and of ONNX Runtime do not survive a fork. The user's main script
is not run again in them.
"""

import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from compressor.checks import check_count
from compressor.errors import ExecutorError, first_said
from compressor.running.executors.protocol import TRIES, Ended, Task
from compressor.running.executors.sending import SHARED_WAY_OUT, end_of, quarantined, received, sent, sent_task, worked

# By which the libraries under torch and ONNX Runtime choose their number of threads.
_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_POLL_SECONDS = 0.2
_GONE = 1


@dataclass(frozen=True, kw_only=True)
class Local:
    """`workers` processes on this machine, each with `threads` threads of torch.

    A number of threads that the environment sets (OMP_NUM_THREADS) counts instead, where it is smaller.
    """

    workers: int = 2
    threads: int = 1

    def __post_init__(self) -> None:
        check_count(self.workers, "workers counts the tasks that are worked at once")
        check_count(self.threads, "threads counts those of a worker")

    @property
    def name(self) -> str:
        """As people name it."""
        return "local"

    @contextmanager
    def open(self, shared: Any = None) -> Iterator["LocalPool"]:
        """The processes, of which the first is started and asked whether it can read `shared`."""
        pool = LocalPool(
            workers=self.workers, threads=self.threads, shared=sent(shared, "the workload", SHARED_WAY_OUT)
        )
        try:
            pool.try_()
            yield pool
        finally:
            pool.close()


@dataclass(kw_only=True)
class LocalPool:
    """Tasks that wait, and those that are under way, each in the slot of a worker."""

    workers: int
    threads: int
    shared: bytes = field(repr=False)
    _slots: list["_Slot"] = field(default_factory=list)
    _waiting: list["_Sent"] = field(default_factory=list)
    _order: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = [_Slot(self.threads, self.shared) for _ in range(self.workers)]

    @property
    def under_way(self) -> tuple[str, ...]:
        """The keys of tasks that have not been told as ended."""
        return tuple(self._order)

    def try_(self) -> None:
        """Starts the first worker. Raises ExecutorError where it cannot be started, or cannot read what is shared."""
        try:
            why = self._slots[0].asked(_readable).result()
        except Exception as error:
            raise ExecutorError(
                f"a worker process could not be started ({type(error).__name__}: {first_said(error)}); take one worker"
            ) from error
        if why:
            raise ExecutorError(f"the workload cannot be read by workers ({why}); {SHARED_WAY_OUT}")

    def submit(self, task: Task) -> None:
        """Gives the task to a worker that is free, or lets it wait for one."""
        if task.key in self._order:
            raise ValueError(f"the task {task.key!r} is under way; give another key")
        self._waiting.append(_Sent(key=task.key, data=sent_task(task)))
        self._order[task.key] = None
        self._fill()

    def ended(self, seconds: float | None = None) -> Ended | None:
        """The next task that has ended, the one that was submitted first of several."""
        until = None if seconds is None else time.monotonic() + seconds
        while self._order:
            self._fill()
            busy = {slot.future: slot for slot in self._slots if slot.future is not None}
            left = None if until is None else max(0.0, until - time.monotonic())
            done, _ = wait(busy, timeout=left, return_when=FIRST_COMPLETED)
            if not done:
                return None
            places = list(self._order)
            slot = min((busy[future] for future in done), key=lambda slot: places.index(slot.key))
            if (ended := self._end_of(slot)) is not None:
                del self._order[ended.key]
                self._fill()
                return ended
        return None

    def cancel(self, key: str) -> bool:
        """Takes the task back; a process that works on it is ended, and another one takes its place."""
        if key not in self._order:
            return False
        del self._order[key]
        self._waiting = [one for one in self._waiting if one.key != key]
        for slot in self._slots:
            if slot.future is not None and slot.key == key:
                slot.end()
        return True

    def close(self) -> None:
        """Ends all processes."""
        self._waiting.clear()
        self._order.clear()
        for slot in self._slots:
            slot.end(at_once=slot.future is not None)

    def _fill(self) -> None:
        for slot in self._slots:
            if slot.future is None and self._waiting:
                slot.begin(self._waiting.pop(0))

    def _end_of(self, slot: "_Slot") -> Ended | None:
        """What came of the task in `slot`, which is free then; None where it is tried again."""
        future, one = slot.future, slot.task
        assert future is not None
        assert one is not None
        slot.future = slot.task = None
        try:
            data: bytes = future.result()
        except Exception as error:  # noqa: BLE001  # loky's own: of a process that died, whatever killed it
            slot.end()
            if one.tries >= TRIES:
                return quarantined(one.key, one.tries, first_said(error))
            self._waiting.insert(0, one)
            return None
        return end_of(one.key, data, one.tries)


@dataclass(kw_only=True)
class _Sent:
    """A task as bytes, and how often it was begun."""

    key: str
    data: bytes = field(repr=False)
    tries: int = 0


@dataclass
class _Slot:
    """The place of one worker, whose process is started when it is needed, and again when it has died."""

    threads: int
    shared: bytes = field(repr=False)
    future: "Future[Any] | None" = None
    task: _Sent | None = None
    _process: Any = None

    @property
    def key(self) -> str:
        return self.task.key if self.task is not None else ""

    def begin(self, one: _Sent) -> None:
        one.tries += 1
        self.task, self.future = one, self.asked(_work, one.key, one.data)

    def asked(self, function: Any, *arguments: Any) -> "Future[Any]":
        """What `function` gives in the process, once it is there."""
        if self._process is None:
            from joblib.externals.loky import ProcessPoolExecutor

            threads = str(_threads(self.threads))
            self._process = ProcessPoolExecutor(
                max_workers=1,
                initializer=_begin,
                initargs=(os.getpid(), self.shared),
                env=dict.fromkeys(_SETTINGS, threads),
            )
        found: Future[Any] = self._process.submit(function, *arguments)
        return found

    def end(self, *, at_once: bool = True) -> None:
        """Ends the process: `at_once`, with whatever it has started, or by itself where it has nothing to do."""
        self.future = self.task = None
        if self._process is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._process.shutdown(wait=True, kill_workers=at_once)
            self._process = None


def _threads(share: int) -> int:
    asked = os.environ.get(_SETTINGS[0], "")
    return min(int(asked), share) if asked.isdigit() and int(asked) else share


_shared: dict[str, Any] = {}


def _begin(parent: int, shared: bytes) -> None:
    """What a worker does first: it leaves Ctrl-C to `parent`, which ends it, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Bars of a worker share no terminal; a lock between processes would be left behind by one that is ended.
    tqdm.set_lock(threading.RLock())
    _shared["bytes"] = shared
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(_GONE)


def _readable() -> str:
    """Why a worker cannot read what all tasks need; "" where it can."""
    try:
        _value()
    except Exception as error:  # noqa: BLE001  # importing the user's modules may raise anything
        return f"{type(error).__name__}: {first_said(error)}"
    return ""


def _value() -> Any:
    if "value" not in _shared:
        _shared["value"] = received(_shared["bytes"])
    return _shared["value"]


def _work(key: str, data: bytes) -> bytes:
    return worked(key, data, _value)
