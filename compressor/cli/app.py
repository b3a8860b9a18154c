"""The command line: its commands; it loads nothing heavier than typer, so that --help is quick."""

import warnings
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from compressor.cli.caching import cache
from compressor.cli.comparing import compare
from compressor.cli.dry_run import print_plan
from compressor.cli.exits import ASKED, BUDGET_NOT_MET, FAILED, reported, used
from compressor.cli.folds import Folds, FoldsReference, Repeats, check_folds, tell_folds, workload_of_folds
from compressor.cli.interrupts import interruptible
from compressor.cli.options import (
    Accept,
    AsJson,
    Batch,
    BatchSize,
    Evaluate,
    ExportSeconds,
    FreeSizes,
    MetricName,
    NoStore,
    Quiet,
    Seed,
    Settings,
    Streams,
    Student,
    Threads,
    Verbose,
    WorkloadName,
    asked_of,
    folder_named,
    recipe_of,
    recipes_like,
    store_of,
    workload_of,
)
from compressor.cli.packing import pack, unpack
from compressor.cli.searching import auto
from compressor.cli.studio import studio
from compressor.cli.trusting import COMMANDS
from compressor.errors import WrongUseError


class _Commands(TyperGroup):
    """The commands, each of which can say what it was asked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click has it; name and words are kept for the audit log."""
        name, command, words = super().resolve_command(ctx, args)
        ASKED.set((str(name), list(words)))
        return name, command, words


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Makes PyTorch models smaller and faster, and measures what came of it as the ONNX file you would ship.

Try it: `compressor run int8 --workload digits --out runs/first`

Completion of the shell: `compressor --install-completion`.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 budget not met, 4 not trusted, 130 interrupted.""",
)


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
    recipe: Annotated[
        str,
        typer.Argument(
            help="A YAML file, or a shipped recipe such as int8 or prune_distill_int8.", autocompletion=recipes_like
        ),
    ],
    workload: WorkloadName,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=folder_named, metavar="FOLDER", help="Folder of the result: model.onnx, report.html, .md, .json."
        ),
    ] = None,
    settings: Settings = None,
    student: Student = None,
    seed: Seed = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Prints the plan and checks the workload; no work.")
    ] = False,
    free_sizes: FreeSizes = None,
    export_seconds: ExportSeconds = None,
    batch: Batch = "free",
    streams: Streams = None,
    metric: MetricName = None,
    folds: Folds = None,
    repeats: Repeats = None,
    reference: FoldsReference = None,
    evaluate: Evaluate = None,
    accept_changes: Accept = False,
    no_store: NoStore = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Compresses a workload by a recipe.

    `compressor run drop_blocks_distill_int8 --workload digits --out runs/digits`

    `compressor run mine.yaml -w my_models.resnet:workload --out runs/mine --set stages.0.remove=0.3`

    `compressor run int8 -w model.onnx:data.npz --out runs/file`

    `compressor run student_int8 -w digits --student my_models:small --out runs/small`

    `compressor run int8 -w digits --out runs/first --json`, the report on stdout for programs

    `compressor run int8 -w digits --out runs/folds --folds 5`, cross-validated: five runs, one table of them

    A run that was stopped goes on where it was when the same command is given again. A stage that another run has
    finished with the same inputs is taken from the store (`compressor cache`), and its times are measured again.
    """
    with reported(verbose=verbose, out=None if dry_run else out):
        plan = asked_of(recipe_of(recipe, settings, student), evaluate)
        from compressor.running.pipeline import Pipeline, PipelineWarning
        from compressor.running.session import Session

        warnings.simplefilter("always", PipelineWarning)
        pipeline = used(lambda: Pipeline.from_recipe(plan))
        target = plan.target(batch_size=batch_size, threads=threads)
        chosen = plan.seed if seed is None else seed
        load = partial(
            workload_of,
            workload,
            free_sizes=free_sizes,
            export_seconds=export_seconds,
            batch=batch,
            streams=streams,
            metric=metric,
        )
        check_folds(folds, repeats=repeats, reference=reference, runs=out is not None and not dry_run)
        if folds is not None and out is not None:
            crossed = pipeline.cross_validate(
                workload_of_folds(workload, load, reference=reference),
                folds=folds,
                repeats=1 if repeats is None else repeats,
                seed=chosen,
                reference="given" if reference == "given" else "anew",
                target=target,
                out=out,
                progress=not quiet,
                accept_changes=accept_changes,
            )
            tell_folds(crossed, out, quiet=quiet, as_json=as_json)
            return
        found = load()
        if dry_run:
            if as_json:
                raise WrongUseError("--json is about results, and --dry-run has none; leave one of both out")
            print_plan(plan, found, chosen)
            return
        if out is None:
            raise WrongUseError("--out is missing: the folder for model.onnx and the report, such as --out runs/first")
        result = pipeline.run(
            found,
            target=target,
            out=out,
            seed=chosen,
            progress=not quiet,
            accept_changes=accept_changes,
            session=Session(store=store_of(no_store=no_store)),
        )
        from compressor.training.distributed.team import present_team

        team = present_team()
        if team is not None and not team.leads:
            return
        if as_json:
            _print_json(result.report.to_json())
        else:
            if not quiet:
                result.report.print()
            typer.echo(str(result.artifact.path))
        if not result.report.budget_met:
            typer.secho("the budget is not met; the report says by how much", err=True, fg="yellow")
            raise typer.Exit(BUDGET_NOT_MET)


@app.command()
def doctor(
    *,
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            "-w",
            metavar="WORKLOAD",
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
    with reported(verbose=verbose):
        if workload is not None:
            _inspect(workload, recipe=recipe, threads=threads, batch_size=batch_size, as_json=as_json)
            return
        if recipe is not None or threads is not None or batch_size is not None:
            raise WrongUseError("--recipe, --threads and --batch-size are about a model; name one with --workload")
        from compressor.inspection.doctor import diagnose

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
    name: Annotated[
        str | None,
        typer.Argument(help="A stage, or a value such as latency; without it, all stages."),
    ] = None,
    as_json: AsJson = False,
    schema: Annotated[bool, typer.Option("--schema", help="Prints the JSON schema of recipes, for editors.")] = False,
    verbose: Verbose = False,
) -> None:
    """The stages that a recipe can name, with their parameters and defaults.

    `compressor stages`

    `compressor stages prune_channels`

    `compressor stages latency`, a value that stages take

    `compressor stages --schema > recipe.schema.json`
    """
    with reported(verbose=verbose):
        from compressor.checks import did_you_mean
        from compressor.cli.stage_listing import listing, print_listing, print_value_object, value_objects
        from compressor.plugins import reasons
        from compressor.recipe.recipe import Recipe

        if schema:
            _print_json(Recipe.json_schema())
            return
        entries = listing()
        if name is not None and name not in entries and name in (objects := value_objects()):
            if as_json:
                _print_json(objects[name].to_json())
            else:
                print_value_object(objects[name])
            return
        if name is not None and name not in entries and name in (left_out := reasons()):
            raise WrongUseError(f"the stage {name!r} cannot be used: {left_out[name]}")
        if name is not None and name not in entries:
            near = did_you_mean(name, [*entries, *objects])
            raise WrongUseError(f"unknown stage {name!r}{near} (known: {', '.join(entries)})")
        shown = list(entries.values()) if name is None else [entries[name]]
        if as_json:
            _print_json([entry.to_json() for entry in shown] if name is None else shown[0].to_json())
        else:
            print_listing(shown, whole=name is not None)


for _command in (compare, auto, pack, unpack, cache, studio, *COMMANDS):
    app.command()(_command)


def main() -> None:
    """The commands, for a program that has imported this module; `compressor.cli.main` is the console command."""
    with interruptible():
        app()


def _inspect(name: str, *, recipe: Path | None, threads: int | None, batch_size: int | None, as_json: bool) -> None:
    from compressor.inspection.doctor import Grade, check_load
    from compressor.inspection.inspection import inspect
    from compressor.inspection.recommendation import recommend
    from compressor.inspection.text import print_inspection
    from compressor.running.preflight import check_workload
    from compressor.storage import write_atomic
    from compressor.target import Target

    found = workload_of(name)
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


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))
