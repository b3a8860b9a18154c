"""What lies in weights that a file stores in another shape: numbers of few bits of many weights in one tensor.

Quantized weights of 2 to 6 bits and codebooks lie in the bytes of a few tensors, from which nodes make the weights when
the file is opened: shifted apart, split, and reshaped. Their rows and columns are what those nodes say.
"""

from collections import defaultdict
from collections.abc import Mapping

import onnx
from onnx import numpy_helper

from compressor.packing.forms import Shape, shapes_of

# What may stand between the stored bytes and the node that splits them.
_PASSED = {"Cast", "Sub", "BitwiseOr", "BitwiseAnd", "BitShift", "Slice", "Reshape", "Identity"}
_MOST_STEPS = 64


def inner_shapes(model: onnx.ModelProto) -> dict[str, tuple[Shape, ...]]:
    """Of initializers that hold other weights, by name: the shapes of those, in their order."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    readers = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    found: dict[str, tuple[Shape, ...]] = {}
    for node in graph.node:
        if node.op_type != "Split" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        sizes = numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist()
        shapes: list[Shape] = []
        for size, output in zip(sizes, node.output, strict=False):
            shape = _reshaped(output, readers, constants)
            shapes += shapes_of(shape, size)
        for name in _stored(node.input[0], makers, constants):
            found[name] = tuple(shapes)
    return found


def _reshaped(
    name: str, readers: Mapping[str, list[onnx.NodeProto]], constants: Mapping[str, onnx.TensorProto]
) -> tuple[int, ...]:
    """The last shape that a piece is brought into, by itself or as numbers into a codebook; () where there is none."""
    found: tuple[int, ...] = ()
    for _ in range(_MOST_STEPS):
        node = next((one for one in readers.get(name, []) if one.op_type in ("Reshape", "GatherElements")), None)
        if node is None:
            break
        if node.op_type == "Reshape" and node.input[1] in constants:
            found = tuple(numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist())
        name = node.output[0]
    return found


def _stored(name: str, makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]) -> list[str]:
    """The initializers of bytes that `name` is made of."""
    found, waiting = [], [name]
    for _ in range(_MOST_STEPS):
        if not waiting:
            break
        name = waiting.pop()
        if name in constants:
            if constants[name].data_type == onnx.TensorProto.UINT8:
                found.append(name)
        elif name in makers and makers[name].op_type in _PASSED:
            node = makers[name]
            waiting += node.input if node.op_type == "BitwiseOr" else node.input[:1]
    return found
