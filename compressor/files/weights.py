"""Counts the weights that an ONNX file holds, and those that are not zero, in float, 8-bit or packed form."""

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.inliner import inline_local_functions

from compressor.files.graphs import initializers, inner_graphs, names_read, parse, replace_nodes_
from compressor.files.operators import Inputs, operator_of
from compressor.runtime import open_session

_FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_WIDE_INTEGERS = {TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64}
_NEVER = {TensorProto.BOOL, TensorProto.STRING, TensorProto.INT64, TensorProto.UINT64, TensorProto.UNDEFINED}


# What unpacks weights that are stored in fewer bits: it starts from integers of 8 bits, and all else that it reads is
# constant. Channels of zeros that a Pad adds behind it are no weights.
_UNPACKING_FROM = {"BitShift", "Cast"}
_UNPACKING = _UNPACKING_FROM | {
    *("BitwiseAnd", "BitwiseOr", "GatherElements", "Reshape", "Slice", "Sub", "Mul", "Split", "Transpose"),
}
# By the tensor's identity, which it keeps while it is held here: the tensor, its elements, those that are not zero.
_Counts = dict[int, tuple[TensorProto, int, int]]


def count_parameters(onnx_bytes: bytes) -> tuple[int, int]:
    """(weights, weights that are not zero) in the file, each tensor counted once however often it is used.

    Weights are the float and quantized tensors that operators compute with; scales, zero points, shapes, indices and
    scalars are none. A quantized weight is zero where it equals its zero point.
    """
    model = parse(onnx_bytes)
    if model.functions:
        model = inline_local_functions(model)
    counts: _Counts = {}
    _unpack_stored_(model)
    _count_graph(model.graph, {}, counts)
    return sum(total for _, total, _ in counts.values()), sum(nonzero for _, _, nonzero in counts.values())


def _unpack_stored_(model: onnx.ModelProto) -> None:
    """Replaces the nodes that unpack stored weights by the weights themselves."""
    graph = model.graph
    constants = initializers(graph)
    unpacked: set[str] = set()
    nodes, rest = [], []
    for node in graph.node:
        first = node.input[0] if node.input else ""
        starts = (
            node.op_type in _UNPACKING_FROM
            and first in constants
            and constants[first].data_type in {TensorProto.INT8, TensorProto.UINT8}
        )
        goes_on = node.op_type in _UNPACKING and not unpacked.isdisjoint(node.input)
        if (starts or goes_on) and all(not name or name in constants or name in unpacked for name in node.input):
            nodes.append(node)
            unpacked.update(node.output)
        else:
            rest.append(node)
    if not nodes:
        return
    wanted = sorted(unpacked.intersection(name for node in rest for name in names_read(node)))
    replace_nodes_(graph, rest)
    if not wanted:
        return
    outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
    part = onnx.helper.make_graph(nodes, "unpacking", [], outputs, list(graph.initializer))
    versions = list(model.opset_import)
    alone = onnx.helper.make_model(part, opset_imports=versions, ir_version=model.ir_version)
    values = open_session(alone.SerializeToString()).run(wanted, {})
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in zip(wanted, values, strict=True))


def _count_graph(graph: onnx.GraphProto, outer: dict[str, TensorProto], counts: _Counts) -> None:
    """Adds to `counts`, by the tensor's identity, what this graph and those inside its nodes compute with."""
    known = {**outer, **initializers(graph)}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            known[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        for inner in inner_graphs(node):
            _count_graph(inner, known, counts)
        if node.op_type == "MatMulNBits":
            _count_packed(node, known, counts)
        rules = operator_of(node.op_type).inputs
        for position, name in enumerate(node.input):
            tensor = known.get(name)
            if tensor is None or not _is_weight(node, position, tensor, rules) or id(tensor) in counts:
                continue
            zero = _zero_point(node, position, rules, known, list(tensor.dims))
            counts[id(tensor)] = tensor, math.prod(tensor.dims), _nonzero(tensor, zero)


def _is_weight(node: NodeProto, position: int, tensor: TensorProto, rules: Inputs) -> bool:
    kind = tensor.data_type
    if kind in _NEVER or not tensor.dims:
        return False
    if rules.listed:
        return position in (rules.floats if kind in _FLOATS else rules.integers)
    if position in rules.settings:
        return False
    if node.op_type.startswith("QLinear"):
        # Of the remaining such operators (pooling, sigmoid, concatenation) none has weights.
        return False
    return kind not in _WIDE_INTEGERS


def _zero_point(
    node: NodeProto, position: int, rules: Inputs, known: dict[str, TensorProto], dims: list[int]
) -> NDArray[Any] | int:
    """The zero point of an input in a shape that broadcasts against it, 0 where it has none."""
    if position not in rules.integers:
        return 0
    where, axis = rules.integers[position]
    name = node.input[where] if where is not None and where < len(node.input) else ""
    if name not in known:
        return 0
    zero = _values(known[name])
    if zero.size == 1:
        return int(zero.reshape(-1)[0])
    if node.op_type == "DynamicQuantizeLSTM":
        # (directions, 4 x hidden) against (directions, inputs, 4 x hidden).
        return zero.reshape(zero.shape[0], 1, -1)
    settings = {a.name: a.i for a in node.attribute}
    axis = settings.get("axis", axis)
    if zero.ndim == len(dims) > 1 and settings.get("block_size"):
        return zero.repeat(settings["block_size"], axis=axis)
    if zero.ndim > 1:
        return zero
    axis = min(axis, len(dims) - 1)
    if dims[axis] != zero.size:
        axis = dims.index(zero.size)  # a transposed weight: the axis is the one of that size
    shape = [1] * len(dims)
    shape[axis] = zero.size
    return zero.reshape(shape)


def _count_packed(node: NodeProto, known: dict[str, TensorProto], counts: _Counts) -> None:
    """Adds the weights of a MatMulNBits: (N, blocks, bytes) with several of them in a byte, low bits first."""
    tensor = known.get(node.input[1])
    if tensor is None or id(tensor) in counts:
        return
    settings = {a.name: a.i for a in node.attribute}
    rows, inner, bits = settings["N"], settings["K"], settings.get("bits", 4)
    weights = _unpack(_values(tensor).reshape(rows, -1), bits)
    zero: NDArray[Any] | int = 1 << (bits - 1)
    name = node.input[3] if len(node.input) > 3 else ""
    if name in known and known[name].data_type == TensorProto.UINT8:
        blocks = -(-inner // settings["block_size"])
        zero = _unpack(_values(known[name]).reshape(rows, -1), bits)[:, :blocks]
        zero = zero.repeat(settings["block_size"], axis=1)[:, :inner]
    counts[id(tensor)] = tensor, rows * inner, int(np.count_nonzero(weights[:, :inner] != zero))


def _unpack(packed: NDArray[Any], bits: int) -> NDArray[Any]:
    """(rows, columns x 8 / bits) unsigned integers from (rows, columns) bytes."""
    shifts = np.arange(0, 8, bits)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).reshape(len(packed), -1)


def _nonzero(tensor: TensorProto, zero: NDArray[Any] | int) -> int:
    values = _values(tensor)
    if isinstance(zero, np.ndarray) and zero.ndim == values.ndim:
        # Blocks may stick out over the last weights.
        zero = zero[tuple(slice(size) for size in values.shape)]
    return int(np.count_nonzero(values != zero))


def _values(tensor: TensorProto) -> NDArray[Any]:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(
            f"the weight {tensor.name!r} lies in a file beside the ONNX model; save it with external_data=False"
        )
    values: NDArray[Any] = numpy_helper.to_array(tensor)
    # 4-bit integers come in a type of their own that numpy compares but does not repeat or broadcast.
    return values if values.dtype.kind in "fiu" else values.astype(np.float32)
