"""One run on its way: what stands is known by its place among the stages, and the state is there from the start."""

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from torch import nn

from compressor import Budget, Effect, Pipeline
from compressor.batches import Batches
from compressor.estimate import Estimate
from compressor.measuring.measure import measure
from compressor.measuring.timing import Timing
from compressor.report.view import step_state
from compressor.running import applying
from compressor.running.run import Run
from compressor.stage import stage_name
from compressor.stages import ClusterWeights, FineTune, QuantizationAwareTraining, Quantize
from compressor.training.optimizers.choices import SGD


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
    """Every stage is measured to halve the speed, of the reference and of the model before it."""
    halved = Estimate(0.5, 0.4, 0.6)
    timing = Timing(reference_ms=halved, candidate_ms=halved, speedup=halved)
    monkeypatch.setattr(applying, "timed_against", lambda *_, **__: timing)
    monkeypatch.setattr(applying, "measure", lambda *given, **more: replace(measure(*given, **more), speedup=halved))


@pytest.mark.parametrize("budget", [None, Budget(max_drop=None, not_slower=False)])
def test_what_a_step_tells_of_its_time(trained_workload, tmp_path, budget):
    """One measurement against the reference is one number: in the reason of the first stage and in its row.

    Stages that leave the structure alone say so, and all but the last of a segment say after which they are judged.
    """
    stages = [stage_called("First", Effect.STRUCTURE), stage_called("Second", Effect.VALUES, factor=0.5), Quantize()]
    result = Pipeline(stages, budget=budget).run(trained_workload, out=tmp_path, progress=False)
    _, first, second, last = result.report.steps
    measured = first.measurement.speedup
    assert first.details["versus_base"] == vars(measured)
    assert f"{measured.value:.2f}x" in first.reason
    assert [step.details.get("same_structure") for step in (first, second, last)] == [True, True, None]
    assert [step.details.get("judged_after") for step in (first, second, last)] == ["second", None, None]


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


def zeroing(name: str, **attributes: Any) -> Any:
    """A stage that takes from the weights what the training after it wins back."""
    return stage_called(name, Effect.VALUES, needs_recovery=True, **attributes)


@pytest.mark.parametrize("second", [zeroing("Second"), stage_called("Second", Effect.VALUES, prepares_structure=True)])
def test_what_recovers_nothing_is_not_skipped(trained_workload, tmp_path, never_faster, second):
    """Zeros, and the training that prepares structure, stand by themselves where the structure before them is gone."""
    stages = [stage_called("First", Effect.STRUCTURE), second, stage_called("Third", Effect.VALUES)]
    result = Pipeline(stages, budget=Budget(max_drop=None)).run(trained_workload, out=tmp_path, progress=False)
    first, *others = result.report.steps[1:]
    assert first.reason.startswith("rolled back: slower")
    assert [step.kept for step in others] == [True, True]
    assert not any("would recover" in step.reason for step in others)


def test_training_is_skipped_where_zeros_or_shared_values_did_not_come(trained_workload, tmp_path):
    """It would train the model of before, as after structure that could not go."""
    stages = [ClusterWeights(clusters=10**6), stage_called("Third", Effect.VALUES)]
    result = Pipeline(stages, budget=Budget(max_drop=None)).run(trained_workload, out=tmp_path, progress=False)
    cluster, third = result.report.steps[1:]
    assert cluster.reason.startswith("could not be applied")
    assert third.reason == "skipped: it would recover cluster_weights, which was rolled back"


def test_a_run_has_no_state_besides_its_fields():
    """All that a run remembers is named in one place: reference, what torch can still train, steps and warnings."""
    known = {item.name for item in fields(Run)}
    assert known == {"job", "stages", "budget", "reference", "trainable", "steps", "warnings"}
    run = Run(job=None, stages=(), budget=None, reference=None, trainable=None)  # type: ignore[arg-type]
    assert set(vars(run)) == known


def shaken(workload):
    """`workload` whose training data has its classes exchanged: training on it can only harm."""
    return replace(workload, train=Batches(_exchanged(workload.train), batch_size=32))


def _exchanged(data) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(data)
    return torch.cat([images for images, _ in batches]), torch.cat([(targets + 1) % 4 for _, targets in batches])


@pytest.mark.parametrize("budget", [None, Budget()])
def test_a_training_that_failed_is_marked_and_undone(trained_workload, tmp_path, budget):
    """With a budget and without one: no tick, the reason in words, and what ships is the model of before."""
    stages = [FineTune(epochs=1, optimizer=SGD(rate=0.1)), stage_called("Second", Effect.VALUES)]
    result = Pipeline(stages, budget=budget).run(shaken(trained_workload), out=tmp_path, progress=False)
    step, after = result.report.steps[1:]
    assert not step.kept
    assert step.reason.startswith("rolled back: fine_tune failed: no epoch was better than the model before it")
    assert "at best validation accuracy fell" in step.reason
    assert step_state(1, step) == "rolled_back"
    assert "failed: no epoch was better than the model before it" in (tmp_path / "report.md").read_text()
    assert after.kept  # it recovers nothing, and is not skipped
    reference = (tmp_path / "stages" / "00-reference" / "model.onnx").read_bytes()
    assert result.artifact.path.read_bytes() == reference


def test_weights_that_are_worse_get_no_tick_without_a_budget_either(trained_workload, tmp_path):
    """A stage that ruins the model is kept where no budget forbids it, and does not look like a success."""
    stages = [stage_called("Ruin", Effect.VALUES, factor=-1.0), stage_called("Nothing", Effect.VALUES)]
    result = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    ruin, nothing = result.report.steps[1:]
    assert ruin.reason.startswith("does not pay: made the model worse than before it: validation accuracy fell")
    assert ruin.reason.endswith("kept because no budget forbids it")
    assert [step_state(1, step) for step in (ruin, nothing)] == ["no_gain", "kept"]


def test_a_failed_training_inside_a_stage_that_stands_is_a_warning(trained_workload, tmp_path):
    """Integers that were not learned are still integers: the file stays, with the words of the training that failed."""
    stages = [QuantizationAwareTraining(epochs=1, optimizer=SGD(rate=20.0), soft_weight=0.0)]
    result = Pipeline(stages).run(shaken(trained_workload), out=tmp_path, progress=False)
    step = result.report.steps[1]
    assert step.kept
    assert "quantization-aware training failed: no epoch was better" in step.reason
    assert any("quantization_aware_training: quantization-aware training failed" in w for w in result.report.warnings)
