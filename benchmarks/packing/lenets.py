"""LeNet-300-100 and LeNet-5 on MNIST made as small as they travel: pruned, their weights shared, and packed.

    python -m benchmarks.packing.lenets

The networks are those of S. Han et al. 2016, "Deep Compression", arXiv:1510.00149, sec. 5.1, and so is the chain:
zeros, shared values, an entropy coder. The packed file is unpacked and run in ONNX Runtime; told is its size against
the weights of the dense network in float32, and its error against that network's, on the same test images, paired.
A killed run goes on where it was.
"""

import argparse
import copy
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.data import classic
from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop, score_estimate
from compressor.machine import environment
from compressor.measuring.measure import compressed_size, score_rows
from compressor.packing.files import pack, unpack
from compressor.stage import Context
from compressor.stages import AdamW, ClusterWeights, FineTune, Global, OneCycle, Polynomial, SparsifyWeights
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.training.loop import train
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload

RESULT = RESULTS / "packing-lenets.json"


@dataclass(frozen=True)
class Aim:
    """How a network is pruned, and how many times smaller than its dense weights the packed file is to be."""

    sparsity: float
    clusters: int
    times: float


AIMS = {"lenet-300-100": Aim(0.96, 16, 60.0), "lenet-5": Aim(0.98, 16, 100.0)}


def lenet_300_100() -> nn.Sequential:
    """Two hidden layers of 300 and 100: (batch, 1, 28, 28) -> (batch, 10), 266,610 parameters."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            dense1=nn.Linear(784, 300),
            relu1=nn.ReLU(),
            dense2=nn.Linear(300, 100),
            relu2=nn.ReLU(),
            dense3=nn.Linear(100, 10),
        )
    )


def lenet_5() -> nn.Sequential:
    """Two convolutions and two dense layers, Caffe's form: (batch, 1, 28, 28) -> (batch, 10), 431,080 parameters."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            dense1=nn.Linear(800, 500),
            relu=nn.ReLU(),
            dense2=nn.Linear(500, 10),
        )
    )


NETWORKS = {"lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


def workload(network: str) -> Workload:
    """The digits with an untrained network whose weights are always the same."""
    digits = classic.workload("dense", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETWORKS[network]()
    return replace(digits, model=model, name=f"mnist-{network}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--epochs", type=int, default=6, help="of the first training, and of pruning")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/packing"))
    arguments = parser.parse_args()
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        stored[network] = one_network(network, arguments.epochs, arguments.out / f"{network}-{arguments.epochs}")
        ordered = {name: stored[name] for name in NETWORKS if name in stored}
        write_json(RESULT, {"benchmark": "packing-lenets", "environment": environment(Target()), "networks": ordered})
        print_row(network, stored[network])


def one_network(network: str, epochs: int, out: Path) -> dict[str, Any]:
    """What a network and its packed file are in numbers; files and seconds are in `out`, and are not made again."""
    found, aim = workload(network), AIMS[network]
    files = {kind: out / f"{kind}.onnx" for kind in ("dense", "small")}
    if not all(path.exists() for path in files.values()):
        started = time.perf_counter()
        for kind, model in zip(files, _trained(found, aim, epochs, out), strict=True):
            write_atomic(files[kind], export_onnx(model.eval(), found).onnx_bytes)
        write_json(out / "seconds.json", time.perf_counter() - started)
    made = pack(files["small"])
    unpack(made.path, out / "unpacked.onnx")
    rows = {
        kind: score_rows(path.read_bytes(), found.test, found.metric, threads=1)
        for kind, path in (("dense", files["dense"]), ("small", out / "unpacked.onnx"))
    }
    weights = 4 * sum(parameter.numel() for parameter in found.model.parameters())
    return {
        "epochs": epochs,
        "sparsity": aim.sparsity,
        "clusters": aim.clusters,
        "test_images": len(rows["dense"]),
        "dense": asdict(score_estimate(rows["dense"], found.metric)),
        "packed": asdict(score_estimate(rows["small"], found.metric)),
        "drop": asdict(paired_drop(rows["small"], rows["dense"], found.metric)),
        "dense_weights_bytes": weights,
        "packed_bytes": made.packed_bytes,
        "zstd_bytes": compressed_size(files["small"].read_bytes()),
        "times_smaller": weights / made.packed_bytes,
        "seconds": read_json(out / "seconds.json"),
    }


def _trained(found: Workload, aim: Aim, epochs: int, out: Path) -> tuple[nn.Module, nn.Module]:
    """(the dense network, the pruned one that shares values)."""
    settings = TrainingSettings(epochs=epochs, optimizer=AdamW(rate=1e-3), schedule=OneCycle())
    model: nn.Module = found.model
    train(model, found, settings, context=Context(seed=0, folder=out / "dense"), label=found.name)
    dense = copy.deepcopy(model.eval())
    decay = Polynomial(initial=0.5, epochs=epochs, tail_epochs=2, optimizer=AdamW(rate=1e-3))
    stages = {
        "sparse": SparsifyWeights(sparsity=aim.sparsity, scope=Global(), schedule=decay),
        "shared": ClusterWeights(clusters=aim.clusters),
        "tuned": FineTune(epochs=2, optimizer=AdamW(rate=2e-4)),
    }
    plan: list[dict[str, Any]] = []
    for name, stage in stages.items():
        context = Context(seed=0, folder=out / name, plan_before=tuple(plan))
        model = stage.apply(model, found, context)
        plan += context.plan
    return dense, model


def print_row(network: str, row: dict[str, Any]) -> None:
    drop = row["drop"]
    print(
        f"{network}: {row['packed_bytes']:,} bytes packed, {row['times_smaller']:.1f}x below the dense weights; "
        f"accuracy {100 * row['packed']['value']:.2f} %, dense {100 * row['dense']['value']:.2f} %, drop "
        f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]; {row['seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
