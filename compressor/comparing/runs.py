"""The runs of a comparison as they come about: one after the other in this process, or side by side in workers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.comparing.arms import Arm
from compressor.comparing.working import Came, Order, came_of, seen
from compressor.errors import ExecutorError
from compressor.progress.bars import say
from compressor.progress.events import Listener, emit, listening
from compressor.report.numbers import duration
from compressor.report.report import Report
from compressor.running.executors.protocol import Executor, Pool, Task, as_ended
from compressor.running.executors.serial import Serial
from compressor.running.folder import MODEL_FILE
from compressor.running.session import Session, Worked
from compressor.workload import Workload

WAY_OUT = "what it is made of must be there, and importable, where they run"


@dataclass(kw_only=True)
class Runs:
    """The runs of a comparison by the folders of their arms, what they shared, and what became of them.

    `asked` are the other settings of every run.
    """

    workload: Workload
    folder: Path
    session: Session
    asked: dict[str, Any]
    progress: bool
    on_event: Listener | None
    _ended: dict[str, tuple[Arm, Report | str]] = field(default_factory=dict)
    _rows: dict[Any, Tensor] = field(default_factory=dict, repr=False)
    _pool: Pool | None = None

    @contextmanager
    def side_by_side(self, executor: Executor, workload_from: Callable[[], Workload] | None) -> Iterator[None]:
        """A stretch in which runs are worked by `executor`. Raises ExecutorError where it cannot be had."""
        if isinstance(executor, Serial):
            yield
            return
        with executor.open(self.workload if workload_from is None else workload_from) as pool:
            self._pool = pool
            try:
                (ended,) = as_ended(pool, [Task(key="workload", work=seen)])
                if ended.failure is not None:
                    raise ExecutorError(f"workers cannot make the workload ({ended.failure}); {WAY_OUT}")
                say(f"{pool.workers} runs at once, by {executor.name}", shown=self.progress)
                yield
            finally:
                self._pool = None

    def run(self, arms: Sequence[Arm]) -> None:
        """Runs all arms; what one raises is its failure."""
        if self._pool is not None:
            self._run_in(self._pool, arms)
            return
        for number, arm in enumerate(arms, start=1):
            say(_begins(arm, number, len(arms)), shown=self.progress)
            self._run_here(arm)

    def failures(self) -> dict[str, str]:
        """The first error of every row of which a run failed."""
        found: dict[str, str] = {}
        for arm, end in self._ended.values():
            if isinstance(end, str):
                found.setdefault(arm.row, end if arm.folder == arm.row else f"seed {arm.seed}: {end}")
        return found

    def reports(self) -> dict[str, list[Report]]:
        """The reports of every row of which no run failed, by seed."""
        found: dict[str, list[Report]] = {}
        failed = self.failures()
        for arm, end in self._ended.values():
            if not isinstance(end, str) and arm.row not in failed:
                found.setdefault(arm.row, []).append(end)
        return found

    def rows(self) -> dict[Any, Tensor]:
        """What is known of how files score, sample by sample."""
        return {**self._rows, **self.session.every_row()}

    def files(self, row: str) -> list[bytes] | None:
        """The files of a row by seed, None where one is gone."""
        paths = [self.folder / arm.folder / MODEL_FILE for arm, _ in self._ended.values() if arm.row == row]
        return [path.read_bytes() for path in paths] if all(path.is_file() for path in paths) else None

    def reference(self) -> bytes | None:
        """The reference's file, which is the same in every run."""
        path = reference_in(self.folder / next(iter(self._ended), ""))
        return path.read_bytes() if path.is_file() else None

    def _run_here(self, arm: Arm) -> None:
        try:
            result = arm.pipeline.run(
                self.workload,
                out=self.folder / arm.folder,
                seed=arm.seed,
                session=self.session,
                progress=self.progress,
                on_event=self.on_event,
                **self.asked,
            )
        except Exception as error:  # noqa: BLE001  # a user's stage may raise anything, and the others must go on
            self._ended[arm.folder] = arm, f"{type(error).__name__}: {error}"
        else:
            self._ended[arm.folder] = arm, result.report

    def _run_in(self, pool: Pool, arms: Sequence[Arm]) -> None:
        order = Order.of(self.folder, self.session, self.asked)
        waiting, running = list(arms), dict[str, Arm]()
        ends: dict[str, tuple[Report | str, tuple[Worked, ...]]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < pool.workers:
                    arm = apart(waiting, list(running.values()))
                    waiting.remove(arm)
                    say(_begins(arm, len(arms) - len(waiting), len(arms)), shown=self.progress)
                    pool.submit(Task(key=arm.folder, work=came_of, arguments=(arm, order)))
                    running[arm.folder] = arm
                ended = pool.ended()
                assert ended is not None  # something is under way
                del running[ended.key]
                if ended.failure is not None:
                    ends[ended.key] = str(ended.failure), ()
                    say(f"  {ended.key} failed: {ended.failure}", shown=self.progress)
                    continue
                came: Came = ended.value
                self._take_in(came)
                ends[ended.key] = came.report, came.worked
                again = f", at try {ended.tries}" if ended.tries > 1 else ""
                say(f"  {ended.key}: done in {duration(ended.seconds)}{again}", shown=self.progress)
        finally:
            order.forget()
        # As if they had come one after the other.
        for arm in arms:
            end, worked = ends[arm.folder]
            self._ended[arm.folder] = arm, end
            for one in worked:
                self.session.tell(one)

    def _take_in(self, came: Came) -> None:
        came.write(self.folder)
        self._rows |= came.rows
        with listening(self.on_event):
            for event in came.events:
                emit(event)


def reference_in(run: Path) -> Path:
    """Where a run has the file of its reference."""
    return run / "stages" / "00-reference" / MODEL_FILE


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


def _begins(arm: Arm, number: int, count: int) -> str:
    which = f"{arm.control}, to compare with" if arm.control else f"recipe {number} of {count}"
    return f"{which}: {arm.folder}"
