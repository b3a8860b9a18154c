"""The audit log: who did what and when, in lines that only come and that each hold the digest of the one before.

`audit.jsonl` has a line of canonical JSON for each entry; nothing in it is ever written over. `audit.head` holds how
many lines there are and the newest of them: it is replaced first, so that a line that a kill cut off is completed by
the next writer, and a line that went or came at the end is seen. Where a log was begun, commands that change something
below its folder write to it before they do it, and again when they have ended.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from compressor.errors import StorageError, TrustError, WriteError, WrongUseError
from compressor.storage import not_written, read_sealed, sha256, write_sealed
from compressor.trust.canonical import canonical, fitting, parsed
from compressor.trust.manifest import BESIDE, MANIFEST
from compressor.trust.statements import time_text
from compressor.trust.tree import digest_of

LOG, HEAD = "audit.jsonl", "audit.head"
# What names the folder of the log, wherever files are.
VARIABLE = "COMPRESSOR_AUDIT"
_LOCK = ".audit.lock"
_FORMAT, _VERSION = "compressor-audit", 1
_NOTHING = "0" * 64
_KEYS = {"at", "by", "did", "what", "facts", "line", "previous", "sha256"}
_MOST_LINE_BYTES = 1 << 16
# Some hundred thousand lines.
_MOST_LOG_BYTES = 1 << 28
_WAIT_SECONDS = 20.0
_TRIES = 50
_WAY_OUT = "keep what is there as evidence, and begin a new log in another folder"


@dataclass(frozen=True)
class _Head:
    lines: int
    size_bytes: int
    last: bytes

    @property
    def begins(self) -> int:
        """Where the newest line begins."""
        return self.size_bytes - len(self.last)


@dataclass(frozen=True)
class AuditLog:
    """The log in `folder`."""

    folder: Path

    @classmethod
    def begin(cls, folder: Path) -> "AuditLog":
        """A new log in `folder`, which is made where it is missing. Raises WrongUseError where there is one already."""
        if (folder / MANIFEST).exists():
            raise WrongUseError(
                f"{folder} is a run's own, whose manifest lists no log; give the folder above it, {folder.parent}"
            )
        log = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with log._held():
                for name in (LOG, HEAD):
                    if os.path.lexists(folder / name):
                        raise WrongUseError(f"{folder / name} is there already, and a log is never begun twice")
                log._put_head(_Head(0, 0, b""))
        except WriteError:
            raise
        except OSError as error:
            raise not_written(folder / LOG, 0, error) from error
        log.append("audit begun", what=folder)
        return log

    def append(
        self,
        did: str,
        *,
        what: Path,
        facts: Mapping[str, Any] | None = None,
        by: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Adds the entry that `did` happened to `what`, by this process's user (and what `by` adds), and gives it.

        Once this returns the line is on the disk. Several processes may append at a time. Raises TrustError where the
        end of the log is not as it was written, and WriteError where it cannot be: what cannot be logged is not done.
        """
        try:
            with self._held():
                head = self._head()
                self._complete(head)
                previous = parsed(head.last[:-1], what=HEAD, most_bytes=_MOST_LINE_BYTES)["sha256"] if head.last else ""
                entry: dict[str, Any] = {
                    "at": time_text(datetime.now(UTC)),
                    "by": fitting({**_who(), **(by or {})}),
                    "did": did,
                    "what": fitting(self._named(what)),
                    "facts": _short(fitting(facts or {})),
                    "line": head.lines + 1,
                    "previous": previous or _NOTHING,
                }
                entry["sha256"] = sha256(canonical(entry))
                line = canonical(entry) + b"\n"
                self._put_head(_Head(head.lines + 1, head.size_bytes + len(line), line))
                self._write(line)
        except WriteError:
            raise
        except OSError as error:
            raise WriteError(
                f"{self.folder / LOG} cannot be written ({error.strerror}), and what cannot be logged is not done"
            ) from error
        return entry

    def entries(self) -> Iterator[dict[str, Any]]:
        """The entries, oldest first, each held against the one before and the last against `audit.head`.

        Raises TrustError at the first line that is not as it was written, which it names.
        """
        head, raw = self._read()
        previous, place, number = _NOTHING, 0, 0
        while (end := raw.find(b"\n", place)) >= 0:
            number += 1
            entry = self._entry(raw[place:end], number, previous)
            if number > head.lines:
                raise self._bad(number, f"came along: {head.lines} were written")
            previous, place = entry["sha256"], end + 1
            yield entry
        tail = raw[place:]
        if head.lines == number + 1 and head.last.startswith(tail):
            # The writer was killed between the two files, and the next one puts the line there.
            yield self._entry(head.last[:-1], head.lines, previous)
        elif tail:
            raise self._bad(number + 1, "is cut off, or no line that was written")
        elif number != head.lines:
            raise self._bad(number + 1, f"is missing: {head.lines} were written, and {number} are there")
        elif number and raw[-len(head.last) :] != head.last:
            raise self._bad(number, f"is not the one that was written last, which is in {HEAD}")

    def _entry(self, line: bytes, number: int, previous: str) -> dict[str, Any]:
        try:
            value = parsed(line, what="it", most_bytes=_MOST_LINE_BYTES)
            if not isinstance(value, dict) or value.keys() != _KEYS:
                raise ValueError("it is no entry of a log")  # noqa: TRY301  # told with its line, as the rest
            seal = {name: entry for name, entry in value.items() if name != "sha256"}
            if sha256(canonical(seal)) != value["sha256"]:
                raise ValueError("its digest of itself differs")  # noqa: TRY301
        except ValueError as error:  # TrustError is one
            raise self._bad(number, f"was changed: {getattr(error, 'sentence', error)}") from error
        if value["line"] != number:
            raise self._bad(number, f"is line {value['line']}: lines are missing, came along or were moved")
        if value["previous"] != previous:
            raise self._bad(number, "does not follow the line before it, which was changed or put there")
        return dict(value)

    def _bad(self, number: int, says: str) -> TrustError:
        return TrustError(f"{self.folder / LOG}: line {number} {says}; {_WAY_OUT}")

    @contextmanager
    def _held(self) -> Iterator[None]:
        from filelock import FileLock, Timeout  # every command looks for a log, and few find one

        try:
            with FileLock(self.folder / _LOCK, timeout=_WAIT_SECONDS):
                yield
        except Timeout as error:
            raise WriteError(
                f"{self.folder / LOG} is held by another process for {_WAIT_SECONDS:.0f} s; wait for it, or stop it"
            ) from error

    def _head(self) -> _Head:
        try:
            value = read_sealed(self.folder / HEAD, way_out=_WAY_OUT)
        except StorageError as error:
            raise TrustError(error.sentence) from error
        if value.get("format") != _FORMAT or value.get("version") != _VERSION:
            raise TrustError(f"{self.folder / HEAD} is no head of a log of version {_VERSION}; {_WAY_OUT}")
        try:
            found = _Head(value["lines"], value["bytes"], value["last"].encode())
        except (KeyError, AttributeError, UnicodeEncodeError) as error:
            raise TrustError(f"{self.folder / HEAD} is not laid out as one; {_WAY_OUT}") from error
        if type(found.lines) is not int or type(found.size_bytes) is not int or found.begins < 0:
            raise TrustError(f"{self.folder / HEAD} is not laid out as one; {_WAY_OUT}")
        return found

    def _put_head(self, head: _Head) -> None:
        facts = {"format": _FORMAT, "version": _VERSION, "lines": head.lines, "bytes": head.size_bytes}
        write_sealed(self.folder / HEAD, {**facts, "last": head.last.decode()})

    def _complete(self, head: _Head) -> None:
        """Puts there what of the newest line a kill kept from it; raises TrustError where the end is another."""
        try:
            with self._reading() as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, head.begins))
                tail = file.read(len(head.last) + 1)
        except FileNotFoundError:
            size, tail = 0, b""
        if not head.begins <= size <= head.size_bytes or not head.last.startswith(tail):
            raise TrustError(
                f"{self.folder / LOG} does not end as it was written, so nothing is added to it; "
                f"`compressor audit {self.folder}` tells the first line that differs"
            )
        if len(tail) < len(head.last):
            self._write(head.last[len(tail) :])

    def _write(self, line: bytes) -> None:
        with os.fdopen(self._opened(os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def _reading(self) -> BinaryIO:
        return os.fdopen(self._opened(os.O_RDONLY), "rb")

    def _opened(self, how: int) -> int:
        plain = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        return os.open(self.folder / LOG, how | plain, 0o666)

    def _read(self) -> tuple[_Head, bytes]:
        """The head and the log of one moment, without keeping anybody from writing."""
        for _ in range(_TRIES):
            head = self._head()
            try:
                with self._reading() as file:
                    raw = file.read(_MOST_LOG_BYTES + 1)
            except FileNotFoundError:
                raw = b""
            except OSError as error:
                raise TrustError(f"{self.folder / LOG} cannot be read: {error.strerror}; {_WAY_OUT}") from error
            if len(raw) > _MOST_LOG_BYTES:
                raise TrustError(f"{self.folder / LOG} has more than {_MOST_LOG_BYTES:,} bytes, and no more are read")
            if self._head() == head:
                return head, raw
            time.sleep(0.01)
        raise StorageError(f"{self.folder / LOG} is written all the time; look again")

    def _named(self, what: Path) -> str:
        """`what` as seen from the log's folder, where it is below it."""
        whole, here = (Path(os.path.abspath(path)) for path in (what, self.folder))  # noqa: PTH100 - links stay links
        return whole.relative_to(here).as_posix() if whole.is_relative_to(here) else str(whole)


def log_above(place: Path) -> AuditLog | None:
    """The log that speaks of `place`: that of COMPRESSOR_AUDIT, or of the nearest folder above it that has one.

    Raises WrongUseError where COMPRESSOR_AUDIT names a folder without a log.
    """
    if named := os.environ.get(VARIABLE):
        if not has_log(Path(named)):
            raise WrongUseError(
                f"{VARIABLE} names {named}, where no log was begun; `compressor audit {named} --begin` does it"
            )
        return AuditLog(Path(named))
    lexical = Path(os.path.abspath(place))  # noqa: PTH100 - both where it is said to be, and where links lead
    for whole in dict.fromkeys((lexical, lexical.resolve())):
        for folder in (whole, *whole.parents):
            if has_log(folder):
                return AuditLog(folder)
    return None


def has_log(folder: Path) -> bool:
    """Whether either of the two files is there: one that was deleted is told, and does not end the log."""
    if os.path.lexists(folder / HEAD):
        return True
    try:  # other programs have logs of this name
        with (folder / LOG).open("rb") as file:
            return b'"did":' in file.read(_MOST_LINE_BYTES) and (folder / _LOCK).exists()
    except OSError:
        return False


def _who() -> dict[str, Any]:
    """The user as the system knows them, whatever the environment says."""
    who: dict[str, Any] = {"host": socket.gethostname(), "process": os.getpid()}
    if os.name != "posix":
        return {"user": os.environ.get("USERNAME", ""), **who}
    import pwd

    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = ""
    behind = os.environ.get("SUDO_USER")
    return {"user": name, "number": number, **who} | ({"for": behind} if behind and number == 0 else {})


def _short(facts: Any) -> Any:
    """`facts`, or how long they would be, where they are longer than a line may be."""
    size = len(canonical(facts))
    return facts if size < _MOST_LINE_BYTES // 2 else {"left out": size}


def digests_at(place: Path) -> dict[str, str]:
    """{name: SHA-256} of the file at `place`, or of what in the folder `place` speaks of all the rest."""
    names = BESIDE if place.is_dir() else (place.name,)
    folder = place if place.is_dir() else place.parent
    found = {}
    for name in names:
        with suppress(OSError, TrustError):
            found[name] = digest_of(folder, name).sha256
    return found
