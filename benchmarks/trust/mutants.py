"""What every reader makes of damaged and made-up files: how many are refused, and how many end in any other way.

Each reader has a process of its own, which reads its files one after the other; a file that takes more than five
seconds of computing is ended and counted. ONNX files are opened as a user's are, in a process each.
"""

import json
import os
import random
import resource
import signal
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from workbench.mutated_files import SAMPLE, mutated_onnx
from workbench.readers import READERS, mutant, prepared

_SECONDS, _BYTES = 5.0, 1 << 30
ONNX = "ONNX"
_HOW = ("damaged", "damaged", "edited", "bare")
# More of the same error says no more.
_KEPT = 5


class _HangError(BaseException):
    """A file that took too long; no reader may catch it."""


def counts_of(
    read: Callable[[random.Random], bool], *, files: int, seed: int, seconds: float = _SECONDS
) -> dict[str, Any]:
    """What became of so many files: `read` reads one, and says whether it is another result than was written."""
    found: dict[str, Any] = {"files": files, "refused": 0, "read": 0, "other": 0, "untyped": 0, "hangs": 0, "odd": []}
    slowest = 0.0

    def ended(*_: object) -> None:
        raise _HangError

    before = signal.signal(signal.SIGPROF, ended)
    for number in range(files):
        chance = random.Random(seed + number)  # noqa: S311 - no secret
        began = _computed()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            became = "other" if read(chance) else "read"
        except CompressorError:
            became = "refused"
        except _HangError:
            became = "hangs"
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            became = "untyped"
            found["odd"].append(f"{seed + number}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, spent := _computed() - began)
        if spent > seconds:  # in a process of its own, which no signal to this one ends
            became = "hangs"
        if became == "hangs":
            found["odd"].append(f"{seed + number}: {spent:.2f} s")
        found[became] += 1
    signal.signal(signal.SIGPROF, before)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) << 10
    return {**found, "odd": found["odd"][:_KEPT], "slowest_s": slowest, "peak_bytes": peak, "over": peak > _BYTES}


def _computed() -> float:
    """Seconds of computing, of this process and of those that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def of_reader(name: str, place: Path) -> Callable[[random.Random], bool]:
    """Reads a mutant of the reader's sample; exact readers give nothing but what was written."""
    reader = READERS[name]
    sample = reader.sample(place)
    reader.read(sample, place)

    def read(chance: random.Random) -> bool:
        raw = mutant(sample, chance, how=chance.choice(_HOW), bare=chance.randbytes(chance.randrange(200)))
        reader.read(raw, place)
        return reader.exact and raw != sample

    return read


def of_onnx(place: Path) -> Callable[[random.Random], bool]:
    """Opens a mutated ONNX file; one that is sound is another model, and no reader can know that it was changed."""
    from compressor.files.opening import open_file

    def read(chance: random.Random) -> bool:
        path = place / "it.onnx"
        path.write_bytes(mutated_onnx(chance.randrange(1 << 32))[1])
        open_file(path, [SAMPLE])
        return False

    return read


def apart(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives, in a process of its own."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(reading)
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 2)
            warnings.simplefilter("ignore")
            with os.fdopen(writing, "w") as file:
                json.dump(work(), file)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        told = file.read()
    _, status = os.waitpid(process, 0)
    if status:
        raise SystemExit(f"a reader brought its process down: {os.waitstatus_to_exitcode(status)}")
    return dict(json.loads(told))


def measured(
    place: Path,
    *,
    files: int,
    onnx: int,
    seed: int = 0,
    known: Mapping[str, dict[str, Any]] | None = None,
    store: Callable[[dict[str, Any]], object] = lambda found: found,
) -> dict[str, Any]:
    """{reader: counts}, and their sums; `store` gets them after every reader, and what is `known` is taken as it is."""
    rows = dict(known or {})
    found: dict[str, Any] = {}
    for name in (*READERS, ONNX):
        count = onnx if name == ONNX else files
        if rows.get(name, {}).get("files") != count:
            rows[name] = apart(partial(_counted, name, place / name.replace(" ", "-"), count, seed))
            print(f"{name}: {rows[name]}", flush=True)
        ordered = {each: rows[each] for each in (*READERS, ONNX) if each in rows}
        store(found := {"readers": ordered, "all": summed(ordered)})
    return found


def _counted(name: str, place: Path, files: int, seed: int) -> dict[str, Any]:
    place.mkdir()
    read = of_onnx(place) if name == ONNX else of_reader(name, prepared(place))
    return counts_of(read, files=files, seed=seed)


def summed(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The counts of all readers together, the slowest file and the largest process."""
    added = ("files", "refused", "read", "other", "untyped", "hangs", "over")
    most = ("slowest_s", "peak_bytes")
    return {name: sum(row[name] for row in rows.values()) for name in added} | {
        name: max(row[name] for row in rows.values()) for name in most
    }
