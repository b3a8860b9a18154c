"""How much of its training data a network gives away, before and after shipped recipes.

    python -m benchmarks.trust.membership [--networks resnet20 sst2] [--recipes int8 int8_careful int4] [--samples 2000]

Three attacks, as in `MembershipInference`: by the loss; by the network's own file and the compressed one together
(CompLeak 2025); and beside networks of its kind that learned from data which are not asked about (Carlini et al. 2022,
offline): those that decisions read, the validation data. All questions are asked of test data that nothing has read. No
budget rolls a stage back. A killed run goes on where it was, and rows that are stored stay where they were made by the
same settings.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.data import cifar, sentences
from benchmarks.data.networks import TextTransformer, seeded, trained
from benchmarks.data.references import transformer
from benchmarks.stored import RESULTS
from compressor.evaluations.membership import MembershipInference
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.storage import read_json, write_atomic, write_json
from compressor.target import Target
from compressor.training.optimizers.choices import SGD, AdamW
from compressor.training.optimizers.schedules import OneCycle
from compressor.workload import Workload
from compressor.workloads.residual import ResNet

RESULT = RESULTS / "membership.json"
RECIPES = ("int8", "int8_careful", "int4", "prune_distill_int8")
# One in so many of the samples that a network beside learns from judges its epochs.
_JUDGING = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--samples", type=int, default=2000, help="training samples that are asked about")
    parser.add_argument("--others", type=int, default=2, help="networks of the same kind that learned from other data")
    parser.add_argument("--epochs", type=int, default=20, help="of those")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/membership"))
    asked = parser.parse_args()
    made = {"samples": asked.samples, "others": asked.others, "epochs": asked.epochs}
    networks = stored(asked.result, made)
    for network in asked.networks:
        workload, others = prepared(network, asked)
        rows = networks.setdefault(network, {})
        for name in asked.recipes:
            rows[name] = one_recipe(name, workload, others, asked)
            print_row(f"{network}, {name}", rows[name])
            known = {"benchmark": "membership", "environment": environment(Target())}
            write_json(asked.result, {**known, **made, "networks": networks})
    print(f"stored in {asked.result}")


def stored(path: Path, made: dict[str, int]) -> dict[str, Any]:
    """The rows of each network in `path`, if they were `made` so."""
    found = read_json(path) if path.exists() else {}
    return found["networks"] if all(found.get(name) == value for name, value in made.items()) else {}


def prepared(network: str, asked: argparse.Namespace) -> tuple[Workload, tuple[str, ...]]:
    """The workload, and paths of networks of its kind that saw neither its training nor its test samples."""
    own, others, optimizer = NETWORKS[network]
    paths = []
    for number in range(asked.others):
        path = asked.out / f"{network}-beside-{number}-{asked.epochs}.onnx"
        if not path.exists():
            workload = others(number, f"{path.stem}")
            trained(workload, epochs=asked.epochs, optimizer=optimizer, folder=asked.out / "others", schedule=_RISING)
            write_atomic(path, export_onnx(workload.model, workload).onnx_bytes)
        paths.append(str(path))
    return own(), tuple(paths)


def _resnet20(number: int, name: str) -> Workload:
    images, labels = cifar.read("test")
    read = cifar.rank_in_class(labels) % 2 == 0
    transform = {"transform": cifar.normalise, "augment": cifar.crop_and_flip}
    return beside(
        lambda: ResNet(blocks=[3] * 3), (images[read], labels[read]), number, name, batch_size=128, **transform
    )


def _transformer(number: int, name: str) -> Workload:
    words = len(sentences.vocabulary()) + 2

    def build() -> nn.Module:
        return TextTransformer(vocabulary=words, length=sentences.LENGTH)

    return beside(build, sentences.read("dev"), number, name, batch_size=64)


def beside(build: Callable[[], nn.Module], data: tuple[Any, Any], number: int, name: str, **settings: Any) -> Workload:
    """The workload of a new network that learns from `data`, (samples, labels), and from nothing else."""
    judging = cifar.rank_in_class(data[1]) % _JUDGING == 0
    judged = tuple(part[judging] for part in data)
    learned = tuple(part[~judging] for part in data)
    sets = {"train": learned, "validation": judged, "test": judged, "calibration_samples": 1}
    return Workload.from_datasets(seeded(build, 1 + number), **sets, name=name, **settings)


_RISING = OneCycle(warm_up=0.3)
# {name: (the workload, that of a network beside it, how those learn)}
NETWORKS: dict[str, tuple[Callable[[], Workload], Callable[[int, str], Workload], SGD | AdamW]] = {
    "resnet20": (cifar.resnet20, _resnet20, SGD(rate=0.1)),
    "sst2": (transformer, _transformer, AdamW(rate=5e-4)),
}


def one_recipe(name: str, workload: Workload, others: tuple[str, ...], asked: argparse.Namespace) -> dict[str, Any]:
    """What the recipe's last file gives away, beside the network's own."""
    attack = MembershipInference(samples=asked.samples, references=others)
    pipeline = Pipeline(list(Recipe.load(name).stages), evaluations=[attack])
    folder = asked.out / f"{workload.name}-{Path(name).stem}-{asked.samples}-{len(others)}"
    reference, *_, step = pipeline.run(workload, out=folder, seed=0).report.steps
    assert step.kept, f"{step.stage} was rolled back without a budget"
    scores = {"score": asdict(step.measurement.score), "reference": asdict(reference.measurement.score)}
    return {**scores, "answers": step.details["evaluations"]}


def print_row(name: str, row: dict[str, Any]) -> None:
    print(f"{name}: accuracy {100 * row['score']['value']:.2f} %", flush=True)
    for answer in row["answers"]:
        value, worse = answer["value"], answer["worse"]
        told = answer["why"] or (
            f"{100 * value['value']:.2f}, more by {100 * worse['value']:.2f} "
            f"[{100 * worse['low']:.2f}, {100 * worse['high']:.2f}]"
        )
        print(f"  {answer['what'] or answer['evaluation']}: {told}", flush=True)


if __name__ == "__main__":
    main()
