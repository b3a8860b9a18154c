"""Signals of different scale that meet in one tensor: whether one grid of 8 bits is fine enough for all of them.

A Concat of boxes in pixels and scores from 0 to 1, a Where that masks with -1e9, a Pad with a value far off: one scale
for the whole tensor gives the small signal no steps at all. Where that would be so, the operator that joins them stays
in float, with every signal on its own grid before it, and so do the layers that would have to round what it gives.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import onnx
from onnx import TensorProto, numpy_helper

from compressor.files.graphs import initializers, producers
from compressor.files.operators import Fact, facts_of, operator_of
from compressor.quantization.placement.movement import moves, padding_value

Range = tuple[float, float]

# A signal whose range is this many times smaller than that of the tensor it is joined to keeps 16 of 256 steps.
_MOST_TIMES = 16.0
# Where signals are added, the sum needs steps for its largest part; a part that has none at all is a mask beside a
# signal, or a signal beside noise.
_MOST_TIMES_ADDED = 256.0


@dataclass(frozen=True, kw_only=True)
class Separation:
    """`apart`: the nodes that join in float; `left`: {layer: the reason} of layers that read what they give."""

    apart: frozenset[str] = frozenset()
    left: Mapping[str, str] = field(default_factory=dict)


def parts_to_observe(model: onnx.ModelProto, nodes: Collection[str]) -> list[str]:
    """The float tensors that are joined in what the integer `nodes` of the graph read or give, and what they make.

    Each once.
    """
    walk = _Walk(model)
    found: dict[str, None] = {}
    for node in model.graph.node:
        if node.name in nodes:
            for name in _activations(node):
                parts = [walk.observable(part) for part in walk.parts(name)]
                found |= dict.fromkeys([*parts, name] if parts else [])
            if _adds(node):
                found |= dict.fromkeys(name for name in node.input if name in walk.floats)
    return [name for name in found if name in walk.floats]


def separated(
    model: onnx.ModelProto, layers: Collection[str], followers: Collection[str], ranges: Mapping[str, Range]
) -> Separation:
    """What has to stay in float among the integer `layers` and their `followers`, given the ranges of the tensors.

    A tensor that was observed and has no range holds infinite values or NaN, and has no grid.
    """
    walk = _Walk(model)
    left: dict[str, str] = {}
    apart: set[str] = set()
    for node in model.graph.node:
        if node.name in layers:
            reasons = (walk.unfit(name, ranges) for name in _activations(node))
            reason = next(filter(None, reasons), "")
            if reason:
                left[node.name] = reason
        elif node.name in followers:
            added = _adds(node) and walk.masks(node, ranges)
            joins = Fact.JOINS in facts_of(node.op_type) and not moves(node)
            if added or (joins and walk.unfit(node.output[0], ranges)):
                apart.add(node.name)
    return Separation(apart=frozenset(apart), left=left)


def _activations(node: onnx.NodeProto) -> list[str]:
    """The inputs of a layer or follower that may be activations: those that are no weight, bias or setting."""
    inputs = operator_of(node.op_type).inputs
    return [
        name
        for position, name in enumerate(node.input)
        if name and position not in inputs.settings and position != inputs.bias
    ]


def _adds(node: onnx.NodeProto) -> bool:
    return node.op_type in {"Add", "Sub"}


class _Walk:
    """The way back from a tensor through what moves values to the signals that are joined in it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.constants = initializers(graph)
        self.made = producers(graph.node)
        self.floats = {
            value.name
            for value in (*graph.value_info, *graph.input, *graph.output)
            if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name not in self.constants
        }

    def joined_in(self, name: str) -> onnx.NodeProto | None:
        """The node that joins the signals of the tensor, or None where it has one signal alone."""
        pooled = False
        while (node := self.made.get(name)) is not None:
            value = padding_value(node, self.constants)
            # The largest of a window is no value far below that was put around it.
            hidden = value is not None and pooled and value < 0
            if Fact.JOINS in facts_of(node.op_type) and value != 0.0 and not hidden:
                return node
            # What is homogeneous keeps the scales apart: a ReLU behind the joint changes neither.
            if not (moves(node) or Fact.HOMOGENEOUS in facts_of(node.op_type)):
                return None
            pooled = pooled or node.op_type == "MaxPool"
            name = node.input[0]
        return None

    def parts(self, name: str) -> Iterator[str]:
        """The tensors and constants that are joined in the tensor, at whatever depth; none where nothing is."""
        joint = self.joined_in(name)
        for part in () if joint is None else _sources(joint):
            inner = [*self.parts(part)]
            yield from inner or [part]

    def observable(self, name: str) -> str:
        """The tensor whose values those of `name` are, moved about."""
        while name not in self.floats and (node := self.made.get(name)) is not None and moves(node):
            name = node.input[0]
        return name

    def unfit(self, name: str, ranges: Mapping[str, Range]) -> str:
        """Why the tensor has no grid that is fine enough for all of its signals; "" where it has one."""
        if name in self.floats and name in ranges and not any(ranges[name]):
            return ""
        widths = {part: self.width(part, ranges) for part in self.parts(name)}
        if not widths:
            return ""
        joint = self.joined_in(name)
        assert joint is not None  # it has parts
        # What a Split takes out of the joint again may be one signal alone.
        whole = self.width(name, ranges) if name in ranges else max(widths.values())
        if whole == float("inf"):
            return f"its input holds infinite values or NaN (from {joint.name}), which no grid has"
        small = [
            (width, part) for part, width in widths.items() if 0 < width * _MOST_TIMES < whole and not self.lone(part)
        ]
        if not small:
            return ""
        width, part = min(small)
        return (
            f"its input joins signals of different scale (in {joint.name}): {part} spans {width:.3g} of {whole:.3g}, "
            "for which one grid is too coarse"
        )

    def masks(self, node: onnx.NodeProto, ranges: Mapping[str, Range]) -> bool:
        """Whether a sum has a part beside which the other has no step left."""
        widths = [self.width(name, ranges) for name in node.input]
        return 0 < min(widths) * _MOST_TIMES_ADDED < max(widths)

    def lone(self, name: str) -> bool:
        """Whether it is a constant of one number: a bound, which says nothing where it is small."""
        tensor = self.constants.get(name)
        return tensor is not None and numpy_helper.to_array(tensor).size == 1

    def width(self, name: str, ranges: Mapping[str, Range]) -> float:
        """How far the values of a tensor or constant reach, zero included; infinite where they do."""
        tensor = self.constants.get(name)
        if tensor is not None:
            values = numpy_helper.to_array(tensor)
            return float(max(values.max(initial=0), 0) - min(values.min(initial=0), 0))
        source = self.observable(name)
        if source not in self.floats:
            return 0.0
        if source not in ranges:
            return float("inf")
        low, high = ranges[source]
        return max(high, 0.0) - min(low, 0.0)


def _sources(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node that joins signals whose values stand in its output."""
    match node.op_type:
        case "Where":
            return [*node.input[1:]]
        case "Pad":
            return [node.input[0], *filter(None, node.input[2:3])]
        case "ScatterND" | "ScatterElements":
            return [node.input[0], node.input[2]]
        case _:
            return [*node.input]
