"""MNIST as the workload of an autoencoder: images in, the same images out, judged by the mean squared error."""

import numpy as np
import torch
from torch import Tensor, nn

from compressor.workload import Workload
from workbench.data_files import data_file


def read(part: str) -> Tensor:
    """The images of `part`, "train" or "test", as (count, 1, 28, 28) in [0, 1]."""
    with np.load(data_file("mnist.npz")) as file:
        pixels = file[f"x_{part}"]
    return torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255


def reconstruction(model: nn.Module, name: str, *, images: int = 20_000) -> Workload:
    """The workload of an autoencoder on the first `images` training digits; the last 5,000 of them decide."""
    digits, test = read("train"), read("test")
    training, deciding = digits[:images], digits[-5000:]
    return Workload.from_datasets(
        model,
        train=(training, training),
        validation=(deciding, deciding),
        test=(test, test),
        metric="mse",
        batch_size=128,
        name=name,
    )
