"""What a ResNet-56 with at least 2.1x fewer multiply-accumulates scores after a few epochs of recovery.

    python -m benchmarks.structure.recovery [--epochs 8] [--train-images 50000] [--seeds 0 1 2] [--arms ours l1 taylor]

Every arm gets the same recovery: `--epochs` of distillation from the unpruned network, the last at a low rate, on the
same images in the same order, and the network as it stands after the last epoch is judged on the half of the test
images that nothing has read. The arms are Torch-Pruning by L1 and by Taylor, both global and iterative, and ours, whose
structure must be no slower than the faster peer's. The difference between two arms is that of their means over the
seeds, image by image, with the interval of a paired bootstrap over the images. A killed run goes on where it was.
"""

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.data import cifar
from benchmarks.peers import usual_tools
from benchmarks.stored import RESULTS
from compressor import Metric, Target
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.macs import count_macs
from compressor.measuring.measure import score_rows
from compressor.measuring.timing import time_interleaved
from compressor.stage import Context, Stage
from compressor.stages import Distill, DropBlocks, PruneChannels
from compressor.storage import read_json, write_atomic, write_json
from compressor.training.optimizers.choices import SGD
from compressor.workload import Workload, first_batches, resize_batch

RESULT = RESULTS / "recovery.json"
RATIO = 2.1
# Training batches of 128 images that the peer's Taylor scores read before every step, as in its own benchmark.
TAYLOR_BATCHES = 10
PEERS = ("l1", "taylor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="of recovery, 2 to 8")
    parser.add_argument("--train-images", type=int, default=50_000, help="the first ones, as many of each class")
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--views", type=int, default=4, help="augmented passes that are replayed (teacher's cache)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=[*PEERS, *OURS], default=[*PEERS, "ours"])
    parser.add_argument("--seconds", type=float, default=4.0, help="time for one comparison of two files")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/recovery"))
    parser.add_argument("--prune-only", action="store_true", help="stop before training: structures and latencies")
    arguments = parser.parse_args()
    if not 2 <= arguments.epochs <= 8:
        parser.error("--epochs is 2 to 8: the claim is about recovery within 8")
    workload = cifar.around(cifar.resnet56().model, "cifar10-resnet56", train_images=arguments.train_images)
    recover = Distill(
        epochs=arguments.epochs - 1,
        tail_epochs=1,
        optimizer=SGD(rate=arguments.learning_rate),
        views=min(arguments.views, arguments.epochs),
    )
    target, rate = Target(), arguments.learning_rate
    setting = f"epochs-{arguments.epochs}-images-{arguments.train_images}-rate-{rate:g}-views-{recover.views}"
    where = environment(target)
    dense = dense_file(workload, arguments.out / "dense.onnx")
    arms = sorted(arguments.arms, key=lambda arm: arm not in PEERS)  # ours must know how fast the peers are
    each = [(arm, seed) for seed in arguments.seeds for arm in arms]
    for arm, seed in each:
        prune(arm, workload, dense, arguments.out, seed=seed, target=target)
    if arguments.prune_only:
        return
    for arm, seed in each:
        recovered(arm, workload, recover, arguments.out, setting, seed=seed)
    result = summary(
        arms,
        arguments.seeds,
        workload,
        dense,
        out=arguments.out,
        setting=setting,
        target=target,
        seconds=arguments.seconds,
    )
    result |= {"benchmark": "recovery", "environment": where, "recovery": repr(recover), "ratio": RATIO}
    result |= {"train_images": arguments.train_images, "epochs": arguments.epochs}
    write_json(RESULT, result)
    print_table(result)
    print(f"stored in {RESULT}")


# Pruning. ---------------------------------------------------------------------------------------------------------


def shrink(keep: float) -> Stage:
    from compressor.pruning.choice.targets import Macs
    from compressor.stages.structure_shrinking import ShrinkStructure

    # Finer widths than the kernels like best: the peers' latency leaves room, and accuracy is what is compared.
    return ShrinkStructure(target=Macs(keep), align=4, batches=4, rounds=3)


def channels(keep: float) -> Stage:
    from compressor.pruning.choice.targets import Macs

    return PruneChannels(target=Macs(keep))


def blocks(keep: float) -> Stage:
    return DropBlocks(remove=1 - keep)


# Our stages, given the fraction of the multiply-accumulates that may stay. "ours" is what the claim is about, the
# others tell where its advantage comes from.
OURS: dict[str, Callable[[float], Stage]] = {"ours": shrink, "ours-channels": channels, "ours-blocks": blocks}


def pruned_folder(out: Path, arm: str) -> Path:
    """Where the pruned network of an arm is: one for all seeds, which differ in recovery alone."""
    return out / arm / "pruned"


def prune(arm: str, workload: Workload, dense: bytes, out: Path, *, seed: int, target: Target) -> None:
    """Leaves the pruned network (`pruned.pt`) and its facts in its folder, unless they are there."""
    folder = pruned_folder(out, arm)
    if (folder / "pruned.json").exists():
        return
    example = workload.example_inputs
    if arm in PEERS:
        model, facts = prune_by_peer(arm, workload), {}
        file = export_onnx(model, workload).onnx_bytes
    else:
        known = [path for peer in PEERS if (path := pruned_folder(out, peer) / "pruned.json").exists()]
        limit = min([1.0, *(read_json(path)["time_fraction"] for path in known)])
        model, file, facts = prune_by_us(OURS[arm], workload, dense, limit, seed=seed, target=target)
    facts["macs_ratio"] = count_macs(dense, example) / count_macs(file, example)
    facts["time_fraction"] = time_fraction(file, dense, example, target, seed)
    if facts["macs_ratio"] < RATIO:
        raise RuntimeError(f"{arm} has {facts['macs_ratio']:.3f}x fewer multiply-accumulates, {RATIO}x are wanted")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model, folder / "pruned.pt")
    write_json(folder / "pruned.json", facts)
    print(f"{arm}, seed {seed}: {facts['macs_ratio']:.2f}x fewer MACs, {facts['time_fraction']:.3f} of the time")


def prune_by_peer(arm: str, workload: Workload) -> nn.Module:
    """Torch-Pruning as its own CIFAR benchmark prunes: global, in many small steps, scored again before each."""
    import torch_pruning as tp

    example = workload.example_inputs
    return usual_tools.prune_to_macs(
        workload.model,
        example,
        ratio=RATIO,
        importance=tp.importance.MagnitudeImportance(p=1) if arm == "l1" else tp.importance.TaylorImportance(),
        count=lambda model: usual_tools.layer_macs(model, example),
        before_step=None if arm == "l1" else usual_tools.gradients_of(workload, TAYLOR_BATCHES),
    )


def prune_by_us(
    stage: Callable[[float], Stage], workload: Workload, dense: bytes, limit: float, *, seed: int, target: Target
) -> tuple[nn.Module, bytes, dict]:
    """The first structure with few enough multiply-accumulates that takes at most `limit` of the dense time.

    With its ONNX file, and what the report says of it.
    """
    example = workload.example_inputs
    before = usual_tools.layer_macs(workload.model, example)
    keep = 1 / RATIO
    for _ in range(12):
        context = Context(seed=seed, target=target, progress=True)
        chosen = stage(keep)
        model = chosen.apply(copy.deepcopy(workload.model), workload, context).eval()
        file = export_onnx(model, workload).onnx_bytes
        ratio = before / usual_tools.layer_macs(model, example)
        fraction = time_fraction(file, dense, example, target, seed)
        print(f"{chosen!r}: {ratio:.3f}x fewer MACs, {fraction:.3f} of the time, {limit:.3f} allowed", flush=True)
        if ratio >= RATIO and fraction <= limit:
            return model, file, {"stage": repr(chosen), "details": context.details, "time_limit": limit}
        # Rounded widths fall short by a little, so the next try asks for a little more.
        keep *= min(0.985, ratio / RATIO) if ratio < RATIO else 0.95
    raise RuntimeError(f"{chosen!r} reaches {ratio:.2f}x at {fraction:.3f} of the time; {RATIO}x at {limit:.3f} wanted")


def time_fraction(file: bytes, dense: bytes, example: Tensor, target: Target, seed: int) -> float:
    """The time of a file as a fraction of the dense one's."""
    inputs = resize_batch(example, target.batch_size)
    return 1 / time_interleaved(file, dense, inputs, threads=target.threads, seed=seed).speedup.value


def dense_file(workload: Workload, path: Path) -> bytes:
    if not path.exists():
        write_atomic(path, export_onnx(workload.model.eval(), workload).onnx_bytes)
    return path.read_bytes()


# Recovery. --------------------------------------------------------------------------------------------------------


def recovered_folder(out: Path, arm: str, setting: str, seed: int) -> Path:
    return out / arm / setting / f"seed-{seed}"


def recovered(arm: str, workload: Workload, recover: Distill, out: Path, setting: str, *, seed: int) -> None:
    """Leaves the network as it is after its last epoch (`model.onnx`) and its facts in its folder."""
    folder = recovered_folder(out, arm, setting, seed)
    if (folder / "recovered.json").exists():
        return
    # Written by `prune` above, never by others: peers hand back modules, not plans.
    model = torch.load(pruned_folder(out, arm) / "pruned.pt", weights_only=False)
    context = Context(seed=seed, folder=folder)
    print(f"{arm}, seed {seed}", flush=True)
    model = recover.apply(model, to_the_last_epoch(workload), context)
    file = export_onnx(model.eval(), workload).onnx_bytes
    rows = score_rows(file, workload.test, workload.metric, threads=2)
    write_atomic(folder / "model.onnx", file)
    facts = {
        "accuracy": float(rows.mean()),
        "right": "".join(str(int(row)) for row in rows),
        "losses": [epoch["loss"] for epoch in context.details["epochs"]],
        "seconds": sum(epoch["seconds"] for epoch in context.details["epochs"]),
    }
    write_json(folder / "recovered.json", facts)
    print(f"{arm}, seed {seed}: {100 * facts['accuracy']:.2f} % after {facts['seconds'] / 60:.1f} minutes", flush=True)


def to_the_last_epoch(workload: Workload) -> Workload:
    """`workload` with a metric that finds all epochs equal: training keeps the last of equals, and chooses nothing."""

    def equal(outputs: Tensor, _targets: Tensor) -> Tensor:
        return torch.zeros(len(outputs), dtype=torch.float64)

    metric = Metric(name="none", per_sample=equal, classes=True)
    return replace(workload, metric=metric, validation=first_batches(workload.validation, 1))


# The table. -------------------------------------------------------------------------------------------------------


def summary(
    arms: list[str],
    seeds: list[int],
    workload: Workload,
    dense: bytes,
    *,
    out: Path,
    setting: str,
    target: Target,
    seconds: float,
) -> dict:
    """Accuracy and speed of every arm and seed, and the paired differences from ours."""
    inputs = resize_batch(workload.example_inputs, target.batch_size)
    rows: dict[str, list[Tensor]] = {}
    found: dict[str, dict] = {}
    for arm in arms:
        runs = []
        rows[arm] = []
        for seed in seeds:
            folder = recovered_folder(out, arm, setting, seed)
            facts = read_json(folder / "recovered.json")
            rows[arm].append(torch.tensor([float(digit) for digit in facts.pop("right")]))
            file = (folder / "model.onnx").read_bytes()
            timing = time_interleaved(file, dense, inputs, threads=target.threads, seed=seed, seconds=seconds)
            pruned = read_json(pruned_folder(out, arm) / "pruned.json")
            runs.append(
                {
                    "seed": seed,
                    **facts,
                    "macs_ratio": pruned["macs_ratio"],
                    "stage": pruned.get("stage"),
                    "latency_ms": asdict(timing.candidate_ms),
                    "speedup": asdict(timing.speedup),
                }
            )
        accuracies = [run["accuracy"] for run in runs]
        found[arm] = {
            "runs": runs,
            "accuracy": statistics.mean(accuracies),
            "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "speedup": statistics.geometric_mean([run["speedup"]["value"] for run in runs]),
        }
    before = score_rows(dense, workload.test, workload.metric, threads=2)
    return {
        "arms": found,
        "seeds": seeds,
        "dense_accuracy": float(before.mean()),
        "test_images": len(before),
        "gains": {arm: gain(rows["ours"], rows[arm], workload.metric) for arm in arms if arm != "ours"}
        if "ours" in rows
        else {},
    }


def gain(ours: list[Tensor], theirs: list[Tensor], metric: Metric) -> dict[str, float]:
    """How much better ours scores, in points in [-1, 1], with its 95 % interval over the images.

    Each image counts with its mean over the seeds; both means are resampled together.
    """
    mine, other = (torch.stack(rows).double().mean(dim=0) for rows in (ours, theirs))
    return asdict(paired_drop(other, mine, metric))


def print_table(result: dict) -> None:
    print(
        f"\nResNet-56, {result['epochs']} epochs on {result['train_images']} images; dense "
        f"{100 * result['dense_accuracy']:.2f} % of {result['test_images']} test images"
    )
    print(f"{'arm':16s} {'MACs':>7s} {'speed-up':>9s} {'accuracy':>9s} {'seeds':>24s} {'ours better by, points':>26s}")
    for arm, row in result["arms"].items():
        each = " ".join(f"{100 * run['accuracy']:.2f}" for run in row["runs"])
        better = result["gains"].get(arm)
        text = ""
        if better is not None:
            text = f"{100 * better['value']:.2f} [{100 * better['low']:.2f}, {100 * better['high']:.2f}]"
        print(
            f"{arm:16s} {row['runs'][0]['macs_ratio']:6.2f}x {row['speedup']:8.2f}x {100 * row['accuracy']:8.2f}% "
            f"{each:>24s} {text:>26s}"
        )


if __name__ == "__main__":
    main()
