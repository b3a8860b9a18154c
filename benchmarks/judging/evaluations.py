"""What shipped recipes do to ResNet-20 besides its score: calibration, robustness, the gap to training images.

    python -m benchmarks.judging.evaluations [--recipes ...] [--epochs 2] [--images 10000] [--severity 3] [--out DIR]

Trainings are cut to `--epochs` over `--images`, so that all of it takes minutes: the rows are of files that were made
so, and say nothing of the recipes at full length. No budget rolls a stage back. All questions are asked of the half of
the test images that nothing has read; each change is paired with the network's own fp32 file on the same corrupted
images. A killed run goes on where it was, and rows that are stored stay where they were made by the same settings.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor.evaluations.calibration import Calibration
from compressor.evaluations.generalisation import GeneralisationGap
from compressor.evaluations.robustness import Robustness
from compressor.intervals import paired_drop
from compressor.machine import environment
from compressor.measuring.measure import score_rows
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.stage import Stage
from compressor.storage import read_json, write_json
from compressor.target import Target
from compressor.workload import Workload, first_batches

RESULT = RESULTS / "evaluations.json"
RECIPES = ("int8", "int8_careful", "int4", "cluster_distill_int8", "sparsify_distill_int8", "prune_distill_int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=2, help="of every training")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--severity", type=int, default=3, help="of corruptions, 1 to 5")
    parser.add_argument("--batches", type=int, default=None, help="batches of test images; by default all")
    parser.add_argument("--out", type=Path, default=Path("runs/bench/evaluations"))
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    workload = cifar.around(cifar.resnet20().model, "cifar10-resnet20", train_images=arguments.images)
    if arguments.batches is not None:
        workload = replace(workload, test=first_batches(workload.test, arguments.batches))
    made = {"epochs": arguments.epochs, "images": arguments.images, "severity": arguments.severity}
    made["test_images"] = sum(len(targets) for _, targets in workload.test)
    rows = stored(arguments.result, made)
    for name in arguments.recipes:
        rows[name] = one_recipe(name, workload, arguments)
        print_row(name, rows[name])
        known = {"benchmark": "evaluations", "environment": environment(Target())}
        write_json(arguments.result, {**known, **made, "recipes": rows})
    print(f"stored in {arguments.result}")


def stored(path: Path, made: dict[str, int]) -> dict[str, Any]:
    """The rows in `path`, if they were `made` so."""
    found = read_json(path) if path.exists() else {}
    return found["recipes"] if all(found.get(name) == value for name, value in made.items()) else {}


def one_recipe(name: str, workload: Workload, asked: argparse.Namespace) -> dict[str, Any]:
    """The answers of the recipe's last file, and of the network's own."""
    evaluations = (Calibration(), GeneralisationGap(), Robustness(severity=asked.severity))
    stages = [shortened(stage, asked.epochs) for stage in Recipe.load(name).stages]
    pipeline = Pipeline(stages, evaluations=evaluations)
    folder = asked.out / f"{name}-{asked.epochs}-{asked.images}"
    result = pipeline.run(workload, out=folder, seed=0)
    reference = (folder / "stages" / "00-reference" / "model.onnx").read_bytes()
    own, base = (
        score_rows(file, workload.test, workload.metric, threads=1)
        for file in (result.artifact.path.read_bytes(), reference)
    )
    step = result.report.steps[-1]
    return {
        "stages": list(map(repr, stages)),
        "test_images": len(own),
        "score": asdict(step.measurement.score),
        "drop": asdict(paired_drop(own, base, workload.metric)),
        "packed_bytes": step.measurement.packed_bytes,
        "answers": step.details["evaluations"],
        "seconds": sum(each.seconds for each in result.report.steps),
    }


def shortened(stage: Stage, epochs: int) -> Stage:
    """`stage` with its trainings, its schedule's too, of so many epochs and none at the end besides."""
    found: Any = stage
    if hasattr(found, "epochs"):
        found = replace(found, epochs=epochs, tail_epochs=0)
    schedule = getattr(found, "schedule", None)
    if hasattr(found, "sparsity") and hasattr(schedule, "epochs"):
        found = replace(found, schedule=replace(schedule, epochs=epochs, tail_epochs=0))
    return found  # type: ignore[no-any-return]  # a stage of the same class


def print_row(name: str, row: dict[str, Any]) -> None:
    print(f"{name}: accuracy {100 * row['score']['value']:.2f} %, {row['seconds'] / 60:.1f} min", flush=True)
    for answer in row["answers"]:
        value, worse = answer["value"], answer["worse"]
        told = answer["why"] or (
            f"{100 * value['value']:.2f}, worse by {100 * worse['value']:.2f} "
            f"[{100 * worse['low']:.2f}, {100 * worse['high']:.2f}]"
        )
        print(f"  {answer['what'] or answer['evaluation']}: {told}", flush=True)


if __name__ == "__main__":
    main()
