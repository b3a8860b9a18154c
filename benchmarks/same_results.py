"""Whether two commits give the same files and the same reports: five recipes on the digits, by the code of each.

python -m benchmarks.same_results OLD [NEW] [--epochs 2] [--once] [--out runs/same_results]

NEW is the working tree where it is left out. OLD runs twice, so that what differs from run to run of the same code is
not taken for a change; `--once` leaves that out. Budgets are left out, since a time that decides would roll back by
chance, and all runs share one latency cache. One thread, for sums in one order. `--epochs` cuts trainings to at most so
many, 0 to none. Exit code 1 where something differs. A killed comparison goes on where it was.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import yaml

from compressor.storage import read_json, sha256, write_atomic, write_json
from workbench import ROOT

RECIPES = ("drop_blocks_distill_int8", "prune_distill_int8", "slim_distill_int8", "int8", "int4")
# What measured time or the machine decides, taken out of report.json wherever it stands. `pays` and `reason` are the
# verdict on a measured speed-up and its words; `environment` is machine, versions, date and load.
TAKEN_OUT = frozenset({"environment", "seconds", "latency_ms", "speedup", "versus_base", "pays", "reason"})
SAME, ABSENT = "same", "absent"
WORKING_TREE = "working-tree"
# The checks that the code is the commit's, not that of the environment.
PROGRAM = (
    "import os, compressor; from compressor.cli import main; "
    "assert compressor.__file__.startswith(os.getcwd() + os.sep), compressor.__file__; main()"
)


def comparable(value: Any) -> Any:
    """A report's JSON value without the keys that TAKEN_OUT names."""
    if isinstance(value, dict):
        return {key: comparable(entry) for key, entry in value.items() if key not in TAKEN_OUT}
    if isinstance(value, list):
        return [comparable(entry) for entry in value]
    return value


def first_difference(old: Any, new: Any, place: str = "") -> str | None:
    """Where two JSON values differ first, and how; None where they are the same, keys in the same order."""
    if isinstance(old, dict) and isinstance(new, dict):
        lost, added = [key for key in old if key not in new], [key for key in new if key not in old]
        if lost or added:
            return f"{place or 'top'}: without {lost}, with {added}"
        if list(old) != list(new):
            return f"{place or 'top'}: keys in another order, {list(old)} and {list(new)}"
        pairs = [(old[key], new[key], f"{place}.{key}" if place else key) for key in old]
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return f"{place or 'top'}: {len(old)} and {len(new)} entries"
        pairs = [(one, other, f"{place}[{index}]") for index, (one, other) in enumerate(zip(old, new, strict=True))]
    else:
        # 1, 1.0 and True are equal in Python and not in a file.
        return None if (type(old), old) == (type(new), new) else f"{place or 'top'}: {old!r} and {new!r}"
    return next((found for pair in pairs if (found := first_difference(*pair)) is not None), None)


def compare_runs(old: Path, new: Path) -> dict[str, str]:
    """For model.onnx and report.json of two run folders: "same", "absent", or the first difference."""
    found = {}
    for name in ("model.onnx", "report.json"):
        one, other = old / name, new / name
        if not (one.exists() and other.exists()):
            found[name] = ABSENT
        elif name == "model.onnx":
            digests = [sha256(path.read_bytes())[:12] for path in (one, other)]
            found[name] = SAME if digests[0] == digests[1] else f"sha256 {digests[0]}... and {digests[1]}..."
        else:
            found[name] = first_difference(*(comparable(read_json(path)) for path in (one, other))) or SAME
    return found


def table(differences: dict[str, dict[str, str]], unstable: dict[str, dict[str, str]]) -> str:
    """A line a recipe: whether each file is the same, and the first difference."""
    lines = [f"{'recipe':<26}{'model.onnx':<14}{'report.json':<14}first difference"]
    for recipe, found in differences.items():
        own = unstable.get(recipe, {})
        words = [_word(text, own.get(name, SAME)) for name, text in found.items()]
        told = "; ".join(f"{name} {text}" for name, text in found.items() if text != SAME)
        lines.append(f"{recipe:<26}{words[0]:<14}{words[1]:<14}{told or '-'}")
    return "\n".join(lines)


def is_change(differences: dict[str, dict[str, str]], unstable: dict[str, dict[str, str]]) -> bool:
    """Whether a file is absent, or differs though it is the same in two runs of the old code."""
    return any(
        text == ABSENT or (text != SAME and unstable.get(recipe, {}).get(name, SAME) == SAME)
        for recipe, found in differences.items()
        for name, text in found.items()
    )


def _word(text: str, own: str) -> str:
    if text in {SAME, ABSENT}:
        return text
    return "differs" if own == SAME else "not stable"


def for_digits(recipe: dict[str, Any], epochs: int) -> dict[str, Any]:
    """`recipe` as in its YAML, without its budget and, unless `epochs` is 0, with no more epochs in a training.

    Sparse training stays whole: its last epochs are those in which channels become zero.
    """
    stages = []
    for stage in recipe["stages"]:
        name, parameters = stage, {}
        if isinstance(stage, dict):
            ((name, parameters),) = stage.items()
        if epochs and "epochs" in parameters and name != "sparse_training":
            parameters = {**parameters, "epochs": min(parameters["epochs"], epochs)}
        stages.append({name: parameters} if parameters else name)
    return {"name": recipe["name"], "stages": stages}


def _tree(commit: str | None, out: Path) -> tuple[str, Path]:
    """The name and the root of the code of `commit`, unpacked below `out`; the working tree for None."""
    if commit is None:
        return WORKING_TREE, ROOT
    name = _git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
    tree = out / "trees" / name
    if not tree.exists():
        unpacked = tree.with_suffix(".part")
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", "--format=tar", name))) as archive:
            archive.extractall(unpacked, filter="data")
        unpacked.rename(tree)
    return name, tree


def _git(*arguments: str) -> bytes:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout


def _run(tree: Path, recipes: list[Path], folder: Path, cache: Path) -> Path:
    """Runs the recipes into `folder` by the code in `tree`; what is finished there is not run again."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in recipes}
    finished = folder / "recipes.json"
    if finished.exists() and read_json(finished) == texts:
        return folder
    settings = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "COMPRESSOR_CACHE": str(cache)}
    command = [sys.executable, "-c", PROGRAM, "compare", *map(str, recipes)]
    # Stages are known by what they were made from, so what other recipes began here does no harm.
    options = ["--workload", "digits", "--out", str(folder), "--quiet", "--accept-changes"]
    print(f"running the code in {tree} into {folder}", flush=True)
    done = subprocess.run([*command, *options], cwd=tree, env={**os.environ, **settings}, check=False)
    # 1 says that a recipe failed, which the table shows as absent files.
    if done.returncode not in {0, 1} or not (folder / "comparison.json").exists():
        raise SystemExit(f"the code in {tree} ended with {done.returncode}")
    for name, error in read_json(folder / "comparison.json")["failures"].items():
        print(f"  {name} failed: {error}")
    write_json(finished, texts)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", help="the commit before")
    parser.add_argument("new", nargs="?", help="the commit after; the working tree where it is left out")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=2, help="at most so many a training; 0 leaves recipes whole")
    parser.add_argument("--once", action="store_true", help="do not run the old commit twice")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "same_results")
    arguments = parser.parse_args()
    out = arguments.out.resolve() / (f"{arguments.epochs}-epochs" if arguments.epochs else "whole")
    recipes = []
    for name in arguments.recipes:
        path = out / "recipes" / f"{name}.yaml"
        whole = yaml.safe_load((ROOT / "recipes" / path.name).read_text(encoding="utf-8"))
        write_atomic(path, yaml.safe_dump(for_digits(whole, arguments.epochs), sort_keys=False))
        recipes.append(path)
    (old_name, old), (new_name, new) = _tree(arguments.old, out), _tree(arguments.new, out)
    # Nobody knows by which code a folder of the working tree was begun.
    shutil.rmtree(out / WORKING_TREE, ignore_errors=True)
    first = _run(old, recipes, out / f"{old_name}-first", out / "cache")
    unstable = {}
    if not arguments.once:
        second = _run(old, recipes, out / f"{old_name}-second", out / "cache")
        unstable = {name: compare_runs(first / name, second / name) for name in arguments.recipes}
        print(f"\n{old_name} against itself\n{table(unstable, {})}\n")
    latest = _run(new, recipes, out / new_name, out / "cache")
    differences = {name: compare_runs(first / name, latest / name) for name in arguments.recipes}
    print(f"\n{old_name} against {new_name}\n{table(differences, unstable)}")
    print(f"\ntaken out of report.json: {', '.join(sorted(TAKEN_OUT))}")
    if is_change(differences, unstable):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
