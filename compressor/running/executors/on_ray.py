"""Tasks on Ray: a cluster that is there, or one of processes on this machine.

Ray starts a task again whose worker died, a number of times; what all tasks share lies in its object store.
"""

import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from compressor.errors import ExecutorError, first_said
from compressor.running.executors.protocol import TRIES, Ended, Task
from compressor.running.executors.remote import work
from compressor.running.executors.sending import SHARED_WAY_OUT, end_of, quarantined, sent, sent_task
from compressor.running.executors.versions import check_alike, facts

_LOCAL = "ray:local"


@dataclass(frozen=True, kw_only=True)
class Ray:
    """The cluster at `address` (`ray://host:port`); without one, `workers` processes on this machine.

    Where the program is connected to a cluster already, that one is taken instead of one of this machine.
    """

    address: str | None = None
    workers: int = 2

    @property
    def name(self) -> str:
        """As people name it."""
        return self.address or _LOCAL

    @contextmanager
    def open(self, shared: Any = None) -> Iterator["RayPool"]:
        """The cluster's workers; a local cluster ends with the block."""
        data = sent(shared, "the workload", SHARED_WAY_OUT)
        ray = _library()
        own = self.address is not None or not ray.is_initialized()
        try:
            if own:
                _begin(ray, self)
            workers = int(ray.cluster_resources().get("CPU", 0))
            if workers < 1:
                raise ExecutorError(f"the Ray cluster {self.name} has no CPU to give; add a node with ray start")
            asked = [ray.remote(num_cpus=1, max_retries=0)(facts).remote() for _ in range(workers)]
            try:
                found = ray.get(asked)
            except Exception as error:
                raise ExecutorError(
                    f"workers of {self.name} cannot import compressor ({type(error).__name__}: {first_said(error)}); "
                    "install there what is installed here"
                ) from error
            check_alike({f"worker {number}": each for number, each in enumerate(found, start=1)})
            yield RayPool(ray=ray, workers=workers, token=secrets.token_hex(8), shared=ray.put(data))
        finally:
            if own:
                with suppress(Exception):
                    ray.shutdown()


@dataclass(kw_only=True)
class RayPool:
    """Tasks as references to what they will give."""

    ray: Any
    workers: int
    token: str
    shared: Any = field(repr=False)
    _references: dict[str, Any] = field(default_factory=dict)

    @property
    def under_way(self) -> tuple[str, ...]:
        """The keys of tasks that have not been told as ended."""
        return tuple(self._references)

    def submit(self, task: Task) -> None:
        """Gives the task to the cluster."""
        if task.key in self._references:
            raise ValueError(f"the task {task.key!r} is under way; give another key")
        data = sent_task(task)
        remote = self.ray.remote(num_cpus=1, max_retries=TRIES - 1, retry_exceptions=False)(work)
        self._references[task.key] = remote.remote(task.key, data, self.token, self.shared)

    def ended(self, seconds: float | None = None) -> Ended | None:
        """The next task that has ended. Raises ExecutorError where the cluster has gone."""
        if not self._references:
            return None
        try:
            done, _ = self.ray.wait(list(self._references.values()), num_returns=1, timeout=seconds)
        except Exception as error:
            raise _gone(error) from error
        if not done:
            return None
        key = next(key for key, reference in self._references.items() if reference == done[0])
        return self._end(key, self._references.pop(key))

    def cancel(self, key: str) -> bool:
        """Takes the task back; a process that is at it is ended."""
        reference = self._references.pop(key, None)
        if reference is None:
            return False
        with suppress(Exception):
            self.ray.cancel(reference, force=True)
        return True

    def _end(self, key: str, reference: Any) -> Ended:
        kinds = self.ray.exceptions
        try:
            data: bytes = self.ray.get(reference)
        except (kinds.WorkerCrashedError, kinds.OutOfMemoryError) as error:
            return quarantined(key, TRIES, first_said(error))
        except Exception as error:
            raise _gone(error) from error
        return end_of(key, data, 1)


def _gone(error: Exception) -> ExecutorError:
    return ExecutorError(
        f"the Ray cluster does not answer any more ({type(error).__name__}: {first_said(error)}); what has ended is "
        "kept: give the same command again"
    )


def _begin(ray: Any, asked: Ray) -> None:
    local = {"num_cpus": asked.workers, "include_dashboard": False} if asked.address is None else {}
    try:
        ray.init(address=asked.address, log_to_driver=False, logging_level="error", **local)
    except Exception as error:
        raise ExecutorError(
            f"there is no Ray cluster at {asked.name} ({type(error).__name__}: {first_said(error)}); start one with "
            "ray start, or take ray:local"
        ) from error


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ImportError as error:
        raise ExecutorError(
            f"Ray is not installed ({first_said(error)}); install torch-compressor[ray], here and on all workers"
        ) from error
    return ray
