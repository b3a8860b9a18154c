"""Exported ONNX graphs made private, small and the same from run to run, without changing what they compute.

1. `strip_` removes what the exporter tells about the machine and the source code (stack traces with paths).
2. `pool_globally_` gives global average pooling its own operator back.
3. `rename_` gives every node and tensor a short name that depends on the graph alone.
4. `unsign_zeros_` gives the zeros among weights one sign: of two, each costs a bit in every compressed file.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from compressor.files.graphs import (
    all_nodes,
    attribute,
    drop_unused_initializers_,
    initializers,
    inner_graphs,
    output_names,
    ranks,
)
from compressor.files.operators import Family, operator_of

# The module path of a node, as the two exporters of torch write it.
_SCOPES = "pkg.torch.onnx.name_scopes"
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
# What they read is multiplied and added up.
_SUMS = {Family.CONVOLUTION, Family.MATRIX, Family.RECURRENT}


def strip_(model: onnx.ModelProto) -> None:
    """Removes metadata, doc strings and inferred types; everything that running the graph needs stays."""
    for message in _messages(model):
        if hasattr(message, "metadata_props"):
            del message.metadata_props[:]
        if hasattr(message, "doc_string"):
            message.ClearField("doc_string")
        if isinstance(message, onnx.GraphProto | onnx.FunctionProto):
            del message.value_info[:]


def pool_globally_(model: onnx.ModelProto) -> int:
    """The number of ReduceMean nodes over the last two of four dimensions that became GlobalAveragePool (+ Flatten).

    ONNX Runtime has a blocked float kernel and an int8 kernel for GlobalAveragePool and neither for ReduceMean; torch's
    exporter writes ReduceMean for `x.mean((2, 3))` and for AdaptiveAvgPool2d(1). The arithmetic is the same mean.
    """
    graph = model.graph
    known_ranks = ranks(model)
    constants = _constants(graph)
    changed = 0
    for position, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or node.domain not in {"", "ai.onnx"} or known_ranks.get(node.input[0]) != 4:
            continue
        axes, keep = _reduction(node, constants)
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        source, target, scopes = node.input[0], node.output[0], list(node.metadata_props)
        pooled = target if keep else f"{target}/pooled"
        replacement = [onnx.helper.make_node("GlobalAveragePool", [source], [pooled], name=node.name)]
        if not keep:
            replacement.append(
                onnx.helper.make_node("Flatten", [pooled], [target], name=f"{node.name}/Flatten", axis=1)
            )
        for new in replacement:
            new.metadata_props.extend(scopes)
        del graph.node[position]
        for new in reversed(replacement):
            graph.node.insert(position, new)
        changed += 1
    if changed:
        drop_unused_initializers_(graph)
    return changed


def unsign_zeros_(model: onnx.ModelProto) -> int:
    """The number of zeros below zero among weights of convolutions, products and recurrent layers that became 0.0.

    Masks and folded norms leave them. Sums of products are the same numbers either way: a sum of zeros alone may be 0.0
    where it was -0.0. Weights that anything else reads, too, stay as they are.
    """
    graph, changed = model.graph, 0
    stored = initializers(graph)
    wanted, others = set[str](), output_names(graph)
    for node in all_nodes(graph):
        row = operator_of(node.op_type)
        places = (
            (*row.inputs.weights, row.inputs.bias) if row.family in _SUMS and node.domain in {"", "ai.onnx"} else ()
        )
        for position, name in enumerate(node.input):
            (wanted if position in places else others).add(name)
    for name in sorted(wanted - others):
        tensor = stored.get(name)
        if tensor is None or tensor.data_type not in _FLOATS - {onnx.TensorProto.BFLOAT16}:
            continue
        values = numpy_helper.to_array(tensor)
        below = (values == 0) & np.signbit(values)
        if below.any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(below, values.dtype.type(0), values), name))
            changed += int(below.sum())
    return changed


def rename_(model: onnx.ModelProto, parameters: Mapping[str, Sequence[int]], *, prefix: str = "") -> None:
    """Renames nodes, tensors and symbolic dimensions by their place in the graph; inputs and outputs keep their names.

    Initialisers that hold a tensor of `parameters` (name -> shape, as in the model's state_dict) get that name, without
    the exporter's `prefix`; those that the exporter folded from one are recognised by the module that uses them. A node
    is called like the module whose weight it uses (`layer1.0.conv1`), or by its operator and a number (`relu_3`);
    tensors between nodes get short numbers, because they are written at both ends of every edge. Must run before
    `strip_`, which removes the module paths.
    """
    graph = model.graph
    namer = _Namer([value.name for value in (*graph.input, *graph.output)])
    stored = initializers(graph)
    for old in stored:
        known = old.removeprefix(prefix)
        if old not in namer.tensors and known in parameters:
            namer.tensor(old, known)
    for node in graph.node:
        scope = _scope(node, prefix)
        for position, old in enumerate(node.input):
            if scope is not None and old in stored and old not in namer.tensors:
                found = _folded_from(node, position, stored[old], scope=scope, parameters=parameters, namer=namer)
                if found:
                    namer.tensor(old, found)
    for old in stored:
        if old not in namer.tensors:
            namer.tensor(old, namer.count("c", separator=""))
    namer.weights = {
        namer.tensors[old] for old in stored if "." in namer.tensors[old] or namer.tensors[old] in parameters
    }
    _rename_graph(graph, namer, namer.tensors)
    _name_dimensions(graph)


class _Namer:
    """The new names given so far: of tensors by their old names, and of nodes."""

    def __init__(self, fixed: Sequence[str]) -> None:
        self.tensors = {name: name for name in fixed}
        self.weights: set[str] = set()
        self.taken = set(fixed)
        self._nodes: set[str] = set()
        self._last: dict[str, int] = {}

    def tensor(self, old: str, new: str) -> str:
        self.tensors[old] = _unique(new, self.taken)
        return self.tensors[old]

    def node(self, name: str) -> str:
        return _unique(name, self._nodes)

    def count(self, kind: str, *, separator: str = "_") -> str:
        self._last[kind] = self._last.get(kind, 0) + 1
        return f"{kind}{separator}{self._last[kind]}"


def _folded_from(
    node: onnx.NodeProto,
    position: int,
    tensor: onnx.TensorProto,
    *,
    scope: str,
    parameters: Mapping[str, Sequence[int]],
    namer: _Namer,
) -> str | None:
    # Exporters fold transposes, BatchNorm and the stacking of recurrent gates into new tensors with numbers for names.
    weight = namer.tensors.get(node.input[1], "") if len(node.input) > 1 else ""
    row = operator_of(node.op_type)
    if row.family is Family.CONVOLUTION and position == row.inputs.bias and weight.endswith("weight"):
        # A folded BatchNorm leaves its convolution a bias, made in the BatchNorm's scope.
        return weight.removesuffix("weight") + "bias"
    if row.recurrence is not None and 1 <= position <= 3:
        return ".".join(filter(None, (scope, "WRB"[position - 1])))
    if tensor.data_type not in _FLOATS or math.prod(tensor.dims) <= 1:
        return None
    for known, shape in parameters.items():
        owner, _, leaf = known.rpartition(".")
        free = owner == scope and known not in namer.taken and not leaf.startswith("running_")
        if free and sorted(shape) == sorted(tensor.dims):
            return known
    return None


def _scope(node: onnx.NodeProto, prefix: str) -> str | None:
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = re.findall(r"'([^']*)'", entry.value)
            return scopes[-2].removeprefix(prefix) if len(scopes) > 1 else None
    # torch's older exporter: /model/layer1/layer1.0/conv1/Conv, where a Sequential's child repeats its parent's name.
    parts = node.name.strip("/").split("/")[:-1]
    if not node.name.startswith("/") or not parts:
        return None
    path = [
        part for part, following in zip(parts, [*parts[1:], ""], strict=True) if not following.startswith(f"{part}.")
    ]
    return ".".join(path).removeprefix(prefix)


def _rename_graph(graph: onnx.GraphProto, namer: _Namer, names: dict[str, str]) -> None:
    def renamed(old: str) -> str:
        if old and old not in names:
            names[old] = _unique(namer.count("t", separator=""), namer.taken)
        return names.get(old, "")

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = renamed(sparse.values.name)
    for value in (*graph.input, *graph.output):
        value.name = renamed(value.name)
    for node in graph.node:
        node.input[:] = [renamed(old) for old in node.input]
        node.name = _node_name(node, namer)
        for inner in inner_graphs(node):
            # A subgraph sees the names outside; what it adds stays its own.
            _rename_graph(inner, namer, dict(names))
        node.output[:] = [renamed(old) for old in node.output]
    graph.name = "graph"


def _node_name(node: onnx.NodeProto, namer: _Namer) -> str:
    kind = node.op_type.lower()
    used = next((name for name in node.input if name in namer.weights), None)
    if used is None:
        return namer.node(namer.count(kind))
    owner, _, leaf = used.rpartition(".")
    if not owner:
        return namer.node(leaf)
    # A bias that is added apart, or a copy of a shared weight, belongs to the layer but is not the layer.
    beside = leaf.endswith("bias") or kind in {"identity", "transpose", "reshape", "add"}
    return namer.node(f"{owner}.{kind}" if beside else owner)


def _name_dimensions(graph: onnx.GraphProto) -> None:
    symbols: dict[str, str] = {}
    inputs = {value.name for value in graph.input}
    for value in (*graph.input, *graph.output):
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            old = dimension.dim_param
            # torch writes "7" for a length it traced as a constant; the caller decides whether the file depends on it.
            if old and not old.isdigit():
                symbols.setdefault(old, "batch" if axis == 0 and value.name in inputs else f"{value.name}_dim{axis}")
                dimension.dim_param = symbols[old]


def _unique(name: str, taken: set[str]) -> str:
    candidate = name
    for number in count(2):
        if candidate not in taken:
            break
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def _messages(model: onnx.ModelProto) -> Iterator[Any]:
    yield model
    for function in model.functions:
        yield function
        for node in function.node:
            yield from _node_messages(node)
    yield from _graph_messages(model.graph)


def _graph_messages(graph: onnx.GraphProto) -> Iterator[Any]:
    yield graph
    yield from graph.initializer
    yield from (*graph.input, *graph.output)
    for node in graph.node:
        yield from _node_messages(node)


def _node_messages(node: onnx.NodeProto) -> Iterator[Any]:
    yield node
    for entry in node.attribute:
        yield entry
        if entry.type == onnx.AttributeProto.TENSOR:
            yield entry.t
    for inner in inner_graphs(node):
        yield from _graph_messages(inner)


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = initializers(graph)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _reduction(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> tuple[list[int] | None, bool]:
    keep = bool(attribute(node, "keepdims", 1))
    axes = attribute(node, "axes", None)
    if axes is not None:  # before opset 18
        return list(axes), keep
    if len(node.input) > 1 and node.input[1] in constants:
        return [int(axis) for axis in numpy_helper.to_array(constants[node.input[1]]).reshape(-1)], keep
    return None, keep
