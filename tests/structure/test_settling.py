"""Sizes that modules keep or compute: what follows goes at every width, what has to match goes together."""

import copy
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.batches import Batches
from compressor.pruning.ranking.criteria import L1
from compressor.pruning.ranking.scope import PerLayer
from compressor.stage import Context
from compressor.stages.channel_pruning import PruneChannels
from compressor.structure.graph import trace_structure
from workbench.same_data import same_data
from workbench.widths import free, randomized_, survives_everything
from workbench.zoo.check import check_structure, reasons_of


class NonLocal(nn.Module):
    """Attention over the places of a map: three layers are seen in the width that one attribute holds."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.stem = width, nn.Conv2d(3, 6, 3, padding=1)
        self.theta, self.phi, self.g = (nn.Conv2d(6, width, 1) for _ in range(3))
        self.out, self.head = nn.Conv2d(width, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        theta, phi, g = (part(x).view(len(x), self.width, -1) for part in (self.theta, self.phi, self.g))
        y = (theta.transpose(1, 2) @ phi).softmax(-1) @ g.transpose(1, 2)
        y = y.transpose(1, 2).reshape(len(x), self.width, *x.shape[2:])
        return self.head((x + self.out(y)).mean((2, 3)))


class Selective(nn.Module):
    """A selective kernel: paths of their own halves of the input, weighed by a softmax over the paths."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.in_channels, self.num_paths = width, 2
        self.stem = nn.Conv2d(3, width, 1)
        self.paths = nn.ModuleList(nn.Conv2d(width // 2, 6, 3, padding=1) for _ in range(2))
        self.squeeze, self.select, self.head = nn.Conv2d(6, 4, 1), nn.Conv2d(4, 12, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.stem(x), self.in_channels // self.num_paths, 1)
        paths = torch.stack([path(piece) for path, piece in zip(self.paths, pieces, strict=True)], dim=1)
        weights = self.select(self.squeeze(paths.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(len(x), 2, -1, 1, 1).softmax(1)
        return self.head((paths * weights).sum(1).mean((2, 3)))


class ManySelective(nn.Module):
    """Selective kernels in a row, most of which have as many channels inside as they take: one size, two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(10, 4)
        self.units = nn.ModuleList([self.Unit(6, 10), *(self.Unit(10, 10) for _ in range(4))])

    class Unit(nn.Module):
        def __init__(self, width: int, inside: int) -> None:
            super().__init__()
            self.in_channels, self.out_channels = width, inside
            self.paths = nn.ModuleList(nn.Conv2d(width // 2, inside, 3, padding=1) for _ in range(2))
            self.out = nn.Conv2d(inside, 10, 1)

        def forward(self, x: Tensor) -> Tensor:
            pieces = torch.split(x, self.in_channels // 2, 1)
            return self.out(sum(path(piece) for path, piece in zip(self.paths, pieces, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            x = unit(x)
        return self.head(x.mean((2, 3)))


class Hidden(nn.Module):
    """Sizes where nobody looks first: a private attribute, and a list that the program adds to another."""

    def __init__(self, width: int = 7) -> None:
        super().__init__()
        self._width, self._splits = width, [width]
        self.stem, self.head = nn.Conv2d(3, width + 4, 1), nn.Linear(16 * width + 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.stem(x).split(self._splits + [4], 1)  # noqa: RUF005 - as programs write it
        return self.head(torch.cat([first.reshape(len(x), self._width * 16), second.mean((2, 3))], 1))


class MixedKernels(nn.Module):
    """Convolutions of several sizes, each over its own channels: the sizes of the pieces are a list."""

    def __init__(self, splits: Sequence[int] = (6, 5, 5)) -> None:
        super().__init__()
        self.splits = list(splits)
        self.stem, self.head = nn.Conv2d(3, sum(splits), 1), nn.Linear(sum(splits), 4)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, 2 * number + 1, padding=number, groups=width) for number, width in enumerate(splits)
        )

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.stem(x), self.splits, 1)
        mixed = [convolution(piece) for convolution, piece in zip(self.convolutions, pieces, strict=True)]
        return self.head(torch.cat(mixed, 1).mean((2, 3)))


class CrossStage(nn.Module):
    """Half of the channels passes by, the other through blocks, and both are put together; by `half` of `width`."""

    def __init__(self, width: int = 10, *, halved: str = "attribute") -> None:
        super().__init__()
        self.halved, self.expanded, self.c = halved, width, width // 2
        self.stem, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(width + width // 2, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(width // 2, width // 2, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.halved == "attribute":
            first, second = x.split(self.expanded // 2, dim=1)
        elif self.halved == "pair":
            first, second = x.split((self.c, self.c), 1)
        elif self.halved == "slices":
            half = x.shape[1] // 2
            first, second = x[:, :half], x[:, half:]
        else:
            first, second = x.chunk(2, 1)
        pieces = [first, second]
        for block in self.blocks:
            second = second + block(second)
        return self.last(torch.cat([*pieces, second], 1)).mean((2, 3))


class Alike(nn.Module):
    """Halves by an attribute, and what they become: as wide, and of other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 10
        self.last, self.block, self.stem = nn.Conv2d(10, 4, 1), nn.Conv2d(5, 5, 1), nn.Conv2d(3, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(self.stem(x), self.width // 2, 1)
        return self.last(torch.cat([second, self.block(first)], 1)).mean((2, 3))


class Between(nn.Module):
    """Sizes of what is computed on the way and of no weight: pieces that part two layers' channels, kept as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 9, 1)
        self.sizes = [8, 6]
        self.first, self.second = nn.Conv2d(8, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.cat([self.left(x), self.right(x)], 1).split(self.sizes, 1)
        return (self.first(first) + self.second(second)).mean((2, 3))


class Mistaken(nn.Module):
    """A list of sizes that one layer's channels follow, and a second layer that has as many by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [4, 2]
        self.stems = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)])
        self.after, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.cat([stem(x) for stem in self.stems], 1).split(self.sizes, 1)
        return self.last(torch.cat([self.after(first), second], 1)).mean((2, 3))


class Thirds(nn.Module):
    """A third of the channels gates nothing, the rest is read: the sizes are computed from the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.small, self.large = nn.Conv2d(3, 12, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        third = x.shape[1] // 3
        small, large = x.split([third, x.shape[1] - third], 1)
        return (self.small(small.relu()) + self.large(large)).mean((2, 3))


class TwoAttentions(nn.Module):
    """Self-attention and a second one over a memory, in one module with one number of heads."""

    def __init__(self, width: int = 12, heads: int = 4) -> None:
        super().__init__()
        self.num_heads, self.size = heads, width // heads
        self.stem, self.norm, self.head = nn.Linear(5, width), nn.LayerNorm(width), nn.Linear(width, 4)
        self.first, self.second = (
            nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)]) for _ in "ab"
        )
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in "ab")

    def attend(self, x: Tensor, number: int) -> Tensor:
        layers = (self.first, self.second)[number]
        q, k, v = (layer(x).view(len(x), -1, self.num_heads, self.size).transpose(1, 2) for layer in layers)
        y = (q @ k.transpose(2, 3) / self.size**0.5).softmax(-1) @ v
        return self.outs[number](y.transpose(1, 2).reshape(len(x), -1, self.num_heads * self.size))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        return self.head((x + self.attend(x, 0) + self.attend(x.flip(1), 1)).mean(1))


class WindowAttention(nn.Module):
    """Attention in the form of Swin: the width of a head is that of the tokens over the number of heads."""

    def __init__(self, width: int = 12, heads: int = 4, *, kept: bool = False) -> None:
        super().__init__()
        self.num_heads, self.kept, self.head_dim = heads, kept, width // heads
        self.stem, self.norm = nn.Linear(5, width), nn.LayerNorm(width)
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 4)
        self.first, self.second = nn.Linear(width, 18), nn.Linear(18, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        b, n, c = x.shape
        size = self.head_dim if self.kept else c // self.num_heads
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, size).permute(2, 0, 3, 1, 4)
        y = ((q * size**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, n, -1 if self.kept else c))
        return self.head((x + self.second(F.gelu(self.first(x)))).mean(1))


IMAGES, TOKENS = torch.randn(2, 3, 4, 4), torch.randn(2, 6, 5)
# The widths of what is free: whatever goes of it, the trial passes.
FREE = {
    "one attribute for two groups": (NonLocal, IMAGES, [6, 8]),
    "selective kernel, pieces by an attribute": (Selective, IMAGES, [4, 5, 6]),
    "selective kernels, sizes alike by chance": (ManySelective, IMAGES, [3, 5, 5, 5, 5, 10, 10, 10, 10, 10, 10]),
    "a private attribute and a list": (Hidden, IMAGES, [7]),
    "mixed kernels, pieces by a list": (MixedKernels, IMAGES, [5, 5, 6]),
    "mixed kernels, equal pieces": (lambda: MixedKernels((4, 4, 4)), IMAGES, [4]),
    "cross stage, half of an attribute": (CrossStage, IMAGES, [5]),
    "cross stage, a pair": (lambda: CrossStage(halved="pair"), IMAGES, [5]),
    "cross stage, chunks": (lambda: CrossStage(halved="chunks"), IMAGES, [5]),
    "cross stage, slices": (lambda: CrossStage(halved="slices"), IMAGES, [5]),
    "halves by an attribute, a concatenation as wide": (Alike, IMAGES, [5, 5]),
    "sizes of what is computed": (Between, IMAGES, [3, 5, 6]),
    "a list and a layer that has its size by chance": (Mistaken, IMAGES, [2, 4, 4]),
    "thirds by the shape": (Thirds, IMAGES, [4]),
    "two attentions, one number of heads": (TwoAttentions, TOKENS, [4]),
    "window attention, width of a head kept": (lambda: WindowAttention(kept=True), TOKENS, [4, 18]),
    "window attention, width of a head computed": (WindowAttention, TOKENS, [18]),
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_called_free_may_have_any_width(name: str) -> None:
    """Sizes that follow, and sizes that have to match others, are found: no removal of what is free fails."""
    build, inputs, widths = FREE[name]
    assert survives_everything(build(), inputs) == widths


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("remove", [0.2, 0.6])
def test_the_stage_narrows_what_the_trace_calls_free(name: str, remove: float) -> None:
    """The stage locks what the trace locks and nothing else, and what is left computes what it computed with zeros."""
    build, inputs, _ = FREE[name]
    model = randomized_(build()).eval()
    data = Batches((inputs, torch.zeros(2)), batch_size=2)
    workload = same_data(model, data, inputs, loss=lambda outputs, _targets: outputs.square().mean())
    context = Context(progress=False)
    stage = PruneChannels(remove=remove, align=1, criterion=L1(), scope=PerLayer())
    pruned = stage.apply(copy.deepcopy(model), workload, context).eval()
    graph = trace_structure(model, inputs)
    assert set(reasons_of(context)) == {group.name for group in graph.groups} - set(free(graph))
    assert {entry["layer"] for entry in context.details["groups"]} >= set(free(graph))
    check_structure(model, pruned, context.plan, workload)


def test_what_cannot_follow_is_locked_with_the_line() -> None:
    """Heads whose width is that of the tokens over their number stay, and the reason names the view that fails."""
    graph = trace_structure(randomized_(WindowAttention()).eval(), TOKENS)
    reasons = {group.kind: group.locked for group in graph.groups if group.name.startswith("qkv")}
    assert re.fullmatch(
        r"a size is written into the program or follows others: RuntimeError: shape .* is invalid for input of size "
        r"\d+ \(.*test_settling\.py:\d+\)",
        str(reasons["heads"]),
    )
