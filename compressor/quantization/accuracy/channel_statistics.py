"""What the channels of a graph's tensors were over calibration data: extremes, means and deviations, one pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from compressor.checks import check_calibrated
from compressor.errors import StageError
from compressor.files.graphs import copy_of, inner_graphs, replace_nodes_
from compressor.measuring.fidelity import powers
from compressor.progress.bars import progress_bar
from compressor.runtime import Feeds, filled, fixed_batch, laid_out, layout_of, open_session, samples_of
from compressor.scoring.decibels import decibels, reported_db
from compressor.workload import batches_of

Array = npt.NDArray[np.float64]

# What the probed tensors of one call may take; a batch is cut into slices below it.
_MAX_BYTES = 256 * 2**20
# Numbers that are looked at once: a MiB of float64 stays in the cache for all that is asked of them.
_BLOCK = 2**17


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelStatistics:
    """Of every channel of one tensor, (channels,) float64 each; `deviation` is the standard one, over all values."""

    low: Array
    high: Array
    mean: Array
    deviation: Array


def channel_statistics(
    model: onnx.ModelProto, axes: Mapping[str, int], data: Iterable[Any], *, samples: int, progress: bool = False
) -> dict[str, ChannelStatistics]:
    """The statistics of the tensors in `axes` (name -> channel axis) over the first `samples` (>= 1) samples of `data`.

    Raises StageError where `data` is empty or a tensor is not finite.
    """
    sums = {name: _Sums() for name in axes}
    for values in probed(model, list(axes), data, samples=samples, progress=progress):
        for name, axis in axes.items():
            sums[name].update(np.moveaxis(values[name], axis, 0).reshape(values[name].shape[axis], -1), name)
    check_calibrated(all(entry.count for entry in sums.values()))
    return {name: entry.statistics() for name, entry in sums.items()}


def probed(
    model: onnx.ModelProto, tensors: list[str], data: Iterable[Any], *, samples: int, progress: bool = False
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The values of `tensors` of `model` by name, slice after slice of the first `samples` samples of `data`."""
    session = open_session(with_outputs(model, tensors).SerializeToString())
    inputs = {value.name for value in session.get_inputs()}
    wanted = [name for name in tensors if name not in inputs]
    slices = _slices(session, wanted, data, samples)
    for feeds in progress_bar(slices, desc="channels", unit="slice", shown=progress):
        values = dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else {}
        yield values | {name: feeds[name] for name in tensors if name in inputs}


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """The part of the graph that computes `tensors`, which are its outputs; inputs and their names stay."""
    wanted = dict.fromkeys(tensors)
    part = copy_of(model)
    inputs = {value.name for value in part.graph.input}
    if inputs.issuperset(wanted):
        # ONNX Runtime cannot load a graph that computes nothing.
        return part
    known = {value.name: value for value in part.graph.output}
    del part.graph.output[:]
    part.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in wanted if name not in inputs)
    needed, kept = set(wanted), []
    for node in reversed(model.graph.node):
        # Subgraphs read names from outside that are not among a node's inputs: such graphs stay whole.
        if needed.intersection(node.output) or inner_graphs(node):
            needed.update(node.input)
            kept.append(node)
    if not any(map(inner_graphs, kept)):
        replace_nodes_(part.graph, reversed(kept))
        initializers = [tensor for tensor in model.graph.initializer if tensor.name in needed]
        del part.graph.initializer[:]
        part.graph.initializer.extend(initializers)
    return part


def _slices(session: Any, wanted: list[str], data: Iterable[Any], samples: int) -> Iterator[Feeds]:
    limit, left, layout, fixed = 0, samples, layout_of(session), fixed_batch(session)
    for inputs, _ in batches_of(data):
        feeds = samples_of(session, inputs) if session.get_inputs() else {}
        size = len(next(iter(feeds.values()))) if feeds else 1
        if not limit:
            one = filled(_part(feeds, 0, 1, size), fixed)
            values = session.run(wanted, laid_out(layout, one)) if wanted else []
            limit = fixed or max(1, _MAX_BYTES // max(1, sum(value.nbytes for value in values)))
        size_used = min(size, left)
        for start in range(0, size_used, limit):
            yield laid_out(layout, filled(_part(feeds, start, min(start + limit, size_used), size), fixed))
        left -= size_used
        if left <= 0:
            return


def _part(feeds: Feeds, start: int, end: int, size: int) -> Feeds:
    return {name: value[start:end] if value.shape[:1] == (size,) else value for name, value in feeds.items()}


class _Sums:
    def __init__(self) -> None:
        self.count = 0
        self.low = self.high = self.first = self.second = np.zeros(0)

    def update(self, values: npt.NDArray[Any], name: str) -> None:
        if values.size == 0:
            return
        low, high, first, second = np.empty((4, len(values)))
        step = max(1, _BLOCK // values.shape[1])
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            wide = values[rows].astype(np.float64)
            low[rows], high[rows], first[rows] = wide.min(axis=1), wide.max(axis=1), wide.sum(axis=1)
            second[rows] = np.einsum("ij,ij->i", wide, wide)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise StageError(f"tensor {name!r} holds NaN or infinite values; check the model and the calibration data")
        if self.count:
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
            self.first, self.second = self.first + first, self.second + second
        else:
            self.low, self.high, self.first, self.second = low, high, first, second
        self.count += values.shape[1]

    def statistics(self) -> ChannelStatistics:
        mean = self.first / self.count
        variance = np.maximum(self.second / self.count - mean**2, 0)
        return ChannelStatistics(low=self.low, high=self.high, mean=mean, deviation=np.sqrt(variance))


def output_sqnr_db(before: onnx.ModelProto, after: onnx.ModelProto, data: Iterable[Any], *, samples: int) -> float:
    """How well `after` keeps the outputs of `before` over the first `samples` samples: decibels of the worst, at most
    200. Outputs of whole numbers have none.
    """
    (found,) = outputs_sqnr_db(before, [after], data, samples=samples)
    return found


def outputs_sqnr_db(
    before: onnx.ModelProto, after: Sequence[onnx.ModelProto], data: Iterable[Any], *, samples: int
) -> list[float]:
    """The same for each of the models `after`, for which `before` runs once."""
    names = [value.name for value in before.graph.output]
    signal, noise = np.zeros((2, len(after), len(names)))
    runs = [
        probed(model, [value.name for value in model.graph.output], data, samples=samples) for model in (before, *after)
    ]
    for expected, *found in zip(*runs, strict=True):
        for place, name in enumerate(names):
            if expected[name].dtype.kind != "f":
                continue
            for which, (model, got) in enumerate(zip(after, found, strict=True)):
                own, lost = powers(expected[name], got[model.graph.output[place].name])
                signal[which, place] += own
                noise[which, place] += lost
    return [
        min(reported_db(decibels(float(power), float(each))) for power, each in zip(own, left, strict=True))
        if np.isfinite(left).all()
        else float("-inf")
        for own, left in zip(signal, noise, strict=True)
    ]
