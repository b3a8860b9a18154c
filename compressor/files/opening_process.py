"""What runs in the process that opens a file from elsewhere: limits first, then the file, then the answer."""

import io
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from numpy.lib import format as npy

from compressor.errors import OnnxFileError
from compressor.files.converting.inputs import Sample
from compressor.files.limits import MAX_BYTES, Limits
from compressor.files.preparing import prepare
from compressor.files.watching import Watcher

try:
    import resource
except ImportError:  # not on Windows: time alone is limited there, by the parent
    resource = None  # type: ignore[assignment]  # a module's name, held for the functions that ask


def main() -> None:
    """Reads what is asked from stdin, and writes lines of JSON to stdout, the last one followed by the file's bytes."""
    asked = json.loads(sys.stdin.buffer.readline())
    held = io.BytesIO(sys.stdin.buffer.read())  # numpy asks files for their position, which pipes have none of
    arrays = [npy.read_array(held, allow_pickle=False) for _ in range(asked["arrays"] or 0)]
    sample: Sample | None = None
    if asked["arrays"] is not None:
        sample = arrays if asked["names"] is None else dict(zip(asked["names"], arrays, strict=True))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print what they like
    limits = Limits(seconds=asked["seconds"], memory_bytes=asked["memory_bytes"])
    path = Path(asked["path"])
    watcher = _Limited(answers, limits, path, asked["patience"])
    try:
        prepared = prepare(path, sample, limits=limits, watcher=watcher, **asked["settings"])
    except FileNotFoundError as error:
        watcher.say("missing", text=str(error))
    except OnnxFileError as error:
        watcher.say("refused", text=str(error))
    else:
        facts = {"dtypes": prepared.dtypes, "outside_bytes": prepared.outside_bytes, "skipped": prepared.skipped}
        watcher.say("prepared", size=len(prepared.onnx_bytes), **facts)
        answers.write(prepared.onnx_bytes)
        answers.flush()
    # Sessions take a while to end, and nothing of this process is needed any more.
    os._exit(0)


class _Limited(Watcher):
    """Tells the parent how far the file has come, and moves the limits with it."""

    def __init__(self, answers: IO[bytes], limits: Limits, path: Path, patience: float) -> None:
        self.answers, self.limits, self.patience = answers, limits, patience
        self.file_bytes = path.stat().st_size if path.is_file() else 0
        self.taken = _address_space()
        _limit_memory(self.taken + limits.memory_for(self.file_bytes), self.taken + limits.memory_for(MAX_BYTES))
        _limit_seconds(limits.seconds)

    def found(self, dtypes: dict[str, str], outside_bytes: int) -> None:
        _limit_memory(self.taken + self.limits.memory_for(self.file_bytes + outside_bytes))
        self.say("found", dtypes=dtypes, outside_bytes=outside_bytes)

    def runs(self, *, spare: bool = False) -> None:
        self.say("runs", spare=spare)

    def ran(self) -> None:
        _limit_seconds(self.limits.seconds * self.patience)
        self.say("ran")

    def say(self, says: str, **facts: Any) -> None:
        self.answers.write(json.dumps({"says": says, **facts}).encode() + b"\n")
        self.answers.flush()


def _address_space() -> int:
    """The bytes of address space that this process has now; 0 where that cannot be known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _limit_memory(soft: int, hard: int | None = None) -> None:
    # Elsewhere than on Linux address space is reserved freely, or not limited at all.
    if resource is None or not sys.platform.startswith("linux"):
        return
    _, before = resource.getrlimit(resource.RLIMIT_AS)
    most = before if hard is None else _least(hard, before)
    resource.setrlimit(resource.RLIMIT_AS, (_least(soft, most), most))


def _limit_seconds(seconds: float) -> None:
    """At most so many seconds of computing more."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    soft = max(1, round(used.ru_utime + used.ru_stime + seconds))
    resource.setrlimit(resource.RLIMIT_CPU, (_least(soft, most), most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _least(one: int, other: int) -> int:
    """The lower of two limits."""
    if resource is not None and other == resource.RLIM_INFINITY:
        return one
    return min(one, other)
