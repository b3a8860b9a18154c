"""One run by the processes of torchrun: rank 0 leads it, and the others train with it, stage by stage.

Rank 0 alone exports, times, scores, decides and writes. For a stage that trains it sends the others the stage and the
model; each applies it to data of its own, and `training.distributed` puts together what they compute. The others know
nothing of the run's folder, so that it is read and written once, wherever they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compressor.errors import CompressorError, StageError, WrongUseError
from compressor.progress.bars import showing
from compressor.report.report import Report
from compressor.stage import Context, Stage
from compressor.structure.calling.draws import seeded
from compressor.target import Target
from compressor.training.distributed.team import Team, each_alone, present_team
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Order:
    """A stage that all apply to `model`, and what of its context the others need."""

    stage: Stage
    model: nn.Module
    seed: int
    target: Target
    plan_before: tuple[dict[str, Any], ...]
    origin: nn.Module | None


@dataclass(frozen=True, kw_only=True)
class Over:
    """The end of a run: what it gave, or why it failed."""

    report: Report | None = None
    path: Path | None = None
    failed: str = ""


@contextmanager
def leading(team: Team | None) -> Iterator[list[Over]]:
    """The run of rank 0 by itself; what is put into the list at its end is told to the others, or that it failed."""
    if team is None:
        yield []
        return
    ends: list[Over] = []
    try:
        with each_alone():
            yield ends
    except BaseException as error:
        failed = str(error) or type(error).__name__
        with suppress(Exception):  # the others may have ended first
            team.told(lambda: Over(failed=failed))
        raise
    team.told(lambda: ends[-1])


def applied_by_all(stage: Stage, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
    """What `stage` makes of `model`; where it trains and there is a team, with the others' help."""
    with each_alone(alone=False):
        team = present_team()
        if team is None or not getattr(stage, "trains", False):
            return _alone(stage, model, workload, context)
        order = Order(
            stage=stage,
            model=model,
            seed=context.seed,
            target=context.target,
            plan_before=context.plan_before,
            origin=context.origin,
        )
        team.told(lambda: order)
        return stage.apply(model, workload, context)


def helped(team: Team, workload: Workload) -> Over:
    """Helps rank 0 with the trainings of its run, until that is over. Raises CompressorError where it failed."""
    with showing(False):
        while True:
            told: Order | Over = team.told(_nothing)
            if isinstance(told, Over):
                if told.failed:
                    raise CompressorError(f"the run that rank 0 leads has failed: {told.failed}")
                return told
            context = Context(
                seed=told.seed,
                target=told.target,
                progress=False,
                plan_before=told.plan_before,
                origin=told.origin,
            )
            # What fails in all alike, such as a training that does not converge, is rank 0's to judge.
            with seeded(told.seed), suppress(StageError):
                told.stage.apply(told.model, workload, context)


def refuse_teams(what: str, way_out: str) -> None:
    """Raises WrongUseError where torchrun has started this process as one of several, for `what` is not shared so."""
    if present_team() is not None:
        raise WrongUseError(f"{what} is not for torchrun, whose processes share one long training; {way_out}")


def _alone(stage: Stage, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
    with each_alone():
        return stage.apply(model, workload, context)


def _nothing() -> Any:
    raise AssertionError("rank 0 alone says what is to be done")
