"""Ranges of a float graph's tensors over a stream of samples, in memory that does not grow with the stream.

The graph runs on slices of the stream whose size follows from the graph alone, not from how the data comes in batches:
the same samples in the same order give the same bits. Slices are small enough for what is computed to stay in a
processor's cache until it is counted; where even one sample's tensors exceed the cap on memory, they are observed in
several passes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper

from compressor.checks import check_calibrated
from compressor.errors import StageError
from compressor.files.carrying import fixed_batch
from compressor.files.graphs import copy_of, producers
from compressor.files.operators import operator_of
from compressor.notes.quantization import Calibrated
from compressor.progress.bars import progress_bar
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.ranges.choice import choose_ranges
from compressor.quantization.ranges.histogram import Observed
from compressor.quantization.ranges.methods import MSE, Auto, Entropy, Method, MinMax, MovingAverage, Percentile
from compressor.runtime import Feeds, filled, laid_out, layout_of, open_session, samples_of
from compressor.workload import batches_of

__all__ = [
    "MSE",
    "Auto",
    "Calibration",
    "Entropy",
    "Method",
    "MinMax",
    "MovingAverage",
    "Observed",
    "Percentile",
    "calibrate",
    "observe_tensors",
    "sample_slices",
]

# Ranges settle after hundreds of samples (Nagel et al. 2021, arXiv:2106.08295): what is beyond this costs time alone.
_MOST_SAMPLES = 4096
# What the observed tensors of one pass may take at once.
_MAX_BYTES = 256 << 20
# What the observed tensors of a slice take: slices of some samples amortise the calls.
_SLICE_BYTES = 32 << 20
_MOST_IN_SLICE = 32
# Samples that are run at once to judge ranges by the outputs.
_JUDGED_IN_SLICE = 8


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """{tensor: (low, high)} of those that had values, and what the report is told."""

    ranges: Mapping[str, tuple[float, float]]
    note: Calibrated


def calibrate(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    data: Iterable[Any],
    method: Method,
    scheme: Scheme,
    *,
    signed: bool,
    needed: Collection[str] | None = None,
    threads: int | None = None,
    progress: bool = False,
    max_bytes: int = _MAX_BYTES,
) -> Calibration:
    """The ranges by `method` of the named float `tensors` of `model` over `data`, for integers of `scheme`.

    `data` yields batches as a workload's sets do, and is iterated more than once. `threads` run the graph, by default
    as many as torch uses. Tensors that hold infinite values, as masks do, have no range, nor have those that hold NaN,
    which marks values that are not there. Raises StageError where the data is empty, and for tensors that are `needed`
    (by default all) at NaN, and where a layer or the data gives infinite values.
    """
    threads = threads or torch.get_num_threads()
    observed, samples = observe_tensors(
        model,
        tensors,
        data,
        binned=method.binned,
        averaging=method.averaging,
        samples=method.samples,
        threads=threads,
        progress=progress,
        max_bytes=max_bytes,
    )
    _check_finite(model, {name: entry for name, entry in observed.items() if needed is None or name in needed})
    unfit = {name: "NaN" if entry.missing else "infinite values" for name, entry in observed.items() if _unfit(entry)}
    seen = {name: entry for name, entry in observed.items() if not (entry.empty or name in unfit)}
    note = Calibrated(
        method=repr(method),
        samples=samples,
        tensors=len(tensors),
        without_range={name: f"it holds {what}, which no grid has" for name, what in unfit.items()} or None,
    )
    ranges = {name: method.range_of(entry, scheme, signed=signed) for name, entry in seen.items()}
    if isinstance(method, Auto) and seen:
        options = {"each its own": ranges}
        for candidate in method.candidates:
            options[repr(candidate)] = {
                name: candidate.range_of(entry, scheme, signed=signed) for name, entry in seen.items()
            }
        slices = sample_slices(model, data, size=_JUDGED_IN_SLICE, samples=method.judged)
        best, errors = choose_ranges(model, options, slices, scheme, signed=signed, threads=threads, progress=progress)
        ranges = options[best]
        told = {name: float(f"{error:.4g}") for name, error in errors.items()}
        note = replace(note, chosen=best, output_error=told)
    return Calibration(ranges=ranges, note=note)


def observe_tensors(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    data: Iterable[Any],
    *,
    binned: bool,
    averaging: float | None = None,
    samples: int | None = None,
    threads: int = 1,
    progress: bool = False,
    max_bytes: int = _MAX_BYTES,
) -> tuple[dict[str, Observed], int]:
    """What the named float tensors of `model` were over the first `samples` of `data`, and how many samples that was.

    `data` yields batches as a workload's sets do; None means all of it, 4096 samples at most. `binned` and `averaging`
    as in `Observed`. The tensors of one run take `max_bytes` at most, unless a single one of a single sample takes
    more. Raises StageError when `data` is empty.
    """
    observed = {name: Observed(binned=binned, averaging=averaging) for name in tensors}
    limit = _MOST_SAMPLES if samples is None else samples
    session = open_session(_shapes_of(model, tensors).SerializeToString(), threads=threads)
    layout = layout_of(session)
    fixed = fixed_batch(model)
    first: Feeds = laid_out(layout, filled(next(_slices(_fed(session, data), 1, 1), {}), fixed))
    check_calibrated(first)
    sizes = _bytes_of(session, tensors, first)
    size = fixed or (1 if averaging is not None else _slice_size(sum(sizes.values()), max_bytes))
    count = 0
    with ThreadPoolExecutor(threads) as pool:
        for group in _groups(sizes, max_bytes):
            session = open_session(_probe(model, group).SerializeToString(), threads=threads)
            computed = [name for name in group if name not in first]
            shares = [group[start::threads] for start in range(threads)]
            count = 0
            batches = progress_bar(data, desc="calibration", unit="batch", shown=progress)
            for feeds in _slices(_fed(session, batches), size, limit):
                count += _samples_in(feeds)
                values = laid_out(layout, filled(feeds, fixed))
                if computed:
                    values = {**values, **dict(zip(computed, session.run(computed, values), strict=True))}
                # Every tensor is counted by one thread, slice after slice: threads do not change the result.
                list(pool.map(partial(_update, observed, values), shares))
                # Not held while the next slice is computed.
                del values
    return observed, count


def _check_finite(model: onnx.ModelProto, observed: Mapping[str, Observed]) -> None:
    """Raises StageError at NaN, and where a layer gives infinite values, or the data holds some: those are no masks."""
    made = producers(model.graph.node)
    for name, entry in observed.items():
        node = made.get(name)
        wrong = entry.infinite and (node is None or operator_of(node.op_type).multiplies)
        if entry.missing or wrong:
            raise StageError(
                f"tensor {name!r} cannot be calibrated: it produced {'NaN' if entry.missing else 'infinite values'}; "
                "check the model and the calibration data"
            )


def _unfit(entry: Observed) -> bool:
    return entry.infinite or entry.missing


def _update(observed: Mapping[str, Observed], values: Feeds, names: Iterable[str]) -> None:
    for name in names:
        observed[name].update(values[name])


def sample_slices(
    model: onnx.ModelProto, data: Iterable[Any], *, size: int, samples: int, threads: int = 1
) -> list[Feeds]:
    """The first `samples` of `data` as `model` is fed, `size` at a time."""
    session = open_session(model.SerializeToString(), threads=threads)
    layout, fixed = layout_of(session), fixed_batch(model)
    return [laid_out(layout, filled(each, fixed)) for each in _slices(_fed(session, data), fixed or size, samples)]


def _fed(session: ort.InferenceSession, data: Iterable[Any]) -> Iterator[Feeds]:
    return (samples_of(session, inputs) for inputs, _ in batches_of(data))


def _samples_in(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def _slices(batches: Iterable[Feeds], size: int, samples: int) -> Iterator[Feeds]:
    """The first `samples` of `batches` in slices of `size`; only the last, and those before a change of shape, less.

    Samples lie along the first dimension of the first array; arrays of another length go with every slice of theirs.
    """
    rest: Feeds = {}
    taken = 0
    for batch in batches:
        feeds = _part(batch, 0, samples - taken)
        taken += _samples_in(feeds)
        if rest and _joinable(rest, feeds):
            feeds = {name: np.concatenate([rest[name], array]) for name, array in feeds.items()}
        elif rest:
            yield rest
        whole = _samples_in(feeds) // size * size
        for start in range(0, whole, size):
            yield _part(feeds, start, start + size)
        rest = _part(feeds, whole, None) if whole < _samples_in(feeds) else {}
        if taken == samples:
            break
    if rest:
        yield rest


def _part(feeds: Feeds, start: int, stop: int | None) -> Feeds:
    samples = _samples_in(feeds)
    return {name: array[start:stop] if array.shape[:1] == (samples,) else array for name, array in feeds.items()}


def _joinable(one: Feeds, other: Feeds) -> bool:
    return all(
        array.shape[:1] == (_samples_in(feeds),) and array.shape[1:] == one[name].shape[1:]
        for feeds in (one, other)
        for name, array in feeds.items()
    )


def _probe(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """`model` with `tensors` among its outputs."""
    probe = copy_of(model)
    known = {value.name for value in chain(probe.graph.output, probe.graph.input)}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    return probe


def _shapes_of(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """`model` with the shapes of `tensors` as its outputs, in their order: they themselves are freed on the way."""
    probe = copy_of(model)
    del probe.graph.output[:]
    for number, name in enumerate(tensors):
        shape = f"calibrated_shape_{number}"
        probe.graph.node.append(helper.make_node("Shape", [name], [shape], name=shape))
        probe.graph.output.append(helper.make_tensor_value_info(shape, TensorProto.INT64, None))
    return probe


def _bytes_of(session: ort.InferenceSession, tensors: Sequence[str], sample: Feeds) -> dict[str, int]:
    shapes = session.run(None, sample)
    return {name: 4 * int(np.prod(shape)) for name, shape in zip(tensors, shapes, strict=True)}


def _slice_size(sample_bytes: int, max_bytes: int) -> int:
    return max(1, min(_MOST_IN_SLICE, min(_SLICE_BYTES, max_bytes) // max(sample_bytes, 1)))


def _groups(sizes: Mapping[str, int], max_bytes: int) -> list[list[str]]:
    """The tensors in groups of at most `max_bytes`, in their order; one that is larger is a group of its own."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if size > room or not groups:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    return groups
