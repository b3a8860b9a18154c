"""Pruning to half does every architecture of the zoo right, or refuses it for a reason that is known to be true."""

import copy
import re

import pytest
import torch
from torch import nn

from compressor.stage import Context
from workbench.zoo import ARCHITECTURES
from workbench.zoo.architecture import Architecture, floats
from workbench.zoo.check import HALF, check, check_structure, randomized_, workload_of, zeroed_

# What has to be among the architectures, by what its name contains.
WANTED = (
    "HF ResNet", "HF RegNet", "HF ConvNeXt", "HF MobileNetV1", "HF MobileNetV2", "HF EfficientNet", "HF MobileViT",
    "HF LeViT", "HF PoolFormer", "HF Swin", "HF SwinV2", "HF ViT", "HF DeiT", "HF BEiT", "HF DINOv2", "HF SegFormer",
    "HF BERT", "HF DistilBERT", "HF RoBERTa", "HF ALBERT", "HF ELECTRA", "HF MobileBERT", "HF SqueezeBERT", "HF GPT-2",
    "HF Wav2Vec2", "HF AST", "HF Whisper encoder", "VGG", "DenseNet", "Inception", "ShuffleNetV2", "U-Net", "SE-ResNet",
    "Autoencoder, convolutional", "LSTM classifier", "GRU classifier", "LSTM tagger", "GRU tagger",
)  # fmt: skip


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_half_is_right_or_refused(architecture: Architecture) -> None:
    """The pruned network equals the masked original, trains, exports, and lost what it should; or a true refusal."""
    pytest.importorskip("transformers", reason="the zoo builds networks of transformers: pip install .[dev]")
    outcome = check(architecture)
    assert outcome.outcome != "failed", outcome.reason


def test_the_zoo_is_complete() -> None:
    """Every wanted architecture is there once, and at most one in twenty is known to be refused."""
    names = [architecture.name for architecture in ARCHITECTURES]
    assert len(set(names)) == len(names)
    assert set(WANTED) <= set(names)
    assert sum(architecture.refuses is not None for architecture in ARCHITECTURES) <= len(names) / 20


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


MLP = Architecture(name="small", build=perceptron, sample=floats(4))


def test_zeros_stand_where_the_plan_removes() -> None:
    """Of 4 units, the first entry keeps 0, 2 and 3 and the second the last two of these: 2 and 3 of the original."""
    model = nn.Linear(1, 4)
    nn.init.ones_(model.weight)
    plan = [{"kind": "slice", "tensors": {"weight": {"0": kept}}} for kept in ([0, 2, 3], [1, 2])]
    assert zeroed_(model, plan).weight.flatten().tolist() == [0, 0, 1, 1]


def test_a_right_plan_passes() -> None:
    """The stage's own work on a perceptron is pruned: 40 + 54 + 14 parameters become 20 + 15 + 8."""
    outcome = check(MLP, export=False)
    assert (outcome.outcome, outcome.parameters_before, outcome.parameters_after) == ("pruned", 108, 43)
    assert outcome.parameter_fraction_removed == pytest.approx(1 - 43 / 108)
    assert outcome.locked == {"4": "it makes the model's output"}


def other_columns(model, workload, context):
    """Removes half of the units, and the columns of the other half from the layer that reads them."""
    pruned = HALF.apply(model, workload, context)
    kept = context.plan[0]["tensors"]["2.weight"]["1"]
    wrong = [index for index in range(8) if index not in kept]
    context.plan[0]["tensors"]["2.weight"]["1"] = wrong
    with torch.no_grad():
        rows = context.plan[1]["tensors"]["2.weight"]["0"]
        pruned[2].weight.copy_(workload.model[2].weight[rows][:, wrong])
    return pruned


def another_bias(model, workload, context):
    """Changes a weight that the plan says nothing of."""
    pruned = HALF.apply(model, workload, context)
    with torch.no_grad():
        pruned[4].bias += 0.1
    return pruned


def frozen(model, workload, context):
    """Leaves a layer without gradients."""
    pruned = HALF.apply(model, workload, context)
    pruned[0].weight.requires_grad_(requires_grad=False)
    return pruned


def nothing(model, workload, context):
    """Hands the model back as it is."""
    return model


@pytest.mark.parametrize(
    ("prune", "message"),
    [
        (other_columns, "differs from the masked original"),
        (another_bias, "the plan alone gives other outputs"),
        (frozen, "other parameters have gradients"),
        (nothing, "the comparison shows nothing"),
    ],
)
def test_wrong_work_is_found_out(prune, message: str) -> None:
    """Whatever a pruner may break is named by the check."""
    outcome = check(MLP, prune=prune, export=False)
    assert outcome.outcome == "failed"
    assert message in outcome.reason


def test_unknown_refusals_and_timid_pruning_fail() -> None:
    """A refusal is right for the known reason alone, and removing less than a network allows is none."""
    single = Architecture(name="single", build=lambda: nn.Linear(4, 2), sample=floats(4))
    assert check(single, export=False).outcome == "failed"
    known = Architecture(**{**vars(single), "refuses": "it makes the model's output"})
    assert check(known, export=False).outcome == "refused"
    timid = check(Architecture(**{**vars(MLP), "removes": 0.9}), export=False)
    assert re.search("60.2% of the parameters went, not even 90%", timid.reason)


def test_ties_are_compared() -> None:
    """A network whose tied layer was untied is wrong, though it computes the same."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.same = nn.Linear(4, 8), nn.Linear(8, 4), nn.Linear(4, 8)
            self.same.weight = self.up.weight

        def forward(self, x):
            return self.down(torch.relu(self.up(x)) + torch.relu(self.same(x)))

    def untied(model, workload, context):
        pruned = HALF.apply(model, workload, context)
        pruned.same.weight = nn.Parameter(pruned.up.weight.detach().clone())
        return pruned

    tied = Architecture(name="tied", build=Tied, sample=floats(4), removes=0.4)
    assert check(tied, export=False).outcome == "pruned"
    assert "no longer tied" in check(tied, prune=untied, export=False).reason


def test_the_check_leaves_the_original_alone() -> None:
    """Masking happens on copies."""
    torch.manual_seed(0)
    model = randomized_(perceptron()).eval()
    workload, context = workload_of(MLP, model), Context(progress=False)
    before = copy.deepcopy(model.state_dict())
    pruned = HALF.apply(copy.deepcopy(model), workload, context).eval()
    check_structure(model, pruned, context.plan, workload)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
