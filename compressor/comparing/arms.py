"""The runs that a comparison is made of: every recipe once for each seed, and the controls beside them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compressor.comparing.controls import Control, controls_of
from compressor.errors import RecipeError
from compressor.recipe.recipe import Recipe
from compressor.running.pipeline import Pipeline
from compressor.stage import stage_name
from compressor.target import Target

REFERENCE = "reference"


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


def arms_of(plans: Mapping[str, Recipe | Pipeline], *, seed: int | None, seeds: int) -> list[Arm]:
    """The runs of `plans`, `seeds` of each, counted up from `seed` or the recipe's own.

    Raises RecipeError that names the recipes, and the values chosen, that cannot work.
    """
    pipelines = _pipelines(plans)
    found = []
    for name, plan in plans.items():
        first = seed if seed is not None else plan.seed if isinstance(plan, Recipe) else 0
        found += _seeded(name, pipelines[name], first, seeds)
    return found


def control_arms(of: Arm, *, seeds: int) -> list[Arm]:
    """The controls of `of`, the first run of its row, with as many seeds."""
    found = []
    for control in controls_of(of.pipeline.stages):
        name = f"control-{control.kind.replace(' ', '_')}"
        found += _seeded(name, _control_pipeline(control), of.seed, seeds, control=control.kind)
    return found


def named(plans: Sequence[Recipe | Pipeline]) -> dict[str, Recipe | Pipeline]:
    """The plans by names that differ, as each has a folder of its own."""
    found: dict[str, Recipe | Pipeline] = {}
    for plan in plans:
        name = plan.name if isinstance(plan, Recipe) else "-".join(map(stage_name, plan.stages))[:80]
        count = 1
        while (unique := name if count == 1 else f"{name}-{count}") in found or unique == REFERENCE:
            count += 1
        found[unique] = plan
    return found


def common_target(plans: Sequence[Recipe | Pipeline]) -> Target:
    """The load that all recipes ask for. Raises ValueError where they ask for different ones."""
    targets = {plan.target() for plan in plans if isinstance(plan, Recipe)} or {Target()}
    if len(targets) > 1:
        loads = ", ".join(sorted(f"batch_size={one.batch_size} threads={one.threads}" for one in targets))
        raise ValueError(
            f"the recipes ask for different loads ({loads}), whose times cannot be compared; "
            "give one for all (target=Target(...), --batch-size, --threads)"
        )
    return targets.pop()


def _seeded(name: str, pipeline: Pipeline, first: int, seeds: int, *, control: str = "") -> list[Arm]:
    return [
        Arm(
            row=name,
            folder=name if number == 0 else f"{name}-seed_{first + number}",
            pipeline=pipeline,
            seed=first + number,
            control=control,
        )
        for number in range(seeds)
    ]


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
