"""The store of stages on disk: each under the digest of all that it was made of, whole or absent, verified on reading.

store.json            says that the folder is a store
ab/ab12.../           one stage: its files, and entry.json, which holds what came of it and the digest of every file
locks/, part/         who is making which stage, and what is being written
"""

import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor.checks import check_positive
from compressor.errors import StorageError, WrongUseError
from compressor.progress.bars import say
from compressor.storage import (
    is_left_over,
    is_name_left_over,
    is_temporary_name,
    read_bytes,
    read_json,
    read_sealed,
    sha256,
    temporary_name,
    write_atomic,
    write_json,
    write_sealed,
)

_MARK, _ENTRY = "store.json", "entry.json"
_LOCKS, _PARTS = "locks", "part"
_LAYOUT = 1
_KEY = re.compile("[0-9a-f]{64}")
# What a damaged entry names must not lead out of its folder.
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_POLL_SECONDS = 0.2
_MADE_ANEW = "it is made anew"


class StoreWarning(UserWarning):
    """A store that cannot be used as it should; nothing is lost by it but time."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A stage as the store has it: its files by name, the facts that were put with them, and when it was made."""

    facts: dict[str, Any]
    contents: dict[str, bytes]
    made: str


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stage in the store, as a list shows it: `seconds` is what making it took, `used` when it was last read."""

    key: str
    stage: str
    seconds: float
    size_bytes: int
    made: str
    used: str

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return dict(vars(self))


class Store:
    """Finished stages in `folder`: at most `most_bytes` of them, none that was not used for `most_days`.

    Several processes may use it at once. What cannot be written, or is damaged, is told with a StoreWarning and costs
    no run. Raises StorageError where `folder` holds other things.
    """

    def __init__(self, folder: Path, *, most_bytes: int = 20 << 30, most_days: float = 90.0) -> None:
        check_positive(most_bytes, "most_bytes is what the store may hold")
        check_positive(most_days, "most_days is how long a stage is kept unused")
        self.folder, self.most_bytes, self.most_days = folder, most_bytes, most_days
        self._held: int | None = None  # bytes, as far as this process knows
        self._told = False
        self._refuse_others()

    def __repr__(self) -> str:
        return f"<Store in {self.folder}>"

    def get(self, key: str) -> Kept | None:
        """What was put under `key`, verified byte by byte; None where there is nothing.

        What is damaged is taken out of the store, and told.
        """
        folder = self._named(key)
        if not os.path.lexists(folder):
            return None
        try:
            found = _read(folder, key)
        except StorageError as error:
            if os.path.lexists(folder):  # nobody has cleaned it away meanwhile
                self.discard(key, str(error))
            return None
        with suppress(OSError):
            os.utime(f"{folder}/{_ENTRY}")
        return found

    def put(
        self, key: str, *, stage: str, seconds: float, facts: dict[str, Any], contents: Mapping[str, bytes]
    ) -> bool:
        """Keeps what came of a stage; whether it is in the store then. Raises nothing: what fails is told, once."""
        size = sum(map(len, contents.values()))
        if size > self.most_bytes:
            self._tell(f"{stage} has {size:,} bytes, and the store holds at most {self.most_bytes:,}")
            return False
        part, place = self.folder / _PARTS / temporary_name(), self._place(key)
        made = datetime.now(UTC).isoformat(timespec="seconds")
        files = {name: sha256(content) for name, content in contents.items()}
        try:
            self._begin()
            for name, content in contents.items():
                write_atomic(part / name, content)
            write_sealed(
                part / _ENTRY,
                {"key": key, "stage": stage, "seconds": seconds, "made": made, "facts": facts, "files": files},
            )
            place.parent.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                _renamed(part, place)
        except (OSError, StorageError) as error:
            self._tell(str(error))
            return False
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._bound(_size(place))
        return True

    def discard(self, key: str, why: str) -> None:
        """Takes out what is under `key` and cannot be used, and says `why`."""
        self._remove(self._place(key))
        warnings.warn(f"in the store of stages: {why}", StoreWarning, stacklevel=2)

    @contextmanager
    def making(self, key: str) -> Iterator[None]:
        """Holds what is under `key` for one process at a time: a second one waits, and finds it made.

        Where nothing can be locked, on a disk that cannot be written to, nobody waits.
        """
        lock = self._lock(key)
        try:
            yield
        finally:
            if lock is not None:
                # Whoever waits for a file that is gone makes the stage a second time, which harms nothing.
                with suppress(OSError):
                    Path(lock.lock_file).unlink()
                lock.release()

    def entries(self) -> list[Entry]:
        """All stages, the one that was used last first. What cannot be read is called "damaged"."""
        found = [_listed(folder) for folder in self._folders()]
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def size_bytes(self) -> int:
        """What all stages take on disk."""
        return sum(map(_size, self._folders()))

    def verify(self) -> list[str]:
        """Reads every byte; what is damaged is taken out, and told: a sentence for each."""
        found = []
        for folder in self._folders():
            try:
                _read(str(folder), folder.name)
            except StorageError as error:
                if folder.exists():
                    found.append(str(error).removesuffix(f"; {_MADE_ANEW}"))
                    self._remove(folder)
        return found

    def clean(self, *, most_bytes: int | None = None, most_days: float | None = None) -> tuple[int, int]:
        """Takes out what was not used for `most_days`, then what was used longest ago until `most_bytes` are left.

        By default the store's own limits. Returns how many stages went, and their bytes.
        """
        limit = self.most_bytes if most_bytes is None else most_bytes
        days = self.most_days if most_days is None else most_days
        self._sweep()
        found = sorted((_used(folder), _size(folder), folder) for folder in self._folders())
        left, gone = sum(size for _, size, _ in found), []
        oldest = time.time() - 86400 * days
        for used, size, folder in found:
            if used >= oldest and left <= limit:
                break
            if self._remove(folder):
                left -= size
                gone.append(size)
        self._held = left
        return len(gone), sum(gone)

    def _place(self, key: str) -> Path:
        return Path(self._named(key))

    def _named(self, key: str) -> str:
        """The folder of a stage, as text: looking up thousands, making paths would take most of the time."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key is the 64 digits of a SHA-256, got {key!r}")
        return f"{self.folder}/{key[:2]}/{key}"

    def _folders(self) -> Iterator[Path]:
        for group in sorted(_children(self.folder)):
            if len(group.name) == 2:
                yield from (path for path in _children(group) if _KEY.fullmatch(path.name))

    def _refuse_others(self) -> None:
        mark = self.folder / _MARK
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise StorageError(f"{self.folder} is no folder, and the store of stages is one; give another place")
        if mark.is_file():
            layout = read_json(mark, way_out="give another folder for the store of stages")
            if layout != {"compressor_store": _LAYOUT}:
                raise StorageError(f"{self.folder} is a store of another version; give another folder, or delete it")
        # Whoever began the store may be about to name it, or was killed before that.
        elif not all(is_temporary_name(path.name) for path in _children(self.folder, files=True)):
            raise StorageError(
                f"{self.folder} holds other things and is no store of stages; give an empty folder or a new one"
            )

    def _begin(self) -> None:
        if not (self.folder / _MARK).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / _MARK, {"compressor_store": _LAYOUT})

    def _bound(self, added: int) -> None:
        """Keeps the limits; all of the store is looked at once a process, and whenever it may be too large."""
        if self._held is not None:
            self._held += added
        if self._held is None or self._held > self.most_bytes:
            self.clean()

    def _sweep(self) -> None:
        """Removes what killed writers were in the middle of."""
        for path in filter(is_left_over, _children(self.folder, files=True)):
            with suppress(OSError):
                path.unlink()
        for path in _children(self.folder / _PARTS, files=True):
            if is_name_left_over(path.name):
                shutil.rmtree(path, ignore_errors=True)

    def _remove(self, folder: Path) -> bool:
        """Out of sight at once, then gone; a reader in between finds nothing."""
        away = self.folder / _PARTS / temporary_name()
        with suppress(OSError):
            away.parent.mkdir(exist_ok=True)
            folder.rename(away)
            shutil.rmtree(away, ignore_errors=True)
            return True
        return False

    def _lock(self, key: str) -> FileLock | None:
        try:
            self._begin()
            (self.folder / _LOCKS).mkdir(exist_ok=True)
            lock = FileLock(self.folder / _LOCKS / f"{key}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                say("  another process is making this stage; waiting for it (--no-store does not wait)")
                lock.acquire(poll_interval=_POLL_SECONDS)
        except (OSError, StorageError, NotImplementedError):
            return None
        return lock

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            text = f"a finished stage cannot be kept in the store and stays in the folder of its run alone: {why}"
            warnings.warn(text, StoreWarning, stacklevel=3)


def check_store(store: object) -> None:
    """Raises WrongUseError for what is neither a Store nor None."""
    if store is not None and not isinstance(store, Store):
        raise WrongUseError(f"store is a Store, got {store!r}; write Store(Path(...)), or leave it out")


def _read(folder: str, key: str) -> Kept:
    """The stage in `folder`. Raises StorageError where anything of it is not as it was written."""
    entry = f"{folder}/{_ENTRY}"
    saved = read_sealed(entry, way_out=_MADE_ANEW)
    files, facts, made = (saved.get(name) for name in ("files", "facts", "made"))
    if saved.get("key") != key or not isinstance(files, dict) or not isinstance(facts, dict):
        raise StorageError(f"{entry} is not what the store wrote there; {_MADE_ANEW}")
    contents = {}
    for name, digest in files.items():
        if not _FILE.fullmatch(name):
            raise StorageError(f"{entry} names {name!r}, which is no file of a stage; {_MADE_ANEW}")
        contents[name] = read_bytes(f"{folder}/{name}", way_out=_MADE_ANEW)
        if sha256(contents[name]) != digest:
            raise StorageError(f"{folder}/{name} is not the file that was written; {_MADE_ANEW}")
    return Kept(facts=facts, contents=contents, made=str(made))


def _listed(folder: Path) -> Entry:
    used = datetime.fromtimestamp(_used(folder), UTC).isoformat(timespec="seconds")
    try:
        saved: Any = read_json(f"{folder}/{_ENTRY}")
        stage, seconds, made = str(saved["stage"]), float(saved["seconds"]), str(saved["made"])
    except (StorageError, KeyError, TypeError, ValueError):
        stage, seconds, made = "damaged", math.nan, ""
    return Entry(key=folder.name, stage=stage, seconds=seconds, size_bytes=_size(folder), made=made, used=used)


def _used(folder: Path) -> float:
    for path in (folder / _ENTRY, folder):
        with suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _size(folder: Path) -> int:
    total = 0
    with suppress(OSError), os.scandir(folder) as found:
        for item in found:
            with suppress(OSError):
                total += item.stat(follow_symlinks=False).st_size
    return total


def _children(folder: Path, *, files: bool = False) -> list[Path]:
    """The folders in `folder`, and its `files` too; nothing where there is none, or none that may be read."""
    with suppress(OSError), os.scandir(folder) as found:
        return [Path(item.path) for item in found if files or item.is_dir(follow_symlinks=False)]
    return []


def _renamed(part: Path, place: Path) -> None:
    """Raises FileExistsError where another process was there first: equal keys mean equal stages."""
    try:
        part.rename(place)
    except OSError as error:
        if place.is_dir():
            raise FileExistsError from error
        raise
