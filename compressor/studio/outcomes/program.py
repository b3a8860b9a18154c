"""A run of the studio as a program: the Python that does what its recipe does."""

import dataclasses
from typing import Any

from compressor import stages as catalogue
from compressor.recipe.models import default_of
from compressor.recipe.recipe import Recipe


def program(recipe: Recipe, workload: str, out: str) -> str:
    """Python that runs `recipe` on the workload that the command line calls `workload`, into the folder `out`."""
    values = [*recipe.stages, *recipe.evaluations]
    names = sorted({name for value in values for name in _names(value)})
    ours = [name for name in names if hasattr(catalogue, name)]
    lines = [
        f"from compressor import {', '.join(sorted({'Pipeline', 'Target', *names} - set(ours)))}",
        f"from compressor.stages import {', '.join(ours)}",
        "from compressor.workloads import load",
        "",
        "pipeline = Pipeline(",
        "    [",
        *(f"        {_code(stage)}," for stage in recipe.stages),
        "    ],",
        *([f"    evaluations=[{', '.join(map(_code, recipe.evaluations))}],"] if recipe.evaluations else []),
        ")",
        f"target = Target(batch_size={recipe.batch_size or 1}, threads={recipe.threads or 1})",
        f"pipeline.run(load({workload!r}), target=target, out={out!r}, seed={recipe.seed})",
    ]
    return "\n".join(lines) + "\n"


def _code(value: Any) -> str:
    """`value` as an expression, without what is at its default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return repr(value)
    given = [
        f"{field.name}={_code(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if field.init and getattr(value, field.name) != default_of(field)
    ]
    return f"{type(value).__name__}({', '.join(given)})"


def _names(value: Any) -> set[str]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return set()
    changed = [field for field in dataclasses.fields(value) if getattr(value, field.name) != default_of(field)]
    return {type(value).__name__}.union(*(_names(getattr(value, field.name)) for field in changed))
