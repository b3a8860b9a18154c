"""Post-training quantization of an exported graph, in two halves that training can stand between.

`prepare` cleans the graph, places the forms, calibrates and rounds; `finish` writes the integer graph, makes its file
small, lists what runs on integers and refuses what broke.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Protocol

import onnx

from compressor.errors import NothingToImproveError, StageError
from compressor.files.carrying import carried_over
from compressor.files.converting.precision import is_quantized
from compressor.files.graphs import all_nodes, opset_of, parse
from compressor.files.operators import heavy_operators
from compressor.notes.note import Note
from compressor.notes.quantization import Calibrated, IntegerForm, LeftOut
from compressor.quantization.file.audit import coverage, verified_outputs
from compressor.quantization.file.channel_alignment import aligned
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.file.packing import smallest_file
from compressor.quantization.grids.activations import ActivationGrid, activation_grids
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.grids.weights import WeightGrid, WeightRange, nearest_grids, weight_positions
from compressor.quantization.placement.distinct_names import name_nodes_apart_
from compressor.quantization.placement.dynamic import place_dynamic
from compressor.quantization.placement.float_layers import keep_sums_apart_
from compressor.quantization.placement.forms import ByFamily, Static
from compressor.quantization.placement.joined_signals import parts_to_observe, separated
from compressor.quantization.placement.names import integers_of
from compressor.quantization.placement.policy import Placement, followers, placement_of
from compressor.quantization.placement.prepare_graph import clean_graph
from compressor.quantization.placement.static import place_static, tensors_to_observe, with_shared
from compressor.quantization.placement.transposed_convolutions import as_convolutions
from compressor.quantization.placement.weight_only import place_float16, place_weight_only
from compressor.quantization.ranges.calibration import MinMax, calibrate
from compressor.quantization.settings import IntegerSettings
from compressor.stage import Context
from compressor.target import Isa
from compressor.workload import Workload

# DequantizeLinear along an axis.
_LEAST_OPSET = 13
# Samples that show how far signals reach that are joined, where no ranges are needed besides.
_JOINED_SAMPLES = 64


class Rewrite(Protocol):
    """A change of a float graph that keeps its function, and what the report is told of it."""

    def apply(self, graph: onnx.ModelProto, workload: Workload, context: Context) -> tuple[onnx.ModelProto, Note]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A clean float graph with all that its integer form needs; `replace` gives it other grids or another graph.

    `exported` is the float file that it came from; `static` the nodes that work on integers, those that follow the
    layers among them; `details` what the report is told.
    """

    exported: bytes
    graph: onnx.ModelProto
    placement: Placement
    static: frozenset[str]
    activations: Mapping[str, ActivationGrid]
    weights: Mapping[str, WeightGrid]
    scheme: Scheme
    isa: Isa
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def activation_bits(self) -> int:
        """The most bits that a tensor has, 8 where none is calibrated."""
        return max((grid.bits for grid in self.activations.values()), default=8)

    def place(
        self, graph: onnx.ModelProto | None = None, weights: Mapping[str, WeightGrid] | None = None
    ) -> onnx.ModelProto:
        """The integer graph of `graph` (a float graph with the same nodes and tensors; by default its own)."""
        placed = self.graph if graph is None else graph
        grids = self.weights if weights is None else weights
        if self.placement.static:
            placed = place_static(placed, set(self.static), self.activations, grids)
        if self.placement.dynamic:
            placed = place_dynamic(placed, set(self.placement.dynamic), grids)
        if self.placement.weight_only:
            placed = place_weight_only(placed, set(self.placement.weight_only), grids)
        if self.placement.float16:
            placed = place_float16(placed, set(self.placement.float16))
        keep_sums_apart_(placed)
        name_nodes_apart_(placed, self.graph)
        return placed

    def shipped(self, placed: onnx.ModelProto | None = None) -> bytes:
        """What `place` gives (`placed`, where it is there), with the channels of zeros that kernels are faster with.

        It computes what the file that ships does, in as much time.
        """
        return serialize(aligned(self.place() if placed is None else placed, self.isa))

    def without(self, reasons: Mapping[str, str], *, float16: Collection[str] = ()) -> "Prepared":
        """The same with the nodes that `reasons` names in float again, the weights of `float16` stored as float16.

        Raises StageError where none is left.
        """
        placement = self.placement.without(reasons)
        rounded = {*placement.static, *placement.dynamic, *placement.weight_only}
        if not rounded:
            raise StageError(
                "nothing would be left to quantize: every layer went back to float; leave this stage out, or accept "
                "more loss"
            )
        placement = replace(placement, float16=(*placement.float16, *float16))
        nodes = frozenset({*placement.static, *followers(self.graph, set(placement.static))}) & self.static
        used = {
            name
            for node in all_nodes(self.graph.graph)
            if node.name in rounded
            for name in (node.input[position] for position in weight_positions(node))
        }
        weights = {name: grid for name, grid in self.weights.items() if name in used}
        return replace(self, placement=placement, static=nodes, weights=weights)

    def only(self, node: str, weights: Mapping[str, WeightGrid]) -> onnx.ModelProto:
        """The graph in which `node` alone works on integers, with the grids `weights`."""
        return place_static(self.graph, {node}, self.activations, weights)

    def noting(self, note: Note) -> "Prepared":
        """The same with one more note for the report; it takes the place of another of its kind."""
        return replace(self, details={**self.details, **note.to_json()})

    def leaving_out(self, found: NothingToImproveError) -> "Prepared":
        """The same with a note that an improvement had nothing to work on."""
        before = LeftOut.from_json(self.details)
        reasons = {} if before is None else before.left_out
        return self.noting(LeftOut(left_out={**reasons, found.improvement: found.reason}))


def prepare(
    exported: bytes,
    settings: IntegerSettings,
    workload: Workload,
    context: Context,
    *,
    weight_range: WeightRange = "auto",
    rewrites: Sequence[Rewrite] = (),
) -> Prepared:
    """The exported float graph with its placement and nearest-rounded grids.

    `rewrites` change the graph and keep its function, one after the other; one with nothing to work on is noted. Raises
    StageError for a graph that is quantized already, where nothing can be quantized, and where `settings.skip` matches
    nothing.
    """
    if is_quantized(parse(exported)):
        raise StageError(
            "the model is quantized already: rounding rounded numbers only loses accuracy. Quantize once, as the "
            "last stage"
        )
    graph = clean_graph(exported)
    opset = opset_of(graph)
    if opset < _LEAST_OPSET:
        raise StageError(
            f"the file has opset {opset}, and scales for every channel came with {_LEAST_OPSET}; read it with "
            "compressor.read_onnx(path), which converts it"
        )
    if isinstance(settings.form, ByFamily | Static):
        graph = as_convolutions(graph)
    details: dict[str, Any] = {}
    left_out: list[NothingToImproveError] = []
    for rewrite in rewrites:
        try:
            graph, note = rewrite.apply(graph, workload, context)
        except NothingToImproveError as found:
            left_out.append(found)
        else:
            details |= note.to_json()
    placement = _placed(graph, settings)
    scheme = settings.weights
    static: frozenset[str] = frozenset()
    activations: dict[str, ActivationGrid] = {}
    if placement.static or placement.dynamic:
        placement, static, activations, told = _calibrated(graph, placement, settings, workload, context)
        details |= {} if told is None else told.to_json()
    multiplied, stored = (*placement.static, *placement.dynamic), placement.weight_only
    weights = {
        **nearest_grids(graph, dict.fromkeys(stored, scheme), weight_range=weight_range, multiplied=False),
        **nearest_grids(graph, dict.fromkeys(multiplied, scheme), weight_range=weight_range),
    }
    prepared = Prepared(
        exported=exported,
        graph=graph,
        placement=placement,
        static=static,
        activations=activations,
        weights=weights,
        scheme=scheme,
        isa=context.target.isa,
        details=details,
    )
    return reduce(Prepared.leaving_out, left_out, prepared)


def finish(prepared: Prepared, workload: Workload, context: Context, *, placed: onnx.ModelProto | None = None) -> bytes:
    """The compact file of the integer graph (`placed`, by default what `prepared` gives), and details to the report.

    Raises StageError where ONNX Runtime runs none of it on integers, and where the outputs broke.
    """
    quantized = aligned(prepared.place() if placed is None else placed, prepared.isa)
    plain = serialize(quantized)
    bits = {integers_of(name): grid.bits for name, grid in prepared.weights.items()}
    signed = context.target.signed_activations
    smallest = smallest_file(plain, quantized, bits, signed_activations=signed)
    onnx_bytes = carried_over(smallest, prepared.exported)
    placement = prepared.placement
    form = IntegerForm(
        static=len(placement.static),
        dynamic=len(placement.dynamic),
        weight_only=len(placement.weight_only),
        float16=len(placement.float16),
        activations="int8" if signed else "uint8",
        weight_bits=prepared.scheme.bits,
    )
    covered = coverage(
        plain,
        prepared.graph,
        placement,
        activation_bits=prepared.activation_bits,
        signed_activations=signed,
    )
    noise = verified_outputs(
        prepared.exported, onnx_bytes, workload, calibrated=bool(placement.static), bits=prepared.scheme.bits
    )
    context.details.update(prepared.details)
    for note in (form, covered, noise):
        context.tell(note)
    return onnx_bytes


def _calibrated(
    graph: onnx.ModelProto, placement: Placement, settings: IntegerSettings, workload: Workload, context: Context
) -> tuple[Placement, frozenset[str], dict[str, ActivationGrid], Calibrated | None]:
    """(what is placed, the static nodes with their followers, the grids that they need, what the report is told).

    Layers that read signals of different scale in one tensor go back to float. Raises StageError where none is left,
    and where a layer reads or gives NaN; other tensors that hold some have no grid.
    """
    signed = context.target.signed_activations
    layers = {*placement.static, *placement.dynamic}
    static = frozenset({*placement.static, *followers(graph, set(placement.static))})
    tensors, same = tensors_to_observe(graph, set(static))
    observed = [*dict.fromkeys([*tensors, *parts_to_observe(graph, layers | static)])]
    if not observed:
        return placement, static, {}, None
    method = settings.calibration if static else MinMax(samples=_JOINED_SAMPLES)
    scheme = settings.activations
    found = calibrate(
        graph,
        observed,
        workload.calibration,
        method,
        scheme,
        signed=signed,
        needed=_read_or_given(graph, layers),
        progress=context.progress,
    )
    ranges = with_shared(found.ranges, same)
    separation = separated(graph, layers, static - layers, ranges)
    if separation.left:
        placement = placement.without(separation.left)
        if not (placement.static or placement.dynamic or placement.weight_only):
            raise StageError(f"nothing to quantize: {_counted(separation.left.values())}")
    kept = frozenset({*placement.static, *followers(graph, set(placement.static), separation.apart)})
    grids = activation_grids(
        {name: ranges[name] for name in (*tensors, *same) if name in ranges}, scheme, signed=signed
    )
    return placement, kept, grids, found.note if static else None


def _read_or_given(graph: onnx.ModelProto, layers: Collection[str]) -> set[str]:
    """The tensors that the `layers` read and give: without their values there is nothing to multiply."""
    return {name for node in graph.graph.node if node.name in layers for name in (*node.input, *node.output)}


def _placed(graph: onnx.ModelProto, settings: IntegerSettings) -> Placement:
    placement = placement_of(graph, settings.form, settings.skip)
    if not (placement.static or placement.dynamic or placement.weight_only or placement.float16):
        reasons = _counted(placement.left.values()) or f"the graph has none of {', '.join(heavy_operators())}"
        raise StageError(f"nothing to quantize: {reasons}")
    return placement


def _counted(reasons: Iterable[str]) -> str:
    return "; ".join(f"{count} nodes: {reason}" for reason, count in Counter(reasons).items())
