"""Losses of parts that are taken away for a moment: by hand, and that the model is whole again."""

import copy

import pytest
import torch
from torch import nn

from compressor.pruning.choice.costs import block_key
from compressor.pruning.choice.loss_probe import batch_statistics, loss_of, masked
from compressor.pruning.choice.losses import StructureLosses
from compressor.pruning.narrowing import gone_channels
from compressor.structure.blocks import find_blocks
from compressor.structure.graph import trace_structure
from compressor.workload import Workload, first_batches
from workbench.tiny import TinyResNet


def linear_losses(weights: list[float], align: int = 1) -> StructureLosses:
    """Ones through as many hidden units as there are weights, summed up; the loss is how far the sum falls."""
    width = len(weights)
    model = nn.Sequential(nn.Linear(1, width, bias=False), nn.Linear(width, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(weights)[:, None])
        model[1].weight.fill_(1.0)
    inputs = torch.ones(2, 1)
    groups = [group for group in trace_structure(model, inputs).groups if not group.makes_output]
    return StructureLosses(
        model,
        groups,
        {},
        scores={"0": torch.tensor(weights)},
        align={"0": align},
        data=[(inputs, torch.full((2, 1), float(sum(weights))))],
        loss=lambda outputs, targets: (targets - outputs).mean(),
    )


def test_masked_units_add_nothing_and_come_back() -> None:
    """Without its units 1 and 2 the sum of 1 + 2 + 4 is 4, and afterwards it is 7 again."""
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
        model[1].weight.fill_(1.0)
    groups = trace_structure(model, torch.ones(2, 1)).groups
    gone = gone_channels(groups, {"0": torch.tensor([1.0, 2.0, 4.0])}, {"0": 1})
    with masked(model, gone):
        assert model(torch.ones(1, 1)).item() == 4.0
    assert model(torch.ones(1, 1)).item() == 7.0


def test_the_loss_of_each_width_by_hand() -> None:
    """Weights 1, 2, 3 and 4: the loss at widths 4, 3, 2 and 1 is 0, 1, 3 and 6, plus a tenth of the mean for all."""
    losses = linear_losses([1.0, 2.0, 3.0, 4.0])
    assert losses.of({"0": 2}) == 3.0
    (item,) = losses.items({"0": 4})
    extra = 0.1 * (0 + 1 + 3 + 6) / 4
    assert [choice.changes["0"] for choice in item.parts[0]] == [4, 3, 2, 1]
    wanted = [0.0, 1.0 + extra / 4, 3.0 + extra / 2, 6.0 + extra * 3 / 4]
    assert [choice.loss for choice in item.parts[0]] == pytest.approx(wanted)
    (again,) = losses.items({"0": 2})
    # Around the width 2 the same choices lose 3 less; what is less than nothing lost counts as nothing.
    assert again.parts[0][0].loss == pytest.approx(-3.0)
    assert again.parts[0][3].loss > again.parts[0][2].loss


def test_unmeasured_widths_follow_the_importance_between() -> None:
    """Of 16 equal units, five widths are measured, and all sixteen losses lie on one line."""
    losses = linear_losses([1.0] * 16)
    (item,) = losses.items({"0": 16})
    found = torch.tensor([choice.loss for choice in item.parts[0]])
    assert len(losses._known) <= 7
    torch.testing.assert_close(found, torch.linspace(0, float(found[-1]), 16))


def test_a_block_and_the_groups_inside_are_one_item(trained_workload: Workload) -> None:
    """A block's losses with and without it are the measured ones; its inner convolution is decided with it."""
    model, example = trained_workload.model, trained_workload.example_inputs
    graph, blocks = trace_structure(model, example), find_blocks(model, example)
    groups = [group for group in graph.groups if not group.makes_output]
    data = first_batches(trained_workload.calibration, 2)
    before = copy.deepcopy(model.state_dict())
    losses = StructureLosses(
        model,
        groups,
        blocks,
        scores={group.name: torch.arange(group.width).double() for group in groups},
        align={group.name: 16 for group in groups},
        data=data,
        loss=trained_workload.loss,
    )
    items = losses.items(losses.whole)
    inside = {next(iter(item.kept.changes)): item for item in items if item.kept is not None}
    assert set(inside) == {block_key(name) for name in blocks}
    assert {next(iter(choice.changes)) for choice in inside[block_key("layer2.1")].parts[0]} == {"layer2.1.conv1"}
    with batch_statistics(model):
        whole = loss_of(model, data, trained_workload.loss)
    assert losses.of(losses.whole) == pytest.approx(whole)
    without = losses.whole | {block_key("layer2.1"): 0}
    assert losses.of(without) == losses.of(without | {"layer2.1.conv1": 16})
    assert losses.standing(without) == tuple(group for group in groups if group.name != "layer2.1.conv1")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(model, TinyResNet)
