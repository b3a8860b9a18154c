"""In which dimension of an output its channels lie: read from the operators that make it."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from compressor.files.graphs import attribute, initializers, producers, shapes
from compressor.files.operators import Family, operator_of

# Of the operators between an output and what has channels: they compute element by element, or round.
_ALIKE = frozenset(
    {
        "Identity",
        "Cast",
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Clip",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Softplus",
        "Elu",
        "Exp",
        "Sqrt",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "QuantizeLinear",
        "DequantizeLinear",
        "Dropout",
        "BatchNormalization",
        "InstanceNormalization",
        "Softmax",
        "LogSoftmax",
        "Resize",
        "MaxPool",
        "AveragePool",
        "Pad",
    }
)
# They take a part, and leave dimensions in their places.
_PARTS = frozenset({"Split", "Slice"})
# Operators that are looked at between an output and what has channels.
_DEPTH = 24


def output_channels(model: onnx.ModelProto) -> dict[str, int | None]:
    """{output: the dimension of its channels}: of convolutions the second, of what is joined that in which it is.

    None where an output has no channels of their own, as the row of a matrix product, and where it cannot be told.
    """
    known = _Channels(model)
    return {value.name: known.of(value.name, _DEPTH) for value in model.graph.output}


class _Channels:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.made = producers(model.graph.node)
        self.constants = {
            *initializers(model.graph),
            *(node.output[0] for node in model.graph.node if node.op_type == "Constant"),
        }
        self.shapes: Mapping[str, Sequence[Any]] = shapes(model)

    def of(self, name: str, depth: int) -> int | None:
        node = self.made.get(name)
        if node is None or not depth:
            return None
        if operator_of(node.op_type).family is Family.CONVOLUTION or node.op_type == "ConvTranspose":
            return 1
        if node.op_type == "Concat":
            inside = {axis for entry in node.input if (axis := self.of(entry, depth - 1)) is not None}
            if len(inside) == 1:
                return inside.pop()
            joined = int(attribute(node, "axis", 0))
            if joined < 0 and name not in self.shapes:
                return None
            return (joined + len(self.shapes[name]) if joined < 0 else joined) or None
        if node.op_type == "Transpose":
            axis = self.of(node.input[0], depth - 1)
            order = attribute(node, "perm", None)
            return None if axis is None or order is None else list(order).index(axis)
        if node.op_type in _PARTS:
            return self.of(node.input[0], depth - 1)
        if node.op_type == "Reshape":
            axis = self.of(node.input[0], depth - 1)
            return axis if axis is not None and self._keeps(node, axis) else None
        if node.op_type in _ALIKE:
            for entry in node.input:
                if entry not in self.constants:
                    axis = self.of(entry, depth - 1)
                    if axis is not None:
                        return axis
        return None

    def _keeps(self, node: onnx.NodeProto, axis: int) -> bool:
        """Whether a Reshape leaves the dimension `axis` and those before it as they are."""
        before, after = (self.shapes.get(name, ()) for name in (node.input[0], node.output[0]))
        known = len(before) > axis and len(after) > axis and isinstance(before[axis], int)
        return known and list(before[1 : axis + 1]) == list(after[1 : axis + 1])
