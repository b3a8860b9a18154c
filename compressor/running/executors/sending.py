"""Tasks on their way to workers and back: as bytes, with what is raised as text, for not every exception can be sent.

Bytes are made by cloudpickle, which sends functions of the main script and lambdas as they are. They are read again by
workers that this program started or was told to use, and are never written to disk.
"""

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import cloudpickle

from compressor.errors import ExecutorError, first_said
from compressor.running.executors.protocol import Ended, Failure, Task

SHARED_WAY_OUT = (
    "give a function that makes it, package.module:function, which every worker calls for itself, or take one worker"
)


def sent(value: Any, what: str, way_out: str) -> bytes:
    """`value` as bytes. Raises ExecutorError that names `what` where it cannot be had as such."""
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:
        said = f"{type(error).__name__}: {first_said(error)}"
        raise ExecutorError(f"{what} cannot be sent to workers ({said}); {way_out}") from error
    return data


def sent_task(task: Task) -> bytes:
    """A task as bytes; raises ExecutorError."""
    return sent(
        task,
        f"the task {task.key!r}",
        "give a function of a module that workers can import, and arguments that pickle can copy",
    )


def received(data: bytes) -> Any:
    """What `sent` made bytes of."""
    return pickle.loads(data)  # noqa: S301 - made by `sent` of the program that this worker works for


def called(task: Task, shared: Any) -> Ended:
    """The end of a task that is worked now, in this process; what it raises is its failure, but for Ctrl-C."""
    worker, started = f"process {os.getpid()} on {socket.gethostname()}", perf_counter()
    ended = Ended(key=task.key, worker=worker)
    try:
        value = task.work(shared, *task.arguments)
    except Exception as error:  # noqa: BLE001  # whatever a task raises is told where it was asked for
        return replace(ended, failure=failure_of(error), seconds=perf_counter() - started)
    return replace(ended, value=value, seconds=perf_counter() - started)


def worked(key: str, data: bytes, shared: Callable[[], Any]) -> bytes:
    """The end, as bytes, of the task `key` that was sent as `data`: what a worker process calls."""
    try:
        ended = called(received(data), shared())
    except Exception as error:  # noqa: BLE001  # reading imports modules of the user's, which raise anything
        ended = Ended(key=key, failure=_unsent(error, "it cannot be read by the worker"))
    try:
        found: bytes = cloudpickle.dumps(ended)
    except Exception as error:  # noqa: BLE001  # results hold whatever a user's objects hold
        failure = _unsent(error, "its result cannot be sent back")
        found = cloudpickle.dumps(replace(ended, value=None, failure=failure))
    return found


def end_of(key: str, data: bytes, tries: int) -> Ended:
    """The end that `worked` sent, after so many tries."""
    try:
        ended: Ended = received(data)
    except Exception as error:  # noqa: BLE001  # as above
        ended = Ended(key=key, failure=_unsent(error, "its result cannot be read"))
    return replace(ended, tries=tries)


def failure_of(error: BaseException) -> Failure:
    """What is told of `error`."""
    return Failure(
        kind=type(error).__name__,
        says=str(error) or "it gave no reason",
        traceback="".join(traceback.format_exception(error)),
    )


def quarantined(key: str, tries: int, why: str) -> Ended:
    """The end of a task that killed its worker `tries` times."""
    says = (
        f"its worker died {tries} times ({why}), and it is not tried again; too little memory is the usual reason: "
        "take fewer workers"
    )
    return Ended(key=key, failure=Failure(kind="WorkerDiedError", says=says, quarantined=True), tries=tries)


def _unsent(error: Exception, what: str) -> Failure:
    return replace(
        failure_of(error), kind="ExecutorError", says=f"{what} ({type(error).__name__}: {first_said(error)})"
    )
