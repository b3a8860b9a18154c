"""The classic pruning example on MNIST, beside the tool that it comes from.

    python -m benchmarks.classic [--networks convolutional dense] [--seeds 0 1 2] [--out DIR]

A network is trained for 5 epochs with Adam. From these same weights the recipe `polynomial_decay` and
`tensorflow_model_optimization` go on for 5 more epochs, in which the sparsity of every layer rises from 0.5 to 0.9 over
1000 steps, a choice of zeros every 100; the zeros are then for good. Both have the same images, batch size, optimizer
and constant rate; the orders of the images are their own.
What the other tool made is put back into the network of torch, which has to compute the same logits, and all files are
written by the same exporter and run by ONNX Runtime on the same test images. A killed run goes on where it was.
"""

import argparse
import copy
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.arms import slug
from benchmarks.data import classic
from benchmarks.peers.keras_weights import from_keras_, to_keras
from benchmarks.stored import RESULTS
from compressor import Recipe
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop, score_estimate
from compressor.machine import environment
from compressor.measuring.measure import compressed_size, count_parameters, score_rows
from compressor.stage import Context
from compressor.stages import Global, Quantize
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.training.loop import train
from compressor.training.optimizers.choices import AdamW
from compressor.training.optimizers.schedules import Constant
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload
from workbench import ROOT
from workbench.data_files import data_file

RESULT = RESULTS / "classic.json"
PEER = ROOT / ".venv-tfmot" / "bin" / "python"
TRAINED, OURS, ACROSS, THEIRS, INTEGERS = (
    "trained",
    "polynomial_decay",
    "polynomial_decay, across layers",
    "tensorflow_model_optimization",
    "polynomial_decay_int8",
)
_TRAINING = TrainingSettings(epochs=5, optimizer=AdamW(rate=1e-3), schedule=Constant(), weight_decay=0.0, clip=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(classic.NETWORKS), default=list(classic.NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/bench/classic"))
    parser.add_argument("--peer", type=Path, default=PEER, help="the Python that has the other tool")
    arguments = parser.parse_args()
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        runs = [
            one_seed(classic.workload(network, seed), seed, arguments.out / network / str(seed), arguments.peer)
            for seed in arguments.seeds
        ]
        test = classic.workload(network, 0)
        stored[network] = {"seeds": arguments.seeds} | summary(test, runs)
        ordered = {name: stored[name] for name in classic.NETWORKS if name in stored}
        write_json(RESULT, {"benchmark": "classic", "environment": environment(Target()), "networks": ordered})
        print_table(network, stored[network])
    print(f"stored in {RESULT}")


def one_seed(workload: Workload, seed: int, out: Path, peer: Path) -> dict[str, Path]:
    """The files of every arm by its label, made where they are not there yet."""
    out.mkdir(parents=True, exist_ok=True)
    dense = trained(workload, seed, out)
    stage = Recipe.load(OURS).stages[0]
    across = replace(stage, scope=Global())
    arms: dict[str, Callable[[Path], tuple[nn.Module, dict[str, Any]]]] = {
        TRAINED: lambda _folder: (copy.deepcopy(dense), {}),
        OURS: lambda folder: by_stages([stage], dense, workload, seed, folder),
        ACROSS: lambda folder: by_stages([across], dense, workload, seed, folder),
        # The same training, which its snapshots give back at once.
        INTEGERS: lambda _folder: by_stages([stage, Quantize()], dense, workload, seed, out / slug(OURS)),
        THEIRS: lambda folder: by_peer(dense, workload, seed, folder, peer),
    }
    files = {}
    for label, make in arms.items():
        files[label] = out / f"{slug(label)}.onnx"
        if files[label].exists():
            continue
        started = time.perf_counter()
        model, facts = make(out / slug(label))
        write_json(files[label].with_suffix(".json"), {"seconds": time.perf_counter() - started, **facts})
        onnx = getattr(model, "onnx_bytes", None) or export_onnx(model.eval(), workload).onnx_bytes
        write_atomic(files[label], onnx)
        print(f"{workload.name}, seed {seed}, {label}: {time.perf_counter() - started:.0f} s", flush=True)
    return files


def trained(workload: Workload, seed: int, out: Path) -> nn.Sequential:
    """The network after 5 epochs with Adam; snapshots in `out` give it back."""
    model = workload.model
    assert isinstance(model, nn.Sequential)
    train(model, workload, _TRAINING, context=Context(seed=seed, folder=out / "training"), label=workload.name)
    return model.eval()


def by_stages(
    stages: list[Any], dense: nn.Module, workload: Workload, seed: int, folder: Path
) -> tuple[nn.Module, dict[str, Any]]:
    model, details, plan = copy.deepcopy(dense), {}, []
    for stage in stages:
        context = Context(seed=seed, folder=folder, plan_before=tuple(plan))
        model = stage.apply(model, workload, context)
        plan += context.plan
        details |= context.details
    return model, {"zeros": details["zero_weights"]}


def by_peer(
    dense: nn.Sequential, workload: Workload, seed: int, folder: Path, python: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """What the other tool makes of the same weights, in a process of its own."""
    if not python.exists():
        raise FileNotFoundError(f"{python} is not there: make .venv-tfmot, or name another Python with --peer")
    folder = folder.resolve()  # the process starts elsewhere
    folder.mkdir(parents=True, exist_ok=True)
    source, result = folder / "dense.npz", folder / "pruned.npz"
    np.savez(source, **{f"weight_{number}": array for number, array in enumerate(to_keras(dense))})
    network = workload.name.removeprefix("mnist-")
    command = [python, "-W", "ignore", "-m", "benchmarks.peers.keras_process", data_file("mnist.npz").resolve()]
    command += [source, result, "--network", network, "--seed", seed, "--training", classic.TRAINING]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    with np.load(result) as file:
        arrays = [file[name] for name in file.files if name != "logits"]
        wanted = torch.from_numpy(file["logits"])
    model = from_keras_(copy.deepcopy(dense), arrays)
    images = torch.cat([inputs for inputs, _ in workload.test])[: len(wanted)]
    with torch.no_grad():
        torch.testing.assert_close(model(images), wanted, rtol=1e-3, atol=1e-3)
    # Masks that multiply leave zeros of both signs, which compress worse.
    signless = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in signless.parameters():
            parameter.add_(0.0)
    onnx = export_onnx(signless.eval(), workload).onnx_bytes
    return model, {**facts, "compressed_bytes_with_zeros_of_one_sign": compressed_size(onnx)}


def summary(workload: Workload, runs: list[dict[str, Path]]) -> dict[str, Any]:
    """Every arm: its accuracy over the seeds, how far it is from ours, and its files."""
    rows: dict[str, list[Tensor]] = {
        label: [score_rows(run[label].read_bytes(), workload.test, workload.metric, threads=1) for run in runs]
        for label in runs[0]
    }
    found: dict[str, Any] = {}
    ours = mean_rows(rows[OURS])
    for label, scores in rows.items():
        files = [run[label].read_bytes() for run in runs]
        facts = [read_json(run[label].with_suffix(".json")) for run in runs]
        counts = [count_parameters(file) for file in files]
        mine = mean_rows(scores)
        found[label] = {
            "accuracy": asdict(score_estimate(mine, workload.metric)),
            "by_seed": [float(score.mean()) for score in scores],
            "below_ours": asdict(paired_drop(mine, ours, workload.metric)) if label != OURS else None,
            "sparsity": float(np.mean([1 - nonzero / total for total, nonzero in counts])),
            "size_bytes": float(np.mean([len(file) for file in files])),
            "compressed_bytes": float(np.mean([compressed_size(file) for file in files])),
            "facts": facts,
        }
    return {"metric": workload.metric.name, "test_images": len(ours), "arms": found}


def mean_rows(rows: list[Tensor]) -> Tensor:
    """Of every image the mean over the seeds, so that an interval over images is honest."""
    return torch.stack(rows).double().mean(dim=0)


def print_table(network: str, entry: dict[str, Any]) -> None:
    print(f"\n{network}: {entry['test_images']} test images, seeds {entry['seeds']}")
    for label, row in entry["arms"].items():
        score, below = row["accuracy"], row["below_ours"]
        text = f"{100 * score['value']:.2f} % [{100 * score['low']:.2f}, {100 * score['high']:.2f}]"
        text += f", {100 * row['sparsity']:.1f} % zeros, {row['compressed_bytes'] / 1024:.1f} KiB after zstd"
        if below is not None:
            text += f", below ours {100 * below['value']:.2f} [{100 * below['low']:.2f}, {100 * below['high']:.2f}]"
        print(f"{label:32s} {text}")


if __name__ == "__main__":
    main()
