"""Images a second of the training loop against a plain float32 loop, on ResNet-20 with batches of 128.

Both train the same network on the same random 32x32 images with the same optimiser. Rounds alternate (plain, ours,
plain, ours, ...), so that what else runs on the machine hits both; the ratio is taken round by round.
"""

import argparse
import statistics
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stored import RESULTS
from compressor.batches import Batches
from compressor.machine import environment
from compressor.metrics import Metric
from compressor.stage import Context
from compressor.storage import write_json
from compressor.target import Target
from compressor.training.agreement import choose
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.precision import AutoPrecision
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload
from compressor.workloads.residual import ResNet

BATCH = 128
RESULT = RESULTS / "training-throughput.json"


def resnet20() -> nn.Module:
    """ResNet-20 for 32x32 images and 10 classes."""
    return ResNet(blocks=[3, 3, 3])


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Normal noise in the shape of CIFAR-10."""
    return torch.randn(count, 3, 32, 32), torch.randint(10, (count,))


def make_workload(batches: int) -> Workload:
    """Random images in memory; two for validation, so that an epoch's time is its training."""
    torch.manual_seed(0)
    few = Batches(random_images(2))
    return Workload(
        name="throughput",
        model=resnet20(),
        example_inputs=torch.zeros(2, 3, 32, 32),
        train=Batches(random_images(batches * BATCH), batch_size=BATCH, shuffle=True),
        calibration=few,
        validation=few,
        test=few,
        loss=F.cross_entropy,
        metric=Metric.accuracy(),
    )


def plain_rate(workload: Workload) -> float:
    """Images a second of the loop as the tutorials write it: float32, NCHW."""
    torch.manual_seed(0)
    model = resnet20().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    started, images = perf_counter(), 0
    for inputs, targets in workload.train:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        images += len(targets)
    return images / (perf_counter() - started)


def our_rate(workload: Workload) -> float:
    """Images a second of `compressor.training.loop.train`, everything but its start included."""
    torch.manual_seed(0)
    (log,) = train(
        resnet20(), workload, TrainingSettings(epochs=1, optimizer=SGD(rate=0.1)), context=Context(progress=False)
    )
    return len(workload.train) * BATCH / log.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, default=24, help="batches a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    warm, workload = make_workload(3), make_workload(options.batches)
    plain_rate(warm)
    our_rate(warm)
    rounds = []
    for number in range(options.rounds):
        plain, ours = plain_rate(workload), our_rate(workload)
        rounds.append({"plain": plain, "ours": ours, "ratio": ours / plain})
        print(f"round {number}: plain {plain:7.0f}  ours {ours:7.0f} images/s  ratio {ours / plain:.2f}", flush=True)
    summary = {
        key: {
            "median": statistics.median(entry[key] for entry in rounds),
            "low": min(entry[key] for entry in rounds),
            "high": max(entry[key] for entry in rounds),
        }
        for key in ("plain", "ours", "ratio")
    }
    form = choose(workload.model, workload, AutoPrecision(), seed=0).form
    print("\n|                  | median |   low |  high |\n|------------------|--------|-------|-------|")
    for key, unit in (("plain", "images/s"), ("ours", "images/s"), ("ratio", "")):
        values = summary[key]
        digits = 2 if key == "ratio" else 0
        cells = " | ".join(
            f"{values[name]:{width}.{digits}f}" for name, width in (("median", 6), ("low", 5), ("high", 5))
        )
        print(f"| {f'{key} {unit}':16} | {cells} |")
    where = environment(Target(threads=torch.get_num_threads()))
    trained = {"bfloat16": form.bfloat16, "channels_last": form.channels_last}
    result = {"model": "ResNet-20", "batch": BATCH, "batches": options.batches, "form": trained, "environment": where}
    write_json(options.out, {**result, "summary": summary, "rounds": rounds})
    print(f"stored in {options.out}")


if __name__ == "__main__":
    main()
