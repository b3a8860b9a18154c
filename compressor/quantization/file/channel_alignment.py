"""Integer convolutions with zero channels added up to the widths that ONNX Runtime's fast kernels take.

Added channels have weights of zero wherever they are read, so that no output changes by a bit, whatever stands in them.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.files.graphs import (
    attribute,
    copy_of,
    initializers,
    names_captured,
    names_read,
    output_names,
    producers,
    replace_nodes_,
)
from compressor.files.operators import Fact, facts_of
from compressor.target import FEWEST_OUTPUTS, Isa, filled_width, in_fours


def aligned(placed: onnx.ModelProto, isa: Isa) -> onnx.ModelProto:
    """`placed` with zero channels between its integer convolutions, and ahead of those that read the graph's inputs.

    `isa` is the CPU class that the file is for, which decides how many channels are added. They are added where
    activations are uint8 alone, because what the kernels of Arm want was not measured. Inputs and outputs of the graph
    keep their shapes, and so does whatever an operator reads that knows channels by number (Concat, Reshape, floats).
    """
    wider = copy_of(placed)
    widening = _Widening(wider.graph)
    widening.fill_up_(isa)
    widening.pad_inputs_()
    return wider


@dataclass(frozen=True, kw_only=True, eq=False)
class _Product:
    """An integer Conv or Gemm: where its operands come from, and its channels."""

    node: onnx.NodeProto
    weight: onnx.NodeProto
    bias: onnx.NodeProto | None
    inputs: int
    outputs: int
    depthwise: bool = False

    @property
    def input_axis(self) -> int:
        """The axis of the weight that its input's channels lie on."""
        return 0 if self.node.op_type == "Gemm" and not attribute(self.node, "transB", 0) else 1


@dataclass(kw_only=True)
class _Group:
    """Tensors that have the same channels, and the products that make and read them."""

    tensors: list[str] = field(default_factory=list)
    width: int | None = None
    fixed: bool = False
    made: list[_Product] = field(default_factory=list)
    read: list[_Product] = field(default_factory=list)
    filtered: list[_Product] = field(default_factory=list)


class _Widening:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = initializers(graph)
        self.producers = producers(graph.node)
        self.uses = Counter(name for node in graph.node for name in names_read(node))
        self.groups: dict[str, _Group] = {}
        self.products: list[_Product] = []
        for value in [*graph.input, *graph.output]:
            self._group(value.name).fixed = True
        for node in graph.node:
            self._read(node)
            # What branches and loops make of it is not looked into.
            for name in names_captured(node):
                self._group(name).fixed = True

    def fill_up_(self, isa: Isa) -> None:
        """Widens every group of tensors that nothing else looks into."""
        for group in {id(group): group for group in self.groups.values()}.values():
            if group.fixed or group.width is None or not group.made:
                continue
            width = filled_width(group.width, isa)
            if width == group.width:
                continue
            for product in [*group.made, *group.filtered]:
                self._widen_outputs(product, width)
            for product in group.read:
                self._pad(product.weight.input[0], product.input_axis, width)
            self._forget_shapes(group.tensors)

    def pad_inputs_(self) -> None:
        """Pads the graph's inputs, behind their QuantizeLinear, for the convolutions whose windows overlap.

        Where they do not, as in the patches of a vision transformer, unfolding moves each value once and costs little.
        """
        inputs = {value.name for value in self.graph.input}
        written: list[onnx.NodeProto] = []
        padded: dict[tuple[str, int], str] = {}
        reading = {product.node.output[0]: product for product in self.products if product.node.op_type == "Conv"}
        for node in self.graph.node:
            product = reading.get(node.output[0])
            if product is not None and not product.depthwise and self._has_room(product):
                dequantize = self.producers[node.input[0]]
                quantize = self.producers.get(dequantize.input[0])
                width = in_fours(product.inputs)
                if quantize is not None and quantize.input[0] in inputs:
                    key = (node.input[0], width)
                    if key not in padded:
                        padded[key] = f"{node.input[0]}_{width}"
                        written += self._padding(product, dequantize, padded[key], width)
                    node.input[0] = padded[key]
                    self._pad(product.weight.input[0], 1, width)
            written.append(node)
        # What only those convolutions read is dequantized for nobody.
        read = {name for node in written for name in names_read(node)} | output_names(self.graph)
        replace_nodes_(self.graph, [node for node in written if read.intersection(node.output)])

    def _has_room(self, product: _Product) -> bool:
        node, weight = product.node, self.constants[product.weight.input[0]]
        overlapping = all(
            size > stride for size, stride in zip(weight.dims[2:], attribute(node, "strides", [1, 1]), strict=True)
        )
        outputs = int(weight.dims[0])
        fit = outputs >= FEWEST_OUTPUTS and outputs % 4 == 0
        return overlapping and fit and int(weight.dims[1]) == product.inputs and bool(product.inputs % 4)

    def _padding(
        self, product: _Product, dequantize: onnx.NodeProto, name: str, width: int
    ) -> Iterator[onnx.NodeProto]:
        pads = np.zeros(8, dtype=np.int64)
        pads[5] = width - product.inputs
        self.graph.initializer.append(numpy_helper.from_array(pads, f"{name}_pads"))
        integers, scale, zero_point = dequantize.input
        yield helper.make_node(
            "Pad", [integers, f"{name}_pads", zero_point], [f"{name}_integers"], f"{product.node.name}/pad"
        )
        yield helper.make_node(
            "DequantizeLinear", [f"{name}_integers", scale, zero_point], [name], f"{name}_DequantizeLinear"
        )

    def _read(self, node: onnx.NodeProto) -> None:
        """Puts the tensors of `node` into groups."""
        if _converts(node):
            if node.input[0] not in self.constants:
                scalar = node.input[1] in self.constants and _size(self.constants[node.input[1]]) == 1
                self._join(node.input[0], node.output[0], fixed=not scalar)
            return
        product = self._product(node)
        if product is not None:
            self.products.append(product)
            source = self._widths(node.input[0], product.inputs)
            if product.depthwise:
                self._join(node.input[0], node.output[0])
                self._group(node.input[0]).filtered.append(product)
                return
            source.read.append(product)
            target = self._widths(node.output[0], product.outputs)
            target.made.append(product)
            target.fixed |= node.op_type == "Gemm"
            return
        operands = [name for name in node.input if name and not self._is_number(name)]
        alike = Fact.CHANNELWISE in facts_of(node.op_type) or self._is_flattened_pool(node)
        for name in [*operands, *node.output]:
            self._join(operands[0] if operands else name, name, fixed=not alike or len(node.output) > 1)

    def _product(self, node: onnx.NodeProto) -> _Product | None:
        """The integer product that `node` is, None for any other node and for weights that cannot be widened."""
        if node.op_type not in {"Conv", "Gemm"}:
            return None
        activation, weight, *rest = (self.producers.get(name) for name in node.input)
        bias = rest[0] if rest else None
        if activation is None or weight is None or (len(node.input) > 2 and bias is None):
            return None
        if not self._is_unsigned(activation) or any(not self._is_own(part) for part in (weight, bias) if part):
            return None
        tensor = self.constants[weight.input[0]]
        if numpy_helper.to_array(self.constants[weight.input[2]]).any():
            return None
        sizes = list(tensor.dims)
        if node.op_type == "Gemm":
            outputs, inputs = sizes if attribute(node, "transB", 0) else sizes[::-1]
            usual = not attribute(node, "transA", 0)
            return _Product(node=node, weight=weight, bias=bias, inputs=inputs, outputs=outputs) if usual else None
        groups = attribute(node, "group", 1)
        depthwise = groups > 1 and sizes[1] == 1 and sizes[0] == groups
        if len(sizes) != 4 or (groups > 1 and not depthwise):
            return None
        inputs = groups if depthwise else sizes[1]
        return _Product(node=node, weight=weight, bias=bias, inputs=inputs, outputs=sizes[0], depthwise=depthwise)

    def _is_unsigned(self, activation: onnx.NodeProto) -> bool:
        zero_point = self.constants.get(activation.input[2]) if len(activation.input) > 2 else None
        return (
            activation.op_type == "DequantizeLinear"
            and zero_point is not None
            and zero_point.data_type == onnx.TensorProto.UINT8
            and _size(zero_point) == 1
        )

    def _is_own(self, operand: onnx.NodeProto) -> bool:
        """Whether `operand` dequantizes constants that nothing else reads."""
        return (
            operand.op_type == "DequantizeLinear"
            and len(operand.input) > 2
            and all(name in self.constants and self.uses[name] == 1 for name in operand.input)
            and self.uses[operand.output[0]] == 1
        )

    def _is_number(self, name: str) -> bool:
        """Whether a tensor is one constant number, which is the same for every channel."""
        producer = self.producers.get(name)
        tensor = self.constants.get(producer.input[0] if producer is not None and producer.input else name)
        return tensor is not None and _size(tensor) == 1

    def _is_flattened_pool(self, node: onnx.NodeProto) -> bool:
        """Whether it makes (batch, channels) of maps that global pooling left with one place."""
        if node.op_type != "Flatten" or attribute(node, "axis", 1) != 1:
            return False
        source = self.producers.get(node.input[0])
        while source is not None and _converts(source):
            source = self.producers.get(source.input[0])
        # Behind it channels lie on the last axis, where only a product of matrices may read them.
        return (
            source is not None
            and source.op_type == "GlobalAveragePool"
            and all(reader.op_type == "Gemm" or _converts(reader) for reader in self._readers(node.output[0]))
        )

    def _readers(self, name: str) -> list[onnx.NodeProto]:
        readers: list[onnx.NodeProto] = []
        for node in self.graph.node:
            if name in node.input:
                readers += self._readers(node.output[0]) if _converts(node) else [node]
        return readers

    def _group(self, name: str) -> _Group:
        if name not in self.groups:
            self.groups[name] = _Group(tensors=[name])
        return self.groups[name]

    def _widths(self, name: str, width: int) -> _Group:
        group = self._group(name)
        group.fixed |= group.width not in {None, width}
        group.width = width
        return group

    def _join(self, first: str, second: str, *, fixed: bool = False) -> None:
        group, other = self._group(first), self._group(second)
        group.fixed |= fixed
        if group is other:
            return
        group.fixed |= other.fixed or (None not in {group.width, other.width} and group.width != other.width)
        group.width = group.width if other.width is None else other.width
        for name in ("tensors", "made", "read", "filtered"):
            getattr(group, name).extend(getattr(other, name))
        self.groups.update(dict.fromkeys(other.tensors, group))

    def _widen_outputs(self, product: _Product, width: int) -> None:
        if product.depthwise:
            for entry in product.node.attribute:
                if entry.name == "group":
                    entry.i = width
        for operand in (product.weight, product.bias):
            if operand is not None:
                for name in operand.input:
                    self._pad(name, 0, width)

    def _pad(self, name: str, axis: int, width: int) -> None:
        """Gives a constant `width` channels: zeros behind its values; behind scales, which are not zero, the first."""
        tensor = self.constants[name]
        values: NDArray[Any] = numpy_helper.to_array(tensor)
        if values.ndim == 0:
            return
        sizes = [(0, width - size if at == axis else 0) for at, size in enumerate(values.shape)]
        fill = values.reshape(-1)[0] if values.dtype == np.float32 else 0
        tensor.CopyFrom(numpy_helper.from_array(np.pad(values, sizes, constant_values=fill), name))

    def _forget_shapes(self, names: list[str]) -> None:
        gone = set(names)
        kept = [value for value in self.graph.value_info if value.name not in gone]
        del self.graph.value_info[:]
        self.graph.value_info.extend(kept)


def _converts(node: onnx.NodeProto) -> bool:
    return Fact.CONVERTS in facts_of(node.op_type)


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))
