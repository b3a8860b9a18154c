"""The pipeline copies, applies, measures, keeps or rolls back, and goes on after a kill."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from compressor import Budget, Context, Effect, Pipeline, Recipe, StageError, load_checkpoint
from compressor.errors import RunFolderError
from compressor.running.order import doubtful_orders, segments
from compressor.running.pipeline import PipelineWarning
from compressor.runtime import open_session
from compressor.stages import (
    GPTQ,
    ClusterWeights,
    CrossLayerEqualization,
    Distill,
    DropBlocks,
    FineTune,
    PruneChannels,
    Quantize,
    ReestimateBatchNorm,
    RemoveZeroChannels,
    SemiStructured,
    SparseGPT,
    SparseTraining,
    SparsifyWeights,
)
from compressor.storage import read_json
from compressor.training.optimizers.choices import SGD


@dataclass(frozen=True, kw_only=True)
class Slow:
    """Puts work into the model that changes nothing but the time."""

    effect: ClassVar[Effect] = Effect.STRUCTURE
    layers: int = 40

    def apply(self, model: nn.Module, workload, context: Context) -> nn.Module:
        context.plan.append({"kind": "identity", "modules": []})
        return Padded(model, self.layers)


class Padded(nn.Module):
    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model = model
        self.waste = nn.Sequential(*[nn.Conv2d(3, 3, 7, padding=3, bias=False) for _ in range(layers)])

    def forward(self, x):
        return self.model(x + 1e-3 * torch.tanh(self.waste(x)))


@dataclass(frozen=True, kw_only=True)
class Spoil:
    """Ruins the weights."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model: nn.Module, workload, context: Context) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-1)
        return model


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Finds nothing to do."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model: nn.Module, workload, context: Context) -> nn.Module:
        raise StageError("nothing to do here")


def test_the_whole_chain_gives_a_smaller_verified_file(trained_workload, tmp_path):
    """Drop, distill, quantize: every step is measured, the file runs, and the report is written in three forms."""
    before = {name: tensor.clone() for name, tensor in trained_workload.model.state_dict().items()}
    pipeline = Pipeline(
        [DropBlocks(remove=0.5), Distill(epochs=4, tail_epochs=1, optimizer=SGD(rate=0.01), views=1), Quantize()]
    )
    result = pipeline.run(trained_workload, out=tmp_path, progress=False)
    names = [step.stage for step in result.report.steps]
    assert names == ["reference", "drop_blocks", "distill", "quantize"]
    assert all(step.kept for step in result.report.steps)
    sizes = [step.measurement.size_bytes for step in result.report.steps]
    assert sizes[0] > sizes[1] > sizes[3]
    assert result.artifact.path == tmp_path / "model.onnx"
    assert result.artifact.size_bytes == sizes[3]
    images = trained_workload.example_inputs
    (outputs,) = open_session(result.artifact.path).run(None, {"input": images.numpy()})
    assert torch.allclose(torch.from_numpy(outputs), result.model(images))
    for file in ("report.json", "report.md", "report.html"):
        assert (tmp_path / file).stat().st_size > 500
    saved = read_json(tmp_path / "report.json")
    assert saved["schema_version"] == 1
    assert saved["steps"][0]["stage"] == "reference"
    assert set(saved["steps"][3]["measurement"]["speedup"]) == {"value", "low", "high"}
    for name, tensor in trained_workload.model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the caller's model was changed"


def test_plan_and_weights_rebuild_the_float_model(trained_workload, tiny_cnn, tmp_path):
    """The folder's plan.json and weights.safetensors make the last trained model from the user's own class."""
    stages = [PruneChannels(remove=0.4, align=4), ReestimateBatchNorm(batches=2)]
    result = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    rebuilt = load_checkpoint(tmp_path, tiny_cnn).eval()
    images = trained_workload.example_inputs
    with torch.no_grad():
        assert torch.equal(rebuilt(images), result.model(images))


def test_a_stage_that_slows_the_file_is_rolled_back_before_its_training(trained_workload, tmp_path):
    """The structure is refused for its time, its training is skipped, and the file is the reference's."""
    pipeline = Pipeline([Slow(), FineTune(epochs=1, tail_epochs=0)], budget=Budget(max_drop=None))
    result = pipeline.run(trained_workload, out=tmp_path, progress=False)
    reference, slow, tuned = result.report.steps
    assert not slow.kept
    assert slow.reason.startswith("rolled back: slower")
    assert not tuned.kept
    assert tuned.measurement is None
    assert "would recover slow" in tuned.reason
    assert result.artifact.size_bytes == reference.measurement.size_bytes
    assert any("no stage was kept" in text for text in result.report.warnings)


def test_without_a_budget_everything_is_kept_and_marked(trained_workload, tmp_path):
    """The slow stage stays, with pays False and the reason."""
    with pytest.warns(PipelineWarning, match="no training between"):
        pipeline = Pipeline([Slow(), Quantize(skip=("*waste*",))])
    result = pipeline.run(trained_workload, out=tmp_path, progress=False)
    slow = result.report.steps[1]
    assert slow.kept
    assert slow.pays is False
    assert "does not pay" in slow.reason


def test_a_segment_that_loses_too_much_is_rolled_back_as_one(trained_workload, tmp_path):
    """Structure and its training go together when validation fell too far, and the reason gives the points."""
    pipeline = Pipeline([DropBlocks(remove=0.5), Spoil(), Quantize()], budget=Budget(max_drop=0.05, not_slower=False))
    steps = pipeline.run(trained_workload, out=tmp_path, progress=False).report.steps
    assert [step.kept for step in steps] == [True, False, False, True]
    assert "the budget allows 5.0 points" in steps[1].reason
    assert "judged together: drop_blocks + spoil" in steps[2].reason


def test_nothing_to_do_is_an_error_without_a_budget_and_a_reason_with_one(trained_workload, tmp_path):
    """A no-op never counts as success."""
    with pytest.raises(StageError, match="nothing to do here"):
        Pipeline([Nothing()]).run(trained_workload, out=tmp_path / "a", progress=False)
    result = Pipeline([Nothing()], budget=Budget()).run(trained_workload, out=tmp_path / "b", progress=False)
    assert not result.report.steps[1].kept
    assert "nothing to do here" in result.report.steps[1].reason


def test_finished_stages_are_taken_from_disk(trained_workload, tmp_path, monkeypatch):
    """The same call again applies nothing, and gives the same file and the same numbers."""
    stages = [DropBlocks(remove=0.5), ReestimateBatchNorm(batches=2), Quantize()]
    first = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)

    def refuse(*_):
        raise AssertionError("applied again")

    for stage in stages:
        monkeypatch.setattr(type(stage), "apply", refuse)
    again = Pipeline(stages).run(trained_workload, out=tmp_path, progress=False)
    assert again.artifact.path.read_bytes() == first.artifact.path.read_bytes()
    assert [step.measurement for step in again.report.steps] == [step.measurement for step in first.report.steps]


def test_a_killed_run_goes_on_to_the_same_bits(trained_workload, tmp_path, monkeypatch):
    """Interrupted in the third stage, then called again: the file equals that of a run without interruption."""
    stages = [DropBlocks(remove=0.5), FineTune(epochs=2, tail_epochs=0), Quantize()]
    whole = Pipeline(stages).run(trained_workload, out=tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:

        def killed(*_):
            raise KeyboardInterrupt

        patch.setattr(Quantize, "apply", killed)
        with pytest.raises(KeyboardInterrupt):
            Pipeline(stages).run(trained_workload, out=tmp_path / "cut", progress=False)
    resumed = Pipeline(stages).run(trained_workload, out=tmp_path / "cut", progress=False)
    assert resumed.artifact.path.read_bytes() == whole.artifact.path.read_bytes()


def test_another_run_in_the_folder_is_refused_key_by_key(trained_workload, tmp_path):
    """A changed seed is named with both values; accepting the change runs what it touches."""
    Pipeline([ReestimateBatchNorm(batches=1)]).run(trained_workload, out=tmp_path, progress=False)
    with pytest.raises(RunFolderError, match="seed: was 0, is 1"):
        Pipeline([ReestimateBatchNorm(batches=1)]).run(trained_workload, out=tmp_path, seed=1, progress=False)
    result = Pipeline([ReestimateBatchNorm(batches=1)]).run(
        trained_workload, out=tmp_path, seed=1, progress=False, accept_changes=True
    )
    assert result.report.seed == 1


def test_impossible_orders_are_refused_at_construction():
    """Nothing trains or reshapes after quantization."""
    with pytest.raises(ValueError, match="fine_tune cannot follow quantize"):
        Pipeline([Quantize(), FineTune()])
    with pytest.raises(ValueError, match="prune_channels cannot follow quantize"):
        Pipeline([Quantize(), PruneChannels(remove=0.5)])
    with pytest.raises(ValueError, match="at least one stage"):
        Pipeline([])
    with pytest.raises(TypeError, match="it is a class, call it"):
        Pipeline([Quantize])


def test_structure_and_its_training_form_one_segment():
    """Prune, drop and their training are judged together; what follows stands alone."""
    stages = [PruneChannels(remove=0.2), DropBlocks(remove=0.5), FineTune(), Distill(), Quantize()]
    assert segments(stages) == [[0, 1, 2, 3], [4]]
    assert segments([FineTune(), PruneChannels(remove=0.2), FineTune(), DropBlocks(remove=0.5)]) == [[0], [1, 2], [3]]
    # Sparse training makes the model worse on purpose: what it prepares and what recovers it are judged with it.
    assert segments([SparseTraining(), RemoveZeroChannels(), FineTune(), Quantize()]) == [[0, 1, 2], [3]]
    zeros = SparsifyWeights(sparsity=0.5)
    assert segments([PruneChannels(remove=0.2), FineTune(), zeros, FineTune(), Quantize()]) == [[0, 1], [2, 3], [4]]
    assert segments([SparseTraining(), zeros, RemoveZeroChannels(), Distill()]) == [[0, 1, 2, 3]]


def test_orders_that_lose_what_was_made_are_doubted():
    """A pattern of neighbours does not outlive a cut, nor do features in another order fit the teacher's."""
    pattern, order = SemiStructured(), SemiStructured(permute=True)
    cut = [SparsifyWeights(pattern=pattern), FineTune(), RemoveZeroChannels()]
    assert ["no longer its pattern" in text for text in doubtful_orders(cut)] == [True]
    hints = [SparsifyWeights(pattern=order), Distill(features=("layer1",))]
    assert ["another order" in text for text in doubtful_orders(hints)] == [True]
    fine = [RemoveZeroChannels(), SparsifyWeights(pattern=pattern), Distill(features=("layer1",)), Quantize()]
    assert doubtful_orders(fine) == ()
    alone = doubtful_orders([SparsifyWeights(sparsity=0.5), Quantize()])
    assert ["went with the weights" in text for text in alone] == [True]


def test_what_parts_shared_values_is_doubted() -> None:
    """Rounding that moves single weights, scales of single inputs and SparseGPT part equal weights; the rest do not."""
    clusters = ClusterWeights(clusters=8)
    for after in (
        Quantize(rounding=GPTQ()),
        Quantize(equalization=CrossLayerEqualization()),
        SparsifyWeights(sparsity=0.5, score=SparseGPT()),
    ):
        (text,) = [text for text in doubtful_orders([clusters, FineTune(), after]) if "come apart" in text]
        assert "cluster_weights" in text
    fine = [SparsifyWeights(sparsity=0.5, score=SparseGPT()), clusters, FineTune(), Quantize()]
    assert doubtful_orders(fine) == ()


def test_a_missed_goal_is_said(trained_workload, tmp_path):
    """A speed-up that nobody can reach leaves the budget unmet, with the number."""
    budget = Budget(max_drop=None, min_speedup=1000)
    report = (
        Pipeline([ReestimateBatchNorm(batches=1)], budget=budget)
        .run(trained_workload, out=tmp_path, progress=False)
        .report
    )
    assert not report.budget_met
    assert any("below the wanted 1000.00x" in text for text in report.warnings)


def test_a_recipes_report_holds_the_recipe(trained_workload, tmp_path):
    """The report of a run by recipe has the recipe as it was given, without what is at its default."""
    recipe = Recipe.loads("name: short\nstages:\n  - reestimate_batch_norm: {batches: 1}\n")
    result = Pipeline.from_recipe(recipe).run(trained_workload, out=tmp_path, progress=False)
    expected = {"name": "short", "stages": [{"reestimate_batch_norm": {"batches": 1}}]}
    assert result.report.recipe == expected
    assert read_json(tmp_path / "report.json")["recipe"] == expected
