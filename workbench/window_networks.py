"""Networks that cut maps into windows and patches: what Swin, MaxVit and MobileViT do, at the size of a test.

Liu et al. 2021, arXiv:2103.14030 (windows, shifted); Tu et al. 2022, arXiv:2204.01697 (grids); Mehta and Rastegari
2021, arXiv:2110.02178 (patches, with interpolation to a multiple).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Attention with one head over (batch, tokens, width), with a mask that is added where there is one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        scores = query @ key.transpose(1, 2) * x.shape[-1] ** -0.5
        if mask is not None:
            windows, tokens = mask.shape[:2]
            scores = (scores.view(-1, windows, tokens, tokens) + mask).view(-1, tokens, tokens)
        return self.out(scores.softmax(dim=-1) @ value)


def windows_of(x: Tensor, size: int) -> Tensor:
    """(batch, height, width, channels) as (windows, size * size, channels)."""
    b, h, w, c = x.shape
    return x.view(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def map_of(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    """The map that `windows_of` was given."""
    b = windows.shape[0] // (h * w // size // size)
    x = windows.view(b, h // size, w // size, size, size, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)


class WindowBlock(nn.Module):
    """Attention in windows of a map that is padded to a multiple, shifted by `shift` under a mask made by size."""

    def __init__(self, width: int, size: int, shift: int) -> None:
        super().__init__()
        self.size, self.shift = size, shift
        self.norm, self.attention, self.linear = nn.LayerNorm(width), Attention(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        size, shift = self.size, self.shift
        _, h, w, _ = x.shape
        y = F.pad(self.norm(x), (0, 0, 0, (size - w % size) % size, 0, (size - h % size) % size))
        height, width = y.shape[1:3]
        mask = None
        if shift:
            y = torch.roll(y, (-shift, -shift), (1, 2))
            mask = self.mask(height, width)
        y = map_of(self.attention(windows_of(y, size), mask), size, height, width)
        if shift:
            y = torch.roll(y, (shift, shift), (1, 2))
        x = x + y[:, :h, :w]
        return x + self.linear(x)

    def mask(self, h: int, w: int) -> Tensor:
        """What windows that the shift put together from distant parts must not see."""
        regions, number = torch.zeros(1, h, w, 1), 0
        parts = (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None))
        for rows in parts:
            for columns in parts:
                regions[:, rows, columns] = number
                number += 1
        flat = windows_of(regions, self.size).squeeze(-1)
        return (flat[:, None] != flat[:, :, None]).float() * -100


class WindowNetwork(nn.Module):
    """Swin in small: (batch, 3, height, width) to (batch, 4), `blocks` window blocks, every second one shifted."""

    def __init__(self, blocks: int = 2, width: int = 6, size: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, 2)
        self.blocks = nn.Sequential(*(WindowBlock(width, size, number % 2 * (size // 2)) for number in range(blocks)))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


class GridNetwork(nn.Module):
    """MaxVit's grid attention in small: tokens that lie a fixed number of cells apart attend to each other."""

    def __init__(self, width: int = 6, cells: int = 2) -> None:
        super().__init__()
        self.cells = cells
        self.stem, self.attention, self.head = nn.Conv2d(3, width, 2, 2), Attention(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        n = self.cells
        grid = x.reshape(b, n, h // n, n, w // n, c).permute(0, 2, 4, 1, 3, 5).reshape(-1, n * n, c)
        y = self.attention(grid).view(b, h // n, w // n, n, n, c).permute(0, 3, 1, 4, 2, 5).reshape(b, h, w, c)
        return self.head((x + y).mean((1, 2)))


class PatchNetwork(nn.Module):
    """MobileViT in small: the map is resized to a multiple of the patch, unfolded, attended over, and folded back."""

    def __init__(self, width: int = 6, patch: int = 2) -> None:
        super().__init__()
        self.patch = patch
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.attention, self.head = Attention(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        p = self.patch
        height, width = -(-h // p) * p, -(-w // p) * p
        resized = (height, width) != (h, w)
        y = F.interpolate(x, (height, width), mode="bilinear", align_corners=False) if resized else x
        rows, columns = height // p, width // p
        y = y.reshape(b * c * rows, p, columns, p).transpose(1, 2).reshape(b, c, rows * columns, p * p)
        y = self.attention(y.transpose(1, 3).reshape(b * p * p, rows * columns, c))
        y = y.view(b, p * p, rows * columns, c).transpose(1, 3).reshape(b * c * rows, columns, p, p)
        y = y.transpose(1, 2).reshape(b, c, height, width)
        if resized:
            y = F.interpolate(y, (h, w), mode="bilinear", align_corners=False)
        return self.head((x + y).mean((2, 3)))
