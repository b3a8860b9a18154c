"""The command that looks for the recipe to ship: what it asks, and what it says."""

import json
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from compressor.checks import BYTES
from compressor.cli.exits import BUDGET_NOT_MET, reported
from compressor.cli.options import (
    AsJson,
    Batch,
    BatchSize,
    ExecutorName,
    ExportSeconds,
    FreeSizes,
    MetricName,
    NoStore,
    Quiet,
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
from compressor.errors import WrongUseError


def auto(
    *,
    workload: WorkloadName,
    out: Annotated[
        Path,
        typer.Option(
            parser=folder_named,
            metavar="FOLDER",
            help="Folder of the search: best.yaml, model.onnx, search.html, every trial.",
        ),
    ],
    space: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SPACE]...",
            help="Recipes to choose from, YAML files with sweeps or shipped names; without any, those that suit the "
            "model by what `doctor` finds.",
            autocompletion=recipes_like,
        ),
    ] = None,
    max_drop: Annotated[
        float,
        typer.Option(help="How much worse the score may be on validation: 0.01 is one point of accuracy, or 1 %."),
    ] = 0.01,
    max_latency_ms: Annotated[float | None, typer.Option(help="Milliseconds that one call may take.")] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What model.onnx may have: 300KiB, 2MB, or bytes.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time for the search; no trial begins that cannot end. Without it, all of it.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Recipes that the first rung tries; by default one for every structure.")
    ] = None,
    finalists: Annotated[
        int, typer.Option(min=1, help="How many are timed again together and scored on test data, which is read once.")
    ] = 5,
    sampler: Annotated[
        str, typer.Option(metavar="random|grid|optuna", help="In which order the space is tried.")
    ] = "random",
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of the sampler, not the recipes' own seeds.")] = 0,
    settings: Settings = None,
    student: Student = None,
    threads: Threads = None,
    batch_size: BatchSize = None,
    free_sizes: FreeSizes = None,
    export_seconds: ExportSeconds = None,
    batch: Batch = "free",
    streams: Streams = None,
    metric: MetricName = None,
    executor: ExecutorName = None,
    workers: Workers = None,
    no_store: NoStore = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Finds the recipe to ship: the fastest, then smallest file that keeps the limits.

    `compressor auto --workload digits --max-drop 0.01 --out runs/auto`

    `compressor auto -w digits --max-drop 0.01 --max-latency-ms 0.5 --max-size 300KiB --minutes 60 --out runs/auto`

    `compressor auto space.yaml -w digits --out runs/auto`, with a space of yours: a recipe whose values are sweeps,
    `remove: {sweep: [0.3, 0.5]}`

    `compressor auto -w mine:workload --out runs/auto --workers 4`, four trials at once (docs/scale.md)

    All recipes are trained for a part of their length, and those that no other beats in drop, time and size for
    longer, until few are trained whole. Validation data decide; the best are scored on test data at the end, once.
    `compressor run best.yaml` gives the same file again, unless its stages choose by measured times. The same command
    goes on where it was stopped; with more `--minutes` it goes on searching, and other limits cost no trial again.
    Exit code 3: nothing keeps the limits.
    """
    with reported(verbose=verbose, out=out):
        size = None if max_size is None else parsed_size(max_size)
        _check_limits(max_drop, max_latency_ms, size, minutes)
        if not space and (settings or student):
            raise WrongUseError("--set and --student go into a space of yours, and none is given; name a recipe")
        plans = recipes_of(space, settings, student) if space else None
        from compressor.running.executors.choosing import executor_of
        from compressor.running.pipeline import PipelineWarning
        from compressor.searching.sampler import sampler_of
        from compressor.searching.search import BEST, search
        from compressor.target import Target

        warnings.simplefilter("always", PipelineWarning)
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
        result = search(
            load(),
            plans,
            out=out,
            max_drop=max_drop,
            max_latency_ms=max_latency_ms,
            max_size_bytes=size,
            minutes=minutes,
            trials=trials,
            finalists=finalists,
            sampler=sampler_of(sampler, seed),
            target=Target(batch_size=batch_size or 1, threads=threads or 1),
            progress=not quiet,
            store=store_of(no_store=no_store),
            executor=chosen,
            workload_from=load,
        )
        if as_json:
            typer.echo(json.dumps(result.to_json(), indent=2))
        else:
            if not quiet:
                result.print()
            typer.echo(str(out / (BEST if result.recipe is not None else "search.html")))
        if not result.within_limits:
            typer.secho("nothing keeps the limits; search.html says what comes nearest", err=True, fg="yellow")
            raise typer.Exit(BUDGET_NOT_MET)


def _check_limits(max_drop: float, max_latency_ms: float | None, size: int | None, minutes: float | None) -> None:
    """Raises WrongUseError for what cannot be a limit."""
    from compressor.checks import check_positive
    from compressor.searching.limits import Limits

    try:
        Limits(max_drop=max_drop, max_latency_ms=max_latency_ms, max_size_bytes=size)
        if minutes is not None:
            check_positive(minutes, "--minutes is the time that the search may take", way_out="leave it out for no end")
    except ValueError as error:
        raise WrongUseError(str(error)) from error


def parsed_size(text: str) -> int:
    """The bytes of a size such as 300KiB, 2.5 MB or 4096. Raises WrongUseError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text[:100].lower())
    if found is None or found[2] not in BYTES or float(found[1]) <= 0:
        raise WrongUseError(f"--max-size is a size above 0 such as 300KiB, 2MB or 4096 (bytes), got {text[:100]!r}")
    return round(float(found[1]) * BYTES[found[2]])
