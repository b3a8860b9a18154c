"""What every layer's rounding does to the network by itself: to its outputs (`SQNR`) or to its score (`TaskMetric`).

The noise powers of layers that are rounded one at a time add up to about that of all of them together, as long as
each is small (Lin et al. 2016, arXiv:1511.06393, section 3.2: equation 8 turns the sum into a budget of bits).
`predicted_db` is that sum. How well it holds: on ResNet-20 within half a decibel from 25 dB on, on ResNet-56 and
MobileNetV2 within 3; below 20 dB the errors of layers are no longer independent, and the sum is 2 to 8 dB too hopeful.
That is good enough to choose by; what was chosen is measured as a whole. Losses of score are taken one layer at a time
as in Wu et al. 2020, arXiv:2004.09602, section 5.1.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor

from compressor.batches import Batch, Inputs, target_rows
from compressor.files.graphs import initializers
from compressor.measuring.fidelity import sqnr_db
from compressor.measuring.scores import score_rows
from compressor.notes.quantization import LayerSensitivity, Sensitivities
from compressor.progress.bars import progress_bar
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.grids.weights import WeightGrid, nearest_grids, weight_positions
from compressor.quantization.placement.weight_only import fits_float16, place_float16
from compressor.quantization.post_training import Prepared
from compressor.runtime import calls, open_session
from compressor.scoring.decibels import MOST_DB, reported_db
from compressor.stage import Context
from compressor.workload import Workload, batch_size_of, batches_of, resize_batch

# The float graph with biases that make up for what such grids of weights shift in the mean.
Biased = Callable[[Mapping[str, WeightGrid]], onnx.ModelProto]

# Forms in float: weights stored as float16 or as float32, computed in float32.
FLOAT_BITS = (16, 32)
# Layers whose rounding costs no sample differ in noise alone: worth less than a sample, whatever there is of it.
_NOISE_SHARE = 1e-6


@dataclass(frozen=True, kw_only=True)
class SQNR:
    """Ranks by the signal to quantization noise of the outputs: fine differences from few samples, without targets."""


@dataclass(frozen=True, kw_only=True)
class TaskMetric:
    """Ranks by how much worse the task's metric gets, as in `Budget`, and by noise where it does not.

    One sample of n is a step of 1 / n in accuracy: it takes some thousand samples to tell layers apart.
    """


Criterion = SQNR | TaskMetric


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What the output keeps, in decibels, when `node` alone has weights of `bits` bits and quantized activations.

    Of 16 and 32 bits its activations stay in float. `size_bytes` is what its weights take, packed, without scales;
    `drop` how much worse the metric is, `ms` the milliseconds of the node per call, None where it was not measured.
    """

    node: str
    bits: int
    sqnr_db: float
    size_bytes: int
    drop: float | None = None
    ms: float | None = None

    @property
    def noise(self) -> float:
        """Its noise power as a fraction of the output's power."""
        return float(10 ** (-self.sqnr_db / 10)) if self.sqnr_db < MOST_DB else 0.0

    @property
    def loss(self) -> float:
        """What is least for the best layer: its noise, or its drop with the noise to tell equals apart."""
        return self.noise if self.drop is None else max(0.0, self.drop) + _NOISE_SHARE * self.noise

    @property
    def in_float(self) -> bool:
        """Whether the node computes on floats."""
        return self.bits in FLOAT_BITS


def sensitivities(
    prepared: Prepared,
    bits: Sequence[int],
    workload: Workload,
    context: Context,
    *,
    samples: int,
    criterion: Criterion = SQNR(),
    biased: Biased | None = None,
) -> dict[str, tuple[Sensitivity, ...]]:
    """{static node with constant weights: one entry for every width of `bits`}, on `samples` calibration samples.

    With `biased` every layer has the bias that makes up for its grid: what no bias can take out is what counts.
    """
    constants = initializers(prepared.graph.graph)
    nodes = {
        node.name: node
        for node in prepared.graph.graph.node
        if node.name in prepared.placement.static
        and any(node.input[position] in constants for position in weight_positions(node))
    }
    data = first_samples(workload.calibration, samples)
    batches = [inputs for inputs, _ in data]
    plain = serialize(prepared.graph)
    reference = output_values(plain, batches)
    rows = score_rows(plain, data, workload.metric) if isinstance(criterion, TaskMetric) else None
    found: dict[str, tuple[Sensitivity, ...]] = {}
    with progress_bar(total=len(nodes) * len(bits), desc="sensitivity", unit="width", shown=context.progress) as bar:
        for name, node in nodes.items():
            entries = []
            for width in bits:
                alone = _alone(prepared, name, width, biased)
                file = plain if alone is None else serialize(alone)
                entries.append(
                    Sensitivity(
                        node=name,
                        bits=width,
                        sqnr_db=MOST_DB if alone is None else noise_db(reference, output_values(file, batches)),
                        size_bytes=_weight_bytes(node, constants, width),
                        drop=None if rows is None else _drop(rows, score_rows(file, data, workload.metric), workload),
                    )
                )
                bar.update()
            found[name] = tuple(entries)
    return found


def reliefs(
    prepared: Prepared, workload: Workload, context: Context, *, samples: int
) -> tuple[float, dict[str, float]]:
    """(decibels that the outputs keep, {quantized node: decibels with this node in float again}), the most first.

    With the grids as they are placed, whatever widths and rounding they have; against the exported float file. Empty
    where there is but one node.
    """
    batches = first_inputs(workload.calibration, samples)
    reference = output_values(prepared.exported, batches)
    placement = prepared.placement
    nodes = (*placement.static, *placement.dynamic, *placement.weight_only)
    whole = noise_db(reference, output_values(serialize(prepared.place()), batches))
    found: dict[str, float] = {}
    bar = progress_bar(nodes if len(nodes) > 1 else (), desc="giving back", unit="layer", shown=context.progress)
    for name in bar:
        rest = prepared.without({name: "tried in float"})
        found[name] = noise_db(reference, output_values(serialize(rest.place()), batches))
    return whole, dict(sorted(found.items(), key=lambda item: -item[1]))


def with_biases_for(grids: Mapping[str, WeightGrid], prepared: Prepared, biased: Biased | None) -> Prepared:
    """`prepared` with the biases that make up for `grids`; as it is without `biased`."""
    return prepared if biased is None else replace(prepared, graph=biased(grids))


def scheme_of_width(scheme: Scheme, bits: int) -> Scheme:
    """`scheme` with another number of bits."""
    return replace(scheme, bits=bits)


def predicted_db(chosen: Iterable[Sensitivity]) -> float:
    """The signal to noise of all layers together, in decibels, where the noise of each adds to the others'."""
    noise = sum(entry.noise for entry in chosen)
    return MOST_DB if noise <= 0 else min(MOST_DB, -10 * math.log10(noise))


def reason_of(entries: Sequence[Sensitivity], chosen: int) -> str:
    """What the chosen width leaves and takes, and what its neighbours would have: in milliseconds where these count."""
    widths = sorted(entries, key=lambda entry: entry.bits)
    at = next(index for index, entry in enumerate(widths) if entry.bits == chosen)
    entry = widths[at]
    taken = f"{entry.size_bytes} bytes" if entry.ms is None else f"{entry.ms:.4f} ms"
    parts = [f"{'in float, ' if entry.in_float else ''}{_kept(entry)} in {taken}"]
    for other in (*widths[max(0, at - 1) : at], *widths[at + 1 : at + 2]):
        form = {16: "float16", 32: "float"}.get(other.bits, f"{other.bits} bits")
        parts.append(f"{form}: {_kept(other)} for {_difference(entry, other)}")
    return "; ".join(parts)


def sensitivities_note(found: Mapping[str, Sequence[Sensitivity]], chosen: Mapping[str, int]) -> Sensitivities:
    """What the report is told of every layer: the chosen bits, why, and by width the decibels, bytes and more.

    "drop" and "ms" are told where they were measured at all widths; 32 bits have no noise to be told.
    """
    layers = []
    for name, entries in found.items():
        drops = {entry.bits: round(entry.drop, 5) for entry in entries if entry.drop is not None}
        times = {entry.bits: round(entry.ms, 5) for entry in entries if entry.ms is not None}
        layers.append(
            LayerSensitivity(
                node=name,
                bits=chosen[name],
                reason=reason_of(entries, chosen[name]),
                sqnr_db={entry.bits: entry.sqnr_db for entry in entries if entry.bits != max(FLOAT_BITS)},
                size_bytes={entry.bits: entry.size_bytes for entry in entries},
                drop=drops if len(drops) == len(entries) else None,
                ms=times if len(times) == len(entries) else None,
            )
        )
    return Sensitivities(sensitivity=tuple(layers))


def first_inputs(data: Iterable[Any], samples: int) -> list[Inputs]:
    """The inputs of the first `samples` samples of `data`, in its batches."""
    return [inputs for inputs, _ in first_samples(data, samples)]


def first_samples(data: Iterable[Any], samples: int) -> list[Batch]:
    """The first `samples` samples of `data`, in its batches, the last of them cut."""
    taken: list[Batch] = []
    left = samples
    for inputs, targets in batches_of(data):
        size = min(batch_size_of(inputs), left)
        taken.append((resize_batch(inputs, size), target_rows(targets, slice(size), batch_size_of(inputs))))
        left -= size
        if left <= 0:
            break
    return taken


def output_values(onnx_bytes: bytes, batches: Sequence[Inputs]) -> tuple[npt.NDArray[Any], ...]:
    """The values of every output of real numbers over all of `batches`, each in one row."""
    session = open_session(onnx_bytes)
    given = [call.outputs for inputs in batches for call in calls(session, inputs)]
    return tuple(
        np.concatenate([values.reshape(-1) for values in output])
        for output in zip(*given, strict=True)
        if output[0].dtype.kind == "f"
    )


def noise_db(reference: Sequence[npt.NDArray[Any]], outputs: Sequence[npt.NDArray[Any]]) -> float:
    """The signal to quantization noise of the output that keeps least, in decibels as reports write it."""
    return min((reported_db(sqnr_db(*pair)) for pair in zip(reference, outputs, strict=True)), default=MOST_DB)


def _alone(prepared: Prepared, name: str, width: int, biased: Biased | None) -> onnx.ModelProto | None:
    """The graph with the node `name` alone in the form that `width` stands for; None where that is the float graph."""
    if width == max(FLOAT_BITS):
        return None
    if width in FLOAT_BITS:
        return place_float16(prepared.graph, {name})
    grids = nearest_grids(prepared.graph, {name: scheme_of_width(prepared.scheme, width)})
    return with_biases_for(grids, prepared, biased).only(name, grids)


def _weight_bytes(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], width: int) -> int:
    tensors = [
        constants[node.input[position]] for position in weight_positions(node) if node.input[position] in constants
    ]
    bits = [32 if width in FLOAT_BITS and not (width < 32 and fits_float16(tensor)) else width for tensor in tensors]
    return sum(math.ceil(math.prod(tensor.dims) * each / 8) for tensor, each in zip(tensors, bits, strict=True))


def _drop(reference: Tensor, rows: Tensor, workload: Workload) -> float:
    metric = workload.metric
    return metric.drop(metric.aggregate(reference), metric.aggregate(rows))


def _kept(entry: Sensitivity) -> str:
    told = "no noise" if entry.sqnr_db >= MOST_DB else f"{entry.sqnr_db:.1f} dB"
    return told if entry.drop is None else f"{told} (the score falls {100 * entry.drop:.2f} %)"


def _difference(entry: Sensitivity, other: Sensitivity) -> str:
    if entry.ms is not None and other.ms is not None:
        more, text = other.ms - entry.ms, f"{abs(other.ms - entry.ms):.4f} ms"
    else:
        more, text = other.size_bytes - entry.size_bytes, f"{abs(other.size_bytes - entry.size_bytes)} bytes"
    return f"{text} {'more' if more > 0 else 'less'}" if more else "as much"
