"""Exported ONNX graphs without the arithmetic on shapes that every call repeats: some microseconds an operator.

1. Initial states that are all zeros are left out: they are what LSTM, GRU and RNN start from without them.
2. A Reshape to sizes that are computed at run time gets them as constants: 0 keeps a dimension, -1 is the one that is
   left. What a flattened map or the output of a recurrent layer is reshaped to is known by then but for the batch.
3. Matrices that are transposed by way of a reshape to three dimensions and back are transposed alone, which ONNX
   Runtime then does inside of the product.

Everything reads the sizes that the exporter inferred, so it goes before `graph_cleaning.strip_` removes them.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx
from onnx import helper, numpy_helper

from compressor.files.graphs import (
    attribute,
    drop_unused_initializers_,
    initializers,
    names_read,
    output_names,
    producers,
)
from compressor.files.operators import Fact, facts_of, operator_of

# Nodes between a shape and its use, at most: a chain that is longer is not followed.
_DEPTH = 12
_SMALL = 16


def simplify_shapes_(model: onnx.ModelProto) -> int:
    """The number of nodes that are gone from the main graph; what it computes stays the same."""
    before = len(model.graph.node)
    graph = _Graph(model)
    graph.drop_zero_states_()
    graph.transpose_directly_()
    graph.fix_reshapes_()
    _drop_unused_(model.graph)
    return before - len(model.graph.node)


@dataclass(frozen=True)
class _Size:
    """The size of `tensor` at `axis`."""

    tensor: str
    axis: int


# One number of a shape: known, a size of a tensor, or None where it is computed from several.
_Term = int | _Size | None


class _Graph:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.writers = producers(self.graph.node)
        self.constants = initializers(self.graph)
        values = (*self.graph.input, *self.graph.value_info, *self.graph.output)
        self.sizes: dict[str, list[int | str]] = {
            value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
            for value in values
            if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
        }

    def drop_zero_states_(self) -> None:
        for node in self.graph.node:
            recurrence = operator_of(node.op_type).recurrence
            if recurrence is None:
                continue
            for index in recurrence.states:
                if index < len(node.input) and node.input[index] and self._is_zero(node.input[index]):
                    node.input[index] = ""
            while node.input and not node.input[-1]:
                del node.input[-1]

    def fix_reshapes_(self) -> None:
        for node in self.graph.node:
            if node.op_type != "Reshape" or node.input[1] in self.constants:
                continue
            terms = self._terms(node.input[1])
            fixed = self._fixed(node.input[0], terms) if terms is not None else None
            if fixed is None:
                continue
            name = f"{node.output[0]}/shape"
            self.graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.INT64, [len(fixed)], fixed))
            node.input[1] = name
            kept = [entry for entry in node.attribute if entry.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)

    def transpose_directly_(self) -> None:
        for node in self.graph.node:
            inner = self.writers.get(node.input[0]) if node.op_type == "Reshape" else None
            outer = self.writers.get(inner.input[0]) if inner is not None and inner.op_type == "Transpose" else None
            if inner is None or outer is None or outer.op_type != "Reshape" or _order(inner) != [0, 2, 1]:
                continue
            source = outer.input[0]
            there, back = self._terms(outer.input[1]), self._terms(node.input[1])
            size = self._sizes(source)
            if there is None or back is None or size is None or len(size) != 4 or len(there) != 3:
                continue
            if there[1:] != size[2:] or back != [size[0], size[1], size[3], size[2]]:
                continue
            node.op_type = "Transpose"
            del node.input[1:], node.attribute[:]
            node.input[0] = source
            node.attribute.append(helper.make_attribute("perm", [0, 1, 3, 2]))

    def _fixed(self, source: str, terms: Sequence[_Term]) -> list[int] | None:
        """`terms` as constants for a Reshape of `source`, or None where more than one is left open."""
        known = self.sizes.get(source, [])
        found: list[int] = []
        for index, term in enumerate(terms):
            if isinstance(term, int):
                found.append(term if term >= 0 else -1)
            elif isinstance(term, _Size) and self._is_size(term, source, index, known):
                found.append(0)
            else:
                found.append(-1)
        # A zero that is meant as a size, and two sizes that are open, cannot be written as constants.
        return found if found.count(-1) <= 1 and 0 not in terms else None

    def _is_size(self, term: _Size, source: str, index: int, known: Sequence[int | str]) -> bool:
        if term == _Size(source, index):
            return True
        other = self.sizes.get(term.tensor, [])
        symbol = other[term.axis] if term.axis < len(other) else ""
        return isinstance(symbol, str) and bool(symbol) and index < len(known) and known[index] == symbol

    def _is_zero(self, name: str, depth: int = _DEPTH) -> bool:
        if name in self.constants:
            return not numpy_helper.to_array(self.constants[name]).any()
        node = self.writers.get(name)
        if node is None or not depth:
            return False
        if node.op_type == "Constant":
            tensor = _constant(node)
            return tensor is not None and not numpy_helper.to_array(tensor).any()
        if node.op_type == "ConstantOfShape":
            value = _constant(node)
            return value is None or not numpy_helper.to_array(value).any()
        if node.op_type == "Concat":
            return all(self._is_zero(part, depth - 1) for part in node.input)
        return Fact.KEEPS_ZEROS in facts_of(node.op_type) and self._is_zero(node.input[0], depth - 1)

    def _terms(self, name: str, depth: int = _DEPTH) -> list[_Term] | None:
        """The numbers of the integer tensor `name`, of at most one dimension; None where they cannot be followed."""
        tensor = self.constants.get(name)
        node = self.writers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = _constant(node)
        if tensor is not None:
            if tensor.data_type != onnx.TensorProto.INT64 or math.prod(tensor.dims) > _SMALL:
                return None
            return [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]
        if node is None or not depth:
            return None
        if node.op_type == "Shape":
            sizes = self._sizes(node.input[0])
            return sizes and sizes[attribute(node, "start", 0) : attribute(node, "end", len(sizes))]
        parts = [self._terms(part, depth - 1) if part else [] for part in node.input]
        first = parts[0] if parts else None
        if node.op_type == "Concat":
            return None if None in parts else [term for part in parts if part is not None for term in part]
        if node.op_type in {"Squeeze", "Unsqueeze", "Identity", "Cast"}:
            return first
        if node.op_type == "Reshape" and first is not None and len(first) == 1:
            return first
        if node.op_type == "Gather" and first is not None and parts[1] is not None:
            return _picked(first, parts[1])
        if node.op_type == "Slice" and first is not None and None not in parts:
            return _sliced(first, [part or [] for part in parts[1:]])
        if Fact.BROADCASTS in facts_of(node.op_type):
            return _combined(node.op_type, parts)
        return None

    def _sizes(self, source: str) -> list[_Term] | None:
        """The sizes of a tensor of known rank."""
        writer = self.writers.get(source)
        known = self.sizes.get(source)
        if known is None and writer is not None and writer.op_type == "Transpose":
            known = self.sizes.get(writer.input[0])
            known = None if known is None else [known[axis] for axis in _order(writer) or []]
        if known is None:
            return None
        return [size if isinstance(size, int) and size > 0 else _Size(source, axis) for axis, size in enumerate(known)]


def _picked(terms: Sequence[_Term], indices: Sequence[_Term]) -> list[_Term] | None:
    places = [index for index in indices if isinstance(index, int) and -len(terms) <= index < len(terms)]
    return [terms[place] for place in places] if len(places) == len(indices) else None


def _sliced(terms: Sequence[_Term], bounds: Sequence[Sequence[_Term]]) -> list[_Term] | None:
    """What Slice takes of one dimension: `bounds` are its starts, ends, axes and steps, of one number each."""
    numbers = [term for part in bounds for term in part if isinstance(term, int)]
    if len(numbers) < len(bounds) or any(len(part) != 1 for part in bounds):
        return None
    start, end, step = numbers[0], numbers[1], numbers[3] if len(numbers) > 3 else 1
    return list(terms[start:end:step])


def _combined(kind: str, parts: Sequence[Sequence[_Term] | None]) -> list[_Term] | None:
    if any(part is None or len(part) != 1 for part in parts):
        return None
    left, right = (part[0] for part in parts if part is not None)
    if kind == "Mul" and isinstance(left, int) and isinstance(right, int):
        return [left * right]
    return [None]


def _order(node: onnx.NodeProto) -> list[int] | None:
    found: list[int] | None = attribute(node, "perm", None)
    return found


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    found: onnx.TensorProto | None = attribute(node, "value", None)
    return found


def _drop_unused_(graph: onnx.GraphProto) -> None:
    """Removes the nodes and initialisers that nothing reads any more."""
    uses = Counter(name for node in graph.node for name in names_read(node))
    uses.update(output_names(graph))
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if not any(uses[name] for name in node.output):
            uses.subtract(names_read(node))
            del graph.node[position]
    drop_unused_initializers_(graph)
