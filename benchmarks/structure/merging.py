"""What a quarter of all channels fewer costs without training and without data: merged, and removed by L1 norm.

    python -m benchmarks.structure.merging [--networks resnet20 resnet56 vgg16] [--remove 0.25]

Every arm takes the same part of the channels, in widths of any number; nothing is trained afterwards. `MergeSimilar`
sees noise alone; how it compares inputs was chosen on `validation`, and the table holds `test`, which nothing read. L1
removal is our own `PruneChannels`, across all layers, a like part of each layer, and in the very widths that merging
chose, which tells what those are worth by themselves. Losses are paired image by image; the part of the loss of the
better removal (the least of the first two) that merging loses has the interval of a bootstrap over the images.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor, nn

from benchmarks.data import cifar, references
from benchmarks.stored import RESULTS
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.measure import score_rows
from compressor.pruning.narrowing import gone_channels
from compressor.pruning.ranking.criterion import channel_scores
from compressor.stage import Context, Stage
from compressor.stages import L1, Calibration, Global, MergeSimilar, Noise, PerLayer, PruneChannels
from compressor.storage import read_json, write_json
from compressor.structure.calling.shown import shown_by
from compressor.structure.graph import trace_structure
from compressor.structure.plan import apply_plan_
from compressor.structure.trials import evaluating
from compressor.target import Target
from compressor.workload import Workload

RESULT = RESULTS / "merging.json"
NETWORKS: dict[str, Callable[[], Workload]] = {
    "resnet20": cifar.resnet20,
    "resnet56": cifar.resnet56,
    "vgg16": references.vgg16,
}
MERGED, WITH_DATA, REMOVED, EVENLY, SAME_WIDTHS = (
    "MergeSimilar, noise",
    "MergeSimilar, calibration data",
    "L1, across layers",
    "L1, every layer alike",
    "L1, the widths of merging",
)
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--remove", type=float, default=0.25)
    arguments = parser.parse_args()
    stored = read_json(RESULT)["networks"] if RESULT.exists() else {}
    for name in arguments.networks:
        stored[name] = compared(NETWORKS[name](), arguments.remove)
        print_table(name, stored[name])
        kept = {name: stored[name] for name in NETWORKS if name in stored}
        result = {"benchmark": "merging", "environment": environment(Target()), "networks": kept}
        write_json(RESULT, {**result, "remove": arguments.remove})
    print(f"stored in {RESULT}")


def compared(workload: Workload, remove: float) -> dict:
    """Every arm on one network: its accuracy, what it lost, and what part of the better removal's loss merging lost."""
    dense = rows_of(workload.model, workload)
    arms: dict[str, Stage] = {
        MERGED: MergeSimilar(remove=remove, on=Noise(), align=1),
        WITH_DATA: MergeSimilar(remove=remove, on=Calibration(batches=2), align=1),
        REMOVED: PruneChannels(remove=remove, criterion=L1(), scope=Global(), align=1),
        EVENLY: PruneChannels(remove=remove, criterion=L1(), scope=PerLayer(), align=1),
    }
    rows, found = {}, {}
    widths: dict[str, int] = {}
    for label, stage in arms.items():
        context = Context(seed=0, progress=False)
        model = stage.apply(copy.deepcopy(workload.model), workload, context).eval()
        rows[label] = rows_of(model, workload)
        found[label] = {"stage": repr(stage), "removed": context.details["channel_fraction_removed"]}
        if label == MERGED:
            widths = {group["layer"]: group["after"] for group in context.details["groups"]}
            found[label]["widths"] = widths
    rows[SAME_WIDTHS] = rows_of(narrowed_by_l1(workload, widths), workload)
    found[SAME_WIDTHS] = {"stage": "the widths of merging, by L1()", "removed": found[MERGED]["removed"]}
    for label, scores in rows.items():
        found[label]["accuracy"] = float(scores.mean())
        found[label]["drop"] = asdict(paired_drop(scores, dense, workload.metric))
    better = max((REMOVED, EVENLY), key=lambda label: found[label]["accuracy"])
    return {
        "dense_accuracy": float(dense.mean()),
        "test_images": len(dense),
        "parameters": sum(parameter.numel() for parameter in workload.model.parameters()),
        "arms": found,
        "removal": better,
        "part_of_loss": {label: part_of_loss(dense, rows[label], rows[better]) for label in (MERGED, WITH_DATA)},
    }


def rows_of(model: nn.Module, workload: Workload) -> Tensor:
    """Whether the exported network is right, for every test image."""
    return score_rows(export_onnx(model.eval(), workload).onnx_bytes, workload.test, workload.metric, threads=1)


def narrowed_by_l1(workload: Workload, widths: dict[str, int]) -> nn.Module:
    """The network without the channels of least L1 norm, in these widths."""
    model = copy.deepcopy(workload.model)
    with evaluating(model):
        graph = trace_structure(model, shown_by(workload))
        scores = channel_scores(L1(), model, graph, workload, 0)
        entries = graph.entries(gone_channels(graph.groups, scores, widths))
        return apply_plan_(model, entries).eval()


def part_of_loss(dense: Tensor, ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """What part of the accuracy that `theirs` loses `ours` does, with its 95 % interval over the images (bootstrap)."""
    generator = torch.Generator().manual_seed(0)
    drops = torch.stack([dense - ours, dense - theirs]).double()
    drawn = torch.randint(len(dense), (RESAMPLES, len(dense)), generator=generator)
    sums = torch.stack([drops[:, chosen].sum(dim=1) for chosen in drawn])
    parts = (sums[:, 0] / sums[:, 1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    value = drops[0].sum() / drops[1].sum()
    return {"value": float(value), "low": float(parts[0]), "high": float(parts[1])}


def print_table(name: str, entry: dict) -> None:
    print(f"\n{name}: dense {100 * entry['dense_accuracy']:.2f} % of {entry['test_images']} images")
    for label, row in entry["arms"].items():
        drop = row["drop"]
        print(
            f"{label:32s} {100 * row['removed']:5.1f} % fewer channels {100 * row['accuracy']:6.2f} %, lost "
            f"{100 * drop['value']:.2f} [{100 * drop['low']:.2f}, {100 * drop['high']:.2f}]"
        )
    for label, part in entry["part_of_loss"].items():
        print(f"{label}: {part['value']:.3f} [{part['low']:.3f}, {part['high']:.3f}] of the loss of {entry['removal']}")


if __name__ == "__main__":
    main()
