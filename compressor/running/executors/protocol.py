"""The protocol of executors: tasks by a key, their ends as they come, and what all of them need, sent once.

    with executor.open(shared=workload) as pool:
        pool.submit(Task(key="a", work=function, arguments=(1, 2)))  # calls function(workload, 1, 2) in a worker
        ended = pool.ended()  # waits: Ended(key="a", value=...), or with its failure

An executor knows nothing of compression. What a task raises is its failure, and ends no other; where a worker dies its
task is tried again, `TRIES` times in all. A pool that is left ends what is still under way.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

# How often a task is begun whose workers die; after that it counts as what kills them.
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Task:
    """`work(shared, *arguments)`, to be called in a worker; no two of a pool have one `key`.

    `work` is a function of a module that workers can import, or one that can be sent as it is. Its result comes back,
    so it must be such as pickle can copy.
    """

    key: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a task has no result: the class of what was raised by name, its text, and its traceback as text.

    `quarantined` says that workers died of it, again and again.
    """

    kind: str
    says: str
    traceback: str = ""
    quarantined: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.says}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The end of the task `key`: what its function returned, or its `failure`.

    `seconds` is what the last of `tries` took; `worker` says where that was, "" where nobody knows.
    """

    key: str
    value: Any = None
    failure: Failure | None = None
    tries: int = 1
    seconds: float = 0.0
    worker: str = ""


class Pool(Protocol):
    """Workers that are there, at most `workers` tasks at once. A task may be submitted at any time; none is lost."""

    @property
    def workers(self) -> int:
        """How many tasks are worked at once."""

    @property
    def under_way(self) -> tuple[str, ...]:
        """The keys of what was submitted and has not been told as ended, in the order of submission."""

    def submit(self, task: Task) -> None:
        """Gives a task to the workers. Raises ExecutorError where it cannot be sent, ValueError for a key twice."""

    def ended(self, seconds: float | None = None) -> Ended | None:
        """The next task that has ended; waits for it, at most `seconds`.

        None where none ended in that time, or nothing is under way.
        """

    def cancel(self, key: str) -> bool:
        """Takes a task back; its worker is ended where it has begun. Whether it was under way; it is never told."""


class Executor(Protocol):
    """Where tasks may be worked. `name` says it as people name it: `serial`, `local`, `dask:local`, `ray://...`."""

    @property
    def name(self) -> str:
        """As people name it."""

    def open(self, shared: Any = None) -> AbstractContextManager[Pool]:
        """Workers that have `shared`, ended with the block.

        Raises ExecutorError, before any work, where there is no such cluster, where its workers have other versions, or
        `shared` cannot be sent.
        """


def as_ended(pool: Pool, tasks: Iterable[Task]) -> Iterator[Ended]:
    """The ends of `tasks` as they come."""
    for task in tasks:
        pool.submit(task)
    while (ended := pool.ended()) is not None:
        yield ended


def in_order(pool: Pool, tasks: Iterable[Task]) -> Iterator[Ended]:
    """The ends of `tasks` in their own order, each as soon as it and all before it are there."""
    wanted = list(tasks)
    known: dict[str, Ended] = {}
    coming = as_ended(pool, wanted)
    for task in wanted:
        while task.key not in known:
            ended = next(coming)
            known[ended.key] = ended
        yield known.pop(task.key)
