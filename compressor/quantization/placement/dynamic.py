"""An ONNX graph whose linear and recurrent layers find the ranges of their activations at every call.

A linear layer is written as DynamicQuantizeLinear, MatMulInteger and the multiplication with both scales, which ONNX
Runtime fuses into one kernel; layers that read one tensor share its quantization. LSTMs and embeddings have operators
of their own in ONNX Runtime; GRU and RNN layers are written out as cells (`recurrent_cells`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import StageError
from compressor.files.graphs import names_read
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.placement.recurrent_cells import layer_of, write_layer

_CONTRIB = "com.microsoft"


def place_dynamic(model: onnx.ModelProto, nodes: set[str], weights: Mapping[str, WeightGrid]) -> onnx.ModelProto:
    """The graph with `nodes` (LSTM, GRU, RNN, MatMul, Gemm, embedding Gather) on the integers of their grids.

    Raises StageError for grids that no kernel takes: a scale per group in a linear or recurrent layer.
    """
    placing = _Placing(weights=weights)
    placing.model.CopyFrom(model)
    placing.constants = {tensor.name: tensor for tensor in placing.model.graph.initializer}
    for node in placing.model.graph.node:
        if node.name not in nodes:
            placing.written.append(node)
        elif node.op_type in {"Gemm", "MatMul"}:
            placing.linear(node)
        elif node.op_type == "LSTM":
            placing.lstm(node)
        elif node.op_type in {"GRU", "RNN"}:
            placing.cells(node)
        elif node.op_type == "Gather":
            placing.embedding(node)
        else:
            placing.written.append(node)
    return placing.finished()


@dataclass(kw_only=True)
class _Placing:
    weights: Mapping[str, WeightGrid]
    model: onnx.ModelProto = field(default_factory=onnx.ModelProto)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    written: list[onnx.NodeProto] = field(default_factory=list)
    quantized: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    tables: dict[str, torch.Tensor] = field(default_factory=dict)

    def finished(self) -> onnx.ModelProto:
        graph = self.model.graph
        used = {name for node in self.written for name in names_read(node)} | {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.written)
        graph.initializer.extend(kept)
        domains = {entry.domain for entry in self.model.opset_import}
        # Cells hold operators of that domain inside of a Scan.
        if _CONTRIB not in domains and any(node.domain == _CONTRIB or node.op_type == "Scan" for node in graph.node):
            self.model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
        return self.model

    def linear(self, node: onnx.NodeProto) -> None:
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        grid = self.weights.get(node.input[1])
        if grid is None or grid.integers.ndim != 2 or attributes.get("transA", 0):
            self.written.append(node)
            return
        self._check(node, grid)
        name, source, target = node.input[1], node.input[0], node.output[0]
        stored = self._matrix(name, grid.integers.T if attributes.get("transB", 0) else grid.integers)
        zero_point = self._add(f"{name}_zero_point", grid.zero_point.to(torch.int8).numpy())
        scale = self._add(f"{name}_scale", (grid.scale * attributes.get("alpha", 1.0)).float().numpy())
        activation, its_scale, its_zero = self._activation(source)
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and attributes.get("beta", 1.0) != 1.0:
            factor = self._add(f"{node.name}_beta", np.array(attributes["beta"], dtype=np.float32))
            bias = self._node("Mul", [bias, factor], f"{node.name}_scaled_bias")
        product = self._node("MatMulInteger", [activation, stored, its_zero, zero_point], f"{node.name}_integer")
        product = self._node("Cast", [product], f"{node.name}_cast", to=TensorProto.FLOAT)
        both = self._node("Mul", [its_scale, scale], f"{node.name}_scales")
        if bias:
            product = self._node("Mul", [product, both], f"{node.name}_product")
            self.written.append(helper.make_node("Add", [product, bias], [target], node.name))
        else:
            self.written.append(helper.make_node("Mul", [product, both], [target], node.name))

    def _matrix(self, name: str, integers: torch.Tensor) -> str:
        """The stored integers (inputs, outputs): a table of words turned around where they are tied to one."""
        for table, rows in self.tables.items():
            if torch.equal(rows.T, integers):
                # ONNX Runtime turns constants around when it loads the file: it costs nothing at run time.
                return self._node("Transpose", [table], f"{name}_quantized", perm=[1, 0])
        return self._add(f"{name}_quantized", integers.to(torch.int8).contiguous().numpy())

    def _activation(self, name: str) -> tuple[str, str, str]:
        if name not in self.quantized:
            parts = (f"{name}_dynamic", f"{name}_dynamic_scale", f"{name}_dynamic_zero_point")
            self.written.append(helper.make_node("DynamicQuantizeLinear", [name], parts, f"{name}_quantize"))
            self.quantized[name] = parts
        return self.quantized[name]

    def lstm(self, node: onnx.NodeProto) -> None:
        scales: list[str] = []
        inputs = [*node.input, *([""] * (8 - len(node.input)))]
        for position in (1, 2):
            name = node.input[position]
            grid = self.weights.get(name)
            if grid is None:
                self.written.append(node)
                return
            self._check(node, grid)
            directions, gates, _ = grid.integers.shape
            # The kernel multiplies from the right: (directions, inputs, gates).
            integers = grid.integers.to(torch.int8).transpose(1, 2).contiguous()
            inputs[position] = self._add(f"{name}_quantized", integers.numpy())
            shape = (directions, gates) if grid.scale.ndim else (directions,)
            for part, value in (("scale", grid.scale), ("zero_point", grid.zero_point.to(torch.int8))):
                scales.append(self._add(f"{name}_{part}", value.expand(shape).contiguous().numpy()))
        layer = helper.make_node("DynamicQuantizeLSTM", [*inputs, *scales], node.output, node.name, domain=_CONTRIB)
        layer.attribute.extend(attribute for attribute in node.attribute if attribute.name != "layout")
        self.written.append(layer)

    def cells(self, node: onnx.NodeProto) -> None:
        inputs, states = (self.weights.get(name) for name in node.input[1:3])
        if inputs is None or states is None:
            self.written.append(node)
            return
        self._check(node, inputs)
        self._check(node, states)
        layer = layer_of(node, self.constants)
        count = len(layer.backward)
        # One product for both directions: they read the same, and two with one scale would not be fused.
        name, product = node.input[1], f"{node.name}_projected"
        bias = self._add(f"{name}_bias", np.concatenate([layer.biases(index)[0] for index in range(count)]))
        self.weights = {**self.weights, name: _of_both(inputs)}
        self.linear(helper.make_node("Gemm", [node.input[0], name, bias], [product], product, transB=1))
        projected = [product] if count == 1 else [f"{product}_{index}" for index in range(count)]
        if count > 1:
            self.written.append(
                helper.make_node("Split", [product], projected, f"{product}_0", axis=2, num_outputs=count)
            )
        written = write_layer(layer, projected, [_of_direction(states, index) for index in range(count)])
        self.model.graph.initializer.extend(written.initializers)
        self.written.extend(written.nodes)

    def embedding(self, node: onnx.NodeProto) -> None:
        name, indices, target = node.input[0], node.input[1], node.output[0]
        grid = self.weights.get(name)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        if grid is None or axis != 0 or grid.group_size is not None:
            self.written.append(node)
            return
        rows = self._add(f"{name}_quantized", grid.integers.to(torch.int8).numpy())
        self.tables[rows] = grid.integers
        found = self._node("Gather", [rows, indices], f"{node.name}_rows")
        if grid.scale.ndim == 0:
            scale = self._add(f"{name}_scale", grid.scale.numpy())
            zero_point = self._add(f"{name}_zero_point", grid.zero_point.to(torch.int8).numpy())
            inputs = [found, scale, zero_point]
            self.written.append(helper.make_node("DequantizeLinear", inputs, [target], node.name))
            return
        scale = self._add(f"{name}_scale", grid.spread(grid.scale).numpy())
        factors = self._node("Gather", [scale, indices], f"{node.name}_scales")
        wide = self._node("Cast", [found], f"{node.name}_wide", to=TensorProto.FLOAT)
        self.written.append(helper.make_node("Mul", [wide, factors], [target], node.name))

    def _check(self, node: onnx.NodeProto, grid: WeightGrid) -> None:
        if grid.group_size is not None:
            raise StageError(
                f"{node.name} has a scale for every {grid.group_size} weights, for which ONNX Runtime has no kernel "
                "with dynamic activations; use PerChannel(), or form=WeightOnly()"
            )

    def _add(self, name: str, values: npt.NDArray[Any]) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.written.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output


def _of_direction(grid: WeightGrid, direction: int) -> WeightGrid:
    """The matrix (outputs, inputs) of one direction of a recurrent weight, whose directions share their scales."""
    return replace(grid, axis=None if grid.axis is None else 0, integers=grid.integers[direction])


def _of_both(grid: WeightGrid) -> WeightGrid:
    """The matrix (directions * outputs, inputs) of all directions."""
    integers = grid.integers.flatten(0, 1)
    if grid.axis is None:
        return replace(grid, integers=integers)
    count = len(grid.integers)
    scale, zero_point = grid.scale.repeat(count), grid.zero_point.repeat(count)
    return replace(grid, axis=0, scale=scale, zero_point=zero_point, integers=integers)
