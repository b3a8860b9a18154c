"""The options of a cross-validation, the workload that it is about, and what it says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compressor.cli.exits import BUDGET_NOT_MET
from compressor.cli.options import place_of
from compressor.errors import WrongUseError

if TYPE_CHECKING:
    from functools import partial

    from compressor.running.folds.crossing import CrossValidation
    from compressor.workload import Workload

Folds = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Cross-validates: K parts of the samples test in turn, each in a run of its own. The workload is then a "
        "function of the fold, which trains the reference anew, or see `--reference`.",
    ),
]
Repeats = Annotated[int | None, typer.Option(help="With `--folds`: in how many ways samples are parted; 1 by default.")]
FoldsReference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="anew|given",
        help="With `--folds`: `given` for one trained model in all folds, which part what it was not trained on.",
    ),
]


def check_folds(folds: int | None, *, repeats: int | None, reference: str | None, runs: bool) -> None:
    """Raises WrongUseError for options of folds without any, and for folds where nothing `runs` into a folder."""
    if folds is not None and not runs:
        raise WrongUseError("--folds needs --out, the folder of all runs, and has no --dry-run")
    if folds is None and (repeats is not None or reference is not None):
        raise WrongUseError("--repeats and --reference are about --folds, which is missing")


def workload_of_folds(name: str, load: "partial[Workload]", *, reference: str | None) -> Any:
    """The function of the fold that the option names, or what `load()` gives where it names none.

    Raises WrongUseError where it cannot be had, and for options of `load` that a function of the fold does not hear of.
    """
    from compressor.workloads import load_of_fold

    if reference not in {None, "anew", "given"}:
        raise WrongUseError(f"--reference is anew or given, got {reference!r}")
    try:
        function = load_of_fold(name)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise WrongUseError(f"workload {name!r} cannot be had{place_of(error)}: {error}") from error
    # The ready one is both: a function of the fold, and a workload whose model is trained.
    if function is None or (name == "digits" and reference == "given"):
        return load()
    unheard = [option for option, value in load.keywords.items() if value not in (None, "free")]
    if unheard:
        told = ", ".join(f"--{option.replace('_', '-')}" for option in unheard)
        raise WrongUseError(f"{told} has no say in a function of the fold; let the workload that it returns say so")
    return function


def tell_folds(crossed: "CrossValidation", out: Path, *, quiet: bool, as_json: bool) -> None:
    """Prints what a cross-validation in the folder `out` found; exits with the code of a budget that a fold missed."""
    if as_json:
        typer.echo(json.dumps(crossed.to_json(), indent=2))
    else:
        if not quiet:
            crossed.print()
        typer.echo(str(out / "folds.html"))
    if crossed.budgets_met < len(crossed.rows):
        told = f"the budget is met in {crossed.budgets_met} of {len(crossed.rows)} folds"
        typer.secho(f"{told}; their reports say by how much it is missed", err=True, fg="yellow")
        raise typer.Exit(BUDGET_NOT_MET)
