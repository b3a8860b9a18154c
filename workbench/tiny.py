"""Tiny networks, and synthetic data that a residual CNN can learn."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.workload import Workload
from compressor.workloads.residual import BasicBlock as Block

__all__ = ["Attention", "Block", "TinyResNet", "make_workload", "synthetic_images"]


class TinyResNet(nn.Module):
    """A residual CNN of two stages for (batch, 3, 8, 8) images and 4 classes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(Block(width, width), Block(width, width))
        self.layer2 = nn.Sequential(
            Block(width, 2 * width, 2), Block(2 * width, 2 * width), Block(2 * width, 2 * width)
        )
        self.linear = nn.Linear(2 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.linear(x.mean(dim=(2, 3)))


class Attention(nn.Module):
    """Heads of 4 made by reshaping: losing 4 of 8 channels leaves a valid shape, and mixes up the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(y.shape[0], y.shape[1], -1, 4).transpose(1, 2)

        y = F.scaled_dot_product_attention(heads(self.query(x)), heads(self.key(x)), heads(self.value(x)))
        return self.out(y.transpose(1, 2).flatten(2)).mean(dim=1)


def synthetic_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise images of 4 classes; each class brightens its own quadrant."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 4
    images = torch.randn(count, 3, 8, 8, generator=generator)
    for index, target in enumerate(targets.tolist()):
        row, column = divmod(target, 2)
        images[index, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4] += 0.7
    return images, targets


def make_workload(model: nn.Module, *, train: int = 256, test: int = 64, batch_size: int = 32) -> Workload:
    """A classification workload on synthetic images."""
    return Workload.from_datasets(
        model,
        train=synthetic_images(train, seed=1),
        test=synthetic_images(test, seed=2),
        batch_size=batch_size,
        calibration_samples=64,
        name="tiny",
    )
