"""What a run tells those who listen: every stage and epoch once, in order, and never at the price of the run."""

import math
from pathlib import Path

import pytest

from compressor import Budget, Pipeline, Workload
from compressor.progress.events import (
    EpochFinished,
    Event,
    ListenerWarning,
    RolledBack,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    emit,
    listening,
)
from compressor.progress.sinks import numbers_of
from compressor.stages import DropBlocks, FineTune, PruneChannels


def test_a_run_tells_of_stages_and_epochs(trained_workload: Workload, tmp_path: Path) -> None:
    """The events of two stages, with the numbers of the report; those of the second run come without epochs."""
    told: list[Event] = []
    pipeline = Pipeline([DropBlocks(remove=0.5), FineTune(epochs=2, tail_epochs=0)])
    result = pipeline.run(trained_workload, out=tmp_path, progress=False, on_event=told.append)
    kinds = [type(event) for event in told]
    assert kinds[:4] == [RunStarted, StageFinished, StageStarted, StageFinished]
    assert kinds[4:] == [StageStarted, EpochFinished, EpochFinished, StageFinished, RunFinished]
    started, finished = told[0], told[-1]
    assert isinstance(started, RunStarted)
    assert started.stages == ("drop_blocks", "fine_tune")
    assert isinstance(finished, RunFinished)
    assert Path(finished.artifact) == result.artifact.path
    assert finished.speedup == result.report.shipped.measurement.speedup.value
    assert [event.epoch for event in told if isinstance(event, EpochFinished)] == [0, 1]
    numbers = [event.number for event in told if isinstance(event, StageFinished)]
    assert numbers == [0, 1, 2]
    again: list[Event] = []
    pipeline.run(trained_workload, out=tmp_path, progress=False, on_event=again.append)
    assert [type(event) for event in again] == [kind for kind in kinds if kind is not EpochFinished]


def test_what_is_undone_is_told(trained_workload: Workload, tmp_path: Path) -> None:
    """A segment that loses too much is rolled back as a whole, by the numbers of its stages."""
    told: list[Event] = []
    Pipeline([PruneChannels(remove=0.9)], budget=Budget(max_drop=0.0, not_slower=False)).run(
        trained_workload, out=tmp_path, progress=False, on_event=told.append
    )
    (undone,) = [event for event in told if isinstance(event, RolledBack)]
    assert undone.numbers == (1,)
    assert undone.reason


def test_a_listener_that_fails_ends_nothing() -> None:
    """It is warned of once, and told nothing more; another one listens as before."""
    heard: list[Event] = []

    def broken(event: Event) -> None:
        heard.append(event)
        raise OSError("disk full")

    event = StageStarted(number=1, stage="quantize")
    with listening(broken):
        with pytest.warns(ListenerWarning, match="on_event failed at StageStarted .*: OSError: disk full"):
            emit(event)
        emit(event)
    emit(event)
    assert heard == [event]


def test_numbers_of_events() -> None:
    """What is not there and what is not finite is left out."""
    epoch = EpochFinished(training="distill", epoch=3, loss=math.nan, score=0.5, learning_rate=0.1, seconds=2.0)
    assert list(numbers_of(epoch)) == [("distill/score", 0.5, 3), ("distill/learning_rate", 0.1, 3)]
    skipped = StageFinished(number=2, stage="quantize", kept=False, reason="skipped", seconds=0.0)
    assert list(numbers_of(skipped)) == [("stages/kept", 0.0, 2), ("stages/seconds", 0.0, 2)]
    assert list(numbers_of(StageStarted(number=1, stage="quantize"))) == []
