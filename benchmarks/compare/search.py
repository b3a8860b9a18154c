"""A grid of 48 recipes run whole, then searched: the share of the hypervolume that was found, and that of the work.

    python -m benchmarks.compare.search [--workload digits] [--images N] [--epochs 9] [--eta 3 4] [--shipped int8 ...]
        [--out DIR] [--result FILE]

Points are (drop on validation, time as a part of the reference's, KiB), against the reference and the largest drop of
the grid; test data are not read. Each search, one for every `eta`, has a store of its own. What it made short of the
whole length counts as what it is: a file that may ship. A candidate's time is the one that the grid measured of it, for
its structure is the same at every length. Work is the seconds of the processor for stages, each made once, as a grid
would share them too; epochs of training stand beside them. Recipes drawn at random are those of the grid, whole, in 200
orders, until the next one would cost more than the search did. Shipped recipes that the digits' network can be given
are run whole, and told alone and all together, whatever they cost. What has ended is kept in DIR.
"""

import argparse
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.compare.cost import stages_by_the_processor
from benchmarks.data import cifar
from benchmarks.stored import RESULTS
from compressor import Recipe, Workload, search
from compressor.machine import environment
from compressor.searching.finals import newest
from compressor.searching.front import Point, beats, hypervolume
from compressor.searching.result import SearchResult
from compressor.searching.space import prefixes
from compressor.searching.trials import Trial
from compressor.storage import write_json
from compressor.target import Target
from compressor.workloads.digits import digits

GOALS = {"volume": 0.95, "work": 0.25}
_ORDERS = 200
# Of those that ship: what the digits' network can be given, one of each kind, and none that needs a student.
SHIPPED = ("int8", "int4", "prune_distill_int8", "drop_blocks_distill_int8", "merge_distill_int8", "slim_distill_int8")

SPACE = """
name: grid
stages:
  - sweep:
      - prune_channels: {{remove: {{sweep: [{widths}]}}}}
      - drop_blocks: {{remove: {{sweep: [{depths}]}}, scope: global}}
  - sweep:
      - distill: {{epochs: {epochs}}}
      - fine_tune: {{epochs: {epochs}}}
  - sweep: [null, quantize, {{quantize: {{weights: {{symmetric: {{bits: 4}}}}, rounding: gptq}}}}]
"""

# Eight structures each; the digits' network has four blocks that can go, and one has to stay.
STRUCTURES = {
    "digits": {"widths": "0.25, 0.4, 0.55, 0.7, 0.8", "depths": "0.25, 0.5, 0.75"},
    "resnet20": {"widths": "0.25, 0.4, 0.55, 0.7", "depths": "0.17, 0.34, 0.5, 0.67"},
}

WORKLOADS: dict[str, Callable[[int | None], Workload]] = {
    "digits": lambda _: digits(progress=False),
    "resnet20": lambda images: cifar.around(cifar.resnet20().model, "cifar10-resnet20", train_images=images),
}


def main() -> None:
    """Runs the grid and the search, and stores what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), default="digits")
    parser.add_argument("--images", type=int, default=None, help="training images of ResNet-20; by default all")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--eta", type=int, nargs="+", default=[3, 4], help="how much longer each rung trains")
    parser.add_argument("--shipped", nargs="*", default=list(SHIPPED), help="recipes by name to stand beside")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--result", type=Path, default=None, help="by default one for each workload")
    options = parser.parse_args()
    recipes = Recipe.loads_all(SPACE.format(epochs=options.epochs, **STRUCTURES[options.workload]))
    workload = WORKLOADS[options.workload](options.images)
    where = environment(Target())
    with stages_by_the_processor():
        folder = options.out / "-".join(map(str, filter(None, (options.workload, options.images, options.epochs))))
        found = measured(workload, recipes, folder, etas=options.eta, shipped=options.shipped)
    print(line(found), flush=True)
    asked = {"workload": options.workload, "images": options.images, "epochs": options.epochs}
    own = RESULTS / ("search.json" if options.workload == "digits" else f"search-{options.workload}.json")
    write_json(options.result or own, {"benchmark": "search", "environment": where, **asked, **found})


def measured(
    workload: Workload,
    recipes: Sequence[Recipe],
    out: Path,
    *,
    etas: Sequence[int] = (3,),
    shipped: Sequence[str] = (),
) -> dict[str, Any]:
    """The shares of volume and work of searches among `recipes`, beside those of random recipes at their cost.

    And beside those of the `shipped` recipes by name.
    """
    # One rung is the whole length: with it every recipe is run as it is.
    grid = search(workload, recipes, out=out / "grid", max_drop=None, rungs=1)
    _refuse_failed(grid)
    reference = grid.rows[0]
    points = {trial.candidate: _point(trial, trial) for trial in grid.trials}
    limit = (max(point[0] for point in points.values()) + 1e-3, 1.0, reference.size_bytes / 1024)
    whole = hypervolume(list(points.values()), limit)
    own = {trial.candidate: trial for trial in grid.trials}
    costs = _costs(grid.trials)
    searches, made = [], []
    for eta in etas:
        searched = search(workload, recipes, out=out / f"search-{eta}", max_drop=None, eta=eta)
        _refuse_failed(searched)
        found = [_point(trial, own[trial.candidate]) for trial in newest(searched.trials)]
        drawn = [_random_volume(costs, points, limit, searched.made_seconds, seed) for seed in range(_ORDERS)]
        made += found
        searches.append(
            {
                "eta": eta,
                "trials": len(searched.trials),
                "volume": round(hypervolume(found, limit) / whole, 4),
                "random_volume": round(fmean(drawn) / whole, 4),
                "work": round(searched.made_seconds / grid.made_seconds, 4),
                "epochs_of_training": round(epochs_of(searched.trials) / epochs_of(grid.trials), 4),
                "minutes": round(searched.made_seconds / 60, 2),
                "finalists": [row.name for row in searched.rows[1:]],
            }
        )
    return {
        "recipes": len(recipes),
        "grid_minutes": round(grid.made_seconds / 60, 2),
        "searches": searches,
        "goals": GOALS,
        **(
            _shipped(
                workload, shipped, out / "shipped", limit=limit, whole=whole, grid_seconds=grid.made_seconds, made=made
            )
            if shipped
            else {}
        ),
    }


def _refuse_failed(result: SearchResult) -> None:
    """Raises RuntimeError where a trial failed: the shares would be of another grid."""
    lost = [trial.recipe_name for trial in result.trials if not trial.ended]
    if lost:
        raise RuntimeError(f"trials failed: {lost}")


def _shipped(
    workload: Workload,
    names: Sequence[str],
    out: Path,
    *,
    limit: Point,
    whole: float,
    grid_seconds: float,
    made: Sequence[Point],
) -> dict[str, Any]:
    """What the shipped recipes give: volume and work of each against the grid's, and who has a point that beats it."""
    result = search(workload, list(names), out=out, max_drop=None, rungs=1)
    ended = [trial for trial in result.trials if trial.ended]
    points = {trial.candidate: _point(trial, trial) for trial in ended}
    rows = [
        {
            "recipe": trial.candidate,
            "volume": round(hypervolume([points[trial.candidate]], limit) / whole, 4),
            "work": round(trial.made_seconds / grid_seconds, 4),
            "beaten_by_the_search": any(beats(point, points[trial.candidate]) for point in made),
            "beats_all_of_the_search": all(beats(points[trial.candidate], point) for point in made),
        }
        for trial in ended
    ]
    return {
        "shipped": rows,
        "shipped_failed": [trial.candidate for trial in result.trials if not trial.ended],
        "shipped_volume": round(hypervolume(list(points.values()), limit) / whole, 4),
        "shipped_work": round(result.made_seconds / grid_seconds, 4),
    }


def epochs_of(trials: Sequence[Trial]) -> int:
    """The epochs of all trainings of `trials`, each counted once that several share."""
    made: dict[str, int] = {}
    for trial in trials:
        recipe = Recipe.loads(trial.recipe)
        for key, stage in zip(prefixes(recipe), recipe.stages, strict=True):
            made[key] = getattr(stage, "epochs", 0) + getattr(stage, "tail_epochs", 0)
    return sum(made.values())


def _point(trial: Trial, timed: Trial) -> Point:
    """A trial's drop and KiB, and the time of its candidate as a part of the reference's."""
    return (trial.drop.value, 1.0 / timed.speedup.value, trial.size_bytes / 1024)


def _random_volume(
    costs: Mapping[str, Mapping[str, float]], points: Mapping[str, Point], limit: Point, seconds: float, seed: int
) -> float:
    """The volume of whole recipes in a random order, each stage paid once, for at most so many `seconds`.

    `costs` are the seconds of the stages of each, by what they are.
    """
    order = list(costs)
    random.Random(seed).shuffle(order)  # noqa: S311 - an order, not a secret
    paid: set[str] = set()
    spent, taken = 0.0, []
    for name in order:
        cost = sum(each for key, each in costs[name].items() if key not in paid)
        if spent + cost > seconds:
            break
        spent += cost
        paid.update(costs[name])
        taken.append(points[name])
    return hypervolume(taken, limit)


def _costs(trials: Sequence[Trial]) -> dict[str, dict[str, float]]:
    """The seconds of every stage of each trial's candidate: what the trial that made them spent, by their epochs."""
    known: dict[str, float] = {}
    found = {}
    for trial in trials:
        recipe = Recipe.loads(trial.recipe)
        keys = dict(zip(prefixes(recipe), recipe.stages, strict=True))
        new = {key: 1 + 10 * getattr(stage, "epochs", 0) for key, stage in keys.items() if key not in known}
        known |= {key: trial.made_seconds * weight / sum(new.values()) for key, weight in new.items()}
        found[trial.candidate] = {key: known[key] for key in keys}
    return found


def line(found: dict[str, Any]) -> str:
    """What came of it, in a line for each search."""
    wanted = f"at least {GOALS['volume']:.0%} for at most {GOALS['work']:.0%} wanted"
    lines = [
        f"eta {each['eta']}: {each['volume']:.1%} of the volume of {found['recipes']} recipes for {each['work']:.1%} "
        f"of the work ({wanted}), {each['epochs_of_training']:.1%} of the epochs; at random {each['random_volume']:.1%}"
        for each in found["searches"]
    ]
    if "shipped" in found:
        lines.append(f"all shipped recipes: {found['shipped_volume']:.1%} for {found['shipped_work']:.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
