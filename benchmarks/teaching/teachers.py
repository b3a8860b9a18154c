"""What a student is drawn to, at equal minutes: ResNet-20's structure out of ResNet-56, taught by it.

    python -m benchmarks.teaching.teachers [--minutes 12] [--seeds 0 1 2] [--arms ...] [--out DIR] [--result FILE]

Every arm begins with the same network, ResNet-56 with the first, middle and last block of every stage, and is trained
for the same time: how long a batch takes, with the teacher computing and with its answers remembered, is measured just
before, and the steps that fit are taken, in one cycle of the rate. The last epoch is judged, on test images that no
decision has read. What is finished is on disk, and a killed run goes on. An arm differs from soft targets where the
interval of the paired difference, over images, of the mean over seeds excludes 0 and all seeds agree in its sign.
"""

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms import slug
from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor.batches import Batches
from compressor.files.export import export_onnx
from compressor.intervals import paired_drop, score_estimate
from compressor.machine import environment
from compressor.measuring.measure import score_rows
from compressor.metrics import Metric
from compressor.stage import Context
from compressor.stages import (
    SGD,
    AttentionMaps,
    Correlation,
    Decoupled,
    Distill,
    Relational,
    SoftTargets,
    StandardizedLogits,
)
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.workload import Workload, first_batches
from compressor.workloads.residual import ResNet

RESULT = RESULTS / "teachers.json"
KEPT_BLOCKS = (0, 4, 8)
STAGES = ("layer1", "layer2", "layer3")
SOFT, LABELS = "soft targets", "labels alone"
ARMS: dict[str, dict[str, Any]] = {
    SOFT: {"objectives": (SoftTargets(),)},
    LABELS: {"soft_weight": 0.0},
    "standardized logits": {"objectives": (StandardizedLogits(),)},
    "decoupled": {"objectives": (Decoupled(),)},
    "correlation": {"objectives": (Correlation(),)},
    "relations beside soft targets": {"objectives": (SoftTargets(), Relational(weight=10.0))},
    "attention maps beside soft targets": {
        "objectives": (SoftTargets(),),
        "features": STAGES,
        "compare": AttentionMaps(),
        "feature_weight": 10.0,
    },
    "hints beside soft targets": {"objectives": (SoftTargets(),), "features": STAGES},
}
# Batches of the pilot, seen twice: computed by the teacher, and remembered.
PILOT = 12


@dataclass(frozen=True)
class Pace:
    """Seconds of a batch whose answers the teacher computes, and of one whose answers are remembered."""

    computed: float
    remembered: float

    def steps(self, seconds: float, *, batches: int, views: int) -> int:
        """How many batches fit into `seconds`, the first `views` passes over `batches` of them computed; at least 1."""
        first = batches * views * self.computed
        if seconds <= first:
            return max(1, int(seconds / self.computed))
        return batches * views + int((seconds - first) / self.remembered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.06)
    parser.add_argument("--images", type=int, default=None, help="training images; by default all")
    parser.add_argument("--test-batches", type=int, default=None, help="batches of test images; by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/teachers"))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    teacher = cifar.resnet56().model
    workload = cifar.around(teacher, "cifar10-resnet56", train_images=arguments.images)
    if arguments.test_batches is not None:
        workload = replace(workload, test=first_batches(workload.test, arguments.test_batches))
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:  # all arms of a seed under the same load
        for arm in arguments.arms:
            made(arm, seed, workload, arguments)
    result = {
        "benchmark": "teachers",
        "environment": environment(Target()),
        "minutes": arguments.minutes,
        "images": arguments.images or len(cifar.read("train")[1]),
        "seeds": arguments.seeds,
        "views": arguments.views,
        "rate": arguments.rate,
        **judged(arguments.arms, arguments.seeds, workload, arguments.out),
    }
    write_json(arguments.result, result)
    print_table(result)
    print(f"stored in {arguments.result}")


def made(arm: str, seed: int, workload: Workload, asked: argparse.Namespace) -> None:
    """Trains one arm with one seed, and writes its file and facts, unless they are there."""
    name = f"{slug(arm)}-{seed}"
    facts = asked.out / f"{name}.json"
    if facts.exists():
        return
    taught = blind(workload)
    plan = asked.out / f"{name}-plan.json"
    if not plan.exists():  # a resumed training takes as many steps as it began with
        pace = measured(arm, taught, asked.rate)
        steps = pace.steps(60 * asked.minutes, batches=len(taught.train), views=asked.views)  # type: ignore[arg-type] # Batches
        write_json(plan, {**asdict(pace), "steps": steps})
    planned = read_json(plan)
    started = time.perf_counter()
    stage = Distill(steps=planned["steps"], views=asked.views, optimizer=SGD(rate=asked.rate), **ARMS[arm])
    context = Context(seed=seed, folder=asked.out / name)
    model = stage.apply(student_of(workload.model), taught, context).eval()
    seconds = time.perf_counter() - started
    write_atomic(asked.out / f"{name}.onnx", export_onnx(model, workload).onnx_bytes)
    epochs = context.details["epochs"]
    write_json(
        facts,
        {"arm": arm, "seed": seed, "stage": repr(stage), **planned, "epochs": len(epochs), "seconds": seconds},
    )
    print(f"{arm}, seed {seed}: {planned['steps']} steps, {seconds:.0f} s", flush=True)


def measured(arm: str, workload: Workload, rate: float) -> Pace:
    """The pace of `arm` on this machine now, by two passes over the same few batches."""
    batches = first_batches(workload.train, PILOT)
    few = replace(workload, train=batches)
    context = Context(progress=False)
    stage = Distill(epochs=2, tail_epochs=0, views=1, optimizer=SGD(rate=rate), **ARMS[arm])
    stage.apply(student_of(workload.model), few, context)
    first, second = (epoch["seconds"] / len(batches) for epoch in context.details["epochs"])
    return Pace(computed=first, remembered=min(first, second))


def student_of(teacher: nn.Module) -> ResNet:
    """ResNet-20 with the blocks KEPT_BLOCKS of every stage of `teacher`, a ResNet-56."""
    student = ResNet(blocks=[len(KEPT_BLOCKS)] * 3)
    weights = teacher.state_dict()
    student.load_state_dict({name: weights[_of_teacher(name)] for name in student.state_dict()})
    return student.eval()


def _of_teacher(name: str) -> str:
    """The name that a tensor of the student has in the teacher."""
    stage, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    return f"{stage}.{KEPT_BLOCKS[int(number)]}.{inner}" if stage in STAGES else name


def blind(workload: Workload) -> Workload:
    """`workload` whose validation finds every epoch as good as any, and takes no time: the last one is kept."""
    same = Metric(name="same", per_sample=lambda outputs, _: torch.ones(len(outputs)), classes=True)
    assert isinstance(workload.train, Batches)
    return replace(workload, validation=first_batches(workload.validation, 1), metric=same)


def judged(arms: list[str], seeds: list[int], workload: Workload, out: Path) -> dict[str, Any]:
    """Every stored file, scored on the test images, and each arm against soft targets."""
    rows: dict[str, list[Tensor]] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        names = [f"{slug(arm)}-{seed}" for seed in seeds]
        facts[arm] = [read_json(out / f"{name}.json") for name in names]
        rows[arm] = [
            score_rows((out / f"{name}.onnx").read_bytes(), workload.test, workload.metric, threads=1) for name in names
        ]
    found = [{"arm": arm, "runs": facts[arm], **compared(rows[arm], rows.get(SOFT), workload.metric)} for arm in arms]
    return {"test_images": len(rows[arms[0]][0]), "rows": found}


def compared(rows: list[Tensor], others: list[Tensor] | None, metric: Metric) -> dict[str, Any]:
    """The scores of an arm by seed, their mean, and by how much they beat `others`, by seed and on average."""
    found: dict[str, Any] = {
        "scores": [score_estimate(each, metric).value for each in rows],
        "mean": float(torch.stack(rows).double().mean()),
    }
    if others is None or rows is others:
        return found
    gains = [-paired_drop(own, other, metric).value for own, other in zip(rows, others, strict=True)]
    drop = paired_drop(torch.stack(rows).double().mean(0), torch.stack(others).double().mean(0), metric)
    gain = {"value": 0 - drop.value, "low": 0 - drop.high, "high": 0 - drop.low}  # and no -0.0
    agree = all(one > 0 for one in gains) or all(one < 0 for one in gains)
    return {**found, "gains": gains, "gain": gain, "differs": agree and (gain["low"] > 0 or gain["high"] < 0)}


def print_table(result: dict[str, Any]) -> None:
    for row in result["rows"]:
        scores = ", ".join(f"{100 * score:.2f}" for score in row["scores"])
        gain = row.get("gain")
        told = f"{100 * gain['value']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else ""
        print(f"{row['arm']:36s} {100 * row['mean']:.2f} ({scores}) {told}{', differs' if row.get('differs') else ''}")


if __name__ == "__main__":
    main()
