"""LeNet-300-100 and LeNet-5 on MNIST made as small as they travel: pruned, their weights shared, and packed.

    python -m benchmarks.packing.lenets

The networks are those of S. Han et al. 2016, "Deep Compression", arXiv:1510.00149, sec. 5.1, and so is the chain:
zeros, shared values, an entropy coder. Zeros come while the network trains, then the dense network teaches what is
left, and what has no weights any more is taken out. How many zeros and values there are was chosen on the 5,000 images
that no training reads (`--validate` tells of them alone). The packed file is unpacked and run in ONNX Runtime; told is
its size against the weights of the dense network in float32, and its error against that network's, on the same test
images, paired. A killed run goes on where it was.
"""

import argparse
import copy
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.data import classic
from benchmarks.packing.coder import graph_bytes
from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.intervals import mcnemar, paired_drop, score_estimate
from compressor.machine import environment
from compressor.measuring.measure import compressed_size, score_rows
from compressor.packing.files import pack, unpack
from compressor.stage import Context
from compressor.stages import (
    AdamW,
    ClusterWeights,
    Distill,
    Global,
    OneCycle,
    Polynomial,
    RemoveZeroChannels,
    SparsifyWeights,
)
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.training.loop import train
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload

RESULT = RESULTS / "packing-lenets.json"


@dataclass(frozen=True)
class Aim:
    """How a network is pruned, and for how many epochs it is trained, pruned and taught, each."""

    sparsity: float
    clusters: int
    epochs: int


AIMS = {"lenet-300-100": Aim(0.95, 8, 10), "lenet-5": Aim(0.975, 8, 6)}


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
    parser.add_argument("--epochs", type=int, default=None, help="of the first training, of pruning and of teaching")
    parser.add_argument("--sparsity", type=float, default=None, help="another part of the weights that becomes zero")
    parser.add_argument("--clusters", type=int, default=None, help="another number of values in a layer")
    parser.add_argument("--validate", action="store_true", help="tells validation alone, and stores nothing")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/packing"))
    arguments = parser.parse_args()
    asked = {
        name: value for name in ("sparsity", "clusters", "epochs") if (value := getattr(arguments, name)) is not None
    }
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        aim = replace(AIMS[network], **asked)
        row = one_network(network, aim, arguments.out / network, validate=arguments.validate)
        print_row(network, row)
        if not arguments.validate:
            stored[network] = row
            ordered = {name: stored[name] for name in NETWORKS if name in stored}
            facts = {"benchmark": "packing-lenets", "environment": environment(Target()), "networks": ordered}
            write_json(RESULT, facts)


def one_network(network: str, aim: Aim, out: Path, *, validate: bool = False) -> dict[str, Any]:
    """What a network and its packed file are in numbers, on test images, or on validation images where `validate`.

    Files and seconds are in `out`, and are not made again.
    """
    found = workload(network)
    folders = {"dense": out / f"dense-{aim.epochs}"}
    folders["small"] = out / f"small-{aim.epochs}-{aim.sparsity:g}-{aim.clusters}"
    _made(folders["dense"], found, lambda folder: _dense(found, aim.epochs, folder))
    dense = copy.deepcopy(found.model).eval()
    dense.load_state_dict(load_file(folders["dense"] / "weights.safetensors"))
    taught = replace(found, model=dense)
    _made(folders["small"], taught, lambda folder: _small(taught, aim, folder))
    files = {kind: folder / "model.onnx" for kind, folder in folders.items()}
    made = pack(files["small"], folders["small"] / "model.pack")
    unpack(made.path, folders["small"] / "unpacked.onnx")
    data = found.validation if validate else found.test
    rows = {
        kind: score_rows(path.read_bytes(), data, found.metric, threads=1)
        for kind, path in (("dense", files["dense"]), ("small", folders["small"] / "unpacked.onnx"))
    }
    weights = 4 * sum(parameter.numel() for parameter in found.model.parameters())
    lost, won = (int((rows[one] > rows[other]).sum()) for one, other in (("dense", "small"), ("small", "dense")))
    drop = paired_drop(rows["small"], rows["dense"], found.metric)
    graph = graph_bytes(made.path.read_bytes())
    return {
        "epochs": aim.epochs,
        "sparsity": aim.sparsity,
        "clusters": aim.clusters,
        "images": len(rows["dense"]),
        "dense": asdict(score_estimate(rows["dense"], found.metric)),
        "packed": asdict(score_estimate(rows["small"], found.metric)),
        "drop": asdict(drop),
        "no_worse": drop.low <= 0,
        "right_in_one_alone": {"dense": lost, "packed": won, "p": mcnemar(lost, won)},
        "dense_weights_bytes": weights,
        "weights_left": _weights_left(files["small"]),
        "packed_bytes": made.packed_bytes,
        "graph_bytes": graph,
        "bits_a_weight_left": 8 * (made.packed_bytes - graph) / _weights_left(files["small"]),
        "zstd_bytes": compressed_size(files["small"].read_bytes()),
        "times_smaller": weights / made.packed_bytes,
        "seconds": sum(read_json(folder / "seconds.json") for folder in folders.values()),
    }


def _made(folder: Path, found: Workload, make: Callable[[Path], nn.Module]) -> None:
    """Writes what `make` makes, its file and its seconds into `folder`, unless they are there."""
    if not (folder / "seconds.json").exists():
        started = time.perf_counter()
        model = make(folder).eval()
        write_atomic(folder / "model.onnx", export_onnx(model, found).onnx_bytes)
        save_file(model.state_dict(), folder / "weights.safetensors")
        write_json(folder / "seconds.json", time.perf_counter() - started)


def _weights_left(path: Path) -> int:
    """How many numbers of the file's floats are not zero."""
    tensors = map(numpy_helper.to_array, onnx.load(path).graph.initializer)
    return sum(int(np.count_nonzero(each)) for each in tensors if each.dtype == np.float32)


def _dense(found: Workload, epochs: int, out: Path) -> nn.Module:
    settings = TrainingSettings(epochs=epochs, optimizer=AdamW(rate=1e-3), schedule=OneCycle())
    model: nn.Module = copy.deepcopy(found.model)
    train(model, found, settings, context=Context(seed=0, folder=out / "training"), label=found.name)
    return model


def _small(found: Workload, aim: Aim, out: Path) -> nn.Module:
    """The network of `found`, which teaches, pruned, without what has no weights any more, and with shared values."""
    epochs = aim.epochs
    decay = Polynomial(initial=0.5, epochs=epochs, tail_epochs=2, optimizer=AdamW(rate=1e-3))
    stages = {
        "sparse": SparsifyWeights(sparsity=aim.sparsity, scope=Global(), schedule=decay),
        "taught": Distill(epochs=epochs, views=1, optimizer=AdamW(rate=1e-3)),
        "narrow": RemoveZeroChannels(align=1),
        "shared": ClusterWeights(clusters=aim.clusters),
        "tuned": Distill(epochs=max(1, epochs // 3), views=1, optimizer=AdamW(rate=3e-4)),
    }
    model, plan = copy.deepcopy(found.model), list[dict[str, Any]]()
    for name, stage in stages.items():
        context = Context(seed=0, folder=out / name, plan_before=tuple(plan))
        model = stage.apply(model, found, context)
        plan += context.plan
    return model


def print_row(network: str, row: dict[str, Any]) -> None:
    drop = row["drop"]
    print(
        f"{network}: {row['packed_bytes']:,} bytes packed, {row['times_smaller']:.1f}x below the dense weights; "
        f"accuracy {100 * row['packed']['value']:.2f} %, dense {100 * row['dense']['value']:.2f} %, drop "
        f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]; {row['weights_left']:,} "
        f"numbers left, {row['bits_a_weight_left']:.2f} bits each, graph {row['graph_bytes']}; {row['seconds']:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
