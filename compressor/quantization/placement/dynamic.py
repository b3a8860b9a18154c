"""An ONNX graph whose linear and recurrent layers find the ranges of their activations at every call.

A linear layer is written as DynamicQuantizeLinear, MatMulInteger and the multiplication with both scales, which ONNX
Runtime fuses into one kernel; layers that read one tensor share its quantization. LSTMs and embeddings have operators
of their own in ONNX Runtime; GRU and RNN layers are written out as cells (`recurrent_cells`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from compressor.errors import StageError
from compressor.files.graphs import RUNTIME_DOMAIN, attribute, attributes, inner_graphs, replace_nodes_
from compressor.files.operators import IntegerForm, operator_of
from compressor.quantization.grids.weights import WeightGrid
from compressor.quantization.placement.names import bias_of, integers_of, scale_of, zero_point_of
from compressor.quantization.placement.recurrent_cells import layer_of, write_layer
from compressor.quantization.placement.written import Rewriting, Written


def place_dynamic(model: onnx.ModelProto, nodes: set[str], weights: Mapping[str, WeightGrid]) -> onnx.ModelProto:
    """The graph with `nodes` (LSTM, GRU, RNN, MatMul, Gemm, embedding Gather) on the integers of their grids.

    Raises StageError for grids that no kernel takes: a scale per group in a linear or recurrent layer.
    """
    placing = _Placing(model=model, weights=weights, nodes=nodes)
    placing.run(placing.model.graph.node)
    return placing.finished()


@dataclass(kw_only=True)
class _Placing(Rewriting):
    nodes: set[str]
    # What names begin with that are made inside of a branch or loop, where those outside are seen.
    inside: str = ""
    quantized: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    tables: dict[str, torch.Tensor] = field(default_factory=dict)

    def run(self, nodes: Iterable[onnx.NodeProto]) -> None:
        """Writes `nodes`, in order, those of the graphs inside of them too."""
        for node in nodes:
            row = operator_of(node.op_type)
            if node.name not in self.nodes:
                for inner in inner_graphs(node):
                    self._run_inside(node, inner)
                self.written.nodes.append(node)
            elif row.multiplies_matrices:
                self.linear(node)
            elif node.op_type == "LSTM":
                self.lstm(node)
            elif row.integer_form is IntegerForm.CELLS:
                self.cells(node)
            elif node.op_type == "Gather":
                self.embedding(node)
            else:
                self.written.nodes.append(node)

    def _run_inside(self, node: onnx.NodeProto, inner: onnx.GraphProto) -> None:
        name = f"{self.inside}{node.name}.{inner.name}"
        placing = replace(self, model=onnx.ModelProto(), inside=f"{name}/", written=Written(), quantized={}, tables={})
        placing.constants = self.constants
        placing.run(inner.node)
        replace_nodes_(inner, placing.written.nodes)
        self.written.initializers += placing.written.initializers

    def linear(self, node: onnx.NodeProto) -> None:
        settings = attributes(node)
        grid = self.weights.get(node.input[1])
        # The kernel takes a stack of matrices as well, with one scale for all of them.
        odd = grid is not None and grid.integers.ndim != 2 and grid.axis is not None
        if grid is None or odd or settings.get("transA", 0):
            self.written.nodes.append(node)
            return
        self._check(node, grid)
        name, source, target = node.input[1], node.input[0], node.output[0]
        stored = self._matrix(name, grid.integers.T if settings.get("transB", 0) else grid.integers)
        zero_point = self.written.constant(zero_point_of(name), grid.zero_point.to(torch.int8).numpy())
        scale = self.written.constant(scale_of(name), (grid.scale * settings.get("alpha", 1.0)).float().numpy())
        activation, its_scale, its_zero = self._activation(source)
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias and settings.get("beta", 1.0) != 1.0:
            factor = self.written.constant(f"{node.name}_beta", np.array(settings["beta"], dtype=np.float32))
            bias = self.written.add("Mul", [bias, factor], f"{node.name}_scaled_bias")
        product = self.written.add("MatMulInteger", [activation, stored, its_zero, zero_point], f"{node.name}_integer")
        product = self.written.add("Cast", [product], f"{node.name}_cast", to=TensorProto.FLOAT)
        both = self.written.add("Mul", [its_scale, scale], f"{node.name}_scales")
        if bias:
            product = self.written.add("Mul", [product, both], f"{node.name}_product")
            self.written.add("Add", [product, bias], target, name=node.name)
        else:
            self.written.add("Mul", [product, both], target, name=node.name)

    def _matrix(self, name: str, integers: torch.Tensor) -> str:
        """The stored integers (inputs, outputs): a table of words turned around where they are tied to one."""
        for table, rows in self.tables.items():
            if rows.ndim == integers.ndim == 2 and torch.equal(rows.T, integers):
                # ONNX Runtime turns constants around when it loads the file: it costs nothing at run time.
                return self.written.add("Transpose", [table], integers_of(name), perm=[1, 0])
        return self.written.constant(integers_of(name), integers.to(torch.int8).contiguous().numpy())

    def _activation(self, name: str) -> tuple[str, str, str]:
        if name not in self.quantized:
            own = f"{self.inside}{name}"
            parts = (f"{own}_dynamic", f"{own}_dynamic_scale", f"{own}_dynamic_zero_point")
            self.written.add("DynamicQuantizeLinear", [name], *parts, name=f"{own}_quantize")
            self.quantized[name] = parts
        return self.quantized[name]

    def lstm(self, node: onnx.NodeProto) -> None:
        scales: list[str] = []
        inputs = [*node.input, *([""] * (8 - len(node.input)))]
        for position in (1, 2):
            name = node.input[position]
            grid = self.weights.get(name)
            if grid is None:
                self.written.nodes.append(node)
                return
            self._check(node, grid)
            directions, gates, _ = grid.integers.shape
            # The kernel multiplies from the right: (directions, inputs, gates).
            integers = grid.integers.to(torch.int8).transpose(1, 2).contiguous()
            inputs[position] = self.written.constant(integers_of(name), integers.numpy())
            shape = (directions, gates) if grid.scale.ndim else (directions,)
            for part, value in ((scale_of, grid.scale), (zero_point_of, grid.zero_point.to(torch.int8))):
                scales.append(self.written.constant(part(name), value.expand(shape).contiguous().numpy()))
        layer = helper.make_node(
            "DynamicQuantizeLSTM", [*inputs, *scales], node.output, node.name, domain=RUNTIME_DOMAIN
        )
        layer.attribute.extend(entry for entry in node.attribute if entry.name != "layout")
        self.written.nodes.append(layer)

    def cells(self, node: onnx.NodeProto) -> None:
        inputs, states = (self.weights.get(name) for name in node.input[1:3])
        if inputs is None or states is None:
            self.written.nodes.append(node)
            return
        self._check(node, inputs)
        self._check(node, states)
        layer = layer_of(node, self.constants)
        count = len(layer.backward)
        # One product for both directions: they read the same, and two with one scale would not be fused.
        name, product = node.input[1], f"{node.name}_projected"
        bias = self.written.constant(bias_of(name), np.concatenate([layer.biases(index)[0] for index in range(count)]))
        self.weights = {**self.weights, name: _of_both(inputs)}
        self.linear(helper.make_node("Gemm", [node.input[0], name, bias], [product], product, transB=1))
        projected = [product] if count == 1 else [f"{product}_{index}" for index in range(count)]
        if count > 1:
            self.written.add("Split", [product], *projected, name=f"{product}_0", axis=2, num_outputs=count)
        written = write_layer(layer, projected, [_of_direction(states, index) for index in range(count)])
        self.written.extend(written.nodes, written.initializers)

    def embedding(self, node: onnx.NodeProto) -> None:
        name, indices, target = node.input[0], node.input[1], node.output[0]
        grid = self.weights.get(name)
        if grid is None or attribute(node, "axis", 0) != 0 or grid.group_size is not None:
            self.written.nodes.append(node)
            return
        rows = self.written.constant(integers_of(name), grid.integers.to(torch.int8).numpy())
        self.tables[rows] = grid.integers
        found = self.written.add("Gather", [rows, indices], f"{node.name}_rows")
        if grid.scale.ndim == 0:
            scale = self.written.constant(scale_of(name), grid.scale.numpy())
            zero_point = self.written.constant(zero_point_of(name), grid.zero_point.to(torch.int8).numpy())
            inputs = [found, scale, zero_point]
            self.written.add("DequantizeLinear", inputs, target, name=node.name)
            return
        scale = self.written.constant(scale_of(name), grid.spread(grid.scale).numpy())
        factors = self.written.add("Gather", [scale, indices], f"{node.name}_scales")
        wide = self.written.add("Cast", [found], f"{node.name}_wide", to=TensorProto.FLOAT)
        self.written.add("Mul", [wide, factors], target, name=node.name)

    def _check(self, node: onnx.NodeProto, grid: WeightGrid) -> None:
        if grid.group_size is not None:
            raise StageError(
                f"{node.name} has a scale for every {grid.group_size} weights, for which ONNX Runtime has no kernel "
                "with dynamic activations; use PerChannel(), or form=WeightOnly()"
            )


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
