"""The command `compare`: several recipes on one workload, one after the other or side by side."""

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from compressor.cli.exits import BUDGET_NOT_MET, FAILED, reported
from compressor.cli.options import (
    Accept,
    AsJson,
    Batch,
    BatchSize,
    Controls,
    ExecutorName,
    ExportSeconds,
    FreeSizes,
    MetricName,
    NoStore,
    Quiet,
    Seed,
    Seeds,
    Settings,
    Streams,
    Student,
    Threads,
    Verbose,
    Workers,
    WorkloadName,
    folder_named,
    recipes_like,
    recipes_of,
    store_of,
    workload_of,
)


def compare(
    *,
    recipes: Annotated[
        list[str], typer.Argument(help="YAML files or names of shipped recipes.", autocompletion=recipes_like)
    ],
    workload: WorkloadName,
    out: Annotated[
        Path,
        typer.Option(
            parser=folder_named, metavar="FOLDER", help="Folder of the comparison; every recipe gets a folder in it."
        ),
    ],
    settings: Settings = None,
    student: Student = None,
    seed: Seed = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    free_sizes: FreeSizes = None,
    export_seconds: ExportSeconds = None,
    batch: Batch = "free",
    streams: Streams = None,
    metric: MetricName = None,
    seeds: Seeds = 1,
    controls: Controls = True,
    executor: ExecutorName = None,
    workers: Workers = None,
    accept_changes: Accept = False,
    no_store: NoStore = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Runs several recipes on one workload: one table and one picture, accuracy against latency and size.

    `compressor compare int8 prune_distill_int8 drop_blocks_distill_int8 --workload digits --out runs/compared`

    `compressor compare tree.yaml -w mine:workload --out runs/tree --workers 4`, four runs at once (docs/scale.md)

    Values may be sweeps, `remove: {sweep: [0.3, 0.5]}`: every combination is compared, and what is common worked once.
    A recipe that fails is shown with its error, the others go on: exit code 1; 3 where none met its budget.
    """
    with reported(verbose=verbose, out=out):
        plans = recipes_of(recipes, settings, student)
        from compressor.comparing.comparison import compare as compare_recipes
        from compressor.running.executors.choosing import executor_of
        from compressor.running.pipeline import PipelineWarning
        from compressor.target import Target

        warnings.simplefilter("always", PipelineWarning)
        target = Target(batch_size=batch_size or 1, threads=threads or 1) if batch_size or threads else None
        chosen = executor_of(executor, workers=workers, progress=not quiet)
        load = partial(
            workload_of,
            workload,
            free_sizes=free_sizes,
            export_seconds=export_seconds,
            batch=batch,
            streams=streams,
            metric=metric,
        )
        comparison = compare_recipes(
            plans,
            load(),
            target=target,
            out=out,
            seed=seed,
            seeds=seeds,
            controls=controls,
            progress=not quiet,
            accept_changes=accept_changes,
            store=store_of(no_store=no_store),
            executor=chosen,
            workload_from=load,
        )
        if as_json:
            typer.echo(json.dumps(comparison.to_json(), indent=2))
        else:
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
