"""The linear layers of an ONNX graph: where their weights, biases and channels are, whichever operators spell them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from compressor.files.graphs import attributes, copy_of, producers, ranks, readers
from compressor.files.operators import operator_of

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LinearLayer:
    """A Conv, ConvTranspose or Gemm, or a MatMul with the Add behind it, of constant weight.

    `input` and `output` are tensors, the output without the bias of an Add; channels lie along `input_axis` and
    `output_axis`. `bias` is an initializer, "" for none.
    """

    name: str
    kind: str
    input: str
    output: str
    weight: str
    bias: str
    input_axis: int
    output_axis: int
    groups: int = 1
    transposed: bool = False

    def applied(self, weight: Array, inputs: Array) -> Array:
        """What constant `inputs` (input channels,) give in every output channel: `weight` summed over its kernel."""
        if self.kind == "Conv":
            summed = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
            grouped = summed.reshape(self.groups, -1, summed.shape[1])
            return np.asarray(np.einsum("goi,gi->go", grouped, inputs.reshape(self.groups, -1))).reshape(-1)
        if self.kind == "ConvTranspose":
            summed = weight.reshape(*weight.shape[:2], -1).sum(axis=2)
            grouped = summed.reshape(self.groups, -1, summed.shape[1])
            return np.asarray(np.einsum("gio,gi->go", grouped, inputs.reshape(self.groups, -1))).reshape(-1)
        product: Array = weight @ inputs if self.transposed else inputs @ weight
        return product


def linear_layers(graph: onnx.ModelProto) -> list[LinearLayer]:
    """The layers in graph order. A MatMul without an Add of a constant behind it has no bias and is left out."""
    weights = {tensor.name: tensor for tensor in graph.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    read, known_ranks = readers(graph.graph.node), ranks(graph)
    found = []
    for node in graph.graph.node:
        weight = weights.get(node.input[1]) if len(node.input) > 1 else None
        if weight is None or not operator_of(node.op_type).linear:
            continue
        rank = known_ranks.get(node.input[0])
        bias = node.input[2] if len(node.input) > 2 else ""
        if rank is None or (bias and (bias not in weights or len(read[bias]) > 1)):
            continue
        settings = attributes(node)
        if node.op_type == "Gemm":
            width = weight.dims[0 if settings.get("transB", 0) else 1]
            odd = settings.get("transA", 0) or settings.get("beta", 1.0) != 1 or settings.get("alpha", 1.0) != 1
            if odd or (bias and list(weights[bias].dims) not in ([width], [1, width])):
                continue
        if node.op_type == "MatMul":
            behind = read.get(node.output[0], [])
            if len(weight.dims) != 2 or len(behind) != 1 or behind[0].op_type != "Add":
                continue
            constants = [name for name in behind[0].input if name in weights and len(read[name]) == 1]
            if len(constants) != 1 or list(weights[constants[0]].dims) != [weight.dims[1]]:
                continue
            bias = constants[0]
        image = node.op_type.startswith("Conv")
        found.append(
            LinearLayer(
                name=node.name,
                kind=node.op_type,
                input=node.input[0],
                output=node.output[0],
                weight=weight.name,
                bias=bias,
                input_axis=1 if image else rank - 1,
                output_axis=1 if image else rank - 1,
                groups=int(settings.get("group", 1)),
                transposed=bool(settings.get("transB", 0)),
            )
        )
    return found


def with_biases(graph: onnx.ModelProto, layers: list[LinearLayer]) -> tuple[onnx.ModelProto, list[LinearLayer]]:
    """The graph with a bias of zeros for every one of `layers` that has none, itself where none lacks one, and the
    layers with it.
    """
    if all(layer.bias for layer in layers):
        return graph, layers
    changed = copy_of(graph)
    nodes = {node.name: node for node in changed.graph.node}
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.graph.initializer}
    given = []
    for layer in layers:
        if layer.bias:
            given.append(layer)
            continue
        node, shape = nodes[layer.name], shapes[layer.weight]
        match layer.kind:
            case "Conv":
                width = shape[0]
            case "ConvTranspose":
                width = shape[1] * layer.groups
            case _:
                width = shape[0] if layer.transposed else shape[1]
        bias = f"{layer.weight}_bias"
        changed.graph.initializer.append(numpy_helper.from_array(np.zeros(width, dtype=np.float32), bias))
        node.input[:] = [node.input[0], node.input[1], bias]
        given.append(replace(layer, bias=bias))
    return changed, given


def node_in_placed(placed: onnx.ModelProto, layer: LinearLayer) -> onnx.NodeProto | None:
    """The layer's node, unless placement made others of it, to the last of which the name may have gone."""
    return next((node for node in placed.graph.node if node.name == layer.name and node.op_type == layer.kind), None)


def tensor_in_placed(placed: onnx.ModelProto, layer: LinearLayer) -> str | None:
    """The tensor of the placed graph that the layer computes, before it is rounded."""
    made = producers(placed.graph.node)
    # Placement drops a ReLU whose bound the integers enforce; the layer then writes what the ReLU wrote.
    named = node_in_placed(placed, layer)
    if named is not None:
        return str(named.output[0])
    last = made.get(layer.output)
    if last is None:
        return None
    source = made.get(last.input[0]) if last.op_type == "DequantizeLinear" else None
    return str(source.input[0]) if source is not None and source.op_type == "QuantizeLinear" else layer.output
