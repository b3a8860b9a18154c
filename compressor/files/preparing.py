"""ONNX files from elsewhere, opened, checked and made ready to be quantized and measured like a model of torch.

Files in the wild fix the batch, list their weights as inputs and use old opsets. Each of these is changed, and what was
changed has to give the outputs of the file as it was. Importing this loads no torch: it is done in a process of its own
(`opening.py`), for a file may be anything.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import load_external_data_for_model

from compressor.errors import CompressorError, OnnxFileError, first_said
from compressor.files.carrying import note_layout_, note_reading_, noted_layout
from compressor.files.converting.batch import batched_elsewhere
from compressor.files.converting.comparing import TOLERANCE, difference
from compressor.files.converting.constants import with_constants
from compressor.files.converting.inputs import (
    MOST_SAMPLES,
    Sample,
    cast_to,
    count_of_usual,
    example_feeds,
    made_up,
    misfit,
)
from compressor.files.converting.layouts import free_layout, kept_layout, rows_of_calls, why_fixed
from compressor.files.converting.operators import draws, in_opset, without_functions
from compressor.files.converting.precision import in_single_precision, is_quantized, other_precisions
from compressor.files.converting.streams import check_streams
from compressor.files.declarations import check_declarations, check_outputs, dtype_of, given_inputs, without_rank
from compressor.files.graphs import OPSET, opset_of
from compressor.files.limits import MAX_BYTES, Limits, regular_size
from compressor.files.watching import Counted, Watcher
from compressor.sessions import Feeds, load_session, session_options

# The first opset whose DequantizeLinear has scales for every channel, and the last whose QuantizeLinear ONNX Runtime
# fuses: a file between them that cannot be converted is taken as it is.
_OPSETS = (13, 22)
# Half precision has 11 bits, and an error of its last in every operator.
_HALF_TOLERANCE = 2e-2
# Seconds that one run of the samples that are compared may take.
_RUN_SECONDS = 2.0
# What libraries say where memory ends.
_MEMORY_WORDS = (
    "bad_alloc",
    "bad allocation",
    "failed to allocate",
    "unable to allocate",
    "out of memory",
    "alloc failed",
)

# What becomes of a batch that the file fixes.
Batch = Literal["free", "fixed"]
# Names of sizes that say nothing.
_UNKNOWN = ("?", "-1")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The file, ready; `dtypes` are the numpy types of its inputs, `outside_bytes` those of its weights elsewhere.

    Of made-up inputs it does not run on the first `skipped`.
    """

    onnx_bytes: bytes
    dtypes: dict[str, str]
    outside_bytes: int
    skipped: int = 0


def prepare(
    path: Path,
    sample: Sample | None,
    *,
    limits: Limits,
    cast: bool = False,
    watcher: Watcher | None = None,
    batch: Batch = "free",
    streams: Mapping[str, str] | None = None,
    skipped: int = 0,
) -> Prepared:
    """The ONNX file at `path`, checked on `sample`, or on made-up inputs without one.

    With `cast` the sample takes the types of the inputs, and a single input may be called "inputs" in it; a `batch`
    that is "fixed" stays as the file has it. `streams` are noted, and of a stream the first step is run. Of made-up
    inputs the first are `skipped`. Raises FileNotFoundError, and OnnxFileError for everything else: what is
    no ONNX file, is too large, or could not be changed so that it computes the same.
    """
    counted = Counted(watcher or Watcher(), skipped)
    try:
        original = _parsed(path)
        outside_bytes = check_declarations(original, path, limits)
        dtypes = {value.name: dtype_of(value, path) for value in given_inputs(original)}
        counted.watcher.found(dtypes, outside_bytes)
        load_external_data_for_model(original, str(path.parent))
        if sample is not None and cast:
            sample = cast_to(sample, dtypes)
        check_outputs(original, path)
        check_streams(original, streams or {}, path)
        onnx_bytes = _prepared(original, path, sample, limits, watcher=counted, batch=batch, streams=streams or {})
    except (CompressorError, FileNotFoundError):
        raise
    except MemoryError as error:
        raise OnnxFileError(f"{path} {limits.too_large}") from error
    except Exception as error:  # a damaged file may lead anywhere
        if is_memory(str(error)):
            raise OnnxFileError(f"{path} {limits.too_large}") from error
        raise OnnxFileError(
            f"{path} cannot be read ({type(error).__name__}: {first_said(error)}); it is damaged or holds what this "
            "version does not know, export it again"
        ) from error
    return Prepared(
        onnx_bytes=onnx_bytes, dtypes=dtypes, outside_bytes=outside_bytes, skipped=max(0, counted.count - 1)
    )


def _parsed(path: Path) -> onnx.ModelProto:
    try:
        size = regular_size(path)
    except ValueError as error:
        raise OnnxFileError(str(error)) from error
    if size > MAX_BYTES:
        raise OnnxFileError(f"{path} has {size / 1e9:.1f} GB, and at most {MAX_BYTES / 1e9:.1f} GB fit one file")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except MemoryError:
        raise
    except Exception as error:  # protobuf and onnx raise errors of their own
        if is_memory(str(error)):
            raise MemoryError from error
        raise OnnxFileError(f"{path} is no ONNX file, or is damaged: {first_said(error)}; export it again") from error
    if not model.graph.node:
        raise OnnxFileError(f"{path} is no ONNX file: it has no graph")
    if not model.graph.output:
        raise OnnxFileError(f"{path} has no outputs, so there is nothing to compute; export it again")
    try:
        opset_of(model)
    except ValueError as error:
        raise OnnxFileError(f"{path}: {error}") from error
    _leave_unknown_(model.graph)
    return model


def _leave_unknown_(graph: onnx.GraphProto) -> None:
    """Sizes that are written as -1 or "?", as some converters do, are not known: no two of them are the same size."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_value == -1 or dim.dim_param in _UNKNOWN:
                dim.Clear()


def _prepared(
    original: onnx.ModelProto,
    path: Path,
    sample: Sample | None,
    limits: Limits,
    *,
    watcher: Counted,
    batch: Batch,
    streams: Mapping[str, str],
) -> bytes:
    given, skipped = "example" if sample is not None else "made-up inputs", watcher.count
    tried = (
        [example_feeds(original, sample, streams)] if sample is not None else made_up(original, path, skipped=skipped)
    )
    original, notices = _runnable(original)
    run = _runner(original, limits, path)
    spare = 0 if sample is not None else count_of_usual(original)
    feeds, expected = _first_run(run, original, watcher.of(tried, spare=spare))
    if isinstance(expected, str):
        try:
            _session(original)
        except ValueError as error:
            # No inputs help such a file.
            raise OnnxFileError(f"{path} cannot be run: {first_said(error)}") from error
        why = misfit(original, feeds) or expected
        raise OnnxFileError(f"{path} cannot be run on {given}: {why}. {_way_to_run(original)}")
    watcher.watcher.ran()
    problem = difference(run(feeds), expected) if draws(original) else ""
    if problem:
        raise OnnxFileError(
            f"{path} draws random numbers ({', '.join(draws(original))}), so that no two runs agree ({problem}); give "
            "inputs with which they do not count, such as a noise scale of 0, or export it without them"
        )
    model = _converted(with_constants(original), path)
    problem = difference(_runner(model, limits, path)(feeds), expected)
    if problem:
        raise OnnxFileError(f"{path} computes something else in opset {OPSET}: {problem}; export it with that opset")
    model, done = _in_single_precision(model, feeds, expected, limits, path)
    notices += done
    if is_quantized(model):
        notices.append("it is quantized already: it can be measured, and not be quantized again")
    rows = rows_of_calls(model, sample) if sample is not None and not streams else set[str]()
    model, done = _with_layout(model, feeds, expected, path, limits, keep=batch == "fixed", rows=rows)
    notices += done
    if streams:
        note_layout_(model, replace(noted_layout(model), streams=dict(streams)))
        told = ", ".join(f"{output} as {state}" for output, state in streams.items())
        notices.append(f"samples are streams of steps, and the next step is given {told}")
    note_reading_(model, notices)
    onnx_bytes: bytes = model.SerializeToString(deterministic=True)
    return onnx_bytes


def _way_to_run(model: onnx.ModelProto) -> str:
    if unknown := without_rank(model):
        return f"It does not say how many dimensions {', '.join(unknown)} has: export it with them, such as (batch, 32)"
    return "Pass example=, a batch of inputs that the file takes; on the command line, model.onnx:data.npz with some"


def _runnable(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """(`model`, or what it is in float32 where ONNX Runtime runs it in that alone, what was done)."""
    kinds = other_precisions(model)
    if not kinds:
        return model, []
    try:
        _session(model)
    except ValueError:
        single = in_single_precision(without_functions(model))
        try:
            _session(single)
        except ValueError:
            return model, []
        told = " and ".join(kinds)
        return single, [
            f"ONNX Runtime has no kernels for it in {told} precision: it is in single precision, uncompared"
        ]
    return model, []


def _in_single_precision(
    model: onnx.ModelProto, feeds: Feeds, expected: list[NDArray[Any]], limits: Limits, path: Path
) -> tuple[onnx.ModelProto, list[str]]:
    """(`model` in float32, where it computes the same so, what was done), for which alone there are integer kernels."""
    kinds = other_precisions(model)
    if not kinds:
        return model, []
    told = " and ".join(kinds)
    single = in_single_precision(model)
    # Half precision is as far from the truth as single precision is from it.
    tolerance = TOLERANCE if kinds == ("double",) else _HALF_TOLERANCE
    problem = difference(_runner(single, limits, path)(feeds), expected, tolerance)
    if problem:
        return model, [f"it computes in {told} precision and something else in single precision ({problem}): it stays"]
    return single, [f"computed in {told} precision before, and in single precision now; inputs and outputs keep theirs"]


def _first_run(run: "_Run", model: onnx.ModelProto, tried: Iterable[Feeds]) -> tuple[Feeds, list[NDArray[Any]] | str]:
    """(the first of the feeds `tried` that runs, what to compare on, its outputs, or why the first of all failed)."""
    failed: list[tuple[Feeds, str]] = []
    for feeds in tried:
        few, expected = _run_of(run, model, feeds)
        if not isinstance(expected, str):
            return few, expected
        failed.append((few, expected))
    return failed[0] if failed else ({}, "ONNX Runtime ended on all of them, without a word")


def _run_of(run: "_Run", model: onnx.ModelProto, feeds: Feeds) -> tuple[Feeds, list[NDArray[Any]] | str]:
    """(what to compare on, the outputs for it, or the reason why there are none).

    One sample goes first where the batch is free, so that a file that never ends is found out by little, and a slow one
    is compared on few.
    """
    free = [name for name, dim in _batches(model) if dim and not dim[0].HasField("dim_value")]
    counts = {len(feeds[name]) for name in free}
    if len(free) < len(feeds) or len(counts) != 1 or counts <= {0, 1}:
        return feeds, run(feeds)
    started = time.process_time()
    alone = run({name: values[:1] for name, values in feeds.items()})
    seconds = max(time.process_time() - started, 1e-6)
    if not isinstance(alone, str):
        count = max(2, min(MOST_SAMPLES, int(_RUN_SECONDS / seconds)))
        feeds = {name: values[:count] for name, values in feeds.items()}
    return feeds, run(feeds)


def _converted(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    opset = opset_of(model)
    try:
        model = without_functions(model)
    except Exception as error:  # onnx raises whatever its C++ side threw
        raise OnnxFileError(
            f"{path} defines functions of its own, which could not be written out: {first_said(error)}; inline them "
            "with onnx.inliner"
        ) from error
    try:
        return in_opset(model)
    except Exception as error:  # the same
        if _OPSETS[0] <= opset <= _OPSETS[1]:
            return model
        raise OnnxFileError(
            f"{path} has opset {opset}, and could not be converted to {OPSET}: {first_said(error)}. Integers need one "
            f"from {_OPSETS[0]} to {_OPSETS[1]}; export it again"
        ) from error


def _with_layout(
    model: onnx.ModelProto,
    feeds: Feeds,
    expected: list[NDArray[Any]],
    path: Path,
    limits: Limits,
    *,
    keep: bool,
    rows: Collection[str],
) -> tuple[onnx.ModelProto, list[str]]:
    """(`model` for any batch, with a note of where samples lie, what was done); in `rows` they are known to come first.

    What computes one number of samples alone keeps that, and a file whose inputs have none in common is called sample
    by sample; so is one that is to `keep` its batch.
    """

    def run(each: onnx.ModelProto) -> _Run:
        return _runner(each, limits, path)

    # Ranges of a whole batch, as dynamic integers have them, make samples depend on each other a little.
    differs = partial(difference, tolerance=_HALF_TOLERANCE) if is_quantized(model) else difference
    elsewhere = batched_elsewhere(given_inputs(model))
    first = [dim for name, dim in _batches(model) if name not in elsewhere]
    fixed = {dim[0].dim_value for dim in first if dim and dim[0].HasField("dim_value")}
    if not (keep and fixed):
        found = free_layout(model, feeds, run, differs, rows=rows)
        if found is not None:
            free, layout = found
            note_layout_(free, layout)
            return free, []
    layout = kept_layout(model, feeds, expected, run, differs, asked=keep)
    note_layout_(model, layout)
    if keep or not (fixed or layout.single):
        return model, []
    problem = why_fixed(model, feeds, run, differs) if fixed else "samples are told apart in no dimension"
    if layout.single:
        return model, [f"it has no batch that could be found ({problem}): every call is one sample"]
    (size,) = fixed
    return model, [f"its batch of {size} could not be made free ({problem}): it stays, and samples come {size} a call"]


def _batches(model: onnx.ModelProto) -> list[tuple[str, Any]]:
    """(name, first dimension, as a list that may be empty) of every input."""
    return [(value.name, value.type.tensor_type.shape.dim[:1]) for value in given_inputs(model)]


_Run = Callable[[Feeds], "list[NDArray[Any]] | str"]


def _runner(model: onnx.ModelProto, limits: Limits, path: Path) -> _Run:
    """What gives the outputs of `model` for feeds, or the first line of the error; its session is opened once."""
    opened: list[Any] = []

    def run(feeds: Feeds) -> list[NDArray[Any]] | str:
        try:
            if not opened:
                opened.append(_session(model))
            return [np.asarray(output) for output in opened[0].run(None, feeds)]
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base class below Exception
            if is_memory(str(error)):
                raise OnnxFileError(f"{path} {limits.too_large}") from error
            return first_said(error)

    return run


def _session(model: onnx.ModelProto) -> Any:
    return load_session(with_constants(model).SerializeToString(), session_options())


def is_memory(text: str) -> bool:
    """Whether a library says that there was no memory left."""
    return any(words in text.lower() for words in _MEMORY_WORDS)
