"""CamVid: street scenes with a class for every pixel, read from COMPRESSOR_DATA (Brostow et al. 2009)."""

import io
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.cifar import normalise
from compressor.metrics import Metric
from compressor.workload import Workload
from workbench.data_files import data_file

CLASSES, VOID = 11, 11


def street_scenes(model: nn.Module, name: str) -> Workload:
    """The workload of a model (batch, 3, 176, 240) -> (batch, 11, 176, 240), judged by mIoU without void pixels.

    The parts are the data's own: 367 images train, 101 decide, 233 are reported.
    """
    return Workload.from_datasets(
        model,
        train=read("train"),
        validation=read("val"),
        test=read("test"),
        metric=Metric.miou(axis=1, ignored=(VOID,)),
        loss=loss,
        transform=normalise,
        augment=mirrored,
        batch_size=8,
        calibration_samples=64,
        name=name,
    )


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the pixels that have a class."""
    return nn.functional.cross_entropy(outputs, targets, ignore_index=VOID)


def mirrored(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the images and their labels, left and right exchanged."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return (
        torch.where(chosen[:, None, None, None], images.flip(3), images),
        torch.where(chosen[:, None, None], targets.flip(2), targets),
    )


@cache
def read(part: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 (count, 3, 176, 240), and the classes of their pixels, (count, 176, 240)."""
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(data_file(f"camvid-{part}.parquet"))
    images, masks = (
        np.stack([np.asarray(Image.open(io.BytesIO(raw)).convert(mode)) for raw in table[name].to_pylist()])
        for name, mode in (("image", "RGB"), ("mask", "L"))
    )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(masks).long()
