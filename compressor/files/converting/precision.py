"""Files in double or half precision as files in single precision, for which alone there are integer kernels.

Inputs and outputs keep their types: a Cast stands behind each and before each. What is computed is compared with the
file as it was by whoever asks for the change.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import all_graphs, all_nodes, copy_of, set_apart_
from compressor.files.operators import Fact, operator_of

# Of the floats besides float32.
FLOAT_NAMES = {TensorProto.DOUBLE: "double", TensorProto.FLOAT16: "half", TensorProto.BFLOAT16: "bfloat16"}
# Attributes that name the type of what a node gives.
_TYPES = {"to", "dtype", "output_datatype", "output_dtype"}
_LARGEST = float(np.finfo(np.float32).max)


def other_precisions(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the floats besides float32 that `model` stores or computes, such as "double" and "half"."""
    found = {tensor.data_type for tensor in _tensors(model.graph)}
    found |= {kind.tensor_type.elem_type for kind in _kinds(model.graph)}
    found |= {entry.i for entry in _attributes(model.graph) if entry.name in _TYPES}
    return tuple(name for kind, name in FLOAT_NAMES.items() if kind in found)


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the graph, or one inside of it, holds an operator on integers already."""
    rows = [operator_of(node.op_type) for node in all_nodes(model.graph)]
    return any((row.on_integers or Fact.CONVERTS in row.facts) and Fact.FUSED not in row.facts for row in rows)


def in_single_precision(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with every float computed in float32, and inputs and outputs of the types that it had.

    What float32 cannot hold becomes its largest number.
    """
    changed = copy_of(model)
    graph = changed.graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output)
        if value.type.tensor_type.elem_type in FLOAT_NAMES
    }
    stored = {tensor.name for tensor in graph.initializer}
    for tensor in _tensors(graph):
        if tensor.data_type in FLOAT_NAMES:
            _to_single_(tensor)
    for kind in _kinds(graph):
        if kind.tensor_type.elem_type in FLOAT_NAMES:
            kind.tensor_type.elem_type = TensorProto.FLOAT
    for entry in _attributes(graph):
        if entry.name in _TYPES and entry.i in FLOAT_NAMES:
            entry.i = TensorProto.FLOAT
    names = {name: _unused(f"{name}_in_single_precision", graph) for name in kinds if name not in stored}

    def cast(source: str, target: str) -> onnx.NodeProto:
        kind = kinds.get(target, TensorProto.FLOAT)
        return helper.make_node("Cast", [source], [target], f"{target}/cast", to=kind)

    set_apart_(graph, names, cast)
    for value in (*graph.input, *graph.output):
        if value.name in names:
            value.type.tensor_type.elem_type = kinds[value.name]
    return changed


def _to_single_(tensor: TensorProto) -> None:
    values = numpy_helper.to_array(tensor).astype(np.float64)
    finite = np.isfinite(values)
    values[finite] = values[finite].clip(-_LARGEST, _LARGEST)
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _unused(name: str, graph: onnx.GraphProto) -> str:
    taken = {output for each in all_graphs(graph) for node in each.node for output in node.output}
    taken |= {value.name for each in all_graphs(graph) for value in (*each.input, *each.output, *each.initializer)}
    while name in taken:
        name += "_"
    return name


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    for each in all_graphs(graph):
        yield from each.initializer
        yield from (sparse.values for sparse in each.sparse_initializer)
    for entry in _attributes(graph):
        if entry.type == onnx.AttributeProto.TENSOR:
            yield entry.t
        yield from entry.tensors


def _kinds(graph: onnx.GraphProto) -> Iterator[onnx.TypeProto]:
    for each in all_graphs(graph):
        for value in (*each.input, *each.output, *each.value_info):
            kind = value.type
            while kind.WhichOneof("value") in {"sequence_type", "optional_type"}:
                kind = getattr(kind, kind.WhichOneof("value")).elem_type
            yield kind


def _attributes(graph: onnx.GraphProto) -> Iterator[onnx.AttributeProto]:
    return (entry for each in all_graphs(graph) for node in each.node for entry in node.attribute)
