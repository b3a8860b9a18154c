"""MobileNetV2 for CIFAR-10, trained from random weights by the package's own fine-tuning stage.

    python -m benchmarks.data.mobilenet [--epochs 7] [--out DIR]

The depthwise network of the quantization benchmark. Training takes half an hour on one core, is kept in DIR and goes
on where it was killed. The epoch that stands is the best on the validation images; the test images are not read.
"""

import argparse
from pathlib import Path

from benchmarks.data import cifar, networks
from benchmarks.data.references import REFERENCES
from compressor.stage import Context
from compressor.stages import FineTune
from compressor.training.optimizers.choices import SGD
from compressor.workload import Workload


def mobilenetv2(folder: Path = REFERENCES, *, epochs: int = 7) -> Workload:
    """The workload of the trained network; `folder` keeps it, so that a second call reads it."""
    workload = cifar.around(networks.seeded(lambda: networks.MobileNetV2(early=True)), "cifar10-mobilenetv2")
    stage = FineTune(epochs=epochs, optimizer=SGD(rate=0.1), tail_epochs=1)
    stage.apply(workload.model, workload, Context(seed=0, folder=folder / workload.name))
    workload.model.eval()
    return workload


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=REFERENCES)
    arguments = parser.parse_args()
    workload = mobilenetv2(arguments.out, epochs=arguments.epochs)
    from compressor.training.precision import Form
    from compressor.training.validation import validation_score

    score = validation_score(workload.model, workload, Form.of(workload.model))
    print(f"{workload.name}: validation accuracy {score:.4f}, kept in {arguments.out / workload.name}")


if __name__ == "__main__":
    main()
