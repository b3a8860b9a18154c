"""The workload to try things on: a residual CNN that reads scikit-learn's 8x8 handwritten digits.

E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998; 1,797 images, 10 classes.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.stage import Context
from compressor.tensor_files import read_tensor_file
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.passes.threads import Threads
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload
from compressor.workloads.residual import ResNet

if TYPE_CHECKING:
    from compressor.running.folds.fold import Fold

# What `make digits-weights` wrote: the tensors of `trained_digits()`, in half precision.
WEIGHTS = Path(__file__).with_name("digits.safetensors")
_EPOCHS = 12
_Part = tuple[Tensor, Tensor]


def digits(*, seed: int = 0, progress: bool = True) -> Workload:
    """The digits with a trained residual CNN. Nothing is trained for `seed` 0: its weights come with the package.

    Of every five images of a digit three train, one validates and one tests. Images are (1, 8, 8), scaled to [0, 1].
    Another `seed` parts them otherwise, and the network is trained on its own part first, as `trained_digits` does.
    """
    if seed != 0:
        return trained_digits(seed=seed, progress=progress)
    workload = _untrained(seed)
    tensors, _ = read_tensor_file(WEIGHTS, way_out="install the package again")
    workload.model.load_state_dict(tensors)
    workload.model.eval()
    return workload


def trained_digits(*, seed: int = 0, progress: bool = True) -> Workload:
    """The digits with a freshly trained residual CNN (under a minute on two cores); the same `seed`, the same weights.

    Weights and statistics are rounded to half precision at the end, in which those of seed 0 are shipped.
    """
    workload = _untrained(seed)
    _train(workload.model, workload, seed, progress=progress)
    workload.model.load_state_dict(halved(workload.model))
    workload.model.eval()
    return workload


def folded_digits(fold: "Fold") -> Workload:
    """The digits as `fold` parts them, with a residual CNN that was trained on its own part alone."""
    table = torch.from_numpy(_table()).float()
    images, targets = table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1].long()
    parts = fold.split(targets, validation=0.2)

    def workload(model: nn.Module) -> Workload:
        return _workload(model, *((images[part], targets[part]) for part in parts), seed=fold.seed)

    def train_(model: nn.Module) -> None:
        _train(model, workload(model), fold.index, progress=True)

    return workload(fold.trained(_network, train_))


def halved(model: nn.Module) -> dict[str, Tensor]:
    """What `model` holds by name, its numbers with a fraction in half precision."""
    return {
        name: tensor.half() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in model.state_dict().items()
    }


def _untrained(seed: int) -> Workload:
    table = torch.from_numpy(_table()).float()
    images, targets = table[:, :-1].reshape(-1, 1, 8, 8) / 16, table[:, -1].long()
    # How many images of the same digit come before each.
    before = (F.one_hot(targets).cumsum(0) - 1).gather(1, targets[:, None])[:, 0]
    turn = (before + seed) % 5
    train_part, validation, test = turn < 3, turn == 3, turn == 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network()
    parts = [(images[part], targets[part]) for part in (train_part, validation, test)]
    return _workload(model, *parts, seed=seed)


def _network() -> nn.Module:
    return ResNet(blocks=[2, 2, 2], widths=[64, 64, 64], channels=1, classes=10)


def _train(model: nn.Module, workload: Workload, seed: int, *, progress: bool) -> None:
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


def _workload(model: nn.Module, train: _Part, validation: _Part, test: _Part, *, seed: int) -> Workload:
    return Workload.from_datasets(
        model,
        train=train,
        validation=validation,
        test=test,
        augment=shift,
        batch_size=64,
        calibration_samples=256,
        name="digits",
        seed=seed,
    )


def _table() -> NDArray[np.float64]:
    """A row an image: its 64 pixels from 0 to 16, and its digit.

    Read from scikit-learn's file without importing scikit-learn, which takes as long as importing torch.
    """
    found = find_spec("sklearn")
    path = Path(found.origin or "").parent / "datasets" / "data" / "digits.csv.gz" if found else None
    if path is not None and path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])


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
