"""ResNet-56 by a search: what `compressor auto` finds within an hour on this machine, and where the hour went.

    python -m benchmarks.compare.headline [--minutes 60] [--max-drop 0.01] [--space FILE ...] [--workload resnet56]
        [--out DIR] [--result FILE]

Without `--space` it is the search that a user has who says nothing but the limit. Trials are judged on half of the test
images, and the finalists, timed together, are told on the other half, which nothing else reads. A killed search goes on
where it was; seconds of the wall are then those of the last call.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.compare.tree import tiny
from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor import Workload, search
from compressor.machine import environment
from compressor.searching.result import SearchResult
from compressor.storage import json_safe, write_json
from compressor.target import Target

RESULT = RESULTS / "headline.json"
GOALS = {"speedup": 10.0, "smaller": 12.0, "drop": 0.005}
WORKLOADS: dict[str, Callable[[], Workload]] = {**cifar.WORKLOADS, "tiny": tiny}


def main() -> None:
    """Searches, prints what was found and stores it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), default="resnet56")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--space", nargs="+", default=None, help="recipes with sweeps; by default the usual ones")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-headline"))
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    where, began = environment(Target()), perf_counter()
    workload = WORKLOADS[options.workload]()
    found = search(workload, options.space, out=options.out, max_drop=options.max_drop, minutes=options.minutes)
    asked = {"workload": options.workload, "minutes": options.minutes, "max_drop": options.max_drop}
    told = {**asked, "wall_minutes": round((perf_counter() - began) / 60, 1), "goals": GOALS, **told_of(found)}
    found.print()
    write_json(options.result, {"benchmark": "headline", "environment": where, **told})


def told_of(found: SearchResult) -> dict[str, Any]:
    """What is stored of a search: why, the finalists on test data, every trial on validation data, and its minutes."""
    reference = found.rows[0]
    finalists = [
        {
            "name": row.name,
            "ships": found.recipe is not None and row.name == found.recipe.name,
            "score": vars(row.score),
            "drop": None if row.drop is None else vars(row.drop),
            "speedup": vars(row.speedup),
            "size_bytes": row.size_bytes,
            "smaller": round(reference.size_bytes / row.size_bytes, 2),
        }
        for row in found.rows
    ]
    trials = [
        {
            "name": trial.recipe_name,
            "rung": trial.rung,
            "error": trial.error,
            "drop": round(trial.drop.value, 5),
            "speedup": round(trial.speedup.value, 3),
            "size_bytes": trial.size_bytes,
            "minutes": round(trial.made_seconds / 60, 2),
        }
        for trial in found.trials
    ]
    recipe = None if found.recipe is None else found.recipe.dump()
    told = {"why": found.why, "told": found.told, "recipe": recipe, "finalists": finalists, "trials": trials}
    safe: dict[str, Any] = json_safe(told)
    return safe


if __name__ == "__main__":
    main()
