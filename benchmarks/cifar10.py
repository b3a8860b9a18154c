"""Compresses the CIFAR-10 ResNets by the shipped recipes, beside the chains that a user would try today.

    python -m benchmarks.cifar10 [--networks resnet56 resnet20] [--recipes drop_blocks_distill_int8 int8] [--out DIR]

Every file is timed interleaved with the network's own fp32 ONNX file, one thread, batch 1; accuracies are of the half
of the test images that nothing has read before, with the paired drop from the fp32 file. A killed run goes on where it
was.
"""

import argparse
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.data import cifar
from benchmarks.peers import usual_tools
from benchmarks.stored import RESULTS
from compressor import Pipeline, Recipe, Target
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.measure import measure, score_rows
from compressor.storage import read_json, write_atomic, write_json

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(cifar.WORKLOADS), default=list(cifar.WORKLOADS))
    parser.add_argument("--recipes", nargs="+", default=["drop_blocks_distill_int8", "int8"])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--no-peers", action="store_true", help="leave out the chains of other tools")
    arguments = parser.parse_args()
    for network in arguments.networks:
        result = run(network, arguments.recipes, arguments.out / network, with_peers=not arguments.no_peers)
        write_json(RESULTS / f"cifar10-{network}.json", result)
        print_table(result)


def run(network: str, recipes: list[str], out: Path, *, with_peers: bool) -> dict:
    """Everything about one network: the files are made first, then all are measured in one go."""
    workload, target = cifar.WORKLOADS[network](), Target()
    before = environment(target)
    files, facts = {}, {}
    for name in recipes:
        recipe = Recipe.load(name)
        result = Pipeline.from_recipe(recipe).run(workload, target=target, out=out / name, seed=SEED)
        files[name] = result.artifact.path.read_bytes()
        facts[name] = {
            "seconds": sum(step.seconds for step in result.report.steps),
            "training_seconds": max(training_seconds(step.details.get("epochs", [])) for step in result.report.steps),
            "steps": [
                {"stage": step.stage, "kept": step.kept, "reason": step.reason, "seconds": step.seconds}
                for step in result.report.steps
            ],
        }
    reference = (out / recipes[0] / "stages" / "00-reference" / "model.onnx").read_bytes()
    if with_peers:
        training = max(fact["training_seconds"] for fact in facts.values())
        add_peers(network, workload, reference, training, folder=out / "peers", files=files, facts=facts)
    rows = {"fp32": score_rows(reference, workload.test, workload.metric, threads=2)}
    measured = {}
    for name, data in {"fp32": reference, **files}.items():
        rows[name] = score_rows(data, workload.test, workload.metric, threads=2)
        measurement = measure(
            data,
            reference=reference,
            data=workload.test,
            metric=workload.metric,
            example_inputs=workload.example_inputs,
            target=target,
            seed=SEED,
            rows=rows[name],
        )
        measured[name] = {
            **facts.get(name, {}),
            "measurement": measurement.to_json(),
            "drop": asdict(paired_drop(rows[name], rows["fp32"], workload.metric, seed=SEED)),
        }
    return {
        "benchmark": "cifar10",
        "network": network,
        "test_images": len(rows["fp32"]),
        "environment": before,
        "target": {"batch_size": target.batch_size, "threads": target.threads, "isa": target.isa.value},
        "seed": SEED,
        "results": measured,
    }


def training_seconds(epochs: list[dict]) -> float:
    """What the epochs take on a machine that does nothing else: the median counts, so a busy moment does not."""
    return len(epochs) * statistics.median(epoch["seconds"] for epoch in epochs) if epochs else 0.0


def add_peers(network, workload, reference, training_seconds, *, folder, files, facts) -> None:
    """The chains of other tools: quantization alone for every network, pruning and retraining for the deep one."""
    for name, quantize in (
        ("quantize_static, defaults", usual_tools.quantize_static_defaults),
        ("quantize_static, U8S8 per channel", usual_tools.quantize_static_u8s8),
    ):
        started = time.perf_counter()
        files[name] = quantize(reference, workload)
        facts[name] = {"seconds": time.perf_counter() - started}
    if network != "resnet56":
        return
    pruned_path = folder / "torch-pruning.onnx"
    if not pruned_path.exists():
        model, epochs, seconds = usual_tools.prune_retrain(
            workload, seconds=training_seconds, learning_rate=0.03, folder=folder / "snapshots", seed=SEED
        )
        write_json(folder / "torch-pruning.json", {"epochs": epochs, "seconds": seconds})
        write_atomic(pruned_path, usual_tools.export(model, workload))
    pruned, fact = pruned_path.read_bytes(), read_json(folder / "torch-pruning.json")
    files["Torch-Pruning 2x MACs, retrained"], facts["Torch-Pruning 2x MACs, retrained"] = pruned, fact
    both = "Torch-Pruning 2x MACs, retrained + quantize_static, defaults"
    files[both], facts[both] = usual_tools.quantize_static_defaults(pruned, workload), fact


def print_table(result: dict) -> None:
    reference = result["results"]["fp32"]["measurement"]
    print(f"\n{result['network']}: {result['test_images']} test images, {result['environment'].get('cpu')}")
    print(f"{'file':62s} {'accuracy':>8s} {'drop, points':>20s} {'speed-up':>20s} {'smaller':>8s} {'minutes':>8s}")
    for name, row in result["results"].items():
        measured, drop = row["measurement"], row["drop"]
        speedup = measured["speedup"]
        print(
            f"{name:62s} {100 * measured['score']['value']:7.2f}% "
            f"{100 * drop['value']:6.2f} [{100 * drop['low']:5.2f}, {100 * drop['high']:5.2f}] "
            f"{speedup['value']:6.2f} [{speedup['low']:5.2f}, {speedup['high']:5.2f}] "
            f"{reference['size_bytes'] / measured['size_bytes']:7.2f}x {row.get('seconds', 0) / 60:8.1f}"
        )
    print(json.dumps({"stored": f"benchmarks/results/cifar10-{result['network']}.json"}))


if __name__ == "__main__":
    main()
