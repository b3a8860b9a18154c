"""Layers inside branches and loops: their constants in one place with all others, and which of them become integers.

The graph inside sees the constants outside, so that a weight that both read is stored once, in floats or in integers.
What is folded inside of a branch would be a copy of what it was folded from: it is turned around when the file loads.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import (
    all_graphs,
    all_nodes,
    attribute,
    drop_unused_initializers_,
    initializers,
    inner_graphs,
    names_read,
    output_names,
    rename_tensors_,
)
from compressor.files.operators import Family, operator_of

# Smaller constants are axes, shapes and bounds; they stay where they are.
_FEW_VALUES = 64
_Key = tuple[int, tuple[int, ...], str]


def name_inner_nodes_(model: onnx.ModelProto) -> None:
    """Gives the nodes inside of branches and loops names of their own, those that they have where they are free."""
    taken = {node.name for node in model.graph.node}
    for node in model.graph.node:
        for index, inner in enumerate(each for graph in inner_graphs(node) for each in all_nodes(graph)):
            name = inner.name or f"{node.name}.{inner.op_type.lower()}_{index}"
            while name in taken:
                name = f"{node.name}.{name}"
            inner.name = name
            taken.add(name)


def hoist_constants_(model: onnx.ModelProto) -> None:
    """Moves the larger constants of branches and loops out to the others, each of equal ones once.

    One that is a constant read outside, turned around, becomes a Transpose, which ONNX Runtime folds when it loads the
    file.
    """
    graph = model.graph
    if not any(map(inner_graphs, graph.node)):
        return
    known: dict[_Key, str] = {_key(tensor): tensor.name for tensor in graph.initializer if _is_large(tensor)}
    stored = initializers(graph)
    taken = Counter(name for each in all_graphs(graph) for name in _names(each))
    read = {name for node in graph.node for name in names_read(node)}
    turned: list[onnx.NodeProto] = []
    for inner in [*all_graphs(graph)][1:]:
        outputs = output_names(inner)
        moved: dict[str, str] = {}
        for tensor in list(inner.initializer):
            if not _is_large(tensor) or tensor.name in outputs:
                continue
            key = _key(tensor)
            if key not in known:
                known[key] = _free(tensor.name, taken)
                source = _turned_around(tensor, {name: stored[name] for name in stored if name in read})
                if source:
                    turned.append(helper.make_node("Transpose", [source], [known[key]], known[key], perm=[1, 0]))
                else:
                    graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), known[key]))
            moved[tensor.name] = known[key]
            inner.initializer.remove(tensor)
        rename_tensors_(inner, moved)
    for node in turned:
        graph.node.insert(0, node)
    drop_unused_initializers_(graph)


@dataclass(frozen=True, kw_only=True)
class PlaceInside:
    """A layer in a branch or loop of the node `owner`; `unfit` says why it stays in float, "" where it need not."""

    name: str
    owner: str
    unfit: str


def places_inside(model: onnx.ModelProto) -> list[PlaceInside]:
    """The layers of all branches and loops, at whatever depth."""
    constants = initializers(model.graph)
    outside = {name for node in model.graph.node for name in node.input}
    return [
        PlaceInside(name=node.name, owner=owner.name, unfit=_why_unfit(node, owner, constants, outside))
        for owner in model.graph.node
        for inner in inner_graphs(owner)
        for node in all_nodes(inner)
        if operator_of(node.op_type).heavy
    ]


def stored_twice(model: onnx.ModelProto, quantized: Collection[str]) -> dict[str, str]:
    """{node of `quantized`: the reason} of those whose weight a branch or loop multiplies by in floats, too."""
    floats = {
        name: (node.name or node.op_type, owner.name)
        for owner in model.graph.node
        for inner in inner_graphs(owner)
        for node in all_nodes(inner)
        if node.name not in quantized
        for name in node.input
    }
    constants = {name for name, tensor in initializers(model.graph).items() if _is_large(tensor)}
    return {
        node.name: (
            f"its weight {name} is shared with {floats[name][0]} inside of {floats[name][1]}, which computes floats: "
            "it would be stored twice"
        )
        for node in model.graph.node
        if node.name in quantized
        for name in node.input
        if name in floats and name in constants
    }


def _why_unfit(
    node: onnx.NodeProto, owner: onnx.NodeProto, constants: Mapping[str, TensorProto], outside: Collection[str]
) -> str:
    where = f"it is inside of {owner.name} ({owner.op_type})"
    weight = constants.get(node.input[1])
    if weight is None:
        return f"{where}, and its weight is computed at run time"
    if node.op_type == "LSTM":
        return "" if node.input[2] in constants else f"{where}, and its weight is computed at run time"
    if operator_of(node.op_type).family is Family.RECURRENT:
        return f"{where}, and there is no integer kernel for {node.op_type}"
    if not operator_of(node.op_type).multiplies_matrices:
        return f"{where}, where no ranges are calibrated for {node.op_type}"
    if weight.data_type != TensorProto.FLOAT or len(weight.dims) != 2 or attribute(node, "transA", 0):
        return f"{where}, and there is no integer kernel for its weight"
    turned = attribute(node, "transB", 0) or attribute(node, "alpha", 1.0) != 1.0
    if turned and node.input[1] in outside:
        return f"{where}, and shares its weight with a layer outside that reads it in another way"
    return ""


def _is_large(tensor: TensorProto) -> bool:
    return int(np.prod(tensor.dims)) >= _FEW_VALUES


def _key(tensor: TensorProto) -> _Key:
    digest = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
    return tensor.data_type, tuple(tensor.dims), digest


def _turned_around(tensor: TensorProto, stored: Mapping[str, TensorProto]) -> str:
    """The stored constant of which `tensor` is the transpose, "" where there is none."""
    if len(tensor.dims) != 2:
        return ""
    values = numpy_helper.to_array(tensor)
    for name, other in stored.items():
        alike = other.data_type == tensor.data_type and list(other.dims) == list(tensor.dims)[::-1]
        if alike and np.array_equal(numpy_helper.to_array(other).T, values):
            return name
    return ""


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    yield from (name for node in graph.node for name in node.output)


def _free(name: str, taken: Counter[str]) -> str:
    """`name`, which its own graph has, and another one where a second graph has it."""
    if taken[name] == 1:
        return name
    free = next(each for number in count(1) if (each := f"{name}.{number}") not in taken)
    taken[free] += 1
    return free
