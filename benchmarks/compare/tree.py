"""Twelve recipes compared, beside the same recipes run one by one: seconds, and whether every file is the same.

    python -m benchmarks.compare.tree [--workload resnet20|digits|tiny] [--epochs 3] [--sets ...] [--alone 12]
                                    [--out DIR]

Two sets: every combination of two structures, two trainings and three forms; and twelve forms behind one structure
and one training. A comparison works what its recipes begin with once, by a store of its own; one by one nothing is
shared.
Both time their files as runs do, so that what timing and scoring take counts on both sides. Seconds of the processor
stand beside those of the wall: other programs change them little. What has ended is kept in DIR, so that a killed
benchmark goes on; one that was killed within a run or a comparison begins that one again. `--sets` runs and stores one
of them and leaves the other as it was stored, so that two processes may work one each, by one thread, at the same
time. `--alone` runs only the first so many of the second set one by one: there the question is how many times one
recipe they take together.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from benchmarks.compare.cost import processor_seconds
from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor import Pipeline, Recipe, Workload, compare
from compressor.machine import environment
from compressor.storage import read_json, sha256, write_json
from compressor.target import Target
from compressor.workloads.digits import digits
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
      weights: {{symmetric: {{bits: {{sweep: [8, 6, 4]}}}}}}
      rounding: {{sweep: [nearest, gptq]}}
      bias_correction: {{sweep: [null, bias_correction]}}
"""
SETS = {"every combination": COMBINATIONS, "one beginning": BEGINNING}


def tiny() -> Workload:
    """A network and images of noise, so small that the benchmark itself can be tried, wide enough to be narrowed."""
    from workbench.tiny import make_workload

    return make_workload(ResNet(blocks=[2], widths=[64], classes=4).eval(), train=64, test=32)


WORKLOADS: dict[str, Callable[[int], Workload]] = {
    "resnet20": lambda images: cifar.around(cifar.resnet20().model, "cifar10-resnet20", train_images=images),
    "digits": lambda _: digits(progress=False),
    "tiny": lambda _: tiny(),
}


def main() -> None:
    """Runs both sets and stores them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), default="resnet20")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000, help="training images of resnet20")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--alone", type=int, default=12, help="recipes of one beginning that are run one by one")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-compare"))
    parser.add_argument("--threads", type=int, help="of torch; those that wait for each other count as work")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    workload = WORKLOADS[options.workload](options.images)
    asked = {"workload": options.workload, "epochs": options.epochs, "images": options.images}
    where = environment(Target()) | {"threads": torch.get_num_threads()}
    for name in options.sets:
        recipes = Recipe.loads_all(SETS[name].format(epochs=options.epochs))
        own = f"{name.replace(' ', '-')}-{options.epochs}-{options.images}"
        alone = len(recipes) if name == "every combination" else max(1, options.alone)
        found = measured(name, recipes, workload, options.out / options.workload / own, alone=alone)
        print(line(found), flush=True)
        keep({**found, **asked, "environment": where}, options.result)


def keep(found: dict[str, Any], result: Path) -> None:
    """Puts a set into `result`, in place of what was stored of it."""
    stored = read_json(result)["sets"] if result.exists() else []
    sets = {known["set"]: known for known in (*stored, found)}
    write_json(result, {"benchmark": "compare", "sets": [sets[name] for name in SETS if name in sets]})


def measured(name: str, recipes: list[Recipe], workload: Workload, out: Path, *, alone: int) -> dict[str, Any]:
    """The seconds of `recipes` compared, and of the first `alone` one by one; how many of the files are the same."""
    done = Done(out)

    def together() -> dict[str, str]:
        comparison = compare(recipes, workload, out=out / "together", controls=False)
        if comparison.failures:
            raise RuntimeError(f"recipes failed: {comparison.failures}")
        return {recipe.name: digest(out / "together" / recipe.name) for recipe in recipes}

    def by_itself(recipe: Recipe) -> dict[str, str]:
        Pipeline.from_recipe(recipe).run(workload, out=out / recipe.name, seed=recipe.seed)
        return {recipe.name: digest(out / recipe.name)}

    both = done.of("together", together)
    each = {recipe.name: done.of(recipe.name, lambda recipe=recipe: by_itself(recipe)) for recipe in recipes[:alone]}
    files = both["files"]
    same = sum(files[recipe] == own["files"][recipe] for recipe, own in each.items())
    found: dict[str, Any] = {"set": name, "recipes": len(recipes), "goal": GOALS[name]}
    found |= {"alone": len(each), "same_files": same}
    for kind in ("seconds", "cpu_seconds"):
        one = each[recipes[0].name][kind]
        found[kind] = {"together": round(both[kind], 1), "one": round(one, 1), "of_one": round(both[kind] / one, 3)}
        if len(each) == len(recipes):
            one_by_one = sum(own[kind] for own in each.values())
            found[kind] |= {"one_by_one": round(one_by_one, 1), "of_one_by_one": round(both[kind] / one_by_one, 3)}
    return found


class Done:
    """What has ended in `folder`: seconds of the wall and the processor, and files.

    What has not begins in a folder without anything.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "done.json"
        self._known = read_json(self._file) if self._file.exists() else {}

    def of(self, name: str, work: Callable[[], dict[str, str]]) -> dict[str, Any]:
        """The `seconds` and `cpu_seconds` that `work` takes, and the `files` that it gives."""
        if name not in self._known:
            shutil.rmtree(self._folder / name, ignore_errors=True)
            started, spent = perf_counter(), processor_seconds()
            files = work()
            seconds, cpu_seconds = perf_counter() - started, processor_seconds() - spent
            self._known[name] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "files": files}
            write_json(self._file, self._known)
        found: dict[str, Any] = self._known[name]
        return found


def digest(run: Path) -> str:
    """Of the file that ships and the model that it came from."""
    names = ("model.onnx", "weights.safetensors", "plan.json")
    return sha256("".join(sha256((run / name).read_bytes()) for name in names).encode())


def line(found: dict[str, Any]) -> str:
    """One set in a line."""
    every = found["set"] == "every combination"
    which, of = ("of_one_by_one", "all one by one") if every else ("of_one", "one recipe")
    return (
        f"{found['set']}: {found['recipes']} recipes in {found['seconds']['together']:.0f} s, "
        f"{found['seconds'][which]:.2f}x {of} (at most {found['goal']}x wanted), {found['cpu_seconds'][which]:.2f}x by "
        f"the processor; {found['same_files']} of {found['alone']} files the same"
    )


if __name__ == "__main__":
    main()
