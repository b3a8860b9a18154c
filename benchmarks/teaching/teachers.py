"""What a student is drawn to, at equal minutes: ResNet-20's structure out of ResNet-56, taught by it.

    python -m benchmarks.teaching.teachers [--minutes 12] [--clock processor] [--images 10000] [--seeds 0 1 2]
        [--arms ...] [--out DIR] [--result FILE]

Every arm begins with the same network, ResNet-56 with the first, middle and last block of every stage, and is trained
for the same time: how long a batch takes, with the teacher computing and with its answers remembered, is measured of
all arms in turns at the start, and the steps that fit are taken, in one cycle of the rate. Minutes are the processor's,
on one thread, so that what else the machine does is not counted, or those of the wall. What the teacher answers to
equal images is computed once for all arms that ask for nothing else, and charged to each. The last epoch is judged: on
validation images, which decide, and on test images, which are told. What is finished is on disk, and a killed run goes
on. An arm differs from soft targets where the interval of the paired difference on validation, over images, of the mean
over seeds excludes 0 and all seeds agree in its sign.
"""

import argparse
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
from compressor.progress.events import EpochFinished, listening
from compressor.stage import Context
from compressor.stages import (
    SGD,
    AttentionMaps,
    Correlation,
    Decoupled,
    Distill,
    FineTune,
    Relational,
    SoftTargets,
    StandardizedLogits,
)
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.tensor_files import raw_bytes
from compressor.workload import Workload, first_batches
from compressor.workloads.residual import ResNet

RESULT = RESULTS / "teachers.json"
KEPT_BLOCKS = (0, 4, 8)
STAGES = ("layer1", "layer2", "layer3")
SOFT, LABELS = "soft targets", "labels alone"
HALVES = ("validation", "test")
ARMS: dict[str, dict[str, Any]] = {
    SOFT: {"objectives": (SoftTargets(),)},
    LABELS: {},
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
# Batches of a pilot, each in two views that the teacher computes and then remembers, and how many pilots an arm has.
PILOT, PILOTS = 8, 2
CLOCKS: dict[str, Callable[[], float]] = {"processor": time.process_time, "wall": time.perf_counter}


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


class Shared(nn.Module):
    """A teacher that computes what it says of a batch once for all trainings of this process, in either format."""

    answers: ClassVar[dict[tuple[bytes, bool], Tensor]] = {}

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        key = hashlib.sha256(raw_bytes(images)).digest(), torch.is_autocast_enabled("cpu")
        if key not in self.answers:
            self.answers[key] = self.teacher(images).detach()
        return self.answers[key]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=12.0, help="of every training, its teacher's included")
    parser.add_argument("--clock", choices=list(CLOCKS), default="processor", help="whose minutes")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rate", type=float, default=0.06)
    parser.add_argument("--images", type=int, default=10_000, help="training images, as many of every class")
    parser.add_argument("--judging-batches", type=int, default=None, help="of both halves that judge; by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/teachers"))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.clock == "processor":
        torch.set_num_threads(1)  # threads that wait for each other count as work
    teacher = cifar.resnet56().model
    workload = cifar.around(teacher, "cifar10-resnet56", train_images=arguments.images)
    if arguments.judging_batches is not None:
        halves = {part: first_batches(getattr(workload, part), arguments.judging_batches) for part in HALVES}
        workload = replace(workload, **halves)
    arguments.out.mkdir(parents=True, exist_ok=True)
    steps = planned(arguments.arms, blind(workload), arguments)
    for seed in arguments.seeds:  # all arms of a seed under the same load
        Shared.answers.clear()
        for arm in arguments.arms:
            made(arm, seed, workload, steps[arm], arguments)
    result = {
        "benchmark": "teachers",
        "environment": environment(Target()),
        "minutes": arguments.minutes,
        "clock": arguments.clock,
        "images": arguments.images,
        "seeds": arguments.seeds,
        "views": arguments.views,
        "rate": arguments.rate,
        **judged(arguments.arms, arguments.seeds, workload, arguments.out),
    }
    write_json(arguments.result, result)
    print_table(result)
    print(f"stored in {arguments.result}")


def planned(arms: list[str], workload: Workload, asked: argparse.Namespace) -> dict[str, int]:
    """How many steps every arm takes, by the faster of its pilots; what was decided once stays."""
    path = asked.out / "plan.json"
    budget = {name: getattr(asked, name) for name in ("minutes", "clock", "images", "views", "rate")}
    plan = read_json(path) if path.exists() else {"budget": budget, "paces": {}}
    if plan["budget"] != budget:
        raise SystemExit(f"{path} is of {plan['budget']}, not of {budget}; give the same, or another --out")
    missing = [arm for arm in arms if arm not in plan["paces"]]
    pilots: dict[str, list[Pace]] = {arm: [] for arm in missing}
    for _ in range(PILOTS):  # in turns, so that a busy moment meets all of them
        for arm in missing:
            pilots[arm].append(measured(arm, workload, asked.rate, CLOCKS[asked.clock]))
    for arm, paces in pilots.items():
        # Other work can only add to them.
        plan["paces"][arm] = {kind: min(getattr(pace, kind) for pace in paces) for kind in ("computed", "remembered")}
    write_json(path, plan)
    batches = len(workload.train)  # type: ignore[arg-type] # Batches
    return {
        arm: Pace(**plan["paces"][arm]).steps(60 * asked.minutes, batches=batches, views=asked.views) for arm in arms
    }


def made(arm: str, seed: int, workload: Workload, steps: int, asked: argparse.Namespace) -> None:
    """Trains one arm with one seed, and writes its file and facts, unless they are there."""
    name = f"{slug(arm)}-{seed}"
    facts = asked.out / f"{name}.json"
    if facts.exists():
        return
    started = CLOCKS[asked.clock]()
    shared = {} if arm == LABELS or "features" in ARMS[arm] else {"teacher": Shared(workload.model)}
    stage = stage_of(arm, asked.rate, asked.views, steps=steps, **shared)
    context = Context(seed=seed, folder=asked.out / name)
    model = stage.apply(student_of(workload.model), blind(workload), context).eval()
    write_atomic(asked.out / f"{name}.onnx", export_onnx(model, workload).onnx_bytes)
    seconds = CLOCKS[asked.clock]() - started
    made_by = {"arm": arm, "seed": seed, "stage": repr(stage), "steps": steps}
    write_json(facts, {**made_by, "epochs": len(context.details["epochs"]), "seconds": seconds})
    print(f"{arm}, seed {seed}: {steps} steps, {seconds:.0f} s", flush=True)


def measured(arm: str, workload: Workload, rate: float, clock: Callable[[], float]) -> Pace:
    """The pace of `arm` on this machine now, by passes over the same few images: two views, each twice."""
    train = workload.train
    assert isinstance(train, Batches)
    batches = Batches(
        train.samples,
        indices=train.indices[: PILOT * train.batch_size].tolist(),
        batch_size=train.batch_size,
        transform=train.transform,
        augment=train.augment,
    )
    few = replace(workload, train=batches)
    ends: list[float] = []

    def listen(event: object) -> None:
        if isinstance(event, EpochFinished):
            ends.append(clock())

    with listening(listen):
        stage = stage_of(arm, rate, 2, epochs=4, tail_epochs=0)
        stage.apply(student_of(workload.model), few, Context(progress=False))
    # The first pass is left out, for kernels are prepared in it; one more is computed, and the last two remembered.
    first, computed, _, remembered = ends
    return Pace(computed=(computed - first) / PILOT, remembered=(remembered - computed) / (2 * PILOT))


def stage_of(arm: str, rate: float, views: int, **length: Any) -> Distill | FineTune:
    """The training of an arm, as long as `length` says; that by labels alone asks no teacher."""
    if arm == LABELS:
        return FineTune(optimizer=SGD(rate=rate), **length)
    return Distill(views=views, optimizer=SGD(rate=rate), **ARMS[arm], **length)


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
    """Every stored file, scored on both halves, and each arm against soft targets."""
    rows: dict[str, dict[str, list[Tensor]]] = {half: {} for half in HALVES}
    facts: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        names = [f"{slug(arm)}-{seed}" for seed in seeds]
        facts[arm] = [read_json(out / f"{name}.json") for name in names]
        files = [(out / f"{name}.onnx").read_bytes() for name in names]
        for half in HALVES:
            rows[half][arm] = [score_rows(file, getattr(workload, half), workload.metric, threads=1) for file in files]
    found = [
        {
            "arm": arm,
            "runs": facts[arm],
            **{half: compared(rows[half][arm], rows[half].get(SOFT), workload.metric) for half in HALVES},
        }
        for arm in arms
    ]
    return {"test_images": len(rows["test"][arms[0]][0]), "rows": found}


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
        for half in HALVES:
            found = row[half]
            scores = ", ".join(f"{100 * score:.2f}" for score in found["scores"])
            gain = found.get("gain")
            told = f"{100 * gain['value']:+.2f} [{100 * gain['low']:+.2f}, {100 * gain['high']:+.2f}]" if gain else ""
            differs = ", differs" if found.get("differs") else ""
            print(f"{row['arm']:36s} {half:10s} {100 * found['mean']:.2f} ({scores}) {told}{differs}")


if __name__ == "__main__":
    main()
