"""One run in a worker, in the folder of the table it is for or, where there is no shared disk, in one of its own.

What comes back is the same either way; a worker that does not see that folder sends its files along.
"""

import secrets
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.comparing.arms import Arm
from compressor.measuring.session_times import Times
from compressor.report.report import Report
from compressor.running.session import Session, Worked
from compressor.storage import is_name_left_over, write_atomic
from compressor.store.kept import Store
from compressor.store.place import users_store
from compressor.workload import Workload

_MARK = ".workers"
_LOCKS = {".lock", ".lock.held"}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every run is asked that is worked for the same table: its folder, its store, and settings.

    Who reads `mark` in that folder shares the disk. `times` is where times of the session are kept in it.
    """

    folder: Path
    mark: str
    asked: dict[str, Any]
    times: str
    store: Path
    store_bytes: int
    store_days: float

    @classmethod
    def of(cls, folder: Path, session: Session, asked: dict[str, Any], *, times: str) -> "Order":
        """The order of what is worked in `folder`, whose store is that of `session`."""
        assert session.store is not None
        folder = folder.absolute()
        mark = secrets.token_hex(16)
        write_atomic(folder / _MARK, mark)
        store = session.store
        return cls(
            folder=folder,
            mark=mark,
            asked=asked,
            times=times,
            store=store.folder.absolute(),
            store_bytes=store.most_bytes,
            store_days=store.most_days,
        )

    def forget(self) -> None:
        """Removes the mark."""
        with suppress(OSError):
            (self.folder / _MARK).unlink()

    @property
    def is_here(self) -> bool:
        """Whether this process sees the folder."""
        with suppress(OSError):
            return (self.folder / _MARK).read_text(encoding="utf-8") == self.mark
        return False


@dataclass(frozen=True, kw_only=True)
class Came:
    """What came of a run: its report, who made which stage, how its files score, and what it told while it went.

    `files` are those of its folder `name`, by their paths in it; none where the disk is shared.
    """

    name: str
    report: Report
    worked: tuple[Worked, ...]
    rows: dict[Any, Tensor] = field(repr=False)
    events: tuple[Any, ...] = field(default=(), repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def write(self, folder: Path) -> None:
        """Puts the files that were sent along where the run would have put them."""
        for path, content in self.files.items():
            write_atomic(folder / self.name / path, content)


# What workers call for a run, with the workload or what makes it.
Work = Callable[[Any, Arm, Order], Any]


def came_of(workload: Workload | Callable[[], Workload], arm: Arm, order: Order) -> Came:
    """Runs `arm`, in a worker. Raises what the run does."""
    events: list[Any] = []
    with ExitStack() as stack:
        here = order.is_here
        folder = order.folder if here else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        session = Session(store=_store(order, here=here), times=Times(folder / order.times))
        result = arm.pipeline.run(
            _made(workload),
            out=folder / arm.folder,
            seed=arm.seed,
            session=session,
            progress=False,
            on_event=events.append,
            **order.asked,
        )
        return Came(
            name=arm.folder,
            report=result.report,
            worked=tuple(session.worked),
            rows=session.every_row(),
            events=tuple(events),
            files={} if here else _files(folder / arm.folder),
        )


def seen(workload: Workload | Callable[[], Workload]) -> str:
    """The name of the workload that a worker was given, or makes; raises what making it does."""
    return _made(workload).name


_known: list[tuple[Callable[[], Workload], Workload]] = []


def _made(workload: Workload | Callable[[], Workload]) -> Workload:
    """The workload, made once for all runs of this worker."""
    if isinstance(workload, Workload):
        return workload
    if not any(source is workload for source, _ in _known):
        _known[:] = [(workload, workload())]
    return _known[0][1]


def _store(order: Order, *, here: bool) -> Store | None:
    """The store that all share; on a disk of its own, a worker's own one."""
    if not here:
        return users_store()
    return Store(order.store, most_bytes=order.store_bytes, most_days=order.store_days)


def _files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.name not in _LOCKS and not is_name_left_over(path.name) and "snapshots" not in path.parts
    }
