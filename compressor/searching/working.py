"""Trials as they are worked: one after the other in this process, or side by side in workers. They see no test data."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from compressor.comparing.arms import Arm
from compressor.comparing.spreading import spread
from compressor.comparing.working import Came, Order, came_of
from compressor.errors import CompressorError
from compressor.progress.events import Listener, emit, listening
from compressor.recipe.recipe import Recipe
from compressor.report.report import Report
from compressor.running.executors.protocol import Pool
from compressor.running.failures import ends_the_run
from compressor.running.pipeline import Pipeline, PipelineWarning
from compressor.running.session import Session
from compressor.workload import Workload

TIMES = "times.json"


@dataclass(frozen=True, kw_only=True)
class Withheld:
    """Makes the workload that `source` makes, with its validation data in the place of its test data."""

    source: Callable[[], Workload]

    def __call__(self) -> Workload:
        """What trials may see."""
        return withheld(self.source())


def withheld(workload: Workload) -> Workload:
    """The workload as trials may see it: what they report is about its validation data."""
    return replace(workload, test=workload.validation)


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Why a run gave no file: its sentence, the place of the stage that failed, 1 for the first.

    `ends_all` says that no other run could do better: the folder cannot be used, or the disk is full.
    """

    says: str
    stage: int | None = None
    ends_all: bool = False


@dataclass(kw_only=True)
class Working:
    """Works runs in `folder`, by `pool`, or in this process without one; `asked` are the settings of every run."""

    workload: Workload
    folder: Path
    session: Session
    asked: dict[str, Any]
    progress: bool
    on_event: Listener | None
    pool: Pool | None = None

    def ends(self, take: Callable[[Sequence[Arm]], Arm | None]) -> Iterator[tuple[Arm, Came | Failed, float]]:
        """Every run that `take` gives, with what came of it and the seconds that it took, as they end.

        `take` is given the runs under way. Raises CompressorError where no other run could do better.
        """
        if self.pool is not None:
            yield from self._side_by_side(self.pool, take)
            return
        while (arm := take(())) is not None:
            before, started = len(self.session.worked), perf_counter()
            end: Came | Failed
            try:
                report = self.run(arm)
            except CompressorError as error:
                if ends_the_run(error):
                    raise
                end = _failed(error)
            else:
                end = Came(name=arm.folder, report=report, worked=tuple(self.session.worked[before:]), rows={})
            yield arm, end, perf_counter() - started

    def run(self, arm: Arm) -> Report:
        """A run in this process; what is on disk of it is not worked again."""
        return arm.pipeline.run(
            self.workload,
            out=self.folder / arm.folder,
            seed=arm.seed,
            session=self.session,
            progress=self.progress,
            on_event=self.on_event,
            **self.asked,
        ).report

    def _side_by_side(
        self, pool: Pool, take: Callable[[Sequence[Arm]], Arm | None]
    ) -> Iterator[tuple[Arm, Came | Failed, float]]:
        order = Order.of(self.folder, self.session, self.asked, times=TIMES)
        try:
            for arm, ended in spread(pool, take, worked, order):
                if ended.failure is not None:
                    yield arm, Failed(says=str(ended.failure)), ended.seconds
                    continue
                end: Came | Failed = ended.value
                if isinstance(end, Failed) and end.ends_all:
                    raise CompressorError(end.says)
                if isinstance(end, Came):
                    end.write(self.folder)
                    with listening(self.on_event):
                        for event in end.events:
                            emit(event)
                yield arm, end, ended.seconds
        finally:
            order.forget()


def worked(workload: Workload | Callable[[], Workload], arm: Arm, order: Order) -> Came | Failed:
    """Runs a trial, in a worker, which is sent or makes what is withheld already."""
    try:
        return came_of(workload, arm, order)
    except CompressorError as error:
        return _failed(error)


def arm_of(recipe: Recipe, folder: str, *, stages: int | None = None) -> Arm:
    """A run of a recipe, or of its first `stages`; what is doubtful in its order was said of the space."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PipelineWarning)
        pipeline = Pipeline.from_recipe(recipe) if stages is None else Pipeline(recipe.stages[:stages])
    return Arm(row=recipe.name, folder=folder, pipeline=pipeline, seed=recipe.seed)


def _failed(error: CompressorError) -> Failed:
    return Failed(says=error.sentence, stage=error.stage_number, ends_all=ends_the_run(error))
