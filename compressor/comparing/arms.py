"""The runs that a comparison is made of: every recipe once for each seed, and the controls beside them."""

import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from compressor.comparing.controls import Control, controls_of
from compressor.errors import RecipeError
from compressor.recipe.recipe import Recipe
from compressor.recipe.sweeps import MOST_RECIPES, name_of
from compressor.running.pipeline import Pipeline
from compressor.stage import stage_name
from compressor.target import Target

REFERENCE = "reference"
# The folder of a comparison in which its stages are kept where no other store is given.
SHARED = "shared"
# What a comparison itself writes in its folder, in which each recipe has one of its own.
TIMES, DATA = "times.json", "comparison.json"
PAGES = ("comparison.md", "comparison.html", "comparison.svg", "comparison.csv")
_RESERVED = {REFERENCE, SHARED, TIMES, DATA, *PAGES}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run: of which row of the table it is, its folder by name, its pipeline, and its seed.

    `control` is the kind of a control, "" for a recipe.
    """

    row: str
    folder: str
    pipeline: Pipeline
    seed: int
    control: str = ""


@dataclass(frozen=True, kw_only=True)
class Controls:
    """The runs to compare with, and which rows are whose: by recipe and kind. Recipes with equal ones share them."""

    arms: tuple[Arm, ...] = ()
    rows: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def arms_of(plans: Mapping[str, Recipe | Pipeline], *, seed: int | None, seeds: int) -> list[Arm]:
    """The runs of `plans`, `seeds` of each, counted up from `seed` or the recipe's own.

    Raises RecipeError that names the recipes, and the values chosen, that cannot work.
    """
    pipelines = _pipelines(plans)
    _refuse_two_seeds(plans, seed)
    taken = {*plans, *_RESERVED}
    found = []
    for name, plan in plans.items():
        first = seed if seed is not None else plan.seed if isinstance(plan, Recipe) else 0
        found += _seeded(name, pipelines[name], first, seeds, taken)
    return found


def controls_beside(arms: Sequence[Arm], *, seeds: int) -> Controls:
    """The controls of every recipe in `arms` that has any, with as many seeds."""
    firsts = {arm.row: arm for arm in reversed(arms)}
    owners: list[tuple[Control, int, list[str]]] = []
    for row in dict.fromkeys(arm.row for arm in arms):
        seed = firsts[row].seed
        for control in controls_of(firsts[row].pipeline.stages):
            known = next((rows for other, at, rows in owners if (other, at) == (control, seed)), None)
            if known is None:
                owners.append((control, seed, [row]))
            else:
                known.append(row)
    alone = Counter(control.kind for control, _, _ in owners)
    taken = {*_RESERVED, *(name for arm in arms for name in (arm.row, arm.folder))}
    found: list[Arm] = []
    by_recipe: dict[str, dict[str, str]] = {}
    for control, seed, rows in owners:
        kind = f"control-{control.kind.replace(' ', '_')}"
        name = free_name(kind if alone[control.kind] == 1 else name_of(kind, rows[0]), taken)
        taken.add(name)
        found += _seeded(name, _control_pipeline(control), seed, seeds, taken, control=control.kind)
        for row in rows:
            by_recipe.setdefault(row, {})[control.kind] = name
    return Controls(arms=tuple(found), rows=by_recipe)


def named(plans: Sequence[Recipe | Pipeline]) -> dict[str, Recipe | Pipeline]:
    """The plans by names that differ, as each has a folder of its own."""
    found: dict[str, Recipe | Pipeline] = {}
    for plan in plans:
        name = plan.name if isinstance(plan, Recipe) else "-".join(map(stage_name, plan.stages))[:80]
        found[free_name(name, {*found, *_RESERVED})] = plan
    if len(found) > MOST_RECIPES:
        told = f"{len(found)} recipes are given, and at most {MOST_RECIPES} are compared; give fewer, or fewer values"
        raise RecipeError([told])
    return found


def common_target(plans: Sequence[Recipe | Pipeline]) -> Target:
    """The load that all recipes ask for. Raises RecipeError where they ask for different ones."""
    targets = {plan.target() for plan in plans if isinstance(plan, Recipe)} or {Target()}
    if len(targets) > 1:
        loads = ", ".join(sorted(f"batch_size={one.batch_size} threads={one.threads}" for one in targets))
        told = (
            f"the recipes ask for different loads ({loads}), whose times cannot be compared; "
            "give one for all (target=Target(...), --batch-size, --threads)"
        )
        raise RecipeError([told])
    return targets.pop()


def _refuse_two_seeds(plans: Mapping[str, Recipe | Pipeline], seed: int | None) -> None:
    """Raises RecipeError where `seed` would take the place of the seeds that a sweep gives recipes their names by."""
    swept = [
        name
        for name, plan in plans.items()
        if isinstance(plan, Recipe) and any(choice.startswith("seed=") for choice in plan.choices)
    ]
    if seed is not None and swept:
        told = f"seed={seed} is one seed for all, and {swept[0]} is of a sweep over seeds; give one of both"
        raise RecipeError([told])


def _seeded(name: str, pipeline: Pipeline, first: int, seeds: int, taken: set[str], *, control: str = "") -> list[Arm]:
    """The runs of a row, whose first one has its name; the names of the others are added to those `taken`."""
    found = []
    for seed in range(first, first + seeds):
        folder = name if seed == first else free_name(f"{name}-seed_{seed}", taken)
        taken.add(folder)
        found.append(Arm(row=name, folder=folder, pipeline=pipeline, seed=seed, control=control))
    return found


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or the first of "name-2", "name-3" and so on that is not among `taken`."""
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}-{count}"
    return found


def _control_pipeline(control: Control) -> Pipeline:
    # What is doubtful in the recipe was said of the recipe; a control is kept whatever it gives.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Pipeline(control.stages)


def _pipelines(plans: Mapping[str, Recipe | Pipeline]) -> dict[str, Pipeline]:
    found: dict[str, Pipeline] = {}
    errors: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, plan in plans.items():
            try:
                found[name] = Pipeline.from_recipe(plan) if isinstance(plan, Recipe) else plan
            except ValueError as error:
                chosen = f" ({', '.join(plan.choices)})" if isinstance(plan, Recipe) and plan.choices else ""
                errors.append(f"{name}{chosen}: {error}")
    if errors:
        raise RecipeError(errors)
    # What is doubtful in one recipe of a sweep is so in most of them, and said once.
    for text, category in dict.fromkeys((str(each.message), each.category) for each in caught):
        warnings.warn(text, category, stacklevel=4)
    return found
