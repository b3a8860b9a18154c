"""The CIFAR-10 workloads of the benchmarks: trained ResNets and the photographs, read from COMPRESSOR_DATA.

The networks were trained on every training image, so training images cannot judge what compression loses: ResNet-56
scores 98.7 % there and 90 % on new ones. Decisions read half of the test file, 500 images a class, as `validation`;
reports read the other half, as `test`. No image is in both.
"""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.workload import Workload
from compressor.workloads.residual import ResNet
from workbench.data_files import data_file

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def resnet56() -> Workload:
    """ResNet-56, 0.86 M parameters."""
    return _workload("resnet56", 9)


def resnet20() -> Workload:
    """ResNet-20, 0.27 M parameters."""
    return _workload("resnet20", 3)


WORKLOADS: dict[str, Callable[[], Workload]] = {"resnet56": resnet56, "resnet20": resnet20}


def _workload(name: str, depth: int) -> Workload:
    from safetensors.torch import load_file

    model = ResNet(blocks=[depth] * 3)
    model.load_state_dict(load_file(data_file(f"{name}.safetensors")))
    return around(model.eval(), f"cifar10-{name}")


def around(model: nn.Module, name: str, *, train_images: int | None = None) -> Workload:
    """The workload of `model`, which trains on the first `train_images` images, as many of each class (None: all)."""
    images, targets = read("test")
    judging = rank_in_class(targets) % 2 == 0
    train_x, train_y = read("train")
    if train_images is not None:
        chosen = rank_in_class(train_y) < train_images // 10
        train_x, train_y = train_x[chosen], train_y[chosen]
    return Workload.from_datasets(
        model,
        train=(train_x, train_y),
        validation=(images[judging], targets[judging]),
        test=(images[~judging], targets[~judging]),
        transform=normalise,
        augment=crop_and_flip,
        batch_size=128,
        name=name,
    )


def rank_in_class(targets: Tensor) -> Tensor:
    """The position of every sample among those of its class: even ones judge, odd ones are reported."""
    rank = torch.zeros_like(targets)
    for label in range(10):
        mask = targets == label
        rank[mask] = torch.arange(int(mask.sum()))
    return rank


@cache
def read(part: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 (count, 3, 32, 32), and labels of `part`, "train" or "test"."""
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(data_file(f"cifar10-{part}.parquet"))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in table["image"].to_pylist()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"].to_pylist())


def normalise(images: Tensor) -> Tensor:
    """uint8 pixels to the networks' input: scaled to [0, 1], then by each colour's mean and deviation."""
    mean, deviation = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(DEVIATION).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / deviation


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random 32x32 crop of every image padded by 4, mirrored half of the time (He et al. 2016, sec. 4.2)."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (4, 4, 4, 4))
    rows = torch.randint(0, 9, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 9, (batch, 1), generator=generator) + torch.arange(width)
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(batch)[:, None, None]
    cropped = padded[samples, :, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).contiguous()
