"""The options that several commands share, and the recipe and the workload that they name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compressor.errors import WrongUseError

_PACKAGE = str(Path(__file__).parents[1])

if TYPE_CHECKING:
    from compressor.recipe.recipe import Recipe
    from compressor.store.kept import Store
    from compressor.workload import FreeSizes as FreeSizesOf
    from compressor.workload import Workload

WorkloadName = Annotated[
    str,
    typer.Option(
        "--workload",
        "-w",
        metavar="WORKLOAD",
        help="`digits`, `package.module:function` of yours that returns a compressor.Workload, or an ONNX file with "
        "arrays `inputs` and, if there are labels, `targets`: `model.onnx:data.npz`; `model.onnx` alone is measured, "
        "not scored.",
        autocompletion=lambda incomplete: ["digits"] if "digits".startswith(incomplete) else [],
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
Student = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="A function of yours that makes a small network: it goes on in place of the model, which teaches it, in "
        "recipes that leave one open, such as student_int8; in `run` else in the recipe's first `distill`.",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Decides every random choice; by default the recipe's.")]
Threads = Annotated[int | None, typer.Option(min=1, help="ONNX Runtime threads; by default the recipe's or 1.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples per call; by default the recipe's or 1.")]
Accept = Annotated[
    bool, typer.Option("--accept-changes", help="Goes on in a folder whose recipe, data or versions were others.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Prints the path of the result and errors, nothing else.")]
FreeSizes = Annotated[
    list[str] | None,
    typer.Option(
        "--free-sizes",
        metavar="all|batch|NAME=DIMS",
        help="Which sizes of the inputs model.onnx leaves free: `all` that can be, by default; `batch` alone; or "
        "dimensions of an input besides, counted from 0: `--free-sizes input_ids=1 --free-sizes pixels=2,3`.",
    ),
]
Batch = Annotated[
    str,
    typer.Option(
        metavar="free|fixed",
        help="What becomes of a batch that an ONNX file fixes: it becomes free, or stays `fixed` as it is.",
    ),
]
Streams = Annotated[
    list[str] | None,
    typer.Option(
        "--streams",
        metavar="OUTPUT=INPUT",
        help="A state of an ONNX file: the output of a step that the next one is given as this input, such as "
        "`--streams stateN=state`. Samples in data.npz are then (samples, steps, ...), and scored as they run.",
    ),
]
ExportSeconds = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="CPU time after which the exporter is ended and the sizes are fixed; by default the workload's or 120.",
    ),
]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="What an ONNX file is judged by: `accuracy`, `mse` and so on; without labels `agreement` (decisions) or "
        "`relative` (decibels of its signal), by default whichever its output allows.",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="How many seeds each recipe is run with; its row is the mean.")]
Controls = Annotated[
    bool,
    typer.Option(
        help="Runs two arms beside every recipe that takes structure: its training alone, and a random choice."
    ),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="NAME",
        help="Where runs are worked: `serial`, `local`, `dask:local`, `tcp://HOST:PORT` (Dask), `ray:local`, "
        "`ray://HOST:PORT`; by default `local` for more than one worker.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="How many runs are worked at once; by default one, of an executor as many as there are cores."),
]
NoStore = Annotated[
    bool,
    typer.Option(
        "--no-store", help="Neither takes stages that other runs have finished nor keeps any for them (`cache --help`)."
    ),
]
Evaluate = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Asks every stage's file something besides its score, for the report: `calibration`, `robustness`, "
        "`generalisation_gap`, `by_class`, `what_went`, `membership_inference`, or `all`. Repeatable; a recipe sets "
        "them with `evaluations:`.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Shows the traceback of an error.")]
AsJson = Annotated[bool, typer.Option("--json", help="Prints JSON.")]


def store_of(*, no_store: bool) -> "Store | None":
    """The user's store of stages, None where it is not wanted."""
    from compressor.store.place import users_store

    return None if no_store else users_store()


def recipe_of(source: str, settings: list[str] | None, student: str | None = None) -> "Recipe":
    """The recipe of a file or a shipped name, with the values of `--set`, and with `student` where it asks for one.

    Of a recipe that asks for none it is that of its first distill. Raises RecipeError, also where there is none.
    """
    from compressor.recipe.recipe import Recipe

    return Recipe.load(source, overrides=settings or (), student=student)


def recipes_of(sources: list[str], settings: list[str] | None, student: str | None = None) -> "list[Recipe]":
    """The recipes of files or shipped names, several where values are sweeps, with `student` in those that ask for one.

    Raises RecipeError, and WrongUseError where a student is given and none of them asks for it.
    """
    from compressor.recipe.recipe import Recipe

    asking = [source for source in sources if student is not None and Recipe.asks_for_student(source)]
    if student is not None and not asking:
        raise WrongUseError(
            f"--student goes into the recipes that leave one open, and none of these does: {', '.join(sources)}; add "
            "student_int8, or write `student: <my_models:small>` into the distill that it is for"
        )
    return [
        plan
        for source in sources
        for plan in Recipe.load_all(source, overrides=settings or (), student=student if source in asking else None)
    ]


def asked_of(recipe: "Recipe", names: list[str] | None) -> "Recipe":
    """`recipe` with the evaluations of these names besides its own; raises WrongUseError for unknown ones."""
    if not names:
        return recipe
    from dataclasses import replace

    from compressor.checks import did_you_mean
    from compressor.evaluations.catalogue import EVALUATIONS

    unknown = next((name for name in names if name not in {*EVALUATIONS, "all"}), None)
    if unknown is not None:
        near = did_you_mean(unknown, EVALUATIONS)
        raise WrongUseError(f"unknown evaluation {unknown!r}{near} (known: {', '.join(EVALUATIONS)}, all)")
    own = {type(evaluation) for evaluation in recipe.evaluations}
    wanted = EVALUATIONS if "all" in names else dict.fromkeys(names)
    more = [EVALUATIONS[name]() for name in wanted if EVALUATIONS[name] not in own]
    return replace(recipe, evaluations=(*recipe.evaluations, *more))


def folder_named(text: str) -> Path:
    """The folder of an option. An empty name, as of a variable that is not set, would be the current one."""
    if not text.strip():
        raise typer.BadParameter("it is empty, and a folder is wanted, such as runs/first; `.` is the current one")
    return Path(text)


def recipes_like(incomplete: str) -> list[str]:
    """The shipped recipes whose names begin so, for the shell's completion; it completes files by itself."""
    from compressor.recipe.shipped import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def workload_of(
    name: str,
    *,
    free_sizes: list[str] | None = None,
    export_seconds: float | None = None,
    batch: str = "free",
    streams: list[str] | None = None,
    metric: str | None = None,
) -> "Workload":
    """The workload that the option names, exported as the others say; raises WrongUseError where it cannot be had."""
    from dataclasses import replace

    from compressor.runtime import OnnxModule
    from compressor.workloads import load

    pairs = parsed_streams(streams or [])
    try:
        workload = load(name, batch=batch, metric=metric, streams=pairs)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        said = str(error) or "it gave no reason"
        raise WrongUseError(f"workload {name!r} cannot be had{place_of(error)}: {kind}{said}") from error
    if free_sizes is not None and isinstance(workload.model, OnnxModule):
        raise WrongUseError(f"--free-sizes is about models that are exported, and {name} is an ONNX file already")
    try:
        if free_sizes is not None:
            workload = replace(workload, free_sizes=parsed_free_sizes(free_sizes))
        return workload if export_seconds is None else replace(workload, export_seconds=export_seconds)
    except ValueError as error:
        raise WrongUseError(str(error)) from error


def parsed_streams(pairs: list[str]) -> dict[str, str]:
    """{output: input} of texts "output=input"; raises WrongUseError for others."""
    found: dict[str, str] = {}
    for pair in pairs:
        output, separator, state = pair.rpartition("=")
        if not separator or not output or not state:
            raise WrongUseError(f"--streams is OUTPUT=INPUT, such as stateN=state, got {pair[:200]!r}")
        if output in found:
            raise WrongUseError(f"--streams names the output {output!r} twice; each goes to one input")
        found[output] = state
    return found


def place_of(error: BaseException) -> str:
    """Where the user's own code raised `error`, such as ", in mine.py, line 3"; "" where none of it did.

    The innermost line of a file that is neither this package's nor an installed one's.
    """
    import sysconfig
    import traceback

    if isinstance(error, SyntaxError) and error.filename:
        return f", in {error.filename}, line {error.lineno}"
    others = (*map(str, {sysconfig.get_path("stdlib"), *map(sysconfig.get_path, ("purelib", "platlib"))}), _PACKAGE)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*others, "<")) and "site-packages" not in frame.filename
    ]
    return f", in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""


def parsed_free_sizes(values: list[str]) -> "FreeSizesOf":
    """What `--free-sizes` says, as a workload has it. Raises WrongUseError for anything else."""
    if values in (["all"], ["batch"]):
        return "all" if values == ["all"] else "batch"
    found: dict[str, tuple[int, ...]] = {}
    for value in values:
        name, equals, axes = value.rpartition("=")
        try:
            numbers = tuple(int(axis) for axis in axes.split(","))
        except ValueError:
            numbers = ()
        if not (equals and name and numbers):
            raise WrongUseError(
                f"--free-sizes is all, batch, or NAME=DIMS once for each input, such as --free-sizes pixels=2,3; got "
                f"{' '.join(values)!r}"
            )
        found[name] = (*found.get(name, ()), *numbers)
    return found
