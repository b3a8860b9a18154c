"""The files below a folder, each hashed as it is read, without following a link anywhere."""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from compressor.errors import TrustError

# Runs have some dozen files and three levels.
MOST_FILES = 100_000
_DEEPEST = 32
_PIECE = 1 << 20
_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Digest:
    """The content of a file: its bytes, and their SHA-256 in hexadecimal."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Odd:
    """Something below a folder that is neither a folder nor a plain file: `is_what`, in words.

    Or one that is `shut`: this process may not look into it.
    """

    is_what: str
    shut: bool = False


def walk(folder: Path, *, only: Collection[str] | None = None) -> Iterator[tuple[str, Odd | None]]:
    """(name, None) of every file below `folder`, and (name, Odd) of what is neither a file nor a folder to look into.

    Names are relative, with slashes. With `only`, what `folder` itself holds under other names is passed over. Raises
    TrustError beyond 100,000 entries or 32 levels, and OSError where `folder` itself cannot be read.
    """
    count = 0
    waiting = [(folder, "")]
    while waiting:
        place, prefix = waiting.pop()
        if prefix.count("/") > _DEEPEST:
            raise TrustError(f"{folder} has more than {_DEEPEST} levels of folders, which no run makes")
        try:
            with os.scandir(place) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            yield prefix.rstrip("/"), Odd(f"a folder that cannot be read ({error.strerror})", shut=True)
            continue
        for entry in entries:
            if only is not None and not prefix and entry.name not in only:
                continue
            count += 1
            if count > MOST_FILES:
                raise TrustError(f"{folder} has more than {MOST_FILES:,} files, and so many are not looked at")
            name = prefix + entry.name
            if entry.is_symlink():
                yield name, Odd("a link")
            elif entry.is_dir(follow_symlinks=False):
                waiting.append((Path(entry.path), f"{name}/"))
            elif entry.is_file(follow_symlinks=False):
                yield name, None
            else:
                yield name, Odd("a device, a pipe or a socket")


def digest_of(folder: Path, name: str, *, most_bytes: int | None = None) -> Digest:
    """The content of the file `name` below `folder`, read piece by piece; what follows `most_bytes` is not read on.

    Raises TrustError where it is a link or no plain file, or one of its folders is a link, and OSError where it cannot
    be read.
    """
    digest, size = hashlib.sha256(), 0
    with os.fdopen(_opened(folder, name), "rb", buffering=0) as file:
        piece = bytearray(_PIECE)
        while count := file.readinto(piece):
            digest.update(memoryview(piece)[:count])
            size += count
            if most_bytes is not None and size > most_bytes:
                break
    return Digest(size, digest.hexdigest())


def content_of(folder: Path, name: str, *, most_bytes: int) -> bytes:
    """The bytes of that file, at most `most_bytes`. Raises TrustError and OSError as `digest_of` does."""
    with os.fdopen(_opened(folder, name), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise TrustError(f"{shown(name)} has more than {most_bytes:,} bytes, and no more are read")
    return content


def is_plain_name(name: str) -> bool:
    """Whether `name` is a path that stays below the folder it is relative to, in its one spelling."""
    parts = name.split("/")
    return (
        0 < len(name) <= _LONGEST_NAME
        and all(part not in {"", ".", ".."} for part in parts)
        and not any(character in name for character in "\\\0")
        and not PurePosixPath(name).is_absolute()
        and not (len(parts[0]) > 1 and parts[0][1] == ":" and os.name == "nt")
    )


def shown(name: str) -> str:
    """`name` as it can be printed, whatever bytes it has."""
    return name if name.isprintable() else ascii(name)


def _opened(folder: Path, name: str) -> int:
    """A descriptor of a plain file; where the system can, no folder on the way to it is a link."""
    if not is_plain_name(name):
        raise TrustError(f"{shown(name)!r} is no name of a file below {folder}")
    *folders, last = name.split("/")
    plain = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    steps = os.open in os.supports_dir_fd and hasattr(os, "O_DIRECTORY")
    try:
        if not steps:
            if any(folder.joinpath(*folders[: length + 1]).is_symlink() for length in range(len(folders))):
                raise TrustError(f"{shown(name)} lies behind a link, and links are not followed")
            descriptor = os.open(folder / name, os.O_RDONLY | plain | getattr(os, "O_BINARY", 0))
        else:
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for part in folders:
                    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | plain, dir_fd=place)
                    os.close(place)
                    place = inner
                descriptor = os.open(last, os.O_RDONLY | plain, dir_fd=place)
            finally:
                os.close(place)
    except OSError as error:
        if (folder / name).is_symlink() or any(parent.is_symlink() for parent in _between(folder, name)):
            raise TrustError(f"{shown(name)} is a link or lies behind one, and links are not followed") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise TrustError(f"{shown(name)} is no plain file")
    return descriptor


def _between(folder: Path, name: str) -> list[Path]:
    return [folder / parent for parent in list(PurePosixPath(name).parents)[:-1]]
