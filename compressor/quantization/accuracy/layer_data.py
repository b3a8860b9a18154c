"""A float network beside its quantized twin, walked segment by segment from the inputs to the outputs.

A segment begins and ends where few tensors cross the graph. What crosses is kept for all samples, once as the float
network computes it and once as the network does whose earlier layers are rounded already (Nagel et al. 2020,
arXiv:2004.10568, section 3.3, asymmetric reconstruction): so a walk costs one forward pass of either network, however
many layers there are. Where much crosses, as within a block that widens first, the segment goes on to where less does:
its layers are run more than once, and more samples are kept for the layers behind, which see few positions of each.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from compressor.checks import check_calibrated
from compressor.errors import StageError
from compressor.files.carrying import fixed_batch
from compressor.files.graphs import initializers, names_read, output_names, producers
from compressor.files.operators import IntegerForm, operator_of
from compressor.quantization.accuracy.layer_rows import has_rows, to_rows
from compressor.quantization.accuracy.linear_layers import LinearLayer, tensor_in_placed
from compressor.quantization.accuracy.sample_axes import SampleAxes, Values, find_sample_axes
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.placement.names import dequantized
from compressor.quantization.torch_graph.graph import TorchGraph
from compressor.training.replay import replayed
from compressor.workload import Workload, batches_of

Place = Callable[[dict[str, WeightGrid]], onnx.ModelProto]

# What crosses the borders of a segment is held for all samples: of larger activations fewer samples are taken.
MAX_BYTES = 1 << 30
# Layers of a segment that goes on at most, each of which is run again for those behind it.
_MOST_TOGETHER = 4
# Samples in one forward pass.
_CHUNK = 32
# Samples that the means of a layer's outputs are taken over.
_MEAN_SAMPLES = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A node whose weight is to be rounded, and the initializer that holds it.

    `linear` tells of its bias where that is to make up for what rounding shifts in the mean.
    """

    node: onnx.NodeProto
    weight: str
    linear: LinearLayer | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Consecutive nodes with the activations that enter and leave them; without `inputs` it begins the network."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[Layer, ...]


def _is_rounded(node: onnx.NodeProto, grids: Mapping[str, WeightGrid]) -> bool:
    row = operator_of(node.op_type)
    # `layer_rows` has no form for a transposed convolution.
    if not row.linear or row.integer_form is not IntegerForm.KERNEL or node.input[1] not in grids:
        return False
    return has_rows(node, grids[node.input[1]].integers.shape)


class Twins:
    """The float network and its quantized twin in torch; `grids` stand in for the twin's weights and may be exchanged.

    Activations go by the float graph's names. Where torch has no form for the quantized graph (ranges found at run
    time, packed weights), the twin has quantized weights alone. The biases of `corrected` layers may be exchanged too:
    `biases` has those that were.
    """

    def __init__(
        self,
        graph: onnx.ModelProto,
        grids: Mapping[str, WeightGrid],
        place: Place,
        *,
        corrected: Iterable[LinearLayer] = (),
    ) -> None:
        self.graph, self.grids = graph, dict(grids)
        self.biases: Values = {}
        self.float_net = TorchGraph(graph, foreign=True).requires_grad_(requires_grad=False)
        linear = {layer.name: layer for layer in corrected}
        self.layers = [
            Layer(node=node, weight=node.input[1], linear=linear.get(node.name))
            for node in graph.graph.node
            if _is_rounded(node, self.grids)
        ]
        weights = {layer.weight for layer in self.layers}
        self.weights: Values = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
            for tensor in graph.graph.initializer
            if tensor.name in weights
        }
        placed = place(self.grids)
        self.quantized_net, self.names = self._twin(placed)
        self._placed = self.graph if self.quantized_net is self.float_net else placed

    def _twin(self, placed: onnx.ModelProto) -> tuple[TorchGraph, dict[str, str]]:
        names = _twin_names(self.graph, placed)
        if names.keys() >= self.weights.keys():
            try:
                return TorchGraph(placed, foreign=True).requires_grad_(requires_grad=False), names
            except StageError:
                pass
        return self.float_net, _twin_names(self.graph, self.graph)

    def stand_ins(self) -> Values:
        """The weights as the grids have them now, and the biases that were exchanged, under the twin's names."""
        weights = {self.names[name]: self.grids[name].values() for name in self.weights}
        return weights | {self.names[name]: value for name, value in self.biases.items()}

    def correct_mean_(self, layer: Layer, crossing: "Crossing") -> bool:
        """Adds to the layer's bias what the twin's output lacks of the float one in the mean; whether it could."""
        linear = layer.linear
        tensor = None if linear is None else tensor_in_placed(self._placed, linear)
        if linear is None or tensor is None or linear.bias not in self.names:
            return False
        total, count, weights = torch.zeros(1, dtype=torch.float64), 0, self.stand_ins()
        for exact, quantized in crossing.chunks(_MEAN_SAMPLES):
            wanted = self.run_float(exact, [linear.output])[linear.output]
            with torch.no_grad():
                (got,) = self.quantized_net.run(self._given(quantized) | weights, [tensor])
            lacking = (wanted - got).movedim(linear.output_axis, 0).flatten(1)
            total, count = total + lacking.double().sum(dim=1), count + lacking.shape[1]
        bias = self.biases.get(linear.bias, self.float_net.constant(linear.bias))
        self.biases[linear.bias] = (bias.double() + (total / count).reshape(bias.shape)).float()
        return True

    def rows_of(self, layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
        """(weight, scale, zero point) of the layer as the products see them, each (groups, outputs, inputs)."""
        grid, weight = self.grids[layer.weight], self.weights[layer.weight]
        scale, zero_point = (grid.spread(part).expand_as(weight) for part in (grid.scale, grid.zero_point))
        return to_rows(layer.node, weight), to_rows(layer.node, scale), to_rows(layer.node, zero_point)

    def run_float(self, values: Values, wanted: Iterable[str]) -> Values:
        """The `wanted` activations of the float network, from `values` that cut it."""
        names = list(wanted)
        with torch.no_grad():
            return dict(zip(names, self.float_net.run(values, names), strict=True))

    def run_quantized(self, values: Values, wanted: Iterable[str], weights: Values) -> Values:
        """The `wanted` activations of the twin with `weights` (under its names), from `values` that cut it."""
        names = list(wanted)
        with torch.no_grad():
            found = self.quantized_net.run(self._given(values) | weights, [self.names[name] for name in names])
        return dict(zip(names, found, strict=True))

    def _given(self, values: Values) -> Values:
        # What comes into the network is rounded there; what crosses a border was.
        inputs = self.quantized_net.input_names
        return {name if name in inputs else self.names.get(name, name): value for name, value in values.items()}

    def inputs_of(self, layer: Layer, crossing: "Crossing") -> Iterator[tuple[Tensor, Tensor]]:
        """(float, quantized) input of the layer, some samples at a time."""
        source, weights = layer.node.input[0], self.stand_ins()
        for exact, quantized in crossing.chunks():
            yield (
                self.run_float(exact, [source])[source],
                self.run_quantized(quantized, [source], weights)[source],
            )


def _twin_names(graph: onnx.ModelProto, placed: onnx.ModelProto) -> dict[str, str]:
    """Tensor of `graph` -> what nodes of `placed` read instead; tensors that are gone there have no entry."""
    made = set(producers(placed.graph.node))
    made |= {value.name for value in placed.graph.input} | {tensor.name for tensor in placed.graph.initializer}
    outputs = output_names(graph.graph)
    names = {*initializers(graph.graph), *producers(graph.graph.node), *(value.name for value in graph.graph.input)}
    found = {}
    for name in sorted(names):
        behind = dequantized(name)
        if behind in made and name not in outputs:
            found[name] = behind
        elif name in made:
            found[name] = name
    return found


@dataclass(kw_only=True, eq=False)
class Crossing:
    """What crosses one border for all samples, as either network has it, and the network's inputs; samples in rows."""

    axes: SampleAxes
    feeds: Values
    exact: Values
    quantized: Values
    chunk: int = _CHUNK

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.feeds.values())))

    def rows(self, chosen: Any) -> tuple[Values, Values]:
        """(float, quantized) values of the `chosen` samples with the network's inputs, for `run_float` and its twin."""
        feeds, exact, quantized = (
            self.axes.placed({name: value[chosen] for name, value in values.items()})
            for values in (self.feeds, self.exact, self.quantized)
        )
        return feeds | exact, feeds | quantized

    def chunks(self, samples: int | None = None) -> Iterator[tuple[Values, Values]]:
        """`rows` of all samples in order, or of so many that they are at least `samples`, some at a time."""
        end = self.samples if samples is None else min(samples, self.samples)
        return (self.rows(slice(start, start + self.chunk)) for start in range(0, end, self.chunk))


class Walk:
    """The segments of `twins` in order, each with what enters it; the grids of a segment are read when it is left."""

    def __init__(self, twins: Twins, workload: Workload, *, samples: int, seed: int) -> None:
        self.twins = twins
        feeds = _first_samples(twins.float_net, workload, samples, seed)
        names = list(producers(twins.graph.graph.node))
        self.axes, sizes = find_sample_axes(twins.graph, lambda values: twins.run_float(values, names), feeds)
        wanted = min(samples, len(next(iter(feeds.values()))))
        self.segments = _segments(twins, set(sizes))
        kept = min(wanted, _held(self.segments, sizes))
        longer = _narrow(self.segments, sizes, MAX_BYTES // (4 * wanted))
        if kept < wanted and _held(longer, sizes) > kept:
            self.segments, kept = longer, min(wanted, _held(longer, sizes))
        # A graph of one batch size takes whole batches alone.
        chunk = fixed_batch(twins.graph)
        kept = max(chunk, kept // chunk * chunk) if chunk else kept
        first = {name: rows[:kept] for name, rows in feeds.items()}
        self._start = Crossing(axes=self.axes, feeds=first, exact={}, quantized={}, chunk=chunk or _CHUNK)

    @property
    def samples(self) -> int:
        """How many samples are looked at."""
        return self._start.samples

    def __iter__(self) -> Iterator[tuple[Segment, Crossing]]:
        crossing = self._start
        for number, segment in enumerate(self.segments, 1):
            yield segment, crossing
            if number == len(self.segments):
                return
            weights = self.twins.stand_ins()
            exact, quantized = [], []
            for ours, theirs in crossing.chunks():
                exact.append(self.axes.in_rows(self.twins.run_float(ours, segment.outputs)))
                quantized.append(self.axes.in_rows(self.twins.run_quantized(theirs, segment.outputs, weights)))
            crossing = replace(crossing, exact=_joined(exact), quantized=_joined(quantized))


def _joined(chunks: list[Values]) -> Values:
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _first_samples(net: TorchGraph, workload: Workload, samples: int, seed: int) -> Values:
    """The first `samples` of the calibration set, and of the training set where that has too few."""
    kept: list[Values] = []
    count = 0
    with replayed(seed, 0):
        for inputs, _ in chain(batches_of(workload.calibration), batches_of(workload.train)):
            kept.append(net.feeds(inputs))
            count += len(next(iter(kept[-1].values())))
            if count >= samples:
                break
    check_calibrated(kept)
    return {name: torch.cat([batch[name] for batch in kept])[:samples] for name in kept[0]}


def _segments(twins: Twins, sampled: set[str]) -> list[Segment]:
    """The graph cut into segments that hold layers, wherever the twin has all the activations that cross the border."""
    graph = twins.graph.graph
    last = {name: index for index, node in enumerate(graph.node) for name in names_read(node)}
    last |= {value.name: len(graph.node) for value in graph.output}
    layer_of = {layer.node.name: layer for layer in twins.layers}
    found: list[Segment] = []
    live: list[str] = []
    inputs: tuple[str, ...] = ()
    layers: list[Layer] = []
    for index, node in enumerate(graph.node):
        live = [name for name in [*live, *node.output] if last.get(name, -1) > index]
        if node.name in layer_of:
            layers.append(layer_of[node.name])
        crossing = tuple(name for name in live if name in sampled)
        usable = bool(crossing) and twins.names.keys() >= set(crossing)
        if index < len(graph.node) - 1 and not usable:
            continue
        if layers or not found:
            found.append(Segment(inputs=inputs, outputs=crossing, layers=tuple(layers)))
        else:
            # An addition or a pool behind a layer belongs to that layer's segment.
            found[-1] = Segment(inputs=found[-1].inputs, outputs=crossing, layers=found[-1].layers)
        inputs, layers = crossing, []
    return found


def _held(segments: list[Segment], sizes: Mapping[str, int]) -> int:
    """Of how many samples, one at least, what enters and leaves the widest segment can be held for both networks."""
    widest = max((sum(2 * sizes[name] for name in (*part.inputs, *part.outputs)) for part in segments), default=0)
    return max(1, MAX_BYTES // max(1, widest))


def _narrow(segments: list[Segment], sizes: Mapping[str, int], limit: int) -> list[Segment]:
    """`segments` that go on where more than `limit` bytes a sample cross their border, as far as their layers allow."""
    found: list[Segment] = []
    for segment in segments:
        before = found[-1] if found else None
        if (
            before is not None
            and sum(sizes[name] for name in before.outputs) > limit
            and len(before.layers) + len(segment.layers) <= _MOST_TOGETHER
        ):
            found[-1] = replace(before, outputs=segment.outputs, layers=(*before.layers, *segment.layers))
        else:
            found.append(segment)
    return found
