"""The command line: run, compare, doctor, stages. Only typer is imported at the top, so that --help answers at once."""

import shlex
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from compressor.recipe import Recipe
    from compressor.workload import Workload

FAILED, WRONG_USE, BUDGET_NOT_MET = 1, 2, 3

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Makes PyTorch models smaller and faster, and measures what came of it as the ONNX file you would ship.

Try it: `compressor run int8 --workload digits --out runs/first`

Exit codes: 0 done, 1 failed, 2 wrong use, 3 budget not met, 130 interrupted.""",
)

WorkloadName = Annotated[
    str,
    typer.Option(
        "--workload",
        "-w",
        metavar="NAME|MODULE:FUNCTION",
        help="`digits`, or `package.module:function` of yours that returns a compressor.Workload.",
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


def _print_version(asked: bool) -> None:  # noqa: FBT001  # typer calls it with the flag
    if asked:
        from compressor import __version__

        typer.echo(f"compressor {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Prints the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    del version  # its callback has answered


@app.command()
def run(
    *,
    recipe: Annotated[str, typer.Argument(help="A YAML file, or a shipped recipe such as int8 or prune_distill_int8.")],
    workload: WorkloadName,
    out: Annotated[Path | None, typer.Option(help="Folder of the result: model.onnx, report.html, .md, .json.")] = None,
    settings: Settings = None,
    seed: Seed = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prints the plan and checks the workload; no work.")
    ] = False,
    accept_changes: Accept = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compresses a workload by a recipe.

    `compressor run drop_blocks_distill_int8 --workload digits --out runs/digits`

    `compressor run mine.yaml -w my_models.resnet:workload --out runs/mine --set stages.0.remove=0.3`

    A run that was stopped goes on where it was when the same command is given again.
    """
    with _reported(verbose=verbose):
        plan = _recipe(recipe, settings)
        from compressor.pipeline import Pipeline, PipelineWarning

        warnings.simplefilter("always", PipelineWarning)
        pipeline = _used(lambda: Pipeline.from_recipe(plan))
        found, target = _workload(workload), plan.target(batch_size=batch_size, threads=threads)
        chosen = plan.seed if seed is None else seed
        if dry_run:
            _print_plan(plan, found, chosen)
            return
        if out is None:
            raise _WrongUseError("--out is missing: the folder for model.onnx and the report, such as --out runs/first")
        result = pipeline.run(
            found, target=target, out=out, seed=chosen, progress=not quiet, accept_changes=accept_changes
        )
        if not quiet:
            result.report.print()
        typer.echo(str(result.artifact.path))
        if not result.report.budget_met:
            typer.secho("the budget is not met; the report says by how much", err=True, fg="yellow")
            raise typer.Exit(BUDGET_NOT_MET)


@app.command()
def compare(
    *,
    recipes: Annotated[list[str], typer.Argument(help="YAML files or names of shipped recipes.")],
    workload: WorkloadName,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; every recipe gets a folder in it.")],
    settings: Settings = None,
    seed: Seed = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    accept_changes: Accept = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Runs several recipes on one workload: one table and one picture, accuracy against latency and size.

    `compressor compare int8 prune_distill_int8 drop_blocks_distill_int8 --workload digits --out runs/compared`

    A recipe that fails is shown with its error and the others go on. Exit code 1 where one failed, 3 where none met its
    budget.
    """
    with _reported(verbose=verbose):
        plans = [_recipe(name, settings) for name in recipes]
        from compressor.comparison import compare as compare_recipes
        from compressor.pipeline import PipelineWarning
        from compressor.target import Target

        warnings.simplefilter("always", PipelineWarning)
        asked = batch_size is not None or threads is not None
        target = Target(batch_size=batch_size or 1, threads=threads or 1) if asked else None
        found = _workload(workload)
        comparison = compare_recipes(
            plans,
            found,
            target=target,
            out=out,
            seed=seed,
            progress=not quiet,
            accept_changes=accept_changes,
        )
        if not quiet:
            comparison.print()
        typer.echo(str(out / "comparison.html"))
        if comparison.failures:
            for name, error in comparison.failures.items():
                typer.secho(f"{name} failed: {error}", err=True, fg="red")
            raise typer.Exit(FAILED)
        if not comparison.any_budget_met:
            typer.secho("no recipe met its budget", err=True, fg="yellow")
            raise typer.Exit(BUDGET_NOT_MET)


@app.command()
def doctor(
    *,
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            "-w",
            metavar="NAME|MODULE:FUNCTION",
            help="Looks into this workload's model instead of the machine.",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Writes the recommended recipe there.")
    ] = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Tells what this machine can do, or what of a model can be made smaller.

    `compressor doctor`

    `compressor doctor --workload digits --recipe mine.yaml`

    Without a workload: versions, CPU features that matter, and what ONNX Runtime makes of them; exit code 1 where
    something that is needed is missing. With one: the blocks and widths that can go with their share of the time, what
    is locked and why, what would be left at best, and a recipe that suits.
    """
    with _reported(verbose=verbose):
        if workload is not None:
            _inspect(workload, recipe=recipe, threads=threads, batch_size=batch_size, as_json=as_json)
            return
        if recipe is not None or threads is not None or batch_size is not None:
            raise _WrongUseError("--recipe, --threads and --batch-size are about a model; name one with --workload")
        from compressor.doctor import diagnose

        diagnosis = diagnose()
        if as_json:
            _print_json(diagnosis.to_json())
        else:
            diagnosis.print()
        if not diagnosis.healthy:
            raise typer.Exit(FAILED)


@app.command()
def stages(
    *,
    name: Annotated[str | None, typer.Argument(help="One stage, such as distill; without it, all of them.")] = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Prints the JSON schema of recipes, for editors.")] = False,
    verbose: Verbose = False,
) -> None:
    """The stages that a recipe can name, with their parameters and defaults.

    `compressor stages`

    `compressor stages prune_channels`

    `compressor stages --schema > recipe.schema.json`
    """
    with _reported(verbose=verbose):
        from compressor.recipe import Recipe
        from compressor.recipe_errors import did_you_mean
        from compressor.stage_listing import listing, print_listing

        if schema:
            _print_json(Recipe.json_schema())
            return
        entries = listing()
        if name is not None and name not in entries:
            raise _WrongUseError(f"unknown stage {name!r}{did_you_mean(name, entries)} (known: {', '.join(entries)})")
        shown = list(entries.values()) if name is None else [entries[name]]
        if as_json:
            _print_json([entry.to_json() for entry in shown] if name is None else shown[0].to_json())
        else:
            print_listing(shown, whole=name is not None)


def main() -> None:
    """The console command."""
    app()


class _WrongUseError(Exception):
    """What the caller can put right: exit code 2."""


class _Terminated(KeyboardInterrupt):
    pass


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _Terminated


@contextmanager
def _reported(*, verbose: bool) -> Iterator[None]:
    """Turns what goes wrong into a line on stderr and an exit code, and warnings into lines on stderr."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            yield
    except KeyboardInterrupt as error:
        # A second Ctrl-C must not wait for anything.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        typer.secho(f"\nstopped; what is finished is kept. To go on: {_command()}", err=True, fg="yellow")
        raise typer.Exit(143 if isinstance(error, _Terminated) else 130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # noqa: BLE001  # every error ends in a sentence and an exit code
        if verbose:
            import traceback

            traceback.print_exc()
        code = WRONG_USE if _is_wrong_use(error) else FAILED
        hint = "" if verbose or _is_expected(error) else " (run again with -v for the traceback)"
        typer.secho(f"error: {_text(error)}{hint}", err=True, fg="red")
        raise typer.Exit(code) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_wrong_use(error: Exception) -> bool:
    # By name: importing their modules loads torch, which may be the very thing that is missing.
    names = {kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("compressor.")}
    return isinstance(error, _WrongUseError) or bool(names & {"RecipeError", "WorkloadError"})


def _is_expected(error: Exception) -> bool:
    """Whether the error is one that the package explains itself, rather than a fault in it."""
    # RunFolderError, StageError and ExportError are all of them made with a sentence for people.
    return _is_wrong_use(error) or isinstance(error, OSError) or type(error).__module__.startswith("compressor.")


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = str(error) or "it gave no reason"
    return text if type(error).__module__.startswith("compressor.") else f"{type(error).__name__}: {text}"


def _used(action: Any) -> Any:
    """The result of `action`, whose refusals are the caller's to put right."""
    try:
        return action()
    except ValueError as error:
        raise _WrongUseError(str(error)) from error


def _recipe(source: str, settings: list[str] | None) -> "Recipe":
    from compressor.recipe import Recipe

    return Recipe.load(source, overrides=settings or ())


def _workload(name: str) -> "Workload":
    from compressor.workloads import load

    if str(Path.cwd()) not in sys.path:
        # A console script's path begins with the script's folder, not with where the user stands.
        sys.path.insert(0, str(Path.cwd()))
    try:
        return load(name)
    except Exception as error:  # whatever the user's module raises
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise _WrongUseError(f"workload {name!r} cannot be had: {kind}{error}") from error


def _inspect(name: str, *, recipe: Path | None, threads: int | None, batch_size: int | None, as_json: bool) -> None:
    from compressor.doctor import Grade, check_load
    from compressor.inspection import inspect
    from compressor.inspection_text import print_inspection
    from compressor.preflight import check_workload
    from compressor.recommendation import recommend
    from compressor.storage import write_atomic
    from compressor.target import Target

    found = _workload(name)
    check_workload(found)
    target = Target(batch_size=batch_size or 1, threads=threads or 1)
    inspection = inspect(found, target=target)
    recommended = recommend(inspection, target)
    if as_json:
        _print_json({**inspection.to_json(), "recipe": recommended.text if recommended else None})
    else:
        print_inspection(inspection, recommended)
        for finding in check_load():
            if finding.grade is not Grade.GOOD:
                typer.secho(f"note: load {finding.says}", err=True, fg="yellow")
    if recipe is not None and recommended is not None:
        write_atomic(recipe, recommended.text)
        typer.secho(f"wrote {recipe}; to run it: compressor run {recipe} -w {name} --out runs/{recipe.stem}", err=True)


def _print_plan(recipe: "Recipe", workload: "Workload", seed: int) -> None:
    from compressor.order import segments
    from compressor.preflight import check_workload
    from compressor.stage import stage_name

    lines = [f"{recipe.name}: {recipe.description}".rstrip(": "), f"seed {seed}, {recipe.budget or 'no budget'}"]
    groups = segments(recipe.stages)
    for number, group in enumerate(groups, start=1):
        judged = "judged together" if len(group) > 1 else "judged alone"
        lines.append(f"segment {number} of {len(groups)}, {judged}")
        for index in group:
            parameters = repr(recipe.stages[index]).partition("(")[2].removesuffix(")")
            lines.append(f"  stages.{index} {stage_name(recipe.stages[index])}: {parameters}")
    typer.echo("\n".join(lines))
    check_workload(workload)
    typer.echo(
        f"workload {workload.name}: {type(workload.model).__name__}, judged by {workload.metric.name}; checks passed"
    )


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    del category
    typer.secho(f"warning: {message}", err=True, fg="yellow")


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def _command() -> str:
    return shlex.join(["compressor", *sys.argv[1:]])


if __name__ == "__main__":
    main()
