"""One run on its way: what stands is known by its place among the stages, and the state is there from the start."""

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import nn

from compressor import Budget, Effect, Pipeline
from compressor.estimate import Estimate
from compressor.running import applying
from compressor.running.run import Run
from compressor.stage import stage_name


def stage_called(name: str, effect: Effect, *, factor: float = 1.0, **attributes: Any) -> Any:
    """A stage of a class `name` that multiplies all parameters by `factor`."""

    def apply(self, model: nn.Module, workload, context) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        return model

    return dataclass(frozen=True, kw_only=True)(type(name, (), {"effect": effect, "apply": apply, **attributes}))()


@pytest.fixture
def never_faster(monkeypatch):
    """Every stage is measured to halve the speed."""
    monkeypatch.setattr(applying, "speedup_over", lambda *_, **__: Estimate(0.5, 0.4, 0.6))


def test_two_stages_of_one_name_are_told_apart(trained_workload, tmp_path, never_faster):
    """Two packages may give a stage the same name: the one rolled back is not taken for the one that stands.

    What stands, a preparation and a training, changes values alone, so it must not make the model worse than before it.
    """
    stages = [
        stage_called("Prepare", Effect.VALUES, prepares_structure=True),
        stage_called("Twin", Effect.STRUCTURE),
        stage_called("Twin", Effect.VALUES, factor=-1.0),
    ]
    assert [stage_name(stage) for stage in stages] == ["prepare", "twin", "twin"]
    result = Pipeline(stages, budget=Budget(max_drop=None)).run(trained_workload, out=tmp_path, progress=False)
    steps = result.report.steps
    assert steps[2].reason == "rolled back: slower: 0.50x [0.40, 0.60] the speed of the model before it"
    assert [step.kept for step in steps] == [True, False, False, False]
    for step in (steps[1], steps[3]):
        assert step.reason.startswith("rolled back: made the model worse than before it")
        assert step.reason.endswith("(judged together: prepare + twin)")


def test_each_stage_has_the_step_after_its_place(trained_workload, tmp_path, never_faster):
    """Kept, rolled back or skipped, stage i is told in step i + 1."""
    stages = [
        stage_called("First", Effect.STRUCTURE),
        stage_called("Second", Effect.VALUES),
        stage_called("Third", Effect.VALUES),
    ]
    result = Pipeline(stages, budget=Budget()).run(trained_workload, out=tmp_path, progress=False)
    names = [step.stage for step in result.report.steps]
    assert names == ["reference", "first", "second", "third"]
    assert "would recover first" in result.report.steps[2].reason


def test_a_run_has_no_state_besides_its_fields():
    """All that a run remembers is named in one place: reference, what torch can still train, steps and warnings."""
    known = {item.name for item in fields(Run)}
    assert known == {"job", "stages", "budget", "reference", "trainable", "steps", "warnings"}
    run = Run(job=None, stages=(), budget=None, reference=None, trainable=None)  # type: ignore[arg-type]
    assert set(vars(run)) == known
