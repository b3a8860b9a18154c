"""What `--dry-run` prints: the plan of a run in the words of its recipe, and an estimate of the time."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from compressor.recipe.recipe import Recipe
    from compressor.workload import Workload


def print_plan(recipe: "Recipe", workload: "Workload", seed: int) -> None:
    """Prints what a run of `recipe` with `seed` would do with `workload`, which is checked, and for how long.

    Raises WorkloadError for one that cannot work.
    """
    import yaml

    from compressor.running.order import segments
    from compressor.running.preflight import check_workload
    from compressor.running.time_estimate import estimated
    from compressor.running.without_data import not_scored, stages_without_data

    data = yaml.safe_load(recipe.dump())
    limits = {} if recipe.budget is None else vars(recipe.budget)
    known = {key: value for key, value in limits.items() if value is not None}
    budget = f"budget {_flow(known)}" if known else "no budget"
    lines = [f"{recipe.name}: {recipe.description}".rstrip(": "), f"seed {seed}, {budget}"]
    groups = segments(recipe.stages)
    for number, group in enumerate(groups, start=1):
        judged = "judged together" if len(group) > 1 else "judged alone"
        lines.append(f"segment {number} of {len(groups)}, {judged}")
        lines += [f"  stages.{index} {_in_words(data['stages'][index])}" for index in group]
    typer.echo("\n".join(lines))
    stages = recipe.stages if workload.metric.scored else stages_without_data(recipe.stages)
    checked = check_workload(workload, stages)
    if not workload.metric.scored:
        typer.secho(not_scored(workload), err=True, fg="yellow")
    typer.echo(
        f"workload {workload.name}: {type(workload.model).__name__}, judged by {workload.metric.name}; checks passed"
    )
    typer.echo(estimated(checked, recipe.stages))


def _in_words(stage: Any) -> str:
    """A stage in a recipe's own words, on one line."""
    return stage if isinstance(stage, str) else _flow(stage)[1:-1]


def _flow(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()
