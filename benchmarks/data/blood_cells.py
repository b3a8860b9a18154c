"""BCCD: blood cells under the microscope with their boxes, read from COMPRESSOR_DATA.

https://github.com/Shenggan/BCCD_Dataset: white cells, red cells and platelets.
"""

import io
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.data.cifar import normalise
from compressor.workload import Workload
from workbench.data_files import data_file

CLASSES, HEIGHT, WIDTH = 3, 240, 320
# Focal loss: Lin et al. 2017, arXiv:1708.02002, eq. 5, with the values of sec. 5.1.
ALPHA, GAMMA = 0.25, 2.0
# A place belongs to a box where it lies within this part of the sides around the box's centre.
CORE = 0.4


def blood_cells(model: nn.Module, name: str) -> Workload:
    """The workload of a detector of 3 classes in (batch, 3, 240, 320), judged by mean average precision at 0.5.

    The parts are the data's own: 205 images train, 87 decide, 72 are reported.
    """
    return Workload.from_datasets(
        model,
        train=read("train"),
        validation=read("val"),
        test=read("test"),
        metric="map50",
        judge="detections",
        loss=loss,
        transform=normalise,
        augment=mirrored,
        batch_size=8,
        calibration_samples=64,
        name=name,
    )


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of the classes and 1 - GIoU of the boxes (Rezatofighi et al. 2019, arXiv:1902.09630), by boxes found.

    outputs: (batch, places, 4 + classes); targets: (batch, boxes, 5), class -1 for padding.
    """
    corners, logits = outputs[..., :4], outputs[..., 4:]
    with torch.no_grad():
        wanted, boxes, held = assigned(_places(outputs), targets)
    count = held.sum().clamp(min=1)
    chance = torch.where(wanted > 0, logits, -logits).sigmoid()
    weight = torch.where(wanted > 0, ALPHA, 1 - ALPHA) * (1 - chance).pow(GAMMA)
    classes = F.binary_cross_entropy_with_logits(logits, wanted, weight.detach(), reduction="sum")
    return (classes + 2 * (1 - overlap(corners[held], boxes[held])).sum()) / count


def taught(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """What a teacher's raw answers add: its chances for every class, and its boxes where it sees something.

    Squared distances of chances summed over places, and 1 - GIoU weighted by the teacher's best chance, both for each
    box that the teacher believes in.
    """
    del targets
    chances = teacher[..., 4:].sigmoid()
    sure = chances.amax(dim=-1)
    believed = sure.sum().clamp(min=1)
    classes = (student[..., 4:].sigmoid() - chances).square().sum()
    boxes = (sure * (1 - overlap(student[..., :4], teacher[..., :4]))).sum()
    return (5 * classes + boxes) / believed


def assigned(places: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every place the classes it should name (batch, places, classes), its box, and whether it has one.

    A place in the cores of several boxes belongs to the smallest (FCOS, sec. 3.1). places: (places, 2), in pixels.
    """
    kinds, boxes = targets[..., 0], targets[..., 1:].float()
    middle, sides = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    away = (places[None, :, None] - middle[:, None]).abs()
    # A core is never narrower than the way from place to place, so that no cell is overlooked.
    inside = (away <= (CORE * sides / 2).clamp(min=4.0)[:, None]).all(dim=-1) & (kinds >= 0)[:, None]
    size = torch.where(inside, sides.prod(dim=-1)[:, None], torch.inf)
    least, owner = size.min(dim=-1)
    held = least < torch.inf
    chosen = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    named = F.one_hot(kinds.clamp(min=0).long().gather(1, owner), CLASSES).float()
    return named * held[..., None], chosen, held


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Generalized intersection over union of boxes (..., 4), in (-1, 1]."""
    low, high = torch.maximum(first, second), torch.minimum(first, second)
    shared = (high[..., 2:] - low[..., :2]).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1) for boxes in (first, second)]
    joined = areas[0] + areas[1] - shared
    around = (low[..., 2:] - high[..., :2]).clamp(min=1e-6).prod(dim=-1)
    return shared / joined.clamp(min=1e-6) - (around - joined) / around


def mirrored(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the images upside down, half left and right exchanged, with their boxes."""
    for axis, (low, high), side in ((3, (1, 3), WIDTH), (2, (2, 4), HEIGHT)):
        chosen = torch.rand(len(images), generator=generator) < 0.5
        turned = targets.clone()
        turned[..., low], turned[..., high] = side - targets[..., high], side - targets[..., low]
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        targets = torch.where(chosen[:, None, None], turned, targets)
    return images, targets


def _places(outputs: Tensor) -> Tensor:
    """The middles of every eighth pixel, in the order of the outputs."""
    rows, columns = (8 * (torch.arange(side // 8, device=outputs.device) + 0.5) for side in (HEIGHT, WIDTH))
    return torch.stack([columns.repeat(len(rows)), rows.repeat_interleave(len(columns))], dim=-1)


@cache
def read(part: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 (count, 3, 240, 320), and their boxes (count, most boxes, 5): class, x1, y1, x2, y2."""
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(data_file(f"bccd-{part}.parquet"))
    images = np.stack([np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in table["image"].to_pylist()])
    boxes, labels = table["boxes"].to_pylist(), table["labels"].to_pylist()
    targets = torch.full((len(images), max(map(len, labels)), 5), -1.0)
    for row, (corners, kinds) in enumerate(zip(boxes, labels, strict=True)):
        if kinds:
            targets[row, : len(kinds)] = torch.tensor([[kind, *box] for kind, box in zip(kinds, corners, strict=True)])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), targets
