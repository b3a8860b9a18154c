"""The runs of a comparison as they come about: one after the other in this process, or side by side in workers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.comparing.arms import TIMES, Arm
from compressor.comparing.spreading import apart, spread
from compressor.comparing.working import Came, Order, came_of
from compressor.progress.bars import say
from compressor.progress.events import Listener, emit, listening
from compressor.report.numbers import duration
from compressor.report.report import Report
from compressor.running.executors.protocol import Pool
from compressor.running.folder import MODEL_FILE
from compressor.running.session import Session, Worked
from compressor.workload import Workload


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

    def run(self, arms: Sequence[Arm], pool: Pool | None) -> None:
        """Runs all arms, by `pool` or one after the other in this process; what one raises is its failure."""
        if pool is not None:
            self._run_in(pool, arms)
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
                **_settings(self.asked, arm),
            )
        except Exception as error:  # noqa: BLE001  # a user's stage may raise anything, and the others must go on
            self._ended[arm.folder] = arm, f"{type(error).__name__}: {error}"
        else:
            self._ended[arm.folder] = arm, result.report

    def _run_in(self, pool: Pool, arms: Sequence[Arm]) -> None:
        # All of them are recipes, or all are controls.
        asked = _settings(self.asked, arms[0]) if arms else self.asked
        order = Order.of(self.folder, self.session, asked, times=TIMES)
        waiting = list(arms)
        ends: dict[str, tuple[Report | str, tuple[Worked, ...]]] = {}

        def take(running: Sequence[Arm]) -> Arm | None:
            if not waiting:
                return None
            arm = apart(waiting, running)
            waiting.remove(arm)
            say(_begins(arm, len(arms) - len(waiting), len(arms)), shown=self.progress)
            return arm

        try:
            for arm, ended in spread(pool, take, came_of, order):
                if ended.failure is not None:
                    ends[arm.folder] = str(ended.failure), ()
                    say(f"  {arm.folder} failed: {ended.failure}", shown=self.progress)
                    continue
                came: Came = ended.value
                self._take_in(came)
                ends[arm.folder] = came.report, came.worked
                again = f", at try {ended.tries}" if ended.tries > 1 else ""
                say(f"  {arm.folder}: done in {duration(ended.seconds)}{again}", shown=self.progress)
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


def _settings(asked: dict[str, Any], arm: Arm) -> dict[str, Any]:
    """What a run is asked. Controls are ours: their folder may hold those of other recipes, which nobody names."""
    return {**asked, "accept_changes": True} if arm.control else asked


def _begins(arm: Arm, number: int, count: int) -> str:
    which = f"{arm.control}, to compare with" if arm.control else f"recipe {number} of {count}"
    return f"{which}: {arm.folder}"
