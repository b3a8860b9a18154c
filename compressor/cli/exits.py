"""How the command line ends when something goes wrong: a sentence on stderr and an exit code."""

import errno
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import typer

from compressor.cli.interrupts import Terminated
from compressor.cli.kept import kept_in
from compressor.errors import CompressorError, StageError, TrustError, WrongUseError
from compressor.machine import unreadable_packages

FAILED, WRONG_USE, BUDGET_NOT_MET, NOT_TRUSTED = 1, 2, 3, 4

# What can be done about what the system says.
_WAYS_OUT = {
    errno.ENOENT: "give one that is there",
    errno.EACCES: "see to your rights to it, or give another",
    errno.EPERM: "see to your rights to it, or give another",
    errno.EROFS: "nothing can be written there; give a place elsewhere",
    errno.ENOSPC: "make room on its disk, or give a place elsewhere",
    errno.EDQUOT: "make room within your quota, or give a place elsewhere",
    errno.EISDIR: "it is a folder; give a file",
    errno.ENOTDIR: "it lies below a file; give a folder",
    errno.EEXIST: "it is in the way; give another name, or move it",
    errno.ENAMETOOLONG: "give a shorter name",
}

_Result = TypeVar("_Result")

# The command that is running, and the words after it as they were typed; secrets are in files, whose names these are.
ASKED: ContextVar[tuple[str, list[str]]] = ContextVar("ASKED", default=("command", []))


@contextmanager
def reported(*, verbose: bool, out: Path | None = None, changes: Path | None = None) -> Iterator[None]:
    """Turns what goes wrong into a line on stderr and an exit code, and warnings into lines on stderr.

    `out` is the folder that the command writes to; what it holds of unfinished work is told when it is stopped. What
    happens to it, or to the file or folder that the command `changes`, is written to the audit log above it.
    """
    with _told(verbose=verbose, out=out), _logged(changes or out), _told(verbose=verbose, out=out):
        yield


@contextmanager
def _logged(place: Path | None) -> Iterator[None]:
    """The command in the audit log above `place`, where there is one: before anything is done, and once it has ended.

    Of the processes of one `torchrun` the first alone writes.
    """
    from compressor.trust.audit import digests_at, log_above

    log = None if place is None or os.environ.get("RANK", "0") != "0" else log_above(place)
    if log is None or place is None:
        yield
        return
    command, words = ASKED.get()
    began = log.append(command, what=place, facts={"given": words})
    code = FAILED
    try:
        yield
        code = 0
    except typer.Exit as ended:
        code = ended.exit_code
        raise
    finally:
        facts = {"of line": began["line"], "exit code": code, "sha256": digests_at(place)}
        log.append(f"{command} ended", what=place, facts=facts)


@contextmanager
def _told(*, verbose: bool, out: Path | None) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            yield
    except KeyboardInterrupt as error:
        typer.secho(f"\nstopped: {_kept(out)}: {_command()}", err=True, fg="yellow")
        raise typer.Exit(143 if isinstance(error, Terminated) else 130) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):  # nobody reads on: click ends it without a word
        raise
    except Exception as error:  # noqa: BLE001  # every error ends in a sentence and an exit code
        if verbose:
            import traceback

            traceback.print_exc()
        codes = {WrongUseError: WRONG_USE, TrustError: NOT_TRUSTED}
        code = next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)
        # What somebody's code raised inside a stage is worth a look at where.
        foreign = isinstance(error, StageError) and not isinstance(error.__cause__, CompressorError | None)
        expected = isinstance(error, CompressorError | OSError) and not foreign
        lists = "; ".join(unreadable_packages()) if isinstance(error, UnicodeDecodeError) else ""
        hint = "" if verbose or expected or lists else " (run again with -v for the traceback)"
        typer.secho(f"error: {lists or _text(error)}{hint}", err=True, fg="red")
        raise typer.Exit(code) from None


def _kept(out: Path | None) -> str:
    kept = kept_in(out)
    return f"{kept}; the rest is done again. To go on" if kept else "nothing is kept yet. To begin again"


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        way_out = _WAYS_OUT.get(error.errno or 0, "give another file or folder")
        return f"{error.filename}: {error.strerror}; {way_out}"
    text = str(error) or "it gave no reason"
    return text if isinstance(error, CompressorError) else f"{type(error).__name__}: {text}"


def used(action: Callable[[], _Result]) -> _Result:
    """The result of `action`, whose refusals are the caller's to put right."""
    try:
        return action()
    except ValueError as error:
        raise WrongUseError(str(error)) from error


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    del category
    typer.secho(f"warning: {message}", err=True, fg="yellow")


def _command() -> str:
    return shlex.join(["compressor", *sys.argv[1:]])
