"""Weight sharing: few values, in every codebook, that later stages keep."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from compressor import Pipeline, load_checkpoint
from compressor.errors import StageError
from compressor.pruning.merging.fed import Noise
from compressor.quantization.grids.schemes import PerBlock, PerChannel
from compressor.stage import Context, Effect
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.fine_tuning import FineTune
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.stages.similar_merging import MergeSimilar
from compressor.stages.weight_clustering import ClusterWeights
from compressor.stages.weight_sparsifying import SparsifyWeights
from compressor.structure.plan import apply_plan_
from compressor.testing import check_stage
from compressor.training.held_values import HeldValues, torn_values
from compressor.workload import Workload
from workbench.tiny import TinyResNet


def after(stages, workload, model=None):
    """What the stages make of the workload's model, one after the other, and the whole plan."""
    model, plan = copy.deepcopy(model or workload.model), ()
    for stage in stages:
        context = Context(seed=0, progress=False, plan_before=plan)
        model = stage.apply(model, workload, context)
        plan = (*plan, *context.plan)
    return model, plan


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in model.named_parameters() if value.ndim > 1}


def sharing(weight: torch.Tensor) -> torch.Tensor:
    """Which number each weight's value has, counted in the order of the weights."""
    _, index = torch.unique(weight, return_inverse=True)
    flat = index.flatten().tolist()
    numbers = {value: number for number, value in enumerate(dict.fromkeys(flat))}
    return torch.tensor([numbers[value] for value in flat])


def test_every_layer_has_a_codebook(tiny_workload) -> None:
    """Eight values are left in each layer, the nearest of its weights', and the plan names the tensors."""
    model, (entry,) = after([ClusterWeights(clusters=8)], tiny_workload)
    before = weights(tiny_workload.model)
    for name, weight in weights(model).items():
        values = torch.unique(weight)
        assert len(values) == 8
        nearest = values[(before[name].flatten()[:, None] - values).abs().argmin(dim=1)]
        # The means of the clusters are taken last, so that a weight on a border may lie nearer to the next.
        assert (weight.flatten() == nearest).double().mean() > 0.97
    assert entry == {"kind": "clusters", "tensors": sorted(weights(model))}


@pytest.mark.slow
def test_codebooks_of_channels_and_blocks(tiny_workload) -> None:
    """Every output channel has its four values, or each 9 weights of it; together there are more."""
    for granularity, size in ((PerChannel(), None), (PerBlock(size=9), 9)):
        model, _ = after([ClusterWeights(clusters=4, granularity=granularity, ignore=("linear",))], tiny_workload)
        weight = weights(model)["layer1.0.conv1.weight"].flatten(1)
        parts = [part for row in weight for part in row.split(size or len(row))]
        assert {len(torch.unique(part)) for part in parts} == {4}
        assert len(torch.unique(weight)) > 4 * len(weight) - 4


def test_finer_codebooks_lose_less(tiny_workload) -> None:
    """The more values, and the fewer weights share them, the less is lost."""
    errors = []
    for stage in (ClusterWeights(clusters=4), ClusterWeights(clusters=4, granularity=PerChannel()), ClusterWeights()):
        context = Context(progress=False)
        stage.apply(copy.deepcopy(tiny_workload.model), tiny_workload, context)
        errors.append(sum(count["error"] for count in context.details["shared_values"]))
    assert errors == sorted(errors, reverse=True)


def test_a_cluster_learns_from_the_mean_of_its_gradients() -> None:
    """Weights 1, 1, 2 with gradients 3, 5, 7: the pair gets 4 each, so that a step of 0.1 leaves 0.6, 0.6, 1.3."""
    weight = nn.Parameter(torch.tensor([1.0, 1.0, 2.0]))
    held = HeldValues([weight])
    held.read()
    (weight * torch.tensor([3.0, 5.0, 7.0])).sum().backward()
    held.even_gradients_()
    assert weight.grad.tolist() == [4.0, 4.0, 7.0]
    torch.optim.SGD([weight], lr=0.1).step()
    held.restore_()
    assert torch.allclose(weight, torch.tensor([0.6, 0.6, 1.3]))
    with torch.no_grad():
        weight[1] = 9.0
    held.restore_()
    assert torch.equal(weight[0], weight[1])


def test_training_moves_values_and_keeps_them_shared(tiny_workload) -> None:
    """After an epoch the same weights share a value, and the values are others."""
    model, plan = after([ClusterWeights(clusters=8)], tiny_workload)
    tuned = FineTune(epochs=1, tail_epochs=0).apply(
        copy.deepcopy(model), tiny_workload, Context(progress=False, plan_before=plan)
    )
    free = FineTune(epochs=1, tail_epochs=0).apply(copy.deepcopy(model), tiny_workload, Context(progress=False))
    moved = 0
    for name, weight in weights(tuned).items():
        assert torch.equal(sharing(weight), sharing(weights(model)[name]))
        moved += not torch.equal(weight, weights(model)[name])
    assert moved
    assert len(torch.unique(weights(free)["layer1.0.conv1.weight"])) > 8


def test_zeros_that_are_meant_stay(tiny_workload) -> None:
    """Half of the weights are zero and stay so; the others share eight values, through a training and a cut."""
    stages = [SparsifyWeights(sparsity=0.5), ClusterWeights(clusters=8), FineTune(epochs=1, tail_epochs=0)]
    model, plan = after(stages, tiny_workload)
    sparse, _ = after(stages[:1], tiny_workload)
    for name, weight in weights(model).items():
        zero = weights(sparse)[name] == 0
        assert bool((weight[zero] == 0).all())
        assert len(torch.unique(weight[~zero])) <= 8
    narrow, _ = after([PruneChannels(remove=0.3, align=1)], tiny_workload, model)
    assert all(len(torch.unique(weight)) <= 9 for weight in weights(narrow).values())
    assert [entry["kind"] for entry in plan] == ["zeros", "clusters"]


def test_merging_leaves_shared_values_alone(tiny_workload) -> None:
    """Merging would add weights that share values: it is refused, with the layer and the reason."""
    clustered, plan = after([ClusterWeights(clusters=8)], tiny_workload)
    with pytest.raises(StageError, match="zeros or shared values that merging would lose"):
        MergeSimilar(remove=0.25, align=1, on=Noise(samples=16)).apply(
            clustered, tiny_workload, Context(progress=False, plan_before=plan)
        )


def test_too_many_values_are_refused(tiny_workload) -> None:
    """A layer of 432 weights has no codebook of 500 values and is told; where none has, nothing is done."""
    context = Context(progress=False)
    ClusterWeights(clusters=500).apply(copy.deepcopy(tiny_workload.model), tiny_workload, context)
    locked = {entry["layer"]: entry["reason"] for entry in context.details["locked"]}
    assert locked["conv1"] == "500 values are too many for 432 different weights: none is shared"
    with pytest.raises(StageError, match=r"100000 values are too many for 432 different weights.*lower clusters"):
        after([ClusterWeights(clusters=100_000)], tiny_workload)


def shared_and_left(stage: ClusterWeights, model: nn.Module, plan=()) -> tuple[set[str], dict[str, str]]:
    """The layers whose weights are said to share values, and why others were left alone."""
    context = Context(progress=False, plan_before=plan)
    workload = vectors(model)
    stage.apply(model, workload, context)
    left = {entry["layer"]: entry["reason"] for entry in context.details["locked"]}
    return {count["layer"] for count in context.details["shared_values"]}, left


def vectors(model: nn.Module) -> Workload:
    data = (torch.randn(16, 8), torch.arange(16) % 2)
    return Workload.from_datasets(model, train=data, validation=data, test=data, batch_size=8)


def test_rows_no_longer_than_a_codebook_share_nothing() -> None:
    """Rows of 8 weights with 8 values each are left as they are and said to be; rows of 9 share."""
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 2)).eval()
    before = model[0].weight.detach().clone()
    shared, left = shared_and_left(ClusterWeights(clusters=8, granularity=PerChannel()), model)
    assert shared == {"2"}
    assert left == {"0": "8 values are too many for 8 different weights: none is shared"}
    assert torch.equal(model[0].weight, before)
    assert {len(torch.unique(row)) for row in model[2].weight} == {8}


def test_a_last_block_may_be_short() -> None:
    """Blocks of 5 and a last one of 3: the first have 4 values each, the last keeps its own three."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    before = model[0].weight.detach().clone()
    shared, left = shared_and_left(ClusterWeights(clusters=4, granularity=PerBlock(size=5)), model)
    assert (shared, left) == ({"0", "2"}, {})
    assert {len(torch.unique(row[:5])) for row in model[0].weight} == {4}
    assert torch.equal(model[0].weight[:, 5:], before[:, 5:])


def test_what_is_sparse_or_shared_already_shares_nothing_more() -> None:
    """Of 16 weights 12 are zero for good: four others do not fill a codebook of 4; nor do weights of 3 values."""
    model = nn.Sequential(nn.Linear(8, 2), nn.ReLU(), nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.zeros(16).index_fill(0, torch.tensor([1, 5]), 0.5).view(2, 8))
        model[0].weight[1, 2:4] = torch.tensor([0.25, -0.75])
        model[2].weight.copy_(torch.tensor([0.1, 0.2, 0.3]).repeat(6).view(9, 2))
    plan = ({"kind": "zeros", "tensors": ["0.weight"]},)
    shared, left = shared_and_left(ClusterWeights(clusters=4), model, plan)
    assert shared == {"4"}
    assert left["0"].startswith("4 values are too many for 3 different")
    assert left["2"].startswith("4 values are too many for 3 different")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clusters": 1}, "at least 2; got 1"),
        ({"clusters": 4.5}, "a whole number"),
        ({"clusters": 16, "granularity": PerBlock(size=8)}, "clusters=16 for blocks of 8"),
        ({"clusters": 16, "granularity": PerBlock(size=16)}, "clusters=16 for blocks of 16"),
        ({"layers": ()}, "layers"),
        ({"ignore": "conv1"}, r"write \('conv1',\)"),
    ],
)
def test_wrong_settings_are_refused(settings, message) -> None:
    """Settings are refused where they are written."""
    with pytest.raises(ValueError, match=message):
        ClusterWeights(**settings)


def test_the_plan_rebuilds_it(tiny_workload) -> None:
    """The plan fits a fresh model of the class, and is refused where a tensor is missing."""
    model, plan = after([ClusterWeights(clusters=4)], tiny_workload)
    rebuilt = apply_plan_(TinyResNet(), list(plan))
    rebuilt.load_state_dict(model.state_dict())
    assert all(torch.equal(*pair) for pair in zip(rebuilt.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"clusters of tensor 'conv1\.weight'"):
        apply_plan_(nn.Linear(2, 2), list(plan))


def test_codebooks_of_channels_keep_the_contract(small_workload) -> None:
    """Clusters of every channel keep what a stage keeps."""
    check_stage(replace(ClusterWeights(clusters=4), granularity=PerChannel()), small_workload)


# The default cure of products that other CPUs saturate moves single weights by a step or more.
@pytest.mark.slow
@pytest.mark.parametrize(
    "last", [Quantize(portable=None), QuantizationAwareTraining(epochs=1)], ids=lambda stage: type(stage).__name__
)
def test_shared_values_reach_the_integer_file(last, trained_workload, tmp_path) -> None:
    """Merged, clustered, tuned and quantized: few integers a channel, a smaller packed file, a rebuild."""
    stages = [MergeSimilar(remove=0.2, align=1), ClusterWeights(clusters=8), FineTune(epochs=1)]
    result = Pipeline([*stages, last]).run(trained_workload, out=tmp_path / "shared", progress=False)
    file = onnx.load_from_string((tmp_path / "shared" / "model.onnx").read_bytes())
    integers = [
        array
        for tensor in file.graph.initializer
        if (array := onnx.numpy_helper.to_array(tensor)).dtype.kind in "iu" and array.ndim == 4
    ]
    assert integers
    assert all(len(np.unique(row)) <= 8 for array in integers for row in array)
    rebuilt = load_checkpoint(tmp_path / "shared", TinyResNet)
    assert all(len(torch.unique(weight)) <= 8 for weight in weights(rebuilt).values())
    free = Pipeline([stages[0], stages[2], last]).run(trained_workload, out=tmp_path / "free", progress=False)
    packed = [run.report.shipped.measurement.compressed_bytes for run in (result, free)]
    assert packed[0] < 0.9 * packed[1]


def test_layers_with_several_weights_are_told_weight_by_weight() -> None:
    """A recurrent layer has a codebook for each of its matrices, and each has its own name in the report."""
    model = nn.LSTM(8, 8, num_layers=2, batch_first=True)
    data = (torch.randn(32, 5, 8), torch.randn(32, 8))
    workload = Workload.from_datasets(LastStep(model), train=data, test=data, metric="mse", name="short")
    context = Context(progress=False)
    ClusterWeights(clusters=4).apply(LastStep(model), workload, context)
    names = [entry["layer"] for entry in context.details["shared_values"]]
    assert names == [f"lstm.weight_{side}_l{layer}" for layer in (0, 1) for side in ("ih", "hh")]


class LastStep(nn.Module):
    """What a recurrent layer gives at the last step."""

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


@dataclass(frozen=True, kw_only=True)
class MovesApart:
    """A stage that knows nothing of values that are shared."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model, workload, context):
        with torch.no_grad():
            for own in model.parameters():
                own.add_(1e-3 * torch.randn_like(own))
        return model


@pytest.mark.slow
def test_who_parts_shared_values_is_named(tiny_workload, tmp_path) -> None:
    """A stage after which equal weights differ is warned of, by the first tensor; those that keep them are not."""
    stages = [ClusterWeights(clusters=8), SparsifyWeights(sparsity=0.3), FineTune(epochs=1), MovesApart()]
    report = Pipeline(stages).run(tiny_workload, out=tmp_path, progress=False).report
    parted = [text for text in report.warnings if "made equal for good are so no more" in text]
    assert len(parted) == 1
    assert parted[0].startswith("moves_apart")
    assert "conv1.weight (8 values before, 432 now) and 12 more" in parted[0]


def test_counting_what_came_apart() -> None:
    """Two values more than before are told, one more is a zero that came; tensors that are no longer there are not."""
    before, now = nn.Linear(4, 2), nn.Linear(4, 2)
    plan = [{"kind": "clusters", "tensors": ["weight", "gone.weight"]}]
    with torch.no_grad():
        before.weight.copy_(torch.tensor([1.0, 2.0]).repeat(4).view(2, 4))
        now.weight.copy_(torch.tensor([1.0, 2.0, 0.0, 2.0]).repeat(2).view(2, 4))
    assert torn_values(before, now, plan) == {}
    with torch.no_grad():
        now.weight[0, 0] = 3.0
    assert torn_values(before, now, plan) == {"weight": (2, 4)}
    assert torn_values(before, now, []) == {}
