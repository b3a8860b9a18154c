"""Work that may never end, in a child process that is ended at a limit of CPU time or memory.

The child is a fork: it sees the caller's objects as they are, so that models of classes that nobody can import or
pickle (notebooks, scripts, closures) work like any other. A fork has one thread alone, and a lock that another thread
held stays held in it; so the child computes with one thread, runs no finalizer of the parent's objects, and one that
makes no progress is ended and its work done here. Systems other than Linux do not fork safely beside threads: there the
work runs in the caller's thread, and a second thread interrupts it between two steps of Python code once the time is
over. That holds for loops of Python, which is what torch's exporter gets lost in, and not for memory.
"""

import contextlib
import ctypes
import faulthandler
import gc
import math
import os
import select
import signal
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from compressor.progress.bars import tick

# Seconds between two looks at the child's memory: it cannot fill more than some hundred megabytes in between.
_LOOK = 0.05
# Seconds without any CPU time after which a child waits for a lock that nobody will open: a busy machine gives some.
_STALLED = 60.0
# Seconds after which work in this thread that caught the interruption is interrupted again.
_INSIST = 1.0
_LENGTH = struct.Struct("<q")
_PR_SET_PDEATHSIG = 1


class LimitError(Exception):
    """Work that was ended at its limit; the message is what it had used up, such as "120 s of CPU time"."""


class ChildError(Exception):
    """Work whose process ended without a result."""


class _StalledError(Exception):
    pass


class _Interruption(BaseException):
    """No Exception, so that `except Exception` in the work lets it pass."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """CPU time in `seconds` (> 0) and bytes of `memory` (> 0) beyond what the process has when the work begins."""

    seconds: float
    memory: int


def run_limited(work: Callable[[], bytes], limit: Limit) -> bytes:
    """What `work` returns, computed in a child process where the system allows it; what else it does stays there.

    Raises LimitError at the limit, and ChildError where the process ended without a result: it crashed, or `work`
    raised something, which the caller is to catch inside of it. Whatever interrupts the caller ends the child, too.
    """
    if can_fork():
        with contextlib.suppress(_StalledError, OSError):
            return _in_child(work, limit)
    return _in_this_thread(work, limit)


def can_fork() -> bool:
    """Whether children are forks on this system."""
    return sys.platform == "linux" and hasattr(os, "fork")


def _in_child(work: Callable[[], bytes], limit: Limit) -> bytes:
    reading, writing = os.pipe()
    try:
        sys.stdout.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of locks that other threads may hold; what is done about them stands above.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            parent = os.getpid()
            pid = os.fork()
        if pid == 0:
            _be_child(work, limit, writing, parent)
    except BaseException:
        os.close(reading)
        os.close(writing)
        raise
    try:
        os.close(writing)
        received = _received(pid, reading, limit)
        if received is not None:
            return received
        _, status = os.waitpid(pid, 0)
        pid = 0
        raise _ended(status, limit)
    finally:
        os.close(reading)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _be_child(work: Callable[[], bytes], limit: Limit, writing: int, parent: int) -> None:
    """Does the work and ends the process, without a step into the parent's code."""
    try:
        _prepare_child(limit, parent)
        data = work()
        view = memoryview(_LENGTH.pack(len(data)) + data)
        while view:
            view = view[os.write(writing, view) :]
        os._exit(0)
    finally:
        os._exit(1)


def _prepare_child(limit: Limit, parent: int) -> None:
    import resource

    # Finalizers of the parent's objects may join threads or delete files.
    gc.freeze()
    # The parent decides about Ctrl-C and ends the child; its handlers are no business of this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGPROF, signal.SIGXCPU, signal.SIGALRM, signal.SIGVTALRM):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGPROF, signal.SIGXCPU})
    with contextlib.suppress(OSError, AttributeError, ValueError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
    # A crash is told by the parent, as an error.
    faulthandler.disable()
    # Nobody reads what libraries print here, and other programs may speak a protocol over these.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = math.ceil(limit.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # Idle threads of the parent's pools do not exist here: one thread is all there is.
    torch.set_num_threads(1)
    signal.setitimer(signal.ITIMER_PROF, limit.seconds)


def _received(pid: int, reading: int, limit: Limit) -> bytes | None:
    """The child's result, None where it ended without one. Raises LimitError and _StalledError."""
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    parts, held = bytearray(), _resident(pid)
    cpu, moved = -1.0, time.monotonic()
    while True:
        if poller.poll(1000 * _LOOK):
            part = os.read(reading, 1 << 20)
            if not part:
                return None
            parts += part
        if len(parts) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(parts)
            if len(parts) == _LENGTH.size + length:
                return bytes(memoryview(parts)[_LENGTH.size :])
        tick()
        if _resident(pid) - held > limit.memory:
            raise LimitError(f"{limit.memory / 1e9:.2g} GB of memory")
        used = _cpu_seconds(pid)
        if used > cpu:
            cpu, moved = used, time.monotonic()
        elif time.monotonic() - moved > _STALLED:
            raise _StalledError


def _ended(status: int, limit: Limit) -> Exception:
    if not os.WIFSIGNALED(status):
        return ChildError("the process ended without a result")
    number = os.WTERMSIG(status)
    if number in {signal.SIGPROF, signal.SIGXCPU}:
        return LimitError(_time(limit))
    if number == signal.SIGKILL:
        # Nobody else kills it but a system that has no memory left.
        return LimitError("all the memory that the system gives")
    return ChildError(f"the process ended by {signal.Signals(number).name}")


def _resident(pid: int) -> int:
    """Bytes of the process in memory; 0 where the system does not tell, or it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _cpu_seconds(pid: int) -> float:
    try:
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return math.inf  # progress that cannot be seen is taken for granted once, and then the work moves here


def _in_this_thread(work: Callable[[], bytes], limit: Limit) -> bytes:
    try:
        with _interrupted_after(limit.seconds):
            return work()
    except _Interruption:
        raise LimitError(_time(limit)) from None
    except Exception as error:
        raise ChildError(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raises _Interruption in this thread once the process has used `seconds` of CPU time, until the block is left."""
    lock, left = threading.Lock(), threading.Event()
    thread, start = ctypes.c_ulong(threading.get_ident()), time.process_time()

    def watch() -> None:
        while not left.wait(min(_LOOK, seconds)):
            if time.process_time() - start < seconds:
                continue
            with lock:
                if left.is_set():
                    return
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Interruption))
            left.wait(_INSIST)

    watcher = threading.Thread(target=watch, name="export limit", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        # Whoever had the lock has received what was on its way, and nothing follows before _INSIST is over.
        while not left.is_set():
            with contextlib.suppress(_Interruption), lock:
                left.set()
        watcher.join()


def _time(limit: Limit) -> str:
    return f"{limit.seconds:.3g} s of CPU time"
