"""Twelve recipes compared, beside the same recipes run one by one: seconds, and whether every file is the same.

    python -m benchmarks.compare.tree [--workload resnet20] [--epochs 3] [--images 50000] [--out DIR]

Two sets: every combination of two structures, two trainings and three forms; and twelve forms behind one structure
and one training. A comparison works what its recipes begin with once, by a store of its own; one by one nothing is
shared.
Both time their files as runs do, so that what timing and scoring take counts on both sides. What has ended is kept in
DIR, so that a killed benchmark goes on; one that was killed within a run or a comparison begins that one again.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor import Pipeline, Recipe, Workload, compare
from compressor.machine import environment
from compressor.storage import read_json, sha256, write_json
from compressor.target import Target
from compressor.workloads.residual import ResNet

RESULT = RESULTS / "compare.json"
GOALS = {"every combination": 0.4, "one beginning": 1.6}

COMBINATIONS = """
name: every
stages:
  - sweep:
      - prune_channels: {{remove: 0.4}}
      - drop_blocks: {{remove: 0.34}}
  - sweep:
      - distill: {{epochs: {epochs}}}
      - fine_tune: {{epochs: {epochs}}}
  - sweep: [null, quantize, {{quantize: {{weights: {{symmetric: {{bits: 4}}}}}}}}]
"""
BEGINNING = """
name: one
stages:
  - prune_channels: {{remove: 0.4}}
  - distill: {{epochs: {epochs}}}
  - quantize:
      weights: {{symmetric: {{bits: {{sweep: [8, 7, 6, 5, 4, 3]}}}}}}
      bias_correction: {{sweep: [null, bias_correction]}}
"""
SETS = {"every combination": COMBINATIONS, "one beginning": BEGINNING}


def digits_like() -> Workload:
    """A network and images of noise, so small that the benchmark itself can be tried, wide enough to be narrowed."""
    from workbench.tiny import make_workload

    return make_workload(ResNet(blocks=[2], widths=[64], classes=4).eval(), train=64, test=32)


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "resnet20": lambda images: cifar.around(cifar.resnet20().model, "cifar10-resnet20", train_images=images),
    "tiny": lambda _: digits_like(),
}


def main() -> None:
    """Runs both sets and stores them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), default="resnet20")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000, help="training images of resnet20")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-compare"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload](options.images)
    where = environment(Target())
    sets = []
    for name, text in SETS.items():
        recipes = Recipe.loads_all(text.format(epochs=options.epochs))
        sets.append(measured(name, recipes, workload, options.out / options.workload / name.replace(" ", "-")))
        print(line(sets[-1]), flush=True)
    asked = {"workload": options.workload, "epochs": options.epochs, "images": options.images}
    write_json(options.result, {"benchmark": "compare", "environment": where, **asked, "sets": sets})


def measured(name: str, recipes: list[Recipe], workload: Workload, out: Path) -> dict[str, Any]:
    """The seconds of `recipes` compared and one by one, and how many of their files are the same."""
    done = Done(out)

    def together() -> dict[str, str]:
        comparison = compare(recipes, workload, out=out / "together", controls=False)
        if comparison.failures:
            raise RuntimeError(f"recipes failed: {comparison.failures}")
        return {recipe.name: digest(out / "together" / recipe.name) for recipe in recipes}

    def alone(recipe: Recipe) -> dict[str, str]:
        Pipeline.from_recipe(recipe).run(workload, out=out / recipe.name, seed=recipe.seed)
        return {recipe.name: digest(out / recipe.name)}

    seconds, files = done.of("together", together)
    each = {recipe.name: done.of(recipe.name, lambda recipe=recipe: alone(recipe)) for recipe in recipes}
    one_by_one = sum(took for took, _ in each.values())
    first = each[recipes[0].name][0]
    same = sum(files[recipe] == own[recipe] for recipe, (_, own) in each.items())
    return {
        "set": name,
        "recipes": len(recipes),
        "seconds": round(seconds, 1),
        "one_by_one_seconds": round(one_by_one, 1),
        "one_seconds": round(first, 1),
        "of_one_by_one": round(seconds / one_by_one, 3),
        "of_one": round(seconds / first, 3),
        "goal": GOALS[name],
        "same_files": same,
    }


class Done:
    """What has ended in `folder`, with its seconds and files; what has not begins in a folder without anything."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "done.json"
        self._known = read_json(self._file) if self._file.exists() else {}

    def of(self, name: str, work: Callable[[], dict[str, str]]) -> tuple[float, dict[str, str]]:
        """The seconds that `work` takes, and the files that it gives."""
        if name not in self._known:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            started = perf_counter()
            files = work()
            self._known[name] = {"seconds": perf_counter() - started, "files": files}
            write_json(self._file, self._known)
        return self._known[name]["seconds"], self._known[name]["files"]


def digest(run: Path) -> str:
    """Of the file that ships and the model that it came from."""
    names = ("model.onnx", "weights.safetensors", "plan.json")
    return sha256("".join(sha256((run / name).read_bytes()) for name in names).encode())


def line(found: dict[str, Any]) -> str:
    """One set in a line."""
    ratio = found["of_one_by_one"] if found["set"] == "every combination" else found["of_one"]
    of = "all one by one" if found["set"] == "every combination" else "one recipe"
    return (
        f"{found['set']}: {found['recipes']} recipes in {found['seconds']:.0f} s, {ratio:.2f}x {of} "
        f"(at most {found['goal']}x wanted), {found['same_files']} of {found['recipes']} files the same"
    )


if __name__ == "__main__":
    main()
