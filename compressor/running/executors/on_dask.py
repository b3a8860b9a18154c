"""Tasks on Dask (`dask.distributed`): a cluster that is there, or one of processes on this machine.

Dask starts a task again whose worker died, and gives it up after a number of deaths that its scheduler is set to; what
all tasks share goes to every worker, and to those that come later, by a plugin.
"""

import queue
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from compressor.errors import ExecutorError, first_said
from compressor.running.executors.protocol import TRIES, Ended, Task
from compressor.running.executors.remote import work
from compressor.running.executors.sending import SHARED_WAY_OUT, end_of, quarantined, sent, sent_task
from compressor.running.executors.versions import check_alike, facts

_PATIENCE_SECONDS = 20
_LOCAL = "dask:local"


@dataclass(frozen=True, kw_only=True)
class Dask:
    """The cluster at `address`; without one, `workers` processes on this machine with `threads` threads of torch each.

    Every worker must have one thread of Dask's (`dask worker --nthreads 1`).
    """

    address: str | None = None
    workers: int = 2
    threads: int = 1

    @property
    def name(self) -> str:
        """As people name it."""
        return self.address or _LOCAL

    @contextmanager
    def open(self, shared: Any = None) -> Iterator["DaskPool"]:
        """The cluster's workers; a local cluster ends with the block."""
        data = sent(shared, "the workload", SHARED_WAY_OUT)
        distributed = _library()
        with ExitStack() as stack:
            client = stack.enter_context(_client(distributed, self))
            threads = {address: info["nthreads"] for address, info in client.scheduler_info(-1)["workers"].items()}
            if not threads:
                raise ExecutorError(f"the Dask cluster {self.name} has no workers; start some: dask worker {self.name}")
            many = [address for address, count in threads.items() if count != 1]
            if many:
                raise ExecutorError(
                    f"the Dask worker {many[0]} has {threads[many[0]]} threads, and a process can work one run at a "
                    "time; start workers with --nthreads 1, as many as there are to be runs at once"
                )
            try:
                check_alike(client.run(facts))
            except ExecutorError:
                raise
            except Exception as error:
                raise ExecutorError(
                    f"workers of {self.name} cannot import compressor ({type(error).__name__}: {first_said(error)}); "
                    "install there what is installed here"
                ) from error
            token = secrets.token_hex(8)
            client.register_plugin(_plugin(distributed, token, data), name=token)
            try:
                yield DaskPool(client=client, token=token)
            finally:
                with suppress(Exception):
                    client.unregister_worker_plugin(token)


@dataclass(kw_only=True)
class DaskPool:
    """Tasks as futures of a client."""

    client: Any
    token: str
    _futures: dict[str, Any] = field(default_factory=dict)
    _done: "queue.Queue[tuple[str, Any]]" = field(default_factory=queue.Queue)

    @property
    def workers(self) -> int:
        """As many as the cluster has now."""
        return max(1, len(self.client.scheduler_info(-1)["workers"]))

    @property
    def under_way(self) -> tuple[str, ...]:
        """The keys of tasks that have not been told as ended."""
        return tuple(self._futures)

    def submit(self, task: Task) -> None:
        """Gives the task to the scheduler."""
        if task.key in self._futures:
            raise ValueError(f"the task {task.key!r} is under way; give another key")
        name = f"compressor-{self.token}-{task.key}-{secrets.token_hex(4)}"
        future = self.client.submit(_work, task.key, sent_task(task), self.token, key=name, pure=False)
        self._futures[task.key] = future
        future.add_done_callback(lambda done, key=task.key: self._done.put((key, done)))

    def ended(self, seconds: float | None = None) -> Ended | None:
        """The next task that has ended. Raises ExecutorError where the cluster has gone."""
        until = None if seconds is None else time.monotonic() + seconds
        while self._futures:
            try:
                key, future = self._done.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                return None
            if self._futures.get(key) is not future:  # it was taken back
                continue
            del self._futures[key]
            return _end(key, future)
        return None

    def cancel(self, key: str) -> bool:
        """Takes the task back; a worker that is at it is started anew, where a nanny watches over it."""
        future = self._futures.pop(key, None)
        if future is None:
            return False
        with suppress(Exception):
            at = [address for address, keys in self.client.processing().items() if future.key in keys]
            future.cancel(force=True)
            if at:
                self.client.restart_workers(at, raise_for_error=False)
        return True


def _end(key: str, future: Any) -> Ended:
    from distributed.scheduler import KilledWorker

    try:
        data: bytes = future.result()
    except KilledWorker as error:
        return quarantined(key, TRIES, f"by Dask's count, on {error.last_worker.address}")
    except Exception as error:
        raise ExecutorError(
            f"the Dask cluster does not answer any more ({type(error).__name__}: {first_said(error)}); what has ended "
            "is kept: give the same command again"
        ) from error
    return end_of(key, data, 1)


_given: dict[str, bytes] = {}


def _work(key: str, data: bytes, token: str) -> bytes:
    return work(key, data, token, lambda: _given[token])


def _give(token: str, data: bytes) -> None:
    _given.clear()
    _given[token] = data


def _plugin(distributed: Any, token: str, data: bytes) -> Any:
    class Shared(distributed.WorkerPlugin):  # type: ignore[misc]  # it ships no types
        """Puts what all tasks share into a worker."""

        def setup(self, worker: Any) -> None:
            del worker
            _give(token, data)

    return Shared()


@contextmanager
def _client(distributed: Any, asked: Dask) -> Iterator[Any]:
    import dask

    with ExitStack() as stack:
        if asked.address is None:
            stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": TRIES - 1}))
            settings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(asked.threads))
            cluster = distributed.LocalCluster(
                n_workers=asked.workers,
                threads_per_worker=1,
                processes=True,
                memory_limit=0,
                dashboard_address=None,
                host="127.0.0.1",
                silence_logs=50,
                env=settings,
            )
            stack.enter_context(cluster)
        else:
            cluster = asked.address
        try:
            client = distributed.Client(cluster, timeout=_PATIENCE_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ExecutorError(
                f"there is no Dask cluster at {asked.name} ({first_said(error)}); start one with dask scheduler and "
                "dask worker, or take dask:local"
            ) from error
        yield stack.enter_context(client)


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import distributed
    except ImportError as error:
        raise ExecutorError(
            f"Dask is not installed ({first_said(error)}); install torch-compressor[dask], here and on all workers"
        ) from error
    return distributed
