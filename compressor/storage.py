"""Files that are either whole or absent, and values as JSON has them."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import StorageError, WriteError

# Reports of large networks have some megabytes; Python needs thirty times as much for the values of a text.
_MOST_JSON_BYTES = 32_000_000
_DEEPEST_JSON = 100
# Each takes a hundred bytes or so in Python: what small values fill is more than their text by far.
_MOST_JSON_VALUES = 4_000_000
_TEMPORARY = re.compile(r"\.compressor-(?P<host>[0-9a-f]{8})-(?P<process>[0-9]{1,10})-[0-9a-f]{16}\.tmp")
# Without waiting for who might write to a pipe.
_TO_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# What it says where a folder stands in the place of a file, or a file in that of a folder.
_OTHER_KIND = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST}
# What the disk says when it has no room: no space, no quota, a file beyond the limit of the process.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, data: bytes | str) -> None:
    """Puts `data` at `path` so that a kill at any moment leaves the old file or the new one, never a part.

    A new file gets the rights that the umask leaves, one that is replaced keeps its own; a link is replaced, not
    followed. Raises WriteError, naming the file, where it cannot be written; a full disk is found before it is touched.
    """
    raw = data.encode() if isinstance(data, str) else data
    with written_whole(path, len(raw)) as file:
        file.write(raw)


@contextmanager
def written_whole(path: Path, size_bytes: int) -> Iterator[BinaryIO]:
    """A file to write `size_bytes` to, and to read back, that is at `path` once the block ends well, and else nowhere.

    Rights, links and errors are as in `write_atomic`.
    """
    part = path.parent / temporary_name()
    require_file_place(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        require_space(path, size_bytes)
        try:
            # Not by `tempfile`, whose files are their owner's alone.
            with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), "w+b") as file:
                if path.is_file() and not path.is_symlink():
                    part.chmod(stat.S_IMODE(path.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except WriteError:
        raise
    except OSError as error:
        raise not_written(path, size_bytes, error) from error


def require_file_place(path: Path) -> None:
    """Raises WriteError where no file can be at `path`: it names none, or a device, a pipe or a socket, kept as it is.

    To be moved to, /dev/null would become a file for everybody.
    """
    if not path.name:
        raise WriteError(f"a file is to be written, and {str(path)!r} names none; give the name of one")
    try:
        kind = path.stat().st_mode
    except (OSError, ValueError):  # nothing is there, or whoever writes says why not
        return
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise WriteError(f"{path} is a device, a pipe or a socket, and a file is to be written; give the name of one")


def cache_folder() -> Path:
    """What is kept between runs: in $COMPRESSOR_CACHE, $XDG_CACHE_HOME/compressor, or ~/.cache/compressor."""
    if named := os.environ.get("COMPRESSOR_CACHE"):
        return Path(named)
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named) / "compressor"
    try:
        return Path.home() / ".cache" / "compressor"
    except RuntimeError:  # an account without a home, as in containers
        return Path(tempfile.gettempdir()) / "compressor-cache"


def require_space(path: Path, needed_bytes: int) -> None:
    """Raises WriteError where the disk of `path`, or of the folder that it will be in, has fewer bytes free."""
    folder = next((place for place in (path, *path.parents) if place.is_dir()), None)
    if folder is not None and (free := shutil.disk_usage(folder).free) < needed_bytes:
        raise WriteError(_full(path, needed_bytes, f"{free:,} bytes are free on its disk"))


def temporary_name() -> str:
    """A new name for a file on its way, which `is_left_over` knows again."""
    return f".compressor-{_host()}-{os.getpid()}-{secrets.token_hex(8)}.tmp"


def is_temporary_name(name: str) -> bool:
    """Whether `name` is one of `temporary_name`, whoever gave it."""
    return _TEMPORARY.fullmatch(name) is not None


def is_left_over(path: Path) -> bool:
    """Whether `path` is a file that a writer of ours was in the middle of when it was killed."""
    return not path.is_symlink() and path.is_file() and is_name_left_over(path.name)


def is_name_left_over(name: str) -> bool:
    """Whether `name` is one of `temporary_name`, given by a process that has ended."""
    named = _TEMPORARY.fullmatch(name)
    return named is not None and (named["host"] != _host() or not is_running(int(named["process"])))


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number, or cannot tell."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's, or a number that is none
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """The same for a JSON value; refuses NaN and infinities, which JSON has no word for."""
    write_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str, *, way_out: str = "delete it to start this step again") -> Any:
    """The JSON value in `path`. Raises StorageError, ending with `way_out`, where it is not JSON or beyond limits."""
    return parsed_json(read_bytes(path, way_out=way_out, most=_MOST_JSON_BYTES), path, way_out=way_out)


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Puts the JSON object `value` at `path` with a digest of itself."""
    write_json(path, {**value, "sha256": _seal(value)})


def read_sealed(path: Path | str, *, way_out: str) -> dict[str, Any]:
    """What `write_sealed` put there. Raises StorageError, ending with `way_out`, where anything of it differs."""
    value = read_json(path, way_out=way_out)
    if not isinstance(value, dict) or value.pop("sha256", None) != _seal(value):
        raise StorageError(f"{path} is not as it was written; {way_out}")
    return value


def read_bytes(path: Path | str, *, way_out: str, most: int | None = None) -> bytes:
    """What is in the file `path`, at most `most` bytes.

    Raises StorageError, ending with `way_out`, where it cannot be read, is no regular file, or has more.
    """
    other = f"{path} is no regular file, but a device, a pipe or a socket; {way_out}"
    try:
        descriptor = os.open(path, _TO_READ)
        try:
            facts = os.fstat(descriptor)
            if stat.S_ISDIR(facts.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(facts.st_mode):
                raise StorageError(other)
            if most is not None and facts.st_size > most:
                raise StorageError(f"{path} has {facts.st_size:,} bytes, and at most {most:,} are read; {way_out}")
            parts = []
            while part := os.read(descriptor, facts.st_size + 1):
                parts.append(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what opening a socket says
            raise StorageError(other) from error
        raise StorageError(f"{path} cannot be read ({error.strerror}); {way_out}") from error


def parsed_json(raw: bytes, path: Path | str, *, way_out: str) -> Any:
    """The JSON value in `raw`, the content of `path`.

    Raises StorageError, ending with `way_out`, where it is none, has more than four million values, or is nested deeper
    than code that walks it can go.
    """
    if (count := values_in(raw)) > _MOST_JSON_VALUES:
        raise StorageError(f"{path} has up to {count:,} values, and at most {_MOST_JSON_VALUES:,} are read; {way_out}")
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not readable JSON ({error}); {way_out}") from error
    if raw.count(b"[") + raw.count(b"{") < _DEEPEST_JSON:
        return value
    level = [value]
    for _ in range(_DEEPEST_JSON):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]
        if not level:
            return value
    raise StorageError(f"{path} is nested more than {_DEEPEST_JSON} levels deep, and no file of ours is; {way_out}")


def values_in(raw: bytes) -> int:
    """How many values stand in the JSON `raw` at most."""
    return 1 + sum(map(raw.count, b",[{"))


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def json_safe(value: Any) -> Any:
    """`value` in JSON's own types: NaN and infinities become None, what JSON does not know becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(entry) for entry in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Enum):
        return json_safe(value.value)
    if hasattr(value, "tolist"):  # arrays, tensors and their scalars
        return json_safe(value.tolist())
    return str(value)


def sha256(data: bytes) -> str:
    """The SHA-256 digest of `data` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(value: dict[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True, allow_nan=True).encode())


@cache
def _host() -> str:
    return sha256(socket.gethostname().encode())[:8]


def not_written(path: Path, needed_bytes: int, error: OSError) -> WriteError:
    """What is said where `error` kept `needed_bytes` from being written to `path`: why, and the way out."""
    other = next((place for place in (path, *path.parents) if os.path.lexists(place)), path)
    if error.errno in _OTHER_KIND and other.is_dir() == (other == path):
        is_what = "a folder" if other == path else "no folder"
        return WriteError(f"{path} cannot be written: {other} is {is_what}; move it away, or give another folder")
    if error.errno not in _NO_ROOM:
        return WriteError(f"{path} cannot be written: {error.strerror}; give a folder in which you may write files")
    if error.errno == errno.EFBIG:
        return WriteError(_full(path, needed_bytes, f"no file may be so large here ({error.strerror}; see ulimit -f)"))
    folder = next((place for place in path.parents if place.is_dir()), Path())
    free = f"{shutil.disk_usage(folder).free:,} bytes are free on its disk ({error.strerror})"
    return WriteError(_full(path, needed_bytes, free))


def _full(path: Path, needed_bytes: int, free: str) -> str:
    return f"{path} needs {needed_bytes:,} bytes, but {free}; make room or give a folder elsewhere, then run again"
