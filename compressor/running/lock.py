"""One writer at a time in a folder, whatever becomes of the files in it, and a sentence about who that is."""

import errno
import os
import re
import socket
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from compressor.errors import RunFolderError, StorageError, WriteError
from compressor.storage import is_running, read_json, write_json

LOCK_FILE = ".lock"
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
_held: set[int] = set()


class FolderLock:
    """Holds a folder until the process ends or the block is left.

    The system holds the folder itself, so deleting the file `.lock`, which says who is writing, lets nobody in, and a
    process that was killed holds nothing. Raises RunFolderError where another writer holds it, or
    where `.lock` is another program's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None
        self._file: FileLock | None = None

    def __enter__(self) -> Self:
        if os.name != "posix" or not self._hold_folder():
            # A file system without locks of folders, or Windows, where an open file cannot be deleted.
            self._file = FileLock(self.folder / ".lock.held")
            try:
                self._file.acquire(timeout=0)
            except Timeout as error:
                raise RunFolderError(self._by_another()) from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            self._refuse_file_of_others()
            write_json(self.folder / LOCK_FILE, {"process": os.getpid(), "host": socket.gethostname(), "since": now})
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_held():
            with suppress(OSError):
                (self.folder / LOCK_FILE).unlink()
        self._release()

    def is_held(self) -> bool:
        """Whether the folder that is held is still the one at its path."""
        if self._descriptor is None:
            return self._file is not None
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._descriptor), self.folder.stat())
        return False

    def _hold_folder(self) -> bool:
        import fcntl

        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _BUSY:
                raise RunFolderError(self._by_another()) from error
            return False
        self._descriptor = descriptor
        _held.add(descriptor)
        return True

    def _release(self) -> None:
        if self._descriptor is not None:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None
        if self._file is not None:
            self._file.release()
            self._file = None

    def _refuse_file_of_others(self) -> None:
        """Other programs have files of this name as well."""
        path = self.folder / LOCK_FILE
        if os.path.lexists(path) and not _is_note(path):
            raise RunFolderError(f"{path} is not what a run writes; move it away, or give another folder")

    def _by_another(self) -> str:
        who = _told(self.folder / LOCK_FILE) or _holder(self.folder)
        return f"{self.folder} is being written by {who}; wait for it to end, stop it, or give another folder"


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Holds `folder`, which is made where there is none. Raises RunFolderError where another writer holds it."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FolderLock(folder))
        except WriteError:
            raise
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be a folder to write in ({error.strerror or error}); give another one"
            ) from error
        yield


def refuse_files_of_others(folder: Path, data: str, pages: Sequence[str], *, keys: AbstractSet[str]) -> None:
    """Raises RunFolderError where a report over several runs would replace files in `folder` that none has written.

    Such a report is known by the JSON file `data`, an object with `keys`; its other files are `pages`.
    """
    try:
        before = read_json(folder / data) if (folder / data).exists() else None
    except StorageError:
        before = None
    if isinstance(before, dict) and keys <= before.keys():
        return
    found = [name for name in (data, *pages) if (folder / name).exists() or (folder / name).is_symlink()]
    if found:
        raise RunFolderError(
            f"{folder} holds {', '.join(found)}, which no {Path(data).stem} wrote there and this one would replace; "
            f"move {'it' if len(found) == 1 else 'them'} away, or give another folder"
        )


def _is_note(path: Path) -> bool:
    """Whether a run wrote the file; former versions left it empty."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        note: Any = read_json(path) if path.stat().st_size else None
    except (OSError, StorageError):
        return False
    return note is None or (isinstance(note, dict) and note.keys() == {"process", "host", "since"})


def _told(path: Path) -> str:
    """Process, host and age as the writer noted them; nothing where the note is gone."""
    try:
        note: Any = read_json(path)
        process, host, since = int(note["process"]), str(note["host"]), datetime.fromisoformat(note["since"])
        if host == socket.gethostname() and not is_running(process):
            return f"a process that took over from process {process} on {host}, which has ended"
        return _since(process, host, since)
    except (StorageError, KeyError, TypeError, ValueError, OverflowError):
        return ""


def _holder(folder: Path) -> str:
    """The process as Linux lists it, by the time at which it began."""
    pattern = re.compile(rf"FLOCK\s+ADVISORY\s+WRITE\s+(\d+)\s+\S+:{folder.stat().st_ino}\s")
    with suppress(OSError):
        for number in pattern.findall(Path("/proc/locks").read_text(encoding="utf-8")):
            # proc(5): its 22nd field, two of them before the bracket that closes the name, in ticks since the start.
            fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            (boot,) = re.findall(r"btime (\d+)", Path("/proc/stat").read_text(encoding="utf-8"))
            began = datetime.fromtimestamp(int(boot) + int(fields[19]) // os.sysconf("SC_CLK_TCK"), UTC)
            return f"{_since(int(number), socket.gethostname(), began)}, whose {LOCK_FILE} is gone"
    return f"another process, whose {LOCK_FILE} is gone"


def _since(process: int, host: str, since: datetime) -> str:
    seconds = (datetime.now(UTC) - since).total_seconds()
    return f"process {process} on {host} since {since.isoformat(sep=' ')} ({_duration(seconds)} ago)"


def _duration(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{max(seconds, 0):.0f} seconds"


def _let_go() -> None:
    """A forked child shares the lock, and would hold it on after its parent was killed."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
