"""Low rank without any training: ranks chosen by milliseconds beside ranks by energy, at equal accuracy.

    python -m benchmarks.structure.low_rank [--networks transformer vgg16 resnet20] [--clock wall] [--out DIR]

Every arm is one `FactorizeLayers` on the trained network. Of both kinds the fastest arm within a drop on validation is
taken, and the two are timed against each other, interleaved. References that are not stored with the data are trained
first. A killed run goes on where it was. `--clock thread` times by the seconds that the calling thread has on the CPU:
for a machine that others use meanwhile.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import torch

from benchmarks.data import cifar, references
from benchmarks.stored import RESULTS
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.kept_state import private_copy
from compressor.latency import table
from compressor.machine import environment
from compressor.measuring import timing
from compressor.measuring.macs import count_macs
from compressor.measuring.measure import score_rows
from compressor.stage import Context
from compressor.stages import Energy, FactorizeLayers, Latency
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.workload import Workload, resize_batch

RESULT = RESULTS / "low-rank.json"
WORKLOADS: dict[str, Callable[[], Workload]] = {
    "transformer": references.transformer,
    "vgg16": references.vgg16,
    "resnet20": cifar.resnet20,
}
ENERGY, LATENCY = "energy", "latency"
# Of the squares of every layer's outputs, and of the reference's milliseconds.
KEPT = (0.99, 0.98, 0.97, 0.95, 0.9)
FRACTIONS = (0.95, 0.9, 0.8, 0.7)
# VGG-16 on images of 32 x 32 has widths that it does not need: ranks by energy make it several times faster.
LOWER_FRACTIONS = {"vgg16": (0.5, 0.35, 0.25)}
# Points of the score that may be lost on validation.
DROPS = (0.005, 0.01, 0.02, 0.05)


def arms(network: str) -> dict[str, dict[str, FactorizeLayers]]:
    """The stages for the network by kind and label."""
    fractions = LOWER_FRACTIONS.get(network, FRACTIONS)
    return {
        ENERGY: {f"Energy({kept})": FactorizeLayers(target=Energy(kept)) for kept in KEPT},
        LATENCY: {f"Latency({part})": FactorizeLayers(target=Latency(part)) for part in fractions},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/low_rank"))
    parser.add_argument("--clock", choices=["wall", "thread"], default="wall")
    arguments = parser.parse_args()
    if arguments.clock == "thread":
        for module in (table, timing):
            module.perf_counter = thread_time
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for network in arguments.networks:
        stored[network] = {"clock": arguments.clock} | run(WORKLOADS[network](), arguments.out / network, arms(network))
        ordered = {name: stored[name] for name in WORKLOADS if name in stored}
        write_json(RESULT, {"benchmark": "low rank", "drops": list(DROPS), "networks": ordered})
        print_table(network, stored[network])
    print(f"stored in {RESULT}")


def run(workload: Workload, out: Path, stages: dict[str, dict[str, FactorizeLayers]]) -> dict[str, Any]:
    """Every arm's rows, and for each drop the two that are taken, timed against each other."""
    target = Target()
    out.mkdir(parents=True, exist_ok=True)
    dense = export_onnx(workload.model.eval(), workload).onnx_bytes
    write_atomic(out / "dense.onnx", dense)
    rows = {
        kind: {
            label: _kept(out, label, stage=stage, workload=workload, dense=dense, target=target)
            for label, stage in by_label.items()
        }
        for kind, by_label in stages.items()
    }
    return {
        "environment": environment(target),
        "metric": workload.metric.name,
        "score": float(score_rows(dense, workload.test, workload.metric).mean()),
        "macs": count_macs(dense, workload.example_inputs),
        "arms": rows,
        "pairs": [pair for drop in DROPS if (pair := _pair(rows, drop, out, workload, target)) is not None],
    }


def _kept(
    out: Path, label: str, *, stage: FactorizeLayers, workload: Workload, dense: bytes, target: Target
) -> dict[str, Any]:
    path = out / f"{label}.json"
    if not path.exists():
        write_json(path, _arm(stage, workload, dense, out / f"{label}.onnx", target))
    found: dict[str, Any] = read_json(path)
    print(f"{workload.name} {label}: {found.get('error') or found['speedup']}", flush=True)
    return found


def _arm(stage: FactorizeLayers, workload: Workload, dense: bytes, path: Path, target: Target) -> dict[str, Any]:
    """One stage: what it made, its drops from the dense network, and its speed-up over that, timed interleaved."""
    context = Context(target=target, progress=False)
    torch.manual_seed(0)
    start = perf_counter()
    try:
        model = stage.apply(private_copy(workload.model), workload, context)
    except StageError as error:
        return {"error": str(error), "seconds": perf_counter() - start}
    seconds = perf_counter() - start
    file = export_onnx(model.eval(), workload).onnx_bytes
    write_atomic(path, file)
    drops = {}
    for part in ("validation", "test"):
        data = getattr(workload, part)
        before, after = (score_rows(onnx, data, workload.metric) for onnx in (dense, file))
        drops[part] = asdict(paired_drop(after, before, workload.metric))
    return {
        "error": None,
        "seconds": seconds,
        "macs": count_macs(file, workload.example_inputs),
        "size_bytes": len(file),
        "drops": drops,
        "speedup": asdict(_speedup(file, dense, workload, target)),
        "layers": context.details["factorized"],
        "whole": context.details["locked"],
    }


def _speedup(file: bytes, other: bytes, workload: Workload, target: Target) -> Any:
    inputs = resize_batch(workload.example_inputs, target.batch_size)
    return timing.time_interleaved(file, other, inputs, threads=target.threads).speedup


def _pair(
    rows: dict[str, dict[str, Any]], drop: float, out: Path, workload: Workload, target: Target
) -> dict[str, Any] | None:
    """The fastest arm of each kind that loses at most `drop` on validation, and how they compare; None without both."""
    taken: dict[str, str] = {}
    for kind, by_label in rows.items():
        within = {
            label: row["speedup"]["value"]
            for label, row in by_label.items()
            if row["error"] is None and row["drops"]["validation"]["value"] <= drop
        }
        if not within:
            return None
        taken[kind] = max(within, key=lambda label: within[label])
    files = {kind: (out / f"{label}.onnx").read_bytes() for kind, label in taken.items()}
    faster = _speedup(files[LATENCY], files[ENERGY], workload, target)
    return {"drop": drop, "taken": taken, "latency_over_energy": asdict(faster)}


def print_table(network: str, result: dict[str, Any]) -> None:
    print(f"\n{network}: {result['metric']} {result['score']:.4f}, {result['macs'] / 1e6:.1f} M multiply-accumulates")
    for by_label in result["arms"].values():
        for label, row in by_label.items():
            if row["error"] is not None:
                print(f"{label:16s} {row['error'][:100]}")
                continue
            ratio, drops = row["speedup"], row["drops"]
            print(
                f"{label:16s} {len(row['layers']):3d} layers, {result['macs'] / row['macs']:5.2f}x fewer MACs, "
                f"{ratio['value']:5.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}], drop "
                f"{100 * drops['validation']['value']:5.2f} (validation) {100 * drops['test']['value']:5.2f} (test), "
                f"{row['seconds']:.0f} s"
            )
    for pair in result["pairs"]:
        ratio = pair["latency_over_energy"]
        print(
            f"within {100 * pair['drop']:.1f} points: {pair['taken'][LATENCY]} over {pair['taken'][ENERGY]} "
            f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        )


if __name__ == "__main__":
    main()
