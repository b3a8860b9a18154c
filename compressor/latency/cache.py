"""Measured times on disk: a file that cannot be read is made anew, one that cannot be written is done without."""

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor.errors import StorageError
from compressor.latency.operators import Operator
from compressor.storage import read_json, write_json

# Writers hold the lock for milliseconds.
_LOCK_SECONDS = 10.0


class CacheWarning(UserWarning):
    """A cache that cannot be read or written; what was in it is measured again."""


# A table reads and writes its file often, and each file is told of once.
_told: set[Path] = set()


def read_times(path: Path, method: int) -> dict[Operator, float]:
    """The milliseconds by operator in the file `path`; none where there is no such file, or it is of another method.

    A file that is damaged or laid out in another way counts as none, with a CacheWarning.
    """
    if not os.path.lexists(path):
        return {}
    try:
        data = read_json(path, way_out="it is made anew")
        if isinstance(data, dict) and "method" in data and data["method"] != method:
            return {}
        return {Operator.from_json(entry["operator"]): _milliseconds(entry["ms"]) for entry in data["entries"]}
    except StorageError as error:
        _tell(path, str(error))
    except Exception as error:  # noqa: BLE001  # whatever values of other kinds lead to
        _tell(path, f"{path} holds no table of times ({type(error).__name__}: {error}); it is made anew")
    return {}


def write_times(path: Path, facts: Mapping[str, Any], times: Mapping[Operator, float]) -> dict[Operator, float]:
    """`times` and those that others put into the file meanwhile, which then holds them all, with the `facts`.

    Where it cannot be written it stays as it is, with a CacheWarning.
    """
    every = dict(times)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
            every = read_times(path, facts["method"]) | every
            entries = [{"operator": key.as_json(), "ms": every[key]} for key in sorted(every)]
            write_json(path, {**facts, "entries": entries})
    except (OSError, StorageError, Timeout) as error:
        reason = f"its lock was held for {_LOCK_SECONDS:g} s" if isinstance(error, Timeout) else str(error)
        _tell(path, f"the times in {path} cannot be kept for the next run ({reason}); set COMPRESSOR_CACHE to a folder")
    return every


def _milliseconds(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"a time is a number from 0 on, got {value!r}")
    return float(value)


def _tell(path: Path, text: str) -> None:
    if path not in _told:
        _told.add(path)
        warnings.warn(text, CacheWarning, stacklevel=2)
