"""Files from elsewhere opened in a process of their own, whose time and memory end before those of this one.

An ONNX file is a program: it can loop without end, ask for any memory, or bring down the library that reads it. The
process (`opening_process.py`) loads no torch and takes a fraction of a second of computing; what it hands back is the
file as it is used from then on.
"""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from compressor.errors import LONGEST_REASON, OnnxFileError, bounded, plain
from compressor.files.converting.inputs import Sample
from compressor.files.limits import MAX_BYTES, Limits, regular_size
from compressor.files.preparing import Batch, Prepared, is_memory, prepare
from compressor.files.watching import Watcher

# Bytes of an example's input that are handed over: more are needed only where a file fixes a larger batch.
_ROW_BYTES = 64 << 20
# Where computing is limited, the clock only ends what waits for something: on busy machines a second takes twenty.
_CLOCK = 24.0
# Times the limit that a file may take once it was run: from then on it is known to end.
_PATIENCE = 50.0
_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from compressor.files.opening_process import main; main()"
)
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

# Processes that one file may bring down.
_MOST_PROCESSES = 24

# Digests of files that were opened in a process of their own before, with an example or without, and how many made-up
# inputs they do not run on.
_known: dict[tuple[str | None, bool], int] = {}
# Which file the bytes of a model were made from: {digest of the bytes: (name, digest of the file, bytes with weights)}.
_given: dict[str, tuple[str, str, int]] = {}


def open_file(
    path: Path,
    sample: Sample | None,
    *,
    cast: bool = False,
    watcher: Watcher | None = None,
    batch: Batch = "free",
    streams: Mapping[str, str] | None = None,
) -> Prepared:
    """What `prepare` makes of the file, in a process with limits unless the same bytes were opened before.

    Raises as it does, and OnnxFileError where the process takes too long, too much memory, or dies. One that dies on
    inputs that are made up is followed by another, which is spared them, as is one for which they are too large where
    smaller ones follow.
    """
    limits, watcher = Limits.of_environment(), watcher or Watcher()
    given = None if sample is None else _first_rows(sample)
    digest = _digest(path)
    # Of one that was opened with an example nothing says that it runs on inputs that are made up.
    alone = _known.get((digest, True))
    skipped = alone if given is None or alone is not None else _known.get((digest, False))
    if skipped is not None or not sys.executable:
        return prepare(
            path, given, limits=limits, cast=cast, watcher=watcher, batch=batch, streams=streams, skipped=skipped or 0
        )
    asked = {"cast": cast, "batch": batch, "streams": dict(streams or {})}
    skipped = 0
    for _ in range(_MOST_PROCESSES):
        progress = _Progress(watcher)
        try:
            prepared = _in_a_process(path, given, limits, progress, asked | {"skipped": skipped})
        except _DiedError as error:
            if given is not None or progress.has_run or not progress.runs_begun:
                raise OnnxFileError(_why_died(path, error, progress, given)) from None
            died, skipped = error, skipped + progress.runs_begun
        except OnnxFileError as error:
            if not (progress.spare and str(error).endswith((limits.too_slow, limits.too_large))):
                raise
            skipped += progress.runs_begun
        else:
            break
    else:
        raise OnnxFileError(_why_died(path, died, progress, given))
    if digest is not None and not prepared.outside_bytes:
        _known[digest, given is None] = prepared.skipped
    return prepared


def given_as(onnx_bytes: bytes) -> dict[str, str] | None:
    """Name and SHA-256 of the file that `onnx_bytes` were made from in this process; None where they were not."""
    found = _given.get(hashlib.sha256(onnx_bytes).hexdigest())
    return None if found is None else {"file": found[0], "sha256": found[1]}


def given_size(onnx_bytes: bytes) -> tuple[str, int] | None:
    """Name and size of the file that `onnx_bytes` were made from in this process, with its weights elsewhere; or None.

    It may be far smaller than what was made: sparse weights are written out, and half precision becomes single.
    """
    found = _given.get(hashlib.sha256(onnx_bytes).hexdigest())
    return None if found is None else (found[0], found[2])


def note_given(onnx_bytes: bytes, path: Path, *, outside_bytes: int = 0) -> None:
    """Remembers that `onnx_bytes` were made from the file at `path`, with `outside_bytes` in files of their own."""
    if (digest := _digest(path)) is not None:
        _given[hashlib.sha256(onnx_bytes).hexdigest()] = path.name, digest, path.stat().st_size + outside_bytes


def note_same_given(onnx_bytes: bytes, source: bytes) -> None:
    """Remembers that `onnx_bytes` were made from the file that `source` was made from, where that is known."""
    if (found := _given.get(hashlib.sha256(source).hexdigest())) is not None:
        _given[hashlib.sha256(onnx_bytes).hexdigest()] = found


class _DiedError(OnnxFileError):
    """A process that ended before it said how; the message is by what."""


class _Progress(Watcher):
    """How far a file came in one process; `watcher` is told as well."""

    def __init__(self, watcher: Watcher) -> None:
        self.watcher, self.runs_begun, self.has_run, self.spare = watcher, 0, False, False

    def found(self, dtypes: dict[str, str], outside_bytes: int) -> None:
        self.watcher.found(dtypes, outside_bytes)

    def runs(self, *, spare: bool = False) -> None:
        self.runs_begun += 1
        self.spare = spare
        self.watcher.runs(spare=spare)

    def ran(self) -> None:
        self.has_run = True
        self.watcher.ran()


def _why_died(path: Path, error: _DiedError, progress: _Progress, given: Sample | None) -> str:
    if progress.has_run or not progress.runs_begun:
        return f"{path} brings down what reads it ({error}); it is damaged, export it again"
    if given is not None:
        return f"{path} brings ONNX Runtime down ({error}) on the example; pass samples that it takes"
    return (
        f"{path} brings ONNX Runtime down ({error}) on made-up inputs. Pass example=, a batch of inputs that the file "
        "takes; on the command line, model.onnx:data.npz with some"
    )


def _digest(path: Path) -> str | None:
    try:
        if regular_size(path) > MAX_BYTES:
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None  # whoever reads it says why


def _first_rows(sample: Sample) -> Sample:
    def first(values: NDArray[Any]) -> NDArray[Any]:
        return values[: max(1, _ROW_BYTES * len(values) // values.nbytes)] if values.nbytes > _ROW_BYTES else values

    if isinstance(sample, Mapping):
        return {name: first(values) for name, values in sample.items()}
    return [*map(first, sample)]


def _in_a_process(
    path: Path, sample: Sample | None, limits: Limits, watcher: Watcher, asked: Mapping[str, Any]
) -> Prepared:
    # With the path of this process, not the current folder that Python would put first.
    command = [sys.executable, "-P", "-W", "ignore", "-c", _START, json.dumps([*filter(None, sys.path), _root()])]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603  # this Python and this package
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **_ONE_THREAD},
        )
        clock = _Clock(process, limits.seconds * (_CLOCK if os.name == "posix" else 1.0))
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            _hand_over(process.stdin, path, sample, limits, asked)
            prepared = _answer(process.stdout, watcher, lambda: clock.reset(limits.seconds * _PATIENCE))
            if prepared is not None:
                return prepared
            process.wait()
            errors.seek(0)
            raise _ended(path, process.returncode, errors.read(), limits, out_of_time=clock.ended)
        finally:
            clock.stop()
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)


class _Clock:
    """Ends a process when its time is up."""

    def __init__(self, process: "subprocess.Popen[bytes]", seconds: float) -> None:
        self.process, self.ended = process, False
        self.reset(seconds)

    def reset(self, seconds: float) -> None:
        self.stop()
        self.timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._end)
        self.timer.daemon = True
        self.timer.start()

    def stop(self) -> None:
        if hasattr(self, "timer"):
            self.timer.cancel()

    def _end(self) -> None:
        self.ended = True
        self.process.kill()


def _hand_over(pipe: IO[bytes], path: Path, sample: Sample | None, limits: Limits, settings: Mapping[str, Any]) -> None:
    arrays = [] if sample is None else [*(sample.values() if isinstance(sample, Mapping) else sample)]
    asked = {
        "path": str(path),
        "seconds": limits.seconds,
        "memory_bytes": limits.memory_bytes,
        "patience": _PATIENCE,
        "settings": settings,
        "names": list(sample) if isinstance(sample, Mapping) else None,
        "arrays": None if sample is None else len(arrays),
    }
    # A process that died says why by its end.
    with contextlib.suppress(BrokenPipeError):
        pipe.write(json.dumps(asked).encode() + b"\n")
        for values in arrays:
            held = io.BytesIO()
            np.save(held, values, allow_pickle=False)
            pipe.write(held.getbuffer())
        pipe.close()


def _answer(pipe: IO[bytes], watcher: Watcher, ran: Callable[[], None]) -> Prepared | None:
    """What the process says; None where it died before it said how it ended."""
    for line in pipe:
        said = json.loads(line)
        match said["says"]:
            case "found":
                watcher.found(said["dtypes"], said["outside_bytes"])
            case "runs":
                watcher.runs(spare=said["spare"])
            case "ran":
                watcher.ran()
                ran()
            case "missing":
                raise FileNotFoundError(said["text"])
            case "refused":
                raise OnnxFileError(said["text"])
            case "prepared":
                onnx_bytes = pipe.read(said["size"])
                if len(onnx_bytes) == said["size"]:
                    facts = {name: said[name] for name in ("dtypes", "outside_bytes", "skipped")}
                    return Prepared(onnx_bytes=onnx_bytes, **facts)
    return None


def _ended(path: Path, code: int, errors: bytes, limits: Limits, *, out_of_time: bool) -> OnnxFileError:
    """What is said of a file whose process ended with `code`, having written `errors`."""
    if out_of_time or code == -getattr(signal, "SIGXCPU", 0):
        return OnnxFileError(f"{path} {limits.too_slow}")
    text = errors.decode(errors="replace")
    if is_memory(text) or "MemoryError" in text or code == -getattr(signal, "SIGKILL", 0):
        return OnnxFileError(f"{path} {limits.too_large}")
    lines = text.strip().splitlines() or [f"exit code {code}"]
    return _DiedError(signal.Signals(-code).name if code < 0 else bounded(plain(lines[-1]), LONGEST_REASON))


def _root() -> str:
    return str(Path(__file__).parents[2])


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what it still holds is for a process that is gone
        pipe.close()
