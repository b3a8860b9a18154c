"""How much of `Distill`'s loss the teacher should be: several weights on the validation data of networks of ten kinds.

    python -m benchmarks.soft_weight [--cases NAME ...] [--seeds 100 101] [--images 10000] [--out DIR]

The eight small networks of `benchmarks.training_harm`, trained there until validation stands still, with seeds that its
table does not use, and ResNet-20 on CIFAR-10, whose training images are few and whose training is short here. Every
score is of validation data, and no test data are read: this is a decision. The rule, fixed before: the weight by which
the fewest kinds are worse than the hand loop of equal epochs beyond noise; among those the one whose mean drop over the
small kinds, in points or percent, is the lowest. It becomes the default where ResNet-20 was tried, and is not worse by
it than by the old default beyond noise. A killed run goes on where it was.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.data import cifar
from benchmarks.data.small_networks import CASES
from benchmarks.stored import RESULTS
from benchmarks.training_harm import code, pruned_of, rows, swept, trained
from compressor.intervals import paired_drop, score_estimate
from compressor.kept_state import private_copy
from compressor.machine import environment
from compressor.metrics import Metric
from compressor.stage import Context
from compressor.stages import Distill, PruneChannels
from compressor.storage import read_json, write_json
from compressor.target import Target
from compressor.workload import Workload

RESULT = RESULTS / "soft-weight.json"
WEIGHTS = (0.5, 0.7, 0.9)
OLD = 0.9
SEEDS = (100, 101)
RESNET = "ResNet-20, CIFAR-10"


def on_validation(model: nn.Module, workload: Workload) -> list[float]:
    return [float(row) for row in rows(model, workload.validation, workload)]


def distilled(pruned: nn.Module, workload: Workload, seed: int, stage: Distill) -> list[float]:
    return on_validation(stage.apply(private_copy(pruned), workload, Context(seed=seed, progress=False)), workload)


def small(name: str, seed: int, out: Path) -> dict[str, list[float]]:
    """The rows on validation of one small network and seed, by way."""
    path = out / f"{name.replace(' ', '_').replace(',', '')}-{seed}-weights{code()}.json"
    if not path.exists():
        case, _ = trained(name, seed, out)
        pruned, stage = pruned_of(case, seed), Distill()
        by_hand, _ = swept(pruned, case, stage.epochs + stage.tail_epochs, seed)
        found = {"pruned": on_validation(pruned, case.workload), "by_hand": on_validation(by_hand, case.workload)}
        for weight in WEIGHTS:
            found[f"{weight:g}"] = distilled(pruned, case.workload, seed, Distill(soft_weight=weight))
        write_json(path, found)
    return read_json(path)


def resnet(seed: int, out: Path, images: int) -> dict[str, list[float]]:
    """The rows on validation of ResNet-20 after a prune and short distillations."""
    path = out / f"resnet20-{images}-{seed}-weights{code()}.json"
    found = read_json(path) if path.exists() else {}
    workload = cifar.around(cifar.resnet20().model, "cifar10-resnet20", train_images=images)
    pruned = PruneChannels(remove=0.3).apply(private_copy(workload.model), workload, Context(seed=seed, progress=False))
    for weight in WEIGHTS:
        if f"{weight:g}" not in found:
            stage = Distill(soft_weight=weight, epochs=3, tail_epochs=1, views=4)
            found |= {
                f"{weight:g}": distilled(pruned, workload, seed, stage),
                "pruned": on_validation(pruned, workload),
            }
            write_json(path, found)
    return found


def summary(name: str, metric: Metric, parts: Sequence[dict[str, list[float]]], beside: str) -> dict[str, Any]:
    """Scores of all ways over the samples of all seeds, and the drop by every weight against `beside`."""
    pooled = {way: torch.tensor([row for part in parts for row in part[way]], dtype=torch.float64) for way in parts[0]}
    return {
        "name": name,
        "metric": metric.name,
        "beside": beside,
        "scores": {way: asdict(score_estimate(values, metric)) for way, values in pooled.items()},
        "drops": {
            f"{weight:g}": asdict(paired_drop(pooled[f"{weight:g}"], pooled[beside], metric)) for weight in WEIGHTS
        },
    }


def decided(kinds: Sequence[dict[str, Any]], large: dict[str, Any] | None) -> dict[str, Any]:
    """The weight by the rule above, and what it was decided by."""
    worse = {f"{weight:g}": sum(kind["drops"][f"{weight:g}"]["low"] > 0 for kind in kinds) for weight in WEIGHTS}
    mean = {
        f"{weight:g}": sum(kind["drops"][f"{weight:g}"]["value"] for kind in kinds) / len(kinds) for weight in WEIGHTS
    }
    best = min(worse, key=lambda weight: (worse[weight], mean[weight]))
    changes = large is not None and large["drops"][best]["low"] <= 0
    return {"worse": worse, "mean_drop": mean, "best": float(best), "weight": float(best) if changes else OLD}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--images", type=int, default=10_000, help="that ResNet-20 is trained on; 0 leaves it out")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/soft-weight"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kinds = []
    for name in arguments.cases:
        parts = [small(name, seed, arguments.out) for seed in arguments.seeds]
        kinds.append(summary(name, CASES[name](0).workload.metric, parts, "by_hand"))
        print_row(kinds[-1])
    large = None
    if arguments.images:
        parts = [resnet(seed, arguments.out, arguments.images) for seed in arguments.seeds]
        large = summary(RESNET, Metric.accuracy(), parts, f"{OLD:g}")
        print_row(large)
    result = {
        "benchmark": "soft-weight",
        "seeds": arguments.seeds,
        "images": arguments.images,
        "environment": environment(Target()),
        "networks": kinds,
        "large": large,
        "decided": decided(kinds, large),
    }
    write_json(RESULT, result)
    print(f"{result['decided']}\nstored in {RESULT}")


def print_row(kind: dict[str, Any]) -> None:
    scores = "  ".join(f"{way} {score['value']:.4f}" for way, score in kind["scores"].items())
    drops = "  ".join(
        f"{weight}: {drop['value']:+.4f} [{drop['low']:+.4f}, {drop['high']:+.4f}]"
        for weight, drop in kind["drops"].items()
    )
    print(f"{kind['name']:24s} {scores}\n{'':24s} below {kind['beside']}: {drops}", flush=True)


if __name__ == "__main__":
    main()
