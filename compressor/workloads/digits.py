"""The workload to try things on: a residual CNN that reads scikit-learn's 8x8 handwritten digits.

E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998; 1,797 images, 10 classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.stage import Context
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.passes.threads import Threads
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload
from compressor.workloads.residual import ResNet

_EPOCHS = 12


def digits(*, seed: int = 0, progress: bool = True) -> Workload:
    """The digits with a freshly trained residual CNN (under a minute on two cores); the same `seed`, the same weights.

    60 % of the images train, 20 % each validate and test. Images are (1, 8, 8), scaled to [0, 1].
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 16
    targets = torch.from_numpy(data.target).long()
    every = list(range(len(targets)))
    train_part, held_out = train_test_split(every, test_size=0.4, random_state=seed, stratify=data.target)
    validation, test = train_test_split(held_out, test_size=0.5, random_state=seed, stratify=data.target[held_out])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ResNet(blocks=[1, 4, 4], widths=[32, 64, 128], channels=1, classes=10)
    workload = Workload.from_datasets(
        model,
        train=(images[train_part], targets[train_part]),
        validation=(images[validation], targets[validation]),
        test=(images[test], targets[test]),
        augment=shift,
        batch_size=64,
        calibration_samples=256,
        name="digits",
        seed=seed,
    )
    with Threads().kept():
        # As many threads as are fastest would give other weights beside other processes than alone, and the folder of
        # a run asks for the same.
        torch.set_num_threads(1)
        train(
            model,
            workload,
            TrainingSettings(epochs=_EPOCHS, optimizer=SGD(rate=0.1)),
            context=Context(seed=seed, progress=progress),
            label="training the digits model",
        )
    model.eval()
    return workload


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image of (batch, channels, height, width) moved by up to one pixel each way, zeros moving in."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (1, 1, 1, 1))
    rows = torch.randint(0, 3, (batch, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 3, (batch, 1), generator=generator) + torch.arange(width)
    samples = torch.arange(batch)[:, None, None]
    # Indices around the channel slice put the channels last.
    moved = padded[samples, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
