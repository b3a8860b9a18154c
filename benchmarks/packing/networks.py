"""The files that the coder is measured on: ResNet-56 in float, sparse, int8 and int4, made without any training.

The trained weights are read from COMPRESSOR_DATA. What the coder gains follows from the weights alone: images are drawn
at random, activations get their ranges on them, and how accurate the files are is of no concern here.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from compressor.files.export import export_onnx
from compressor.stage import Context
from compressor.stages import PerLayer, Quantize, SparsifyWeights, Symmetric
from compressor.storage import write_atomic
from compressor.workload import Workload
from compressor.workloads.residual import ResNet
from workbench.data_files import data_file

SPARSITY = 0.8


def resnet56() -> Workload:
    """The network on 64 random images, which calibrate."""
    model = ResNet(blocks=[9] * 3)
    model.load_state_dict(load_file(data_file("resnet56.safetensors")))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator)
    labels = torch.arange(64) % 10
    return Workload.from_datasets(
        model.eval(),
        train=(images, labels),
        validation=(images, labels),
        test=(images, labels),
        batch_size=32,
        name="resnet56-random-images",
    )


def _sparse(workload: Workload) -> nn.Module:
    stage = SparsifyWeights(sparsity=SPARSITY, scope=PerLayer())
    return stage.apply(workload.model, workload, Context(seed=0))


def _float(model: nn.Module, workload: Workload) -> bytes:
    return export_onnx(model, workload).onnx_bytes


def _integers(model: nn.Module, workload: Workload, bits: int) -> bytes:
    stage = Quantize(weights=Symmetric(bits=bits))
    file: bytes = stage.apply(model, workload, Context(seed=0)).onnx_bytes
    return file


FILES: dict[str, Callable[[], bytes]] = {
    "float": lambda: _float((found := resnet56()).model, found),
    "int8": lambda: _integers((found := resnet56()).model, found, 8),
    "int4": lambda: _integers((found := resnet56()).model, found, 4),
    "sparse": lambda: _float(_sparse(found := resnet56()), found),
    "sparse int8": lambda: _integers(_sparse(found := resnet56()), found, 8),
}


def file_of(name: str, folder: Path) -> bytes:
    """The file `name` of FILES, made once and kept in `folder`."""
    path = folder / f"{name.replace(' ', '-')}.onnx"
    if not path.exists():
        write_atomic(path, FILES[name]())
    return path.read_bytes()
