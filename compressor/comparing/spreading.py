"""Runs spread over workers: the pool that has the workload, and which run a free worker takes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from compressor.comparing.arms import Arm
from compressor.comparing.working import Order, Work, seen
from compressor.errors import ExecutorError
from compressor.progress.bars import say
from compressor.running.executors.protocol import Ended, Executor, Pool, Task, as_ended
from compressor.running.executors.serial import Serial
from compressor.workload import Workload

_WAY_OUT = "what it is made of must be there, and importable, where they run"


@contextmanager
def pool_of(
    executor: Executor, workload: Workload | Callable[[], Workload], *, progress: bool
) -> Iterator[Pool | None]:
    """The workers of `executor`, each of which can make the workload; None where runs are worked in this process.

    Raises ExecutorError where they cannot be had.
    """
    if isinstance(executor, Serial):
        yield None
        return
    with executor.open(workload) as pool:
        (ended,) = as_ended(pool, [Task(key="workload", work=seen)])
        if ended.failure is not None:
            raise ExecutorError(f"workers cannot make the workload ({ended.failure}); {_WAY_OUT}")
        say(f"{pool.workers} runs at once, by {executor.name}", shown=progress)
        yield pool


def spread(
    pool: Pool, take: Callable[[Sequence[Arm]], Arm | None], work: Work, order: Order
) -> Iterator[tuple[Arm, Ended]]:
    """Every run that `take` gives for a worker that is free, with its end, as they end.

    `take` is given the runs under way; where it gives None it is asked again when one of them has ended, and all is
    over when none is. `work` is what workers call for each.
    """
    running: dict[str, Arm] = {}
    while True:
        while len(running) < pool.workers and (arm := take(list(running.values()))) is not None:
            pool.submit(Task(key=arm.folder, work=work, arguments=(arm, order)))
            running[arm.folder] = arm
        if not running:
            return
        ended = pool.ended()
        assert ended is not None  # something is under way
        yield running.pop(ended.key), ended


def apart(waiting: Sequence[Arm], running: Sequence[Arm]) -> Arm:
    """Which of `waiting` begins least like those that run, the first of equals: two that begin alike wait for one."""
    return min(waiting, key=lambda arm: max((_common(arm, other) for other in running), default=0))


def _common(one: Arm, other: Arm) -> int:
    """How many stages both begin with."""
    count = 0
    if one.seed == other.seed:
        for mine, theirs in zip(one.pipeline.stages, other.pipeline.stages, strict=False):
            if mine != theirs:
                break
            count += 1
    return count
