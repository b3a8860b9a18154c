"""The options that several commands share, and the recipe and the workload that they name."""

from typing import TYPE_CHECKING, Annotated

import typer

from compressor.errors import WrongUseError

if TYPE_CHECKING:
    from compressor.recipe.recipe import Recipe
    from compressor.workload import Workload

WorkloadName = Annotated[
    str,
    typer.Option(
        "--workload",
        "-w",
        metavar="WORKLOAD",
        help="`digits`, `package.module:function` of yours that returns a compressor.Workload, or an ONNX file with "
        "arrays `inputs` and `targets`: `model.onnx:data.npz`.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replaces a value of the recipe; stages count from 0: `--set stages.0.remove=0.3 --set seed=3`.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Decides every random choice; by default the recipe's.")]
Threads = Annotated[int | None, typer.Option(min=1, help="ONNX Runtime threads; by default the recipe's or 1.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples per call; by default the recipe's or 1.")]
Accept = Annotated[
    bool, typer.Option("--accept-changes", help="Goes on in a folder whose recipe, data or versions were others.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Prints the path of the result and errors, nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Shows the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Prints JSON.")]


def recipe_of(source: str, settings: list[str] | None) -> "Recipe":
    """The recipe of a file or a shipped name, with the values of `--set`; raises RecipeError."""
    from compressor.recipe.recipe import Recipe

    return Recipe.load(source, overrides=settings or ())


def workload_of(name: str) -> "Workload":
    """The workload that the option names; raises WrongUseError with whatever kept it from being made."""
    from compressor.workloads import load

    try:
        return load(name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise WrongUseError(f"workload {name!r} cannot be had: {kind}{error}") from error
