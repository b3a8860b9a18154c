"""Weights become zero as asked, stay zero in all that follows, and what became empty can be taken out."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.files.weights import count_parameters
from compressor.pruning.ranking.scope import Global, PerLayer
from compressor.pruning.schedules import Cubic, Linear, OneShot
from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.sparsity.adaptive import Adaptive
from compressor.sparsity.masks import PerRow
from compressor.sparsity.patterns import Blocks, Rows, SemiStructured, Unstructured
from compressor.sparsity.schedules import Polynomial
from compressor.sparsity.scores import FirstOrder, Magnitude, Movement, Wanda
from compressor.sparsity.sparse_gpt import SparseGPT
from compressor.stage import Context, Effect
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.distillation import Distill
from compressor.stages.fine_tuning import FineTune
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.stages.sparse_training import SparseTraining
from compressor.stages.weight_sparsifying import SparsifyWeights
from compressor.stages.zero_removal import RemoveZeroChannels
from compressor.structure.checkpoint import load_checkpoint
from compressor.target import Isa, Target
from compressor.testing import check_stage
from compressor.training.optimizers.choices import SGD
from compressor.workload import Workload, predict
from workbench.tiny import TinyResNet, make_workload

TARGET = Target(isa=Isa.X86_AVX2)


def sparse(stage, workload, *, folder=None):
    """What the stage makes of a copy of the workload's model, and its context."""
    context = Context(progress=False, target=TARGET, folder=folder)
    torch.manual_seed(0)
    return stage.apply(copy.deepcopy(workload.model), workload, context), context


def zeros(model) -> dict[str, torch.Tensor]:
    """Where the weights of `model` are zero, by name."""
    return {name: own == 0 for name, own in model.named_parameters() if own.ndim > 1}


def fraction(model) -> float:
    """The part of the weights that is zero."""
    found = torch.cat([mask.flatten() for mask in zeros(model).values()])
    return float(found.float().mean())


@pytest.mark.parametrize(
    ("stage", "least", "most"),
    [
        (SparsifyWeights(sparsity=0.8), 0.7999, 0.8001),
        (SparsifyWeights(sparsity=0.8, scope=PerLayer()), 0.799, 0.801),
        (SparsifyWeights(sparsity=0.75, scope=PerRow()), 0.74, 0.76),
        (SparsifyWeights(sparsity=0.5, pattern=Blocks(height=4, width=4)), 0.49, 0.5),
        (SparsifyWeights(sparsity=0.5, pattern=Rows(), score=Magnitude(norm="l2")), 0.45, 0.5),
        (SparsifyWeights(sparsity=0.6, schedule=Linear(steps=2, epochs=1)), 0.5999, 0.6001),
        (SparsifyWeights(sparsity=0.6, score=FirstOrder()), 0.5999, 0.6001),
        (SparsifyWeights(sparsity=0.6, score=Movement()), 0.5999, 0.6001),
        (SparsifyWeights(sparsity=0.5, score=Wanda()), 0.49, 0.51),
        (SparsifyWeights(sparsity=0.6, score=SparseGPT(batches=2)), 0.59, 0.61),
        (SparsifyWeights(sparsity=0.6, score=SparseGPT(batches=2), schedule=Cubic(steps=2)), 0.59, 0.62),
        (SparsifyWeights(sparsity=0.5, score=Wanda(), schedule=Polynomial(epochs=2, frequency=4)), 0.49, 0.51),
    ],
    ids=repr,
)
def test_as_many_weights_are_zero_as_asked(stage, least: float, most: float, trained_workload) -> None:
    """Counted in the model, and told layer by layer."""
    model, context = sparse(stage, trained_workload)
    assert least <= fraction(model) <= most
    assert context.details["zero_weights_fraction"] == pytest.approx(fraction(model), abs=2e-2)
    counted = {name.removesuffix(".weight"): int(mask.sum()) for name, mask in zeros(model).items()}
    assert all(entry["zero"] == counted[entry["layer"]] for entry in context.details["zero_weights"])


def test_two_of_four_leaves_alone_what_four_does_not_divide(trained_workload) -> None:
    """Every four inputs keep two; the first convolution reads three channels and stays whole, with the reason."""
    model, context = sparse(SparsifyWeights(pattern=SemiStructured(n=2, m=4)), trained_workload)
    groups = model.layer2[0].conv1.weight.movedim(1, -1).reshape(-1, 4)
    assert ((groups != 0).sum(dim=1) == 2).all()
    assert not (model.conv1.weight == 0).any()
    assert {"layer": "conv1", "reason": "its 3 inputs are no multiple of 4"} in context.details["locked"]


def test_channels_in_a_better_order_keep_more(trained_workload) -> None:
    """The network is nearer to the original with the permutation than without, and the report tells what it gained."""
    inputs = torch.cat([batch for batch, _ in trained_workload.validation])
    kept, errors = [], []
    with torch.no_grad():
        wanted = predict(trained_workload.model.eval(), inputs)
        for permute in (True, False):
            model, context = sparse(SparsifyWeights(pattern=SemiStructured(permute=permute)), trained_workload)
            kept.append(sum(float(own.abs().sum()) for own in model.parameters() if own.ndim > 1))
            errors.append(float((predict(model.eval(), inputs) - wanted).square().mean()))
            assert ("reordered" in context.details) == permute
    assert kept[0] > 1.01 * kept[1]
    assert errors[0] < errors[1]


@pytest.mark.slow
def test_the_recipe_for_two_of_four_ends_in_a_file_with_the_pattern(trained_workload, tmp_path) -> None:
    """`two_of_four_int8` as shipped: half of what fits is zero in the file, and the plan rebuilds it."""
    recipe = Recipe.load("two_of_four_int8", overrides=["stages.1.epochs=1"])
    result = Pipeline(recipe.stages).run(trained_workload, out=tmp_path, target=TARGET, progress=False)
    measured = result.report.shipped.measurement
    assert 1 - measured.nonzero_parameters / measured.parameters > 0.45
    rebuilt = load_checkpoint(tmp_path, TinyResNet)
    groups = rebuilt.layer2[1].conv1.weight.movedim(1, -1).reshape(-1, 4)
    assert ((groups == 0).sum(dim=1) == 2).all()
    assert measured.score.value > 0.8


@pytest.mark.parametrize("score", [Wanda(batches=2), SparseGPT(batches=2), FirstOrder()], ids=repr)
def test_every_score_makes_two_of_four(score, trained_workload) -> None:
    """The pattern holds whatever ranks the weights within each four."""
    model, _ = sparse(SparsifyWeights(pattern=SemiStructured(), score=score), trained_workload)
    for layer in (model.layer1[0].conv1, model.layer2[0].conv2, model.linear):
        groups = layer.weight.movedim(1, -1).reshape(-1, 4)
        assert ((groups == 0).sum(dim=1) == 2).all()


def test_making_up_for_zeros_keeps_the_outputs_nearer(trained_workload) -> None:
    """At one sparsity of every layer, what SparseGPT leaves computes nearer to the original than magnitude's."""
    inputs = torch.cat([batch for batch, _ in trained_workload.validation])
    with torch.no_grad():
        wanted = predict(trained_workload.model.eval(), inputs)
        errors = []
        for score in (SparseGPT(batches=4), Magnitude()):
            model, _ = sparse(SparsifyWeights(sparsity=0.7, score=score, scope=PerLayer()), trained_workload)
            errors.append(float((predict(model.eval(), inputs) - wanted).square().mean()))
    assert errors[0] < 0.5 * errors[1]


def test_layers_that_no_data_reaches_stay_whole(trained_workload) -> None:
    """A score that needs data says of which layers it has none."""
    workload = replace(trained_workload, model=copy.deepcopy(trained_workload.model))
    workload.model.spare = nn.Linear(4, 4)
    for score in (Wanda(batches=1), SparseGPT(batches=1)):
        model, context = sparse(SparsifyWeights(sparsity=0.5, score=score), workload)
        assert {
            "layer": "spare",
            "reason": "data reaches no call of it, so that nothing is known of it",
        } in context.details["locked"]
        assert not (model.spare.weight == 0).any()


def test_the_smallest_weights_go(trained_workload) -> None:
    """No weight that stayed is smaller than one that went, in the whole network."""
    before = dict(trained_workload.model.named_parameters())
    model, _ = sparse(SparsifyWeights(sparsity=0.5), trained_workload)
    gone = torch.cat([before[name][mask].abs() for name, mask in zeros(model).items()])
    stay = torch.cat([before[name][~mask].abs() for name, mask in zeros(model).items()])
    assert gone.max() <= stay.min()


def test_polynomial_decay_ends_at_the_final_sparsity(trained_workload) -> None:
    """Pruned while it trains to 0.9, the model has 0.9 zeros at the end, and has learned to do with the rest."""
    schedule = Polynomial(initial=0.5, epochs=3, tail_epochs=1, optimizer=SGD(rate=0.05))
    model, context = sparse(SparsifyWeights(sparsity=0.9, schedule=schedule), trained_workload)
    assert fraction(model) == pytest.approx(0.9, abs=1e-3)
    assert context.details["epochs"][-1]["score"] > 0.7  # a quarter by chance
    once, _ = sparse(SparsifyWeights(sparsity=0.9), trained_workload)
    assert fraction(once) == pytest.approx(0.9, abs=1e-3)


def test_weights_that_went_in_a_step_stay_away(trained_workload) -> None:
    """What the first of two steps makes zero is zero after the training between them and the second step."""
    first, _ = sparse(SparsifyWeights(sparsity=0.3, schedule=OneShot()), trained_workload)
    both, _ = sparse(SparsifyWeights(sparsity=0.6, schedule=Linear(steps=2, epochs=1)), trained_workload)
    assert all((zeros(both)[name] | ~mask).all() for name, mask in zeros(first).items())


def test_a_killed_training_goes_on_to_the_same_bits(trained_workload, tmp_path, monkeypatch) -> None:
    """Killed in the middle of the decay and started again, it ends with the very weights of an undisturbed one."""
    stage = SparsifyWeights(sparsity=0.8, schedule=Polynomial(epochs=3, tail_epochs=1))
    whole, _ = sparse(stage, trained_workload)
    from compressor.training.running import epochs as training

    score, calls = training.validation_rows, []

    def dies_later(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(*arguments)

    monkeypatch.setattr(training, "validation_rows", dies_later)
    with pytest.raises(KeyboardInterrupt):
        sparse(stage, trained_workload, folder=tmp_path)
    resumed, _ = sparse(stage, trained_workload, folder=tmp_path)
    assert len(calls) == 5
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(
    "later",
    [
        FineTune(epochs=1),
        Distill(epochs=1, views=1),
        Distill(epochs=1, views=1, features=("layer1",)),
        SparseTraining(epochs=1),
        PruneChannels(remove=0.3, align=1, schedule=Linear(steps=2)),
    ],
    ids=lambda stage: type(stage).__name__,
)
def test_zeros_stay_in_later_training(later, trained_workload) -> None:
    """As many weights are zero after the stage as there were of what is left, and the others have moved."""
    first, context = sparse(SparsifyWeights(sparsity=0.7, scope=PerLayer()), trained_workload)
    held = zeros(first)
    after = Context(progress=False, target=TARGET, plan_before=tuple(context.plan))
    model = later.apply(copy.deepcopy(first), trained_workload, after)
    for name, mask in zeros(model).items():
        if mask.shape == held[name].shape:
            assert torch.equal(mask & held[name], held[name])
        assert float(mask.float().mean()) > 0.4
    moved = model.layer1[0].conv1.weight
    assert moved.shape != first.layer1[0].conv1.weight.shape or not torch.equal(moved, first.layer1[0].conv1.weight)


def test_without_the_plan_zeros_would_be_filled(trained_workload) -> None:
    """The same training without what the stage noted loses the zeros: the note is what holds them."""
    first, _ = sparse(SparsifyWeights(sparsity=0.7), trained_workload)
    model = FineTune(epochs=1).apply(copy.deepcopy(first), trained_workload, Context(progress=False))
    assert fraction(model) < 0.1


@pytest.mark.parametrize(
    "last",
    [Quantize(), pytest.param(QuantizationAwareTraining(epochs=1), marks=pytest.mark.slow)],
    ids=lambda stage: type(stage).__name__,
)
def test_zeros_reach_the_integer_file(last, trained_workload, tmp_path) -> None:
    """Sparse, tuned and quantized by a pipeline: the shipped file counts the zeros, and packs smaller than without."""
    stages = [SparsifyWeights(sparsity=0.8), FineTune(epochs=1), last]
    result = Pipeline(stages).run(trained_workload, out=tmp_path / "sparse", target=TARGET, progress=False)
    measured = result.report.shipped.measurement
    assert 1 - measured.nonzero_parameters / measured.parameters > 0.7
    rebuilt = load_checkpoint(tmp_path / "sparse", TinyResNet)
    assert fraction(rebuilt) == pytest.approx(0.8, abs=0.01)
    dense = Pipeline([last]).run(trained_workload, out=tmp_path / "dense", target=TARGET, progress=False)
    assert measured.compressed_bytes < 0.8 * dense.report.shipped.measurement.compressed_bytes
    assert "makes nothing faster" in result.report.to_html()


@dataclass(frozen=True, kw_only=True)
class FillsZeros:
    """A stage that knows nothing of zeros that are meant."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model, workload, context):
        with torch.no_grad():
            for own in model.parameters():
                own.add_(1e-4)
        return model


@pytest.mark.slow
def test_who_fills_zeros_is_named(trained_workload, tmp_path) -> None:
    """A stage after which weights are no longer zero is warned of, and those that keep them are not."""
    stages = [SparsifyWeights(sparsity=0.8), FineTune(epochs=1), FillsZeros(), Quantize(rounding=GPTQ(samples=32))]
    report = Pipeline(stages).run(trained_workload, out=tmp_path, target=TARGET, progress=False).report
    filled = [text for text in report.warnings if "zeros that were made for good are filled" in text]
    assert len(filled) == 1
    assert filled[0].startswith("fills_zeros")


@pytest.mark.parametrize("rounding", [GPTQ(samples=64), AdaRound(iterations=300, samples=64)], ids=repr)
def test_no_way_of_rounding_fills_zeros(rounding, trained_workload) -> None:
    """As many weights are zero in the integer file as in the float one, at least."""
    model, context = sparse(SparsifyWeights(sparsity=0.8), trained_workload)
    after = Context(progress=False, target=TARGET, plan_before=tuple(context.plan))
    file = Quantize(rounding=rounding).apply(model.eval(), trained_workload, after)
    total, left = count_parameters(file.onnx_bytes)
    assert 1 - left / total > 0.79


@pytest.mark.parametrize("tuned", [False, True], ids=["at once", "after tuning"])
def test_rows_at_zero_are_taken_out_afterwards(tuned, trained_workload) -> None:
    """Every filter at zero inside a block is removed, before or after tuning, and the outputs stay what they were."""
    stage = SparsifyWeights(sparsity=0.4, pattern=Rows(), layers=("layer*.conv1",))
    model, context = sparse(stage, trained_workload)
    live = {
        name: int((layer.weight.flatten(1) != 0).any(dim=1).sum())
        for name, layer in model.named_modules()
        if name.endswith(".conv1")
    }
    assert sum(live.values()) < 0.75 * sum(model.get_submodule(name).out_channels for name in live)
    plan = tuple(context.plan)
    if tuned:
        FineTune(epochs=1).apply(model, trained_workload, Context(progress=False, plan_before=plan))
    narrow = RemoveZeroChannels(align=1).apply(copy.deepcopy(model), trained_workload, Context(progress=False))
    assert {name: narrow.get_submodule(name).out_channels for name in live} == live
    inputs = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(predict(narrow.eval(), inputs), predict(model.eval(), inputs), atol=1e-4)


def test_fresh_biases_are_no_meant_zeros(tiny_workload) -> None:
    """Shifts that are zero since the model was made are not held; those that were made zero with their rows are."""
    _, context = sparse(SparsifyWeights(sparsity=0.4, pattern=Rows()), tiny_workload)
    [names] = [entry["tensors"] for entry in context.plan if entry["kind"] == "zeros"]
    assert "layer1.0.bn1.weight" in names
    assert "layer1.0.bn1.bias" not in names


def test_rows_of_the_output_stay(trained_workload) -> None:
    """No class is silenced: the layer that makes the output keeps its rows, with the reason."""
    _, context = sparse(SparsifyWeights(sparsity=0.5, pattern=Rows()), trained_workload)
    assert {"layer": "linear", "reason": "its rows make the model's output"} in context.details["locked"]


def test_tied_weights_are_one() -> None:
    """A weight that two layers share becomes zero once, and is still shared."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.last(self.second(self.first(x.flatten(1))))

    model, context = sparse(SparsifyWeights(sparsity=0.5), make_workload(Tied()))
    assert model.first.weight is model.second.weight
    assert [entry["layer"] for entry in context.details["zero_weights"]] == ["first", "last"]


class Lookup(nn.Module):
    """An embedding whose gradients hold the rows alone that were looked up, and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.last = nn.Embedding(40, 16, sparse=True), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.last(F.relu(self.inner(self.table(x).mean(dim=1))))


class Sequences(nn.Module):
    """A stacked bidirectional LSTM and a layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.last = nn.Linear(16, 4)

    def forward(self, x):
        return self.last(self.layer(self.lstm(x)[0]).mean(dim=1))


@pytest.mark.parametrize(
    "stage",
    [
        SparsifyWeights(sparsity=0.6),
        SparsifyWeights(sparsity=0.6, score=Movement()),
        SparsifyWeights(sparsity=0.6, score=FirstOrder()),
        SparsifyWeights(sparsity=0.6, schedule=Polynomial(epochs=1, tail_epochs=0)),
        SparsifyWeights(pattern=SemiStructured()),
    ],
    ids=repr,
)
@pytest.mark.parametrize("kind", [Lookup, Sequences])
def test_zeros_stay_in_tables_and_recurrent_and_attention_layers(stage, kind) -> None:
    """Every weight of the network gets zeros, embedding, gates and projections, and later training leaves them."""
    inputs = torch.randint(0, 40, (64, 6)) if kind is Lookup else torch.randn(64, 5, 8)
    data = (inputs, torch.arange(64) % 4)
    workload = Workload.from_datasets(kind(), train=data, test=data, batch_size=16, name="short")
    model, context = sparse(stage, workload)
    held = {name: mask for name, mask in zeros(model).items() if not name.startswith("layer.norm")}
    assert all(mask.any() for mask in held.values())
    # Layers with several weights are told weight by weight.
    told = {entry["layer"]: entry["zero"] for entry in context.details["zero_weights"]}
    assert told == {name.removesuffix(".weight"): int(mask.sum()) for name, mask in held.items()}
    after = Context(progress=False, plan_before=tuple(context.plan))
    tuned = FineTune(epochs=1, tail_epochs=0).apply(model, workload, after)
    assert all(torch.equal(mask, held[name]) for name, mask in zeros(tuned).items())


def test_frozen_weights_stay_whole(trained_workload) -> None:
    """What is frozen is no weight to prune."""
    workload = replace(trained_workload, model=copy.deepcopy(trained_workload.model))
    workload.model.layer1.requires_grad_(False)
    model, _ = sparse(SparsifyWeights(sparsity=0.5), workload)
    assert not (model.layer1[0].conv1.weight == 0).any()


@pytest.mark.parametrize(
    "stage",
    [
        SparsifyWeights(sparsity=0.5),
        SparsifyWeights(pattern=SemiStructured(permute=True, escapes=1)),
        SparsifyWeights(sparsity=0.5, schedule=Polynomial(epochs=1, tail_epochs=0)),
        SparsifyWeights(sparsity=0.5, schedule=Cubic(steps=2)),
        SparsifyWeights(sparsity=0.2, schedule=Adaptive(rounds=1, max_drop=0.9)),
        SparsifyWeights(sparsity=0.5, score=SparseGPT(batches=1)),
    ],
    ids=repr,
)
def test_the_contract_is_kept(stage, small_workload) -> None:
    """Every way to sparsify passes what every stage must pass."""
    check_stage(stage, small_workload)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 90}, "did you mean 0.9"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": -0.1}, "sparsity"),
        ({}, "write sparsity=0.8"),
        ({"sparsity": 0.5, "pattern": SemiStructured()}, "sparsity is left out"),
        ({"sparsity": 0.5, "score": SparseGPT(), "pattern": Rows()}, "single weights"),
        ({"sparsity": 0.5, "score": SparseGPT(), "scope": PerRow()}, "leave scope out"),
        ({"sparsity": 0.5, "score": Wanda(), "pattern": Rows()}, "within each row"),
        ({"sparsity": 0.5, "score": Movement(), "schedule": Polynomial()}, "which Movement cannot"),
        ({"sparsity": 0.5, "schedule": Polynomial(initial=0.9)}, "got initial=0.9 and 0.5 in the end"),
        ({"pattern": SemiStructured(n=3), "schedule": Polynomial(initial=0.3)}, "initial=0.3 and 0.25 in the end"),
        ({"pattern": SemiStructured(), "schedule": Adaptive()}, "ranking within it"),
        ({"sparsity": 0.5, "score": SparseGPT(), "schedule": Adaptive()}, "ranking within it"),
        ({"sparsity": 0.5, "scope": Global(), "schedule": Adaptive()}, "leave scope out"),
        ({"sparsity": 0.5, "layers": "conv1"}, "tuple of globs"),
        ({"sparsity": 0.5, "ignore": "conv1"}, "tuple of globs"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(settings, message: str) -> None:
    """Each is refused where it is written, with what was meant."""
    with pytest.raises(ValueError, match=message):
        SparsifyWeights(**settings)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (SparsifyWeights(sparsity=0.5, layers=("bn1",)), "no trained weight"),
        (SparsifyWeights(sparsity=0.5, ignore=("*",)), "ignore fewer layers"),
        (SparsifyWeights(pattern=SemiStructured(n=2, m=7)), "no multiple of 7"),
        (SparsifyWeights(sparsity=1e-9), "raise sparsity"),
        (SparsifyWeights(sparsity=0.0001, pattern=Rows()), "smallest unit of Rows"),
        (SparsifyWeights(sparsity=0.5, schedule=Polynomial(end=10**6)), "raise epochs"),
    ],
    ids=repr,
)
def test_nothing_to_do_is_refused_with_the_reason(stage, message: str, tiny_workload) -> None:
    """No weight that becomes zero is an error, before any training."""
    with pytest.raises(StageError, match=message):
        sparse(stage, tiny_workload)


def test_zeros_by_default_are_single_weights() -> None:
    """The plain form needs a sparsity alone."""
    assert SparsifyWeights(sparsity=0.5).pattern == Unstructured()
