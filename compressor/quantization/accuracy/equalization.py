"""Cross-layer equalization: the channels between two layers get scales with which both layers' weights round alike.

A channel that leaves one layer is divided by s and multiplied by s in the weights that read it, with
s = sqrt(r1 / r2) for the largest magnitudes r1 of the weights that make it and r2 of those that read it: both then have
the range sqrt(r1 r2). Nagel et al. 2019, arXiv:1906.04721, equations 9 to 11, repeated over all layers until nothing
moves. Layers that a residual sum ties to one scale are left alone: one scale cannot fit them all, and forcing it cost
5 dB on ResNet-20.

ReLU6 is not homogeneous. If the outputs hardly change without its bound, it becomes ReLU (sec. 5.1.1 there); where no
channel reaches the bound in calibration, all of them are scaled, times a common factor so that none reaches it then;
where one does, the layer is left alone.

Bias absorption (equations 12 to 15): a channel that is hardly ever below c > 0 in front of a ReLU gives c to the biases
behind it, x = (x - c) + c, which narrows its range. Mean and deviation come from calibration instead of BatchNorm, and
only readers without padding take part: a padded zero would have to become -c.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnx

from compressor.checks import check_count, check_not_negative
from compressor.errors import NothingToImproveError
from compressor.files.graphs import attributes, copy_of, initializers, names_read, output_names, readers
from compressor.files.operators import operator_of
from compressor.notes.quantization import Equalized
from compressor.quantization.accuracy.channel_scaling import (
    Array,
    ScalingGroup,
    read_weights,
    rescale_,
    with_weights,
)
from compressor.quantization.accuracy.channel_statistics import channel_statistics, output_sqnr_db
from compressor.quantization.accuracy.channel_tracing import scaling_groups
from compressor.stage import Context
from compressor.workload import Workload

# A scale that moves by less than this in a sweep changes no integer of an 8-bit weight.
_SETTLED = 1e-3
# Channels may come this close to the bound of a ReLU6 by scaling: calibration has not seen everything.
_HEADROOM = 1.1


@dataclass(frozen=True, kw_only=True)
class CrossLayerEqualization:
    """Weights rescaled channel by channel between layers, so that one scale a tensor fits all of them.

    Changes that calibration alone justifies, ReLU in place of ReLU6 and the absorption of biases below `deviations`
    standard deviations under a channel's mean (None: no absorption), are made as long as the float outputs keep
    `least_sqnr_db` over `samples` calibration samples. `sweeps` bounds the passes over the layers.
    """

    sweeps: int = 20
    deviations: float | None = 3.0
    least_sqnr_db: float = 50.0
    samples: int = 256

    def __post_init__(self) -> None:
        check_count(self.sweeps, "sweeps is a count")
        check_count(self.samples, "samples is the number of samples that are looked at")
        if self.deviations is not None:
            says = "deviations is how many standard deviations under the mean are absorbed"
            check_not_negative(self.deviations, says, way_out="None absorbs nothing")

    def apply(self, graph: onnx.ModelProto, workload: Workload, context: Context) -> tuple[onnx.ModelProto, Equalized]:
        """(the equalized float graph, what the report is told).

        Raises NothingToImproveError where no layers can be equalized.
        """
        start, unclipped, absorbed = graph, None, None
        if any(group.clippings for group in _groups(graph)):
            graph, unclipped = self._unclip(graph, workload, context)
        groups, limits = self._limits(graph, _groups(graph), workload, context)
        if not groups:
            raise NothingToImproveError(
                "equalization",
                "nothing to equalize: no channel leads from one Conv, Gemm or MatMul to another through ReLU or "
                "pooling alone",
            )
        weights = read_weights(graph)
        before = _spread(weights, groups)
        equalize_(weights, groups, sweeps=self.sweeps, limits=limits)
        after = _spread(weights, groups)
        equalized = with_weights(graph, weights)
        if self.deviations is not None:
            equalized, absorbed = self._absorb(equalized, workload, context)
        note = Equalized(
            unclipped=None if unclipped is None else tuple(unclipped),
            layers=len(groups),
            spread_before=before,
            spread_after=after,
            absorbed_channels=absorbed,
            float_sqnr_db=self._sqnr_db(start, equalized, workload),
        )
        return equalized, note

    def _sqnr_db(self, before: onnx.ModelProto, after: onnx.ModelProto, workload: Workload) -> float:
        return output_sqnr_db(before, after, workload.calibration, samples=self.samples)

    def _unclip(
        self, graph: onnx.ModelProto, workload: Workload, context: Context
    ) -> tuple[onnx.ModelProto, list[str]]:
        """The graph with ReLU for as many ReLU6 as the floor allows, those first that cut least, and their names."""
        clippings = [entry for group in _groups(graph) for entry in group.clippings]
        axes = {entry.source: 1 for entry in clippings}
        seen = channel_statistics(graph, axes, workload.calibration, samples=self.samples, progress=context.progress)
        order = sorted(clippings, key=lambda entry: float((seen[entry.source].high / entry.high).max()))
        names = [entry.node for entry in order]
        fewest, most = 0, len(names)
        while fewest < most:
            middle = (fewest + most + 1) // 2
            if self._sqnr_db(graph, without_bounds(graph, names[:middle]), workload) >= self.least_sqnr_db:
                fewest = middle
            else:
                most = middle - 1
        return without_bounds(graph, names[:fewest]), sorted(names[:fewest])

    def _limits(
        self, graph: onnx.ModelProto, groups: list[ScalingGroup], workload: Workload, context: Context
    ) -> tuple[list[ScalingGroup], dict[int, Array]]:
        """(groups without bounds or whose bounds never bind, their index -> the least scale of every channel)."""
        axes = {entry.source: group.tensors[entry.source] for group in groups for entry in group.clippings}
        if not axes:
            return groups, {}
        seen = channel_statistics(graph, axes, workload.calibration, samples=self.samples, progress=context.progress)
        free: list[ScalingGroup] = []
        limits: dict[int, Array] = {}
        for group in groups:
            shares = [seen[entry.source].high.clip(min=0) * _HEADROOM / entry.high for entry in group.clippings]
            if any((share >= 1).any() for share in shares):
                continue
            if shares:
                limits[len(free)] = np.max(shares, axis=0)
            free.append(group)
        return free, limits

    def _absorb(self, graph: onnx.ModelProto, workload: Workload, context: Context) -> tuple[onnx.ModelProto, int]:
        assert self.deviations is not None
        candidates = absorbable(graph)
        if not candidates:
            return graph, 0
        axes = {entry.source: 1 for entry in candidates}
        seen = channel_statistics(graph, axes, workload.calibration, samples=self.samples, progress=context.progress)
        weights, count = read_weights(graph), 0
        for entry in candidates:
            moments = seen[entry.source]
            shift = (moments.mean - self.deviations * moments.deviation).clip(min=0)
            count += int((shift > 0).sum())
            absorb_(weights, entry, shift)
        absorbed = with_weights(graph, weights)
        if count and self._sqnr_db(graph, absorbed, workload) >= self.least_sqnr_db:
            return absorbed, count
        return graph, 0


def equalize_(
    weights: dict[str, Array],
    groups: list[ScalingGroup],
    *,
    sweeps: int,
    limits: dict[int, Array] | None = None,
) -> None:
    """Scales the channels of all `groups` in place until no scale moves by 0.1 %, at most `sweeps` times.

    `limits` (index of a group -> least scale a channel) bound what all sweeps together divide by: all channels of such
    a group are divided by a common factor more. Channels whose weights are all zero on either side keep their scale.
    """
    total = {index: np.ones(group.channels) for index, group in enumerate(groups)}
    for _ in range(sweeps):
        moved = 0.0
        for index, group in enumerate(groups):
            made = np.max([slot.extremes(weights[slot.initializer]) for slot in group.producers], axis=0)
            read = np.max([slot.extremes(weights[slot.initializer]) for slot in group.consumers], axis=0)
            usable = (made > 0) & (read > 0)
            scale = np.sqrt(np.divide(made, read, out=np.ones_like(made), where=usable))
            if limits and index in limits:
                scale *= max(1.0, float((limits[index] / (total[index] * scale)).max()))
            total[index] *= scale
            rescale_(weights, group, scale)
            moved = max(moved, float(np.abs(np.log(scale)).max()))
        if moved < _SETTLED:
            return


def without_bounds(graph: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The graph with a ReLU for every Clip in `names`."""
    changed = copy_of(graph)
    wanted = set(names)
    for node in changed.graph.node:
        if node.name in wanted:
            node.op_type = "Relu"
            del node.input[1:]
    used = {name for node in changed.graph.node for name in names_read(node)}
    kept = [tensor for tensor in changed.graph.initializer if tensor.name in used]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    return changed


@dataclass(frozen=True, kw_only=True)
class Absorption:
    """A layer whose output `source` goes through a ReLU to one unpadded reader: initializers of biases and weight."""

    source: str
    bias: str
    reader_bias: str
    reader_weight: str
    transposed: bool


def absorbable(graph: onnx.ModelProto) -> list[Absorption]:
    """The layers whose biases the only reader behind their ReLU can take over; all biases are initializers."""
    nodes = graph.graph.node
    constants = set(initializers(graph.graph))
    outputs, read = output_names(graph.graph), readers(nodes)

    def only_reader(name: str) -> onnx.NodeProto | None:
        found = read.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    candidates = []
    for node in nodes:
        if node.op_type not in {"Conv", "Gemm"} or not constants.issuperset(node.input[1:]) or len(node.input) < 3:
            continue
        relu = only_reader(node.output[0])
        reader = only_reader(relu.output[0]) if relu is not None and relu.op_type == "Relu" else None
        if reader is None or len(reader.input) < 3 or not constants.issuperset(reader.input[1:]):
            continue
        settings = attributes(reader)
        plain = reader.op_type == "Conv" and settings.get("group", 1) == 1
        padded = any(settings.get("pads", ())) or settings.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}
        scaled = any(settings.get(name, 1.0) != 1.0 for name in ("alpha", "beta")) or settings.get("transA", 0)
        if (plain and not padded) or (reader.op_type == "Gemm" and not scaled):
            candidates.append(
                Absorption(
                    source=node.output[0],
                    bias=node.input[2],
                    reader_bias=reader.input[2],
                    reader_weight=reader.input[1],
                    transposed=reader.op_type == "Gemm" and not settings.get("transB", 0),
                )
            )
    return candidates


def absorb_(weights: dict[str, Array], entry: Absorption, shift: Array) -> None:
    """Moves `shift` (channels, >= 0) from the layer's bias to the biases behind the ReLU, in place.

    b1 - c and b2 + W2 c, Nagel et al. 2019, equation 15; exact where no value in front of the ReLU is below `shift`.
    """
    weight = weights[entry.reader_weight].astype(np.float64)
    weight = weight.T if entry.transposed else weight
    moved = weight.reshape(weight.shape[0], weight.shape[1], -1).sum(axis=2) @ shift
    for name, change in ((entry.bias, -shift), (entry.reader_bias, moved)):
        weights[name] = (weights[name] + change.reshape(weights[name].shape)).astype(np.float32)


def _groups(graph: onnx.ModelProto) -> list[ScalingGroup]:
    """The groups that one linear operator makes: a normalization in front is for activations, not for weights."""
    kinds = {node.name: node.op_type for node in graph.graph.node}
    return [
        group
        for group in scaling_groups(graph)
        if len(group.sources) == 1 and operator_of(kinds[group.sources[0]]).linear
    ]


def _spread(weights: dict[str, Array], groups: list[ScalingGroup]) -> float:
    """The geometric mean over all layers between channels of the largest magnitude over a channel's typical one."""
    ratios = []
    for group in groups:
        for slot in (*group.producers, *group.consumers):
            found = slot.extremes(weights[slot.initializer])
            found = found[found > 0]
            if found.size:
                ratios.append(math.log(found.max() / np.median(found)))
    return round(math.exp(sum(ratios) / max(1, len(ratios))), 3)
