"""Blocks are tried at other sizes than the example's: what fits by chance stays."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.errors import StageError
from compressor.kept_state import private_copy
from compressor.pruning.choice.targets import Macs
from compressor.stage import Context
from compressor.stages.layer_dropping import DropBlocks
from compressor.stages.structure_shrinking import ShrinkStructure
from compressor.structure import other_sizes
from compressor.structure.blocks import find_blocks
from compressor.structure.other_sizes import bound_to_size
from workbench.same_data import same_data


def conv(stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(8, 8, 3, stride, 1)


class Images(nn.Module):
    """A stem, the block that is asked about, a block that keeps every shape, and a head that takes any map."""

    def __init__(self, stem: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.free, self.head = stem, block, nn.Sequential(conv(), nn.ReLU(), conv()), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.free(self.block(F.relu(self.stem(x)))))


class ToSquare(nn.Module):
    """Brings every map to 8 by 8."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.interpolate(self.one(x), size=(8, 8)))


class ValueBound(ToSquare):
    """Looks at a value, so that it has to run on numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.detach().abs().max()) >= 0 else x


def deep_stem() -> nn.Conv2d:
    return nn.Conv2d(3, 8, 3, 8, 1)


def plain_stem() -> nn.Conv2d:
    return nn.Conv2d(3, 8, 3, 1, 1)


BLOCKS = {
    "stride on one pixel": lambda: (deep_stem(), nn.Sequential(conv(2), nn.ReLU(), conv())),
    "pooling to the example's size": lambda: (
        plain_stem(),
        nn.Sequential(conv(), nn.AdaptiveAvgPool2d(8), nn.ReLU(), conv()),
    ),
    "resizing to the example's size": lambda: (plain_stem(), ToSquare()),
    "numbers are needed": lambda: (plain_stem(), ValueBound()),
    "even sizes alone": lambda: (
        plain_stem(),
        nn.Sequential(conv(2), nn.ReLU(), conv(), nn.Upsample(scale_factor=2)),
    ),
    "padding to a multiple": lambda: (plain_stem(), PadToFour()),
}


class PadToFour(nn.Module):
    """Pads maps to multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(F.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4)))))


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_that_fits_at_the_examples_size_alone_stays(kind: str) -> None:
    """At the example's size its output has its input's shape; at others it has not: it is locked, with the sizes."""
    model = Images(*BLOCKS[kind]()).eval()
    data = Batches((torch.randn(8, 3, 8, 8), torch.zeros(8)), batch_size=4)
    workload = same_data(model, data, torch.randn(2, 3, 8, 8), loss=lambda outputs, _: outputs.square().mean())
    for stage in (DropBlocks(remove=0.9, batches=1), ShrinkStructure(target=Macs(0.75), rounds=1, batches=1, align=4)):
        context = Context(progress=False, details={}, plan=[])
        small = stage.apply(private_copy(model), workload, context).eval()
        assert (
            "for inputs of shape" in {entry["layer"]: entry["reason"] for entry in context.details["locked"]}["block"]
        )
        for sizes in ((8, 8), (16, 16), (11, 9)):
            x = torch.randn(1, 3, *sizes)
            assert small(x).shape == model(x).shape
    assert isinstance(small.block, type(model.block))


def test_where_only_the_examples_sizes_come_it_may_go() -> None:
    """A workload whose sizes are fixed, all but the batch, loses what fits at the example's."""
    model = Images(*BLOCKS["resizing to the example's size"]()).eval()
    data = Batches((torch.randn(8, 3, 8, 8), torch.zeros(8)), batch_size=4)
    workload = same_data(model, data, torch.randn(2, 3, 8, 8), loss=lambda outputs, _: outputs.square().mean())
    context = Context(progress=False, details={}, plan=[])
    DropBlocks(remove=0.9, batches=1).apply(private_copy(model), replace(workload, free_sizes="batch"), context)
    assert context.details["locked"] == []
    assert set(context.details["dropped_in_order"]) == {"block", "free"}
    some = find_blocks(model, torch.randn(2, 3, 8, 8), free=(frozenset({2}),))
    assert "(2, 3, 16, 8)" in (some["block"].locked or "")


class Text(nn.Module):
    """Tokens with a mask; a block that pools the places to 6, and a transformer layer that keeps every length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.pool = nn.Sequential(nn.Conv1d(8, 8, 1), nn.AdaptiveAvgPool1d(6), nn.Conv1d(8, 8, 1))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.table(tokens) * mask.unsqueeze(-1)
        return self.head(self.layer(self.pool(x.transpose(1, 2)).transpose(1, 2)))


def test_lengths_of_inputs_that_belong_together_change_together() -> None:
    """A mask is as long as its tokens: both are tried at other lengths, and the block that pools to 6 is found."""
    inputs = {"tokens": torch.randint(0, 11, (2, 6)), "mask": torch.ones(2, 6)}
    blocks = find_blocks(Text().eval(), inputs)
    assert "maps (2, 8, 12) to (2, 8, 6)" in (blocks["pool"].locked or "")
    assert blocks["layer"].locked is None


def test_a_model_of_one_size_loses_what_it_can() -> None:
    """Where the model takes no other size, what fits there fits everywhere."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(8, 8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table

    model = nn.Sequential(plain_stem(), Positions(), ToSquare(), conv()).eval()
    assert find_blocks(model, torch.randn(2, 3, 8, 8))["2"].locked is None


def test_trying_other_sizes_leaves_the_model_alone() -> None:
    """Hooks and modes are those of copies."""
    model = Images(*BLOCKS["numbers are needed"]()).eval()
    assert set(bound_to_size(model, torch.randn(2, 3, 8, 8), ["block", "free"])) == {"block"}
    assert not any(module._forward_hooks for module in model.modules())


def test_a_stage_that_finds_only_such_blocks_says_so() -> None:
    """No advice to remove more where nothing may go."""
    model = nn.Sequential(plain_stem(), ToSquare(), conv()).eval()
    data = Batches((torch.randn(8, 3, 8, 8), torch.zeros(8)), batch_size=4)
    workload = same_data(model, data, torch.randn(2, 3, 8, 8), loss=lambda outputs, _: outputs.square().mean())
    with pytest.raises(StageError, match=r"no block of the model can be dropped; 1 is locked: .*at some sizes alone"):
        DropBlocks(remove=0.9).apply(private_copy(model), workload, Context(progress=False))


class Normed(nn.Module):
    """A block whose norm is given other channels at other heights: the map is turned before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x.transpose(1, 2)).transpose(1, 2))


def test_norms_that_are_passed_by_still_refuse_other_channels(monkeypatch) -> None:
    """Computed once, to see that the model runs on shapes alone; then passed by, and other channels are refused."""
    model, inputs = Images(conv(), Normed()).eval(), torch.randn(2, 8, 8, 8)
    computed, compute = [], torch.batch_norm
    with monkeypatch.context() as patch:
        patch.setattr(torch, "batch_norm", lambda *given: (computed.append(given[0].device.type), compute(*given))[1])
        assert bound_to_size(model, inputs, ["block", "free"]) == {}
    assert computed == ["meta"]
    passed = other_sizes._norms_passed(private_copy(model))
    assert passed.block.norm(torch.randn(2, 8, 5, 5)).shape == (2, 8, 5, 5)
    for wrong in (torch.randn(2, 9, 5, 5), torch.randn(2, 8, 5)):
        with pytest.raises(ValueError, match=r"channels|expected 4D"):
            passed.block.norm(wrong)
