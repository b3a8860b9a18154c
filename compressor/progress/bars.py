"""Bars with the time to go, and lines of progress: bars on a terminal alone, and no line broken inside a word."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from time import monotonic
from typing import Any

from tqdm import tqdm

# Seconds of work before a bar is drawn: what is done sooner needs none.
_DELAY = 0.5
# Seconds between two looks at a clock.
_APART = 0.1
# Columns of a bar for everything but its name: percent, times, and what a training says.
_REST = 60
_KNOWN = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} to go{postfix}"
_UNKNOWN = "{desc} {n_fmt} {unit}, {elapsed}{postfix}"
_WAITING = "{desc} {elapsed}"
_shown: ContextVar[bool] = ContextVar("progress of a run is shown", default=False)
_waiting: ContextVar[Callable[[], object]] = ContextVar("the clock of what is waited for", default=lambda: None)


@contextmanager
def showing(wanted: bool) -> Iterator[None]:  # noqa: FBT001 - the one thing there is to say
    """Within it, bars and lines that are not told whether to show themselves do, if `wanted`."""
    token = _shown.set(wanted)
    try:
        yield
    finally:
        _shown.reset(token)


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str = "",
    total: int | None = None,
    initial: int = 0,
    shown: bool | None = None,
) -> Any:
    """A bar of tqdm over `items`, or over `total` of them, that is gone when it ends; nothing where stderr is no
    terminal.

    `shown` says whether it is wanted at all, by default what `showing` said around it. Its line fits the terminal: the
    bar gives way first, then the name `desc`, from its end and by whole words. Without a length it counts `unit`s, and
    without a unit it shows how long the work has taken.
    """
    if total is None and items is not None:
        # A loader may have a length, and refuse to say it.
        with suppress(TypeError, AttributeError, NotImplementedError):
            total = len(items)  # type: ignore[arg-type]  # not all have one
    form = _KNOWN if total is not None else _UNKNOWN if unit else _WAITING
    return tqdm(
        items,
        desc=textwrap.shorten(desc, max(12, _columns() - _REST), placeholder=" ..."),
        unit=unit or "it",
        total=total,
        initial=initial,
        leave=False,
        ncols=_columns() - 1,
        delay=_DELAY,
        bar_format=form,
        disable=not (_wanted(shown) and sys.stderr.isatty()),
    )


@contextmanager
def waiting(desc: str, *, at_once: bool = True) -> Iterator[None]:
    """Within it, `tick` shows how long the work called `desc` has taken, also where stderr is taken away meanwhile.

    It stands there `at_once`, or, for what is over in a moment as a rule, by a tick after half a second and by ten a
    second then.
    """
    with progress_bar(desc=desc) as bar:
        later = monotonic() + _DELAY

        def look() -> None:
            nonlocal later
            if (now := monotonic()) >= later:
                later = now + _APART
                bar.refresh()

        token = _waiting.set(bar.refresh if at_once else look)
        try:
            if at_once:
                tick()
            yield
        finally:
            _waiting.reset(token)


def tick() -> None:
    """Moves the clock of the work that is waited for, if there is any."""
    _waiting.get()()


def say(text: str, *, shown: bool | None = None) -> None:
    """Writes a line of progress to stderr, above any bar, where `shown` or `showing` want it.

    On a terminal it is broken between words.
    """
    if _wanted(shown):
        tqdm.write(wrapped(text, _columns()) if sys.stderr.isatty() else text, file=sys.stderr)


def wrapped(text: str, columns: int) -> str:
    """`text`, a line, in lines of at most `columns`, the later ones two columns further in; words stay whole."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.fill(
        text,
        max(columns, 2 * len(indent) + 1),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _wanted(shown: bool | None) -> bool:  # noqa: FBT001 - as its callers take it
    return _shown.get() if shown is None else shown


def _columns() -> int:
    return shutil.get_terminal_size().columns
