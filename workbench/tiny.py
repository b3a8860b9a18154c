"""A tiny residual CNN and synthetic data that it can learn."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.workload import Workload
from compressor.workloads.residual import BasicBlock as Block

__all__ = ["Block", "TinyResNet", "make_workload", "synthetic_images"]


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
