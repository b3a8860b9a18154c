"""What a comparison costs against workers, data and model: a formula, held against a simulation to 1000 workers.

    python -m benchmarks.compare.capacity [--structures 8] [--trainings 8] [--forms 8] [--per-machine 8]

The simulation works a tree of recipes as `compressor compare --workers` does: a free worker takes the run that begins
least like those under way, comes to stage after stage, waits for one that another worker is making, takes one that is
made, and times every file while the workers of its machine pause. The formula (docs/scale.md) is

    seconds = start + max(work / workers + send / 2, longest recipe) + files timed / machines + table

where `work` is the seconds of all different stages, `send` those until the last worker has data and model, of which
others have worked half, and `table` those of timing all files once at the end.
"""

import argparse
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.stored import RESULTS
from compressor.storage import write_json

RESULT = RESULTS / "capacity.json"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 125, 250, 500, 1000)
Recipe = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is to be done: recipes as names of stages, and the seconds of a stage by the names that lead to it.

    `timing_seconds` is what timing a file takes, `start_seconds` what a worker takes to be there, and `megabytes` of
    data and model are sent to each at so many `megabytes_per_second`, to one after the other.
    """

    recipes: tuple[Recipe, ...]
    seconds: dict[Recipe, float]
    timing_seconds: float = 4.0
    start_seconds: float = 10.0
    megabytes: float = 200.0
    megabytes_per_second: float = 100.0
    per_machine: int = 8

    @property
    def work(self) -> float:
        """The seconds of all different stages."""
        return sum(self.seconds.values())

    @property
    def longest(self) -> float:
        """The seconds of the longest recipe, which no number of workers shortens."""
        return max(sum(self.seconds[part] for part in prefixes(recipe)) for recipe in self.recipes)


def tree(structures: int, trainings: int, forms: int, *, epoch_seconds: float, seed: int = 0) -> Load:
    """Recipes of every combination; a training takes some twenty epochs, every stage varies by a third."""
    vary = random.Random(seed)  # noqa: S311 - durations, not secrets
    usual = {"s": 2 * epoch_seconds, "t": 20 * epoch_seconds, "f": epoch_seconds}
    recipes = tuple(
        (f"s{s}", f"t{t}", f"f{f}") for s, t, f in product(range(structures), range(trainings), range(forms))
    )
    parts = {part for recipe in recipes for part in prefixes(recipe)}
    seconds = {part: usual[part[-1][0]] * vary.uniform(2 / 3, 4 / 3) for part in sorted(parts)}
    return Load(recipes=recipes, seconds=seconds)


def prefixes(recipe: Recipe) -> Iterator[Recipe]:
    """The beginnings of a recipe, by which its stages are known."""
    return (recipe[: length + 1] for length in range(len(recipe)))


def predicted(load: Load, workers: int) -> float:
    """The formula, in seconds."""
    machines = math.ceil(workers / load.per_machine)
    busy = min(workers, len(load.recipes))
    return (
        load.start_seconds
        + max(load.work / busy + busy * load.megabytes / load.megabytes_per_second / 2, load.longest)
        + len(load.seconds) * load.timing_seconds / min(machines, busy)
        + len(load.recipes) * load.timing_seconds
    )


@dataclass
class Machine:
    """Times one file at a time, while its workers pause."""

    free: float = 0.0
    pauses: list[tuple[float, float]] = field(default_factory=list)

    def time_(self, at: float, seconds: float) -> float:
        """When a timing that is wanted `at` a moment is over."""
        begins = max(at, self.free)
        self.free = begins + seconds
        self.pauses.append((begins, self.free))
        return self.free

    def paused(self, since: float, until: float) -> float:
        """How long work between two moments stood still."""
        return sum(
            max(0.0, min(end, until) - max(begins, since)) for begins, end in reversed(self.pauses) if end > since
        )


@dataclass
class _Worker:
    machine: Machine
    since: float = 0.0
    paused: float = 0.0
    recipe: Recipe | None = None
    place: int = 0
    phase: str = "free"


def simulated(load: Load, workers: int) -> float:
    """The seconds until the table is there, in a simulation of every worker."""
    machines = [Machine() for _ in range(math.ceil(workers / load.per_machine))]
    busy = min(workers, len(load.recipes))
    team = [_Worker(machine=machines[number * len(machines) // busy]) for number in range(busy)]
    waiting, made = list(load.recipes), set[Recipe]()
    making: dict[Recipe, list[int]] = {}
    events: list[tuple[float, int, int]] = []
    count = 0

    def at(moment: float, number: int) -> None:
        nonlocal count
        count += 1
        heapq.heappush(events, (moment, count, number))

    def next_stage(moment: float, number: int) -> None:
        worker = team[number]
        while worker.recipe is not None:
            if worker.place == len(worker.recipe):
                worker.recipe = None
                break
            part = worker.recipe[: worker.place + 1]
            if part in made:
                worker.place += 1
            elif part in making:
                making[part].append(number)
                return
            else:
                making[part] = []
                worker.since, worker.paused, worker.phase = moment, 0.0, "work"
                at(moment + load.seconds[part], number)
                return
        if waiting:
            running = [each.recipe for each in team if each.recipe is not None]
            worker.recipe, worker.place = _apart(waiting, running), 0
            waiting.remove(worker.recipe)
            next_stage(moment, number)

    for number in range(busy):
        at(load.start_seconds + (number + 1) * load.megabytes / load.megabytes_per_second, number)
    moment = 0.0
    while events:
        moment, _, number = heapq.heappop(events)
        worker = team[number]
        if worker.phase == "work":
            stood = worker.machine.paused(worker.since, moment)
            if stood > worker.paused + 1e-9:
                more, worker.paused = stood - worker.paused, stood
                at(moment + more, number)
                continue
            worker.phase = "time"
            at(worker.machine.time_(moment, load.timing_seconds), number)
            continue
        if worker.phase == "time":
            assert worker.recipe is not None
            part = worker.recipe[: worker.place + 1]
            made.add(part)
            worker.phase = "free"
            for other in making.pop(part):
                next_stage(moment, other)
        next_stage(moment, number)
    return moment + len(load.recipes) * load.timing_seconds


def _apart(waiting: Sequence[Recipe], running: Sequence[Recipe]) -> Recipe:
    """As `compressor.comparing.runs.apart`: the first of those that begin least like those under way."""
    taken = {part for recipe in running for part in prefixes(recipe)}
    return min(waiting, key=lambda recipe: sum(part in taken for part in prefixes(recipe)))


def main() -> None:
    """Prints and stores the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--structures", type=int, default=8)
    parser.add_argument("--trainings", type=int, default=8)
    parser.add_argument("--forms", type=int, default=8)
    parser.add_argument("--epoch-seconds", type=float, default=30.0)
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    load = tree(options.structures, options.trainings, options.forms, epoch_seconds=options.epoch_seconds)
    rows = [row(load, workers) for workers in WORKERS]
    for each in rows:
        print(
            f"{each['workers']:5} workers: {each['minutes']:8.1f} minutes simulated, {each['predicted']:8.1f} by the "
            f"formula ({each['ratio']:.2f}x), {each['speedup']:.1f} times as fast as one"
        )
    asked = {name: getattr(options, name) for name in ("structures", "trainings", "forms", "epoch_seconds")}
    write_json(options.result, {"benchmark": "capacity", **asked, "recipes": len(load.recipes), "rows": rows})


def row(load: Load, workers: int) -> dict[str, Any]:
    """One number of workers: minutes simulated and predicted."""
    seconds, formula = simulated(load, workers), predicted(load, workers)
    return {
        "workers": workers,
        "minutes": round(seconds / 60, 2),
        "predicted": round(formula / 60, 2),
        "ratio": round(seconds / formula, 3),
        "speedup": round(simulated(load, 1) / seconds, 2),
    }


if __name__ == "__main__":
    main()
