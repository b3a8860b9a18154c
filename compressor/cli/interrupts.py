"""Ctrl-C and SIGTERM: the first one ends the work in order, the second one the process at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_POLL_SECONDS = 0.1
# A finalizer that an interrupt ended is over by then.
_AGAIN_SECONDS = 0.05


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to be treated like Ctrl-C but for the exit code."""


@contextmanager
def interruptible() -> Iterator[None]:
    """A stretch in which the first Ctrl-C raises KeyboardInterrupt, the first SIGTERM Terminated, and any second exits.

    The exit code is then 128 and the signal's number, as shells have it, with nothing printed. Worker processes that
    are forked meanwhile leave Ctrl-C to their parent, which ends them, and end with it. Signals that are ignored stay
    so. What comes while Python is in a finalizer or a callback of a fork, where exceptions are printed and lost, comes
    again after it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, main, seen = os.getpid(), threading.main_thread().ident or 0, False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        del frame
        if seen or (os.getpid() != owner and number == signal.SIGTERM):
            os._exit(128 + number)
        seen = True
        if os.getpid() == owner:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        # Two signals that arrive close together may be one to a worker.
        threading.Thread(target=_end_with_parent, args=(owner, 128 + number), daemon=True).start()

    handled = [number for number in _NUMBERS if signal.getsignal(number) != signal.SIG_IGN]

    def again(number: int) -> None:
        nonlocal seen
        time.sleep(_AGAIN_SECONDS)
        seen = False
        repeated.append(number)
        # A signal, and not a note that there was one: it ends what the main thread waits for.
        if os.name == "posix":
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)

    def unraisable(lost: Any) -> None:
        if seen and isinstance(lost.exc_value, KeyboardInterrupt) and os.getpid() == owner:
            number = signal.SIGTERM if isinstance(lost.exc_value, Terminated) else signal.SIGINT
            threading.Thread(target=again, args=(number,), daemon=True).start()
        else:
            hook(lost)

    before = {number: signal.signal(number, stop) for number in handled}
    repeated: list[int] = []
    unwatch = _exit_at_the_second(handled, repeated)
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = hook
        # The process may take seconds to end, in which a second Ctrl-C still is one.
        if not seen:
            unwatch()
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_with_parent(owner: int, code: int) -> None:
    parent = os.getppid()
    while os.getppid() == parent and (parent != 1 or owner == 1):
        time.sleep(_POLL_SECONDS)
    os._exit(code)


def _exit_at_the_second(numbers: Sequence[int], repeated: Sequence[int]) -> Callable[[], None]:
    """Sees signals while the main thread is inside a long call of a library, where Python runs no handler.

    Those that this process `repeated` itself do not count. What it hands back ends the watch.
    """
    if os.name != "posix":
        return lambda: None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # The pipe is the parent's: a worker that is interrupted as well is no second signal.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))

    def watch() -> None:
        count = 0
        while arrived := os.read(reader, 1):
            count += arrived[0] in numbers
            if count - len(repeated) == 2:
                os._exit(128 + arrived[0])
        os.close(reader)

    def unwatch() -> None:
        signal.set_wakeup_fd(before)
        os.close(writer)

    threading.Thread(target=watch, daemon=True).start()
    return unwatch
