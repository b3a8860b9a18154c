"""Networks that answer at every place of an image: a small U-Net and a small anchor-free detector.

U-Net: Ronneberger et al. 2015, arXiv:1505.04597, with a stem of stride 2 whose labels are interpolated in the end. The
detector asks at every eighth pixel for a class and the distances to the four sides of its box (FCOS: Tian et al. 2019,
arXiv:1904.01355, sec. 3.1, without centerness), from maps that have seen a coarser scale (Lin et al. 2017,
arXiv:1612.03144).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normed(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """(batch, 3, height, width), sides divisible by 16 -> logits (batch, classes, height, width)."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        first, *rest = widths
        self.stem = normed(3, first, stride=2)
        self.down = nn.ModuleList(
            nn.Sequential(normed(narrow, wide, stride=2), normed(wide, wide))
            for narrow, wide in zip(widths, rest, strict=False)
        )
        self.up = nn.ModuleList(
            nn.Sequential(normed(wide + narrow, narrow), normed(narrow, narrow))
            for wide, narrow in zip(reversed(rest), reversed(widths[:-1]), strict=True)
        )
        self.classes = nn.Conv2d(first, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.stem(x)]
        for down in self.down:
            kept.append(down(kept[-1]))
        y = kept.pop()
        for up in self.up:
            y = up(torch.cat([F.interpolate(y, scale_factor=2.0), kept.pop()], dim=1))
        return F.interpolate(self.classes(y), scale_factor=2.0, mode="bilinear", align_corners=False)


class Detector(nn.Module):
    """(batch, 3, height, width), sides divisible by 16 -> {"detections": (batch, places, 4 + classes)}.

    A place is every eighth pixel of every eighth row. Its row holds the corners x1, y1, x2, y2 of its box in pixels and
    a logit for each class. `unit` pixels are one unit of the distances before their exponential.
    """

    STRIDE = 8

    def __init__(self, classes: int, *, height: int, width: int, unit: float = 16.0) -> None:
        super().__init__()
        self.early = nn.Sequential(normed(3, 16, stride=2), normed(16, 32, stride=2), normed(32, 32))
        self.fine = nn.Sequential(normed(32, 64, stride=2), normed(64, 64), normed(64, 64))
        self.coarse = nn.Sequential(normed(64, 96, stride=2), normed(96, 96), normed(96, 96))
        self.joined = nn.Sequential(normed(160, 64), normed(64, 64))
        self.scores, self.sides = nn.Conv2d(64, classes, 1), nn.Conv2d(64, 4, 1)
        # A class is rare: sigmoid(-4) is 0.02 (Lin et al. 2017, arXiv:1708.02002, sec. 4.1).
        nn.init.constant_(self.scores.bias, -4.0)
        self.unit = unit
        rows = self.STRIDE * (torch.arange(height // self.STRIDE) + 0.5)
        columns = self.STRIDE * (torch.arange(width // self.STRIDE) + 0.5)
        centres = torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], dim=-1)
        self.register_buffer("centres", centres.reshape(1, -1, 2), persistent=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.fine(self.early(x))
        maps = self.joined(torch.cat([F.interpolate(self.coarse(fine), scale_factor=2.0), fine], dim=1))
        sides = self.unit * self.sides(maps).flatten(2).transpose(1, 2).clamp(max=4).exp()
        corners = torch.cat([self.centres - sides[..., :2], self.centres + sides[..., 2:]], dim=-1)
        return {"detections": torch.cat([corners, self.scores(maps).flatten(2).transpose(1, 2)], dim=-1)}
