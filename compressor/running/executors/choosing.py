"""Executors by the names that people give them: `serial`, `local`, `dask:local`, `tcp://host:port`, `ray://host:port`."""

from compressor.checks import check_count
from compressor.errors import ExecutorError
from compressor.machine import core_count
from compressor.progress.bars import say
from compressor.running.executors.protocol import Executor
from compressor.running.executors.serial import Serial

NAMES = "serial, local, dask:local, tcp://HOST:PORT (Dask), ray:local, ray://HOST:PORT"


def executor_of(
    name: str | None = None, *, workers: int | None = None, cores: int | None = None, progress: bool = False
) -> Executor:
    """The executor of that name; without one, `local` for more than one of `workers`, else `serial`.

    `workers` (>= 1) is how many tasks are worked at once, by default as many as there are cores, and never more on this
    machine; of a cluster that is there, as many as it has. `cores` are those of this machine, by default as many as
    this process may use; with `progress` it is told where they are fewer than `workers`. Raises ExecutorError for an
    unknown name, and a number that is none.
    """
    try:
        if workers is not None:
            check_count(
                workers,
                "workers counts the tasks that are worked at once",
                way_out="leave it out for as many as there are cores",
            )
    except ValueError as error:
        raise ExecutorError(str(error)) from error
    name = ("local" if (workers or 1) > 1 else "serial") if name is None else name.strip()
    here = core_count() if cores is None else cores
    if name == "serial":
        if (workers or 1) > 1:
            raise ExecutorError(f"the executor serial has one worker, and {workers} were asked for; take local")
        return Serial()
    if name.startswith(("tcp://", "tls://", "ray://")):
        if workers is not None:
            raise ExecutorError(f"the cluster {name} has as many workers as it has; leave the number of workers out")
        if name.startswith("ray://"):
            from compressor.running.executors.on_ray import Ray

            return Ray(address=name)
        from compressor.running.executors.on_dask import Dask

        return Dask(address=name)
    if name in {"local", "dask:local", "ray:local"}:
        fitting = min(workers or here, here)
        if workers is not None and workers > here:
            say(
                f"{workers} workers were asked for, and this process may use {here} cores: {here} workers",
                shown=progress,
            )
        return _on_this_machine(name, fitting, here // fitting)
    raise ExecutorError(f"unknown executor {name!r}; there are {NAMES}")


def _on_this_machine(name: str, workers: int, threads: int) -> Executor:
    if name == "dask:local":
        from compressor.running.executors.on_dask import Dask

        return Dask(workers=workers, threads=threads)
    if name == "ray:local":
        from compressor.running.executors.on_ray import Ray

        return Ray(workers=workers)
    from compressor.running.executors.local import Local

    return Local(workers=workers, threads=threads)
