"""The classic pruning example: MNIST, and the two small networks that it is shown on.

The images are read from COMPRESSOR_DATA: the first 55,000 training digits train, the other 5,000 decide, and those of
the test set are reported.
"""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.data.digit_images import read
from compressor.workload import Workload
from workbench.data_files import data_file

TRAINING = 55_000
BATCH = 128


def convolutional() -> nn.Sequential:
    """Conv32-Pool-Conv64-Pool-Dense10: (batch, 1, 28, 28) -> (batch, 10), 34,826 parameters."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 32, 3),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense=nn.Linear(1600, 10),
        )
    )


def dense() -> nn.Sequential:
    """Dense64-Dense10: (batch, 1, 28, 28) -> (batch, 10), 50,890 parameters."""
    return nn.Sequential(
        OrderedDict(flatten=nn.Flatten(), dense1=nn.Linear(784, 64), relu=nn.ReLU(), dense2=nn.Linear(64, 10))
    )


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"convolutional": convolutional, "dense": dense}


def workload(network: str, seed: int, *, training: int = TRAINING) -> Workload:
    """The digits with an untrained network whose weights follow from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[network]()
    images, digits = read("train"), _digits("train")
    return Workload.from_datasets(
        model,
        train=(images[:training], digits[:training]),
        validation=(images[TRAINING:], digits[TRAINING:]),
        test=(read("test"), _digits("test")),
        batch_size=BATCH,
        name=f"mnist-{network}",
        seed=seed,
    )


def _digits(part: str) -> Tensor:
    with np.load(data_file("mnist.npz")) as file:
        return torch.from_numpy(file[f"y_{part}"]).long()
