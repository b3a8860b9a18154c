"""Every stage of the catalogue keeps the contract on every tiny workload; stages that break it are caught."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from compressor.batches import Batches
from compressor.errors import ContractError, StageError
from compressor.pruning.choice.targets import Macs
from compressor.stage import Context, Effect, stage_name
from compressor.stages import BUILT_IN, ClusterWeights, ReestimateBatchNorm, StoreCodebooks, catalogue
from compressor.testing import check_stage

# What stages are given that need something, or would take long with what they have by themselves.
SETTINGS = {
    "prune_channels": {"remove": 0.4, "align": 4},
    "shrink_structure": {"target": Macs(0.5), "align": 8, "batches": 1, "rounds": 2},
    "set_structure": {"widths": ("layer1.0.conv1=8", "conv1=12"), "drop": ("layer2.1",)},
    "merge_similar": {"remove": 0.25, "align": 4},
    "drop_blocks": {"remove": 0.5},
    "factorize_layers": {"target": Macs(0.6), "align": 4, "batches": 1},
    "sparse_training": {"epochs": 1},
    "sparsify_weights": {"sparsity": 0.5},
    "remove_zero_channels": {"threshold": 0.2, "align": 4},
    "fine_tune": {"epochs": 1, "tail_epochs": 0},
    "distill": {"epochs": 1, "tail_epochs": 0, "views": 1},
    "reestimate_batch_norm": {"batches": 2},
    "quantization_aware_training": {"epochs": 1},
}


@pytest.mark.parametrize("kind", BUILT_IN, ids=stage_name)
def test_stage_keeps_the_contract(kind, small_workload):
    """Each built-in stage, whichever there are, passes the contract on an untrained residual CNN."""
    if kind is StoreCodebooks:
        # It stores what another stage made.
        ClusterWeights().apply(small_workload.model, small_workload, Context(progress=False))
    model = check_stage(kind(**SETTINGS.get(stage_name(kind), {})), small_workload)
    assert isinstance(model, nn.Module)


def test_the_check_leaves_the_model_in_its_modes(tiny_workload):
    """A model that is in training, but for a frozen norm, is so afterwards."""
    model = tiny_workload.model.train()
    model.bn1.eval()
    check_stage(ReestimateBatchNorm(batches=1), tiny_workload)
    assert [name for name, part in model.named_modules() if not part.training] == ["bn1"]


def test_built_in_stages_are_in_the_catalogue():
    """Recipes can name every stage that is checked here, and the settings above are of stages that there are."""
    assert set(BUILT_IN) <= set(catalogue().values())
    assert {*SETTINGS} <= {*map(stage_name, BUILT_IN)}


@dataclass(frozen=True, kw_only=True)
class ReadsTest:
    """A stage that peeks at the test data."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model, workload, context):
        next(iter(workload.test))
        return model


@dataclass(frozen=True, kw_only=True)
class NeverRefuses:
    """A stage that calls doing nothing a success."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model, workload, context):
        return model


@dataclass(frozen=True, kw_only=True)
class ChangesReference:
    """A stage that trains the user's own model."""

    effect: ClassVar[Effect] = Effect.VALUES

    def apply(self, model, workload, context):
        with torch.no_grad():
            next(workload.model.parameters()).add_(1.0)
        return model


@dataclass(frozen=True, kw_only=True)
class Random:
    """A stage that ignores the seed."""

    effect: ClassVar[Effect] = Effect.VALUES
    state: ClassVar[torch.Generator] = torch.Generator()

    def apply(self, model, workload, context):
        parameters = list(model.parameters())
        if not parameters:
            raise StageError("no parameters")
        with torch.no_grad():
            parameters[0].add_(torch.rand((), generator=self.state))
        return model


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (ReadsTest(), "read workload.test"),
        (NeverRefuses(), "nothing"),
        (ChangesReference(), "changed workload.model"),
        (Random(), "same seed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_stage_is_caught(stage, message, tiny_workload):
    """Each kind of cheating is named."""
    with pytest.raises(ContractError, match=message):
        check_stage(stage, tiny_workload)


def test_batches_replay_bit_by_bit(tiny_workload):
    """Two passes under the same torch seed give the same batches, and another seed gives others."""
    data = tiny_workload.train
    assert isinstance(data, Batches)
    passes = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        passes.append(torch.cat([inputs for inputs, _ in data]))
    assert torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[0], passes[2])
