"""Splits, shuffles and rearrangements: their pieces stay in step at every width, not only at half."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.graph import trace_structure
from workbench.widths import free, randomized_, survives_everything


class Shuffled(nn.Module):
    """A stage in the form of ShuffleNetV2: halve, work on one half, concatenate, shuffle, `blocks` times."""

    def __init__(self, half: int, blocks: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, half, 1), nn.Conv2d(3, half, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(half, half, 1), nn.Conv2d(half, half, 3, 1, 1, groups=half), nn.Conv2d(half, half, 1)
            )
            for _ in range(blocks)
        )
        self.out = nn.Linear(2 * half, 2)

    @staticmethod
    def shuffled(*halves: Tensor) -> Tensor:
        x = torch.cat(halves, dim=1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffled(self.left(x), self.right(x))
        for branch in self.branches:
            first, second = x.chunk(2, dim=1)
            x = self.shuffled(first, branch(second))
        return self.out(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(("half", "blocks", "width"), [(58, 3, 6), (29, 1, 14), (26, 2, 6), (16, 3, 2)])
def test_halves_of_odd_halves_lose_as_many_channels(half: int, blocks: int, width: int) -> None:
    """58 of 29 x 2 x 2 channels are 14 whole fours and half of one, which stays: each half loses as many of the rest.

    However often shuffled halves are halved again, what one half loses costs the other as much.
    """
    graph = trace_structure(Shuffled(half, blocks).eval(), torch.randn(2, 3, 4, 4))
    assert free(graph)["left"].width == width
    for gone in ({free(graph)["left"]: [0]}, {free(graph)["left"]: list(range(width - 1))}):
        assert graph.fault_without(gone) is None


def test_what_splits_into_single_channels_is_locked_and_listed() -> None:
    """8 channels halved and shuffled three times fall into 2 x 2 x 2: nothing may go, and the layers are named."""
    graph = trace_structure(randomized_(Shuffled(4, 3)).eval(), torch.randn(2, 3, 4, 4))
    reasons = {group.name: (group.width, group.locked) for group in graph.groups if group.locked is not None}
    assert reasons["left"] == (4, "splits and views leave no part of it that could go alone")
    assert set(free(graph)) == {"branches.0.0", "branches.1.0", "branches.2.0"}


class Rearranging(nn.Module):
    """A convolution of `width` channels, what `rearrange` makes of them, and a layer that reads `read` channels."""

    def __init__(self, width: int, read: int, rearrange) -> None:
        super().__init__()
        self.first, self.rearrange, self.last = nn.Conv2d(3, width, 1), rearrange, nn.Conv2d(read, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rearrange(self.first(x))).mean(dim=(2, 3))


def three_groups(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 3, c // 3, h, w).transpose(1, 2).reshape(b, c, h, w)


def five_groups(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 5, c // 5, h, w).transpose(1, 2).reshape(b, c, h, w)


def blocks_of_depth(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // 4, 2 * h, 2 * w)


def three_added(x: Tensor) -> Tensor:
    first, second, third = three_groups(x).chunk(3, dim=1)
    return first + second.sigmoid() * third


def halves_of_a_concatenation(x: Tensor) -> Tensor:
    first, second = torch.cat([x[:, :5], x[:, 5:].relu()], dim=1).chunk(2, dim=1)
    return first * second


REARRANGING = {
    "GLU of an odd width": (14, 7, lambda x: F.glu(x, dim=1), 7),
    "channel shuffle in 3 groups": (21, 21, three_groups, 7),
    "channel shuffle in more groups than channels of each": (15, 15, five_groups, 3),
    "3 pieces of a shuffle in 3 groups": (63, 21, three_added, 7),
    "pixel shuffle": (20, 5, lambda x: F.pixel_shuffle(x, 2), 5),
    "depth to space": (20, 5, blocks_of_depth, 5),
    "maxout": (15, 5, lambda x: x.unflatten(1, (-1, 3)).amax(2), 5),
    "halves of a shuffle of 3 groups of odd width": (42, 21, lambda x: three_groups(x).chunk(2, dim=1)[1], 7),
}


@pytest.mark.parametrize("name", REARRANGING)
def test_what_is_rearranged_may_have_any_width(name: str) -> None:
    """Every removal of what is called free passes, at odd widths too."""
    width, read, rearrange, left = REARRANGING[name]
    assert survives_everything(Rearranging(width, read, rearrange), torch.randn(2, 3, 4, 4)) == [left]


def test_halves_that_part_a_concatenation_lose_as_many_channels() -> None:
    """5 + 9 channels in halves of 7, the number 5 written in the program: 2 of the 9 go, with 2 of the last 7."""
    widths = survives_everything(Rearranging(14, 7, halves_of_a_concatenation), torch.randn(2, 3, 4, 4))
    assert widths == [2]


class Scales(nn.Module):
    """A block in the form of Res2Net: each of four pieces takes what the piece before it became."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4 * width, 1), nn.Conv2d(4 * width, 4, 1)
        self.scales = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(self.first(x).chunk(4, dim=1))
        for number, scale in enumerate(self.scales):
            pieces[number] = scale(pieces[number] + (pieces[number - 1] if number else 0))
        return self.last(torch.cat(pieces, dim=1)).mean(dim=(2, 3))


def test_scales_of_odd_widths_stay_in_step() -> None:
    """Four pieces of 5 channels lose the same ones, added or not; what the last becomes is free."""
    assert survives_everything(Scales(5), torch.randn(2, 3, 4, 4)) == [5, 5]
