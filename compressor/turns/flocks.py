"""Locks that the kernel keeps on open files: gone with their process, whatever ends it, and seen by every user.

Two files stand for the machine. Who times holds `timing` alone; who computes holds `working` together with all others
who do. Nobody writes into them.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from compressor.storage import cache_folder

PLACE = "COMPRESSOR_TURNS"
TIMING, WORKING = "timing", "working"
_OFF = {"off", "no", "none", "0"}
_FOLDER = "/tmp"  # noqa: S108 - the one folder that all users of a machine share, whatever TMPDIR says
_open: set[int] = set()


class Flock:
    """The lock `name` of this machine, held by this object: every other one conflicts with it, in this process too.

    Where nothing can be locked (no folder to write in, a system without flock, $COMPRESSOR_TURNS is `off`) it is not
    `there`: everything is granted.
    """

    def __init__(self, name: str) -> None:
        self._descriptor: int | None = None
        for path in _paths(name):
            with suppress(OSError):
                self._descriptor = _opened(path)
                _open.add(self._descriptor)
                break

    @property
    def there(self) -> bool:
        """Whether there is anything to lock."""
        return self._descriptor in _open

    def take(self, *, alone: bool) -> bool:
        """Takes it, `alone` or together with others who do not, where it can be had now; whether it is held then."""
        if not self.there:
            return True
        import fcntl

        try:
            fcntl.flock(self._number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            self.close()
        return True

    def release(self) -> None:
        """Gives it back."""
        if self.there:
            import fcntl

            with suppress(OSError):
                fcntl.flock(self._number, fcntl.LOCK_UN)

    def close(self) -> None:
        """Gives it back for good."""
        if self.there:
            _open.discard(self._number)
            with suppress(OSError):
                os.close(self._number)
        self._descriptor = None

    @property
    def _number(self) -> int:
        assert self._descriptor is not None
        return self._descriptor


def _paths(name: str) -> list[Path]:
    """Where the lock may be: the first that can be opened is taken."""
    named = os.environ.get(PLACE, "").strip()
    if os.name != "posix" or named.lower() in _OFF:
        return []
    if named:
        return [Path(named) / f"{name}.lock"]
    shared = Path(_FOLDER if Path(_FOLDER).is_dir() else tempfile.gettempdir())
    return [shared / f".compressor-{name}.lock", cache_folder() / f"{name}.lock"]


def _opened(path: Path) -> int:
    """The file, made where there is none; links and what is no file are left alone. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644)
        with suppress(OSError):
            os.fchmod(made, 0o644)  # whatever the umask says: others are to see it
        return made
    found = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(f"{path} is no file")
    with suppress(OSError):
        os.utime(path)  # what is in use is not cleaned away
    return found


def _let_go() -> None:
    """A forked child shares the locks, and would hold them on after its parent was killed."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
