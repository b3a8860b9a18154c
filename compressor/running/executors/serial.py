"""Tasks one after the other in this process, when their ends are asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from compressor.running.executors.protocol import Ended, Task
from compressor.running.executors.sending import called


@dataclass(frozen=True, kw_only=True)
class Serial:
    """The present process, one task at a time; nothing is sent anywhere. Ctrl-C is the caller's."""

    @property
    def name(self) -> str:
        """As people name it."""
        return "serial"

    @contextmanager
    def open(self, shared: Any = None) -> Iterator["SerialPool"]:
        """The present process as a pool."""
        yield SerialPool(shared=shared)


@dataclass(kw_only=True)
class SerialPool:
    """Tasks wait until `ended` is called, which works the first of them, whatever time it is given."""

    shared: Any
    _waiting: dict[str, Task] = field(default_factory=dict)

    @property
    def workers(self) -> int:
        """One."""
        return 1

    @property
    def under_way(self) -> tuple[str, ...]:
        """The keys of tasks that wait."""
        return tuple(self._waiting)

    def submit(self, task: Task) -> None:
        """Lets a task wait."""
        if task.key in self._waiting:
            raise ValueError(f"the task {task.key!r} is under way; give another key")
        self._waiting[task.key] = task

    def ended(self, seconds: float | None = None) -> Ended | None:
        """Works the task that waits longest; None where none does."""
        del seconds
        if not self._waiting:
            return None
        task = self._waiting.pop(next(iter(self._waiting)))
        return called(task, self.shared)

    def cancel(self, key: str) -> bool:
        """Takes back a task that waits."""
        return self._waiting.pop(key, None) is not None
