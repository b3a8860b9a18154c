"""Where the scale of a graph's channels is free, found in one walk.

Between a linear operator and the linear operators behind it only positively homogeneous ones may stand,
f(s x) = s f(x) for s > 0: ReLU, pooling, sums. Sums tie several tensors to one scale; all that are so tied are one
`ScalingGroup`. An operator that is not known locks what it touches. Nagel et al. 2019, arXiv:1906.04721, section 4.1.
"""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from compressor.files.graphs import attribute, initializers, names_captured, names_read, shapes
from compressor.files.operators import Fact, Family, operator_of
from compressor.quantization.accuracy.channel_scaling import Array, Clipping, ScalingGroup, Slot
from compressor.quantization.placement.movement import cut_at


def scaling_groups(model: onnx.ModelProto) -> list[ScalingGroup]:
    """The groups with a producer and a consumer that nothing locks, in the order of their first producer."""
    return _Tracer(model).groups()


@dataclass(frozen=True)
class _Place:
    """Channels along `axis` of a tensor, each `inner` entries wide (more than 1 behind a Flatten of feature maps)."""

    axis: int
    inner: int
    channels: int


class _Tracer:
    """One walk through the graph: sets of tensors that share a scale, united as operators tie them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.weights = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(self.graph).items()}
        self.shapes = shapes(model)
        self.uses = Counter(name for node in self.graph.node for name in names_read(node))
        self.parent: dict[str, str] = {}
        self.places: dict[str, _Place] = {}
        self.locked: set[str] = set()
        self.found: dict[str, ScalingGroup] = {}

    def groups(self) -> list[ScalingGroup]:
        for value in (*self.graph.input, *self.graph.output):
            self._lock(value.name)
        for node in self.graph.node:
            self._visit(node)
            for name in names_captured(node):
                self._lock(name)
        for name, place in self.places.items():
            self.found[self._root(name)].tensors[name] = place.axis
        locked = {self._root(name) for name in self.locked}
        return [
            group for root, group in self.found.items() if root not in locked and group.producers and group.consumers
        ]

    def _visit(self, node: onnx.NodeProto) -> None:
        x, y = node.input[0] if node.input else "", node.output[0]
        handled = False
        row = operator_of(node.op_type)
        if row.linear and len(node.input) > 1 and node.input[1] in self.weights:
            self._consume(node, x)
            handled = self._produce(node, y)
        elif node.op_type == "LayerNormalization" and len(node.input) > 1:
            self._lock(x)
            handled = self._produce(node, y)
        elif x in self.places:
            place = self.places[x]
            if Fact.HOMOGENEOUS in row.facts:
                handled = self._tie(x, y, place)
            elif node.op_type == "Clip":
                handled = self._clip(node, x, y, place)
            elif Fact.COMBINES in row.facts:
                handled = self._combine(node, y, place)
            elif node.op_type == "Pad":
                handled = self._pads_with_zeros(node, place) and self._tie(x, y, place)
            elif node.op_type == "Transpose":
                order = attribute(node, "perm", tuple(reversed(range(len(self.shapes.get(x, ()))))))
                moved = _Place(list(order).index(place.axis), place.inner, place.channels)
                handled = self._tie(x, y, moved)
            elif Fact.RESHAPES in row.facts:
                reshaped = self._reshaped(x, y, place)
                handled = reshaped is not None and self._tie(x, y, reshaped)
        elif node.op_type in {"Add", "Mul"} and len(node.input) == 2 and node.input[1] in self.places:
            handled = self._combine(node, y, self.places[node.input[1]])
        if handled:
            return
        # A linear operator has read its first input properly, whatever became of its output.
        read = 1 if row.linear and len(node.input) > 1 and node.input[1] in self.weights else 0
        for name in (*node.input[read:], *node.output):
            self._lock(name)

    def _produce(self, node: onnx.NodeProto, y: str) -> bool:
        shape = self.shapes.get(y)
        weight = self.weights.get(node.input[1])
        if shape is None or weight is None or self.uses[node.input[1]] > 1:
            return False
        groups = int(attribute(node, "group", 1))
        axis = len(shape) - 1
        match node.op_type:
            case "Conv":
                slot_axis, axis = 0, 1
            case "ConvTranspose" if groups == 1:
                slot_axis, axis = 1, 1
            case "Gemm":
                slot_axis = 0 if attribute(node, "transB", 0) else 1
            case "MatMul" if weight.ndim == 2:
                slot_axis = 1
            case "LayerNormalization" if weight.ndim == 1 and int(attribute(node, "axis", -1)) in {-1, axis}:
                slot_axis = 0
            case _:
                return False
        channels = weight.shape[slot_axis]
        self._start(y, _Place(axis, 1, channels))
        group = self.found[y]
        group.producers.append(Slot(initializer=node.input[1], shape=weight.shape, axes=(slot_axis,)))
        group.sources.append(node.name)
        if len(node.input) > 2 and node.input[2]:
            return self._offset(group, node.input[2], channels)
        return True

    def _offset(self, group: ScalingGroup, name: str, channels: int) -> bool:
        bias = self.weights.get(name)
        if bias is None or self.uses[name] > 1 or bias.ndim == 0 or bias.shape[-1] != channels or bias.size != channels:
            return False
        group.offsets.append(Slot(initializer=name, shape=bias.shape, axes=(bias.ndim - 1,)))
        return True

    def _consume(self, node: onnx.NodeProto, x: str) -> None:
        place, weight = self.places.get(x), self.weights[node.input[1]]
        if place is None or self.uses[node.input[1]] > 1 or attribute(node, "transA", 0):
            return self._lock(x)
        shape, axes = _reading(node, weight, place)
        if not axes or math.prod(shape[axis] for axis in axes) != place.channels:
            return self._lock(x)
        group = self.found[self._root(x)]
        group.consumers.append(Slot(initializer=node.input[1], shape=shape, axes=axes))
        group.readers.append(node.name)
        return None

    def _clip(self, node: onnx.NodeProto, x: str, y: str, place: _Place) -> bool:
        bounds = cut_at(node, initializers(self.graph))
        if bounds is None:
            return False
        low, high = bounds
        # A lower bound of minus infinity or none is homogeneous as well, but then the upper one cuts both ways.
        if low != 0 or high <= 0 or not self._tie(x, y, place):
            return False
        if math.isfinite(high):
            self.found[self._root(x)].clippings.append(Clipping(node=node.name, source=x, high=high))
        return True

    def _combine(self, node: onnx.NodeProto, y: str, place: _Place) -> bool:
        variable = [name for name in node.input if name not in self.weights]
        constant = [name for name in node.input if name in self.weights]
        shape = self.shapes.get(y)
        if any(self.places.get(name) != place or self.shapes.get(name) is None for name in variable) or shape is None:
            return False
        if node.op_type == "Concat":
            if constant or int(attribute(node, "axis", 0)) % len(shape) == place.axis:
                return False
        elif any(len(self.shapes[name]) != len(shape) for name in variable):
            return False
        if node.op_type in {"Mul", "Div"}:
            if len(variable) != 1 or (node.input[0] != variable[0] and node.op_type == "Div"):
                return False
            grows = any(self.weights[name].ndim > len(shape) for name in constant)
            return (
                not grows
                and self.shapes[variable[0]][place.axis] == shape[place.axis]
                and self._tie(variable[0], y, place)
            )
        for name in constant:
            value = self.weights[name]
            axis = place.axis - len(shape) + value.ndim
            if axis < 0 or place.inner != 1 or value.shape[axis] != place.channels or self.uses[name] > 1:
                return False
            self.found[self._root(variable[0])].offsets.append(Slot(initializer=name, shape=value.shape, axes=(axis,)))
        return all(self._tie(name, y, place) for name in variable)

    def _pads_with_zeros(self, node: onnx.NodeProto, place: _Place) -> bool:
        pads = self.weights.get(node.input[1]) if len(node.input) > 1 else None
        value = self.weights.get(node.input[2], np.ones(1)) if len(node.input) > 2 and node.input[2] else np.zeros(1)
        if pads is None or len(node.input) > 3 or len(pads) <= place.axis:
            return False
        along = pads[place.axis], pads[place.axis + len(pads) // 2]
        return along == (0, 0) and (
            attribute(node, "mode", b"constant") != b"constant" or float(value.reshape(-1)[0]) == 0
        )

    def _reshaped(self, x: str, y: str, place: _Place) -> _Place | None:
        before, after = self.shapes.get(x), self.shapes.get(y)
        if before is None or after is None or any(size is None for size in before[place.axis + 1 :]):
            return None
        # Elements keep their order: a channel is known by how many elements lie behind it.
        inner = place.inner * math.prod(size or 0 for size in before[place.axis + 1 :])
        for axis, size in enumerate(after):
            behind = after[axis + 1 :]
            if size is None or None in behind:
                continue
            trailing = math.prod(entry or 0 for entry in behind)
            if trailing and inner % trailing == 0 and size == place.channels * (inner // trailing):
                return _Place(axis, inner // trailing, place.channels)
        return None

    def _start(self, name: str, place: _Place) -> None:
        if self.parent.get(name) is None:
            self.parent[name] = name
        self.places[name] = place
        self.found.setdefault(name, ScalingGroup(channels=place.channels, tensors={}))

    def _tie(self, x: str, y: str, place: _Place) -> bool:
        """Whether `y` could take the scale of `x`: always, except where it has another one that differs in form."""
        if y not in self.places:
            self._start(y, place)
        elif self.places[y] != place:
            return False
        first, second = self._root(x), self._root(y)
        if first != second:
            self.parent[second] = first
            other, group = self.found.pop(second), self.found[first]
            for part in ("producers", "offsets", "consumers", "clippings", "sources", "readers"):
                getattr(group, part).extend(getattr(other, part))
        return True

    def _lock(self, name: str) -> None:
        if name and name not in self.weights:
            self.parent.setdefault(name, name)
            self.locked.add(name)

    def _root(self, name: str) -> str:
        while self.parent[name] != name:
            name = self.parent[name]
        return name


def _reading(node: onnx.NodeProto, weight: Array, place: _Place) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape, axes) in which the weight of a linear `node` has the channels that it reads; empty where it has none."""
    if operator_of(node.op_type).family is Family.CONVOLUTION:
        if place.axis != 1 or place.inner != 1:
            return (), ()
        if node.op_type == "ConvTranspose":
            return weight.shape, (0,)
        groups = int(attribute(node, "group", 1))
        return (groups, weight.shape[0] // groups, *weight.shape[1:]), (0, 2)
    axis = 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0
    if weight.ndim != 2 or weight.shape[axis] != place.channels * place.inner:
        return (), ()
    sizes = [place.channels, place.inner]
    return ((weight.shape[0], *sizes), (1,)) if axis == 1 else ((*sizes, weight.shape[1]), (0,))
