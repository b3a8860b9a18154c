"""A float ONNX graph with QuantizeLinear and DequantizeLinear around the operators that run on integers.

ONNX Runtime fuses patterns: integers in and out of a Conv, an Add, a pool; an int32 bias on the grid of the products;
one and the same grid on both sides of what only moves values. These are the rules that place them so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from compressor.errors import StageError
from compressor.files.graphs import (
    RUNTIME_DOMAIN,
    attribute,
    initializers,
    inner_graphs,
    names_captured,
    output_names,
    readers,
    rename_tensors_,
)
from compressor.files.operators import Fact, operator_of
from compressor.quantization.grids.activations import ActivationGrid
from compressor.quantization.grids.schemes import Asymmetric, choose_affine, extremes, integer_bounds, quantize
from compressor.quantization.grids.weights import WeightGrid, weight_positions
from compressor.quantization.placement.float_layers import keep_bounds_apart_, keep_float_
from compressor.quantization.placement.integer_forms import take_integer_forms_
from compressor.quantization.placement.movement import keep_foreign_pads_float, moves
from compressor.quantization.placement.names import (
    conversion,
    dequantized,
    integers_of,
    quantized,
    scale_of,
    unrounded,
    zero_point_of,
)
from compressor.quantization.placement.saturating_operators import (
    drop_saturating,
    keep_trailing_moves_float,
)
from compressor.quantization.placement.written import Rewriting

_NUMPY = {(8, False): np.uint8, (8, True): np.int8, (16, False): np.uint16, (16, True): np.int16}
# A bias beyond this share of int32 leaves no room for the sum that it is added to.
_BIAS_LIMIT = 2.0**31 * 0.5


def tensors_to_observe(model: onnx.ModelProto, nodes: set[str]) -> tuple[list[str], dict[str, str]]:
    """(activations that need a range, tensor -> the tensor whose range it takes) for static `nodes`.

    What only a ReLU or a clip reads takes the range behind it: the integers saturate there, and the node goes.
    """
    constants = initializers(model.graph)
    floats = {
        value.name
        for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    read = readers(model.graph.node)
    moved = {name for node in model.graph.node if moves(node) for name in node.output}
    outputs = output_names(model.graph)
    observe: dict[str, None] = {}
    same: dict[str, str] = {}
    for node in model.graph.node:
        if node.name not in nodes:
            continue
        for name in [*node.input, *node.output]:
            if not name or name in constants or name not in floats:
                continue
            reader = read[name][0] if len(read[name]) == 1 else None
            cuts = reader is not None and operator_of(reader.op_type).bounds is not None
            removable = reader is not None and cuts and reader.name in nodes
            if reader is not None and removable and name not in outputs | moved and name == reader.input[0]:
                same[name] = reader.output[0]
            else:
                observe[name] = None
    return list(observe), same


def with_shared(values: Mapping[str, Any], same: Mapping[str, str]) -> dict[str, Any]:
    """`values` by tensor (ranges, say), and for every key of `same` that of the tensor it takes it from."""
    complete = dict(values)
    for name, source in reversed(list(same.items())):
        if source in complete:
            complete[name] = complete[source]
    return complete


def place_static(
    model: onnx.ModelProto,
    nodes: set[str],
    activations: Mapping[str, ActivationGrid],
    weights: Mapping[str, WeightGrid],
) -> onnx.ModelProto:
    """The graph with QuantizeLinear and DequantizeLinear around `nodes`, with exactly these grids.

    `activations` are by tensor, `weights` by initializer; tensors without a grid stay float. Two exceptions: what only
    moves values has its input's grid on its output, and a channel whose bias would overflow int32 gets a larger step,
    which happens where its weights are next to nothing. Raises StageError for weights with a scale per group, for which
    there are no integer kernels with calibrated activations.
    """
    placing = _Placing(model=model, weights=weights, nodes=set(nodes), activations=activations)
    placing.run()
    placed = placing.finished()
    keep_float_(placed.graph, placing.nodes)
    keep_bounds_apart_(placed.graph, placing.nodes)
    take_integer_forms_(placed.graph)
    return placed


@dataclass(kw_only=True)
class _Placing(Rewriting):
    nodes: set[str]
    activations: Mapping[str, ActivationGrid]
    # Tensor -> the name under which its dequantized version is read; by all, or by integer operators alone.
    dequantized: dict[str, str] = field(default_factory=dict)
    for_integers: dict[str, str] = field(default_factory=dict)
    grids: dict[str, ActivationGrid] = field(default_factory=dict)
    weight_scales: dict[str, Tensor] = field(default_factory=dict)

    def run(self) -> None:
        graph = self.model.graph
        self.outputs = output_names(graph)
        self.signed = any(grid.signed for grid in self.activations.values())
        keep_trailing_moves_float(graph, self.nodes)
        self.cut = drop_saturating(graph, self.nodes, self.activations, self.constants)
        self.readers = readers(graph.node)
        keep_foreign_pads_float(graph, self.nodes, self.activations, self.constants, self.readers)
        for node in list(graph.node):
            if node.name in self.nodes:
                self._place(node)
            else:
                node.input[:] = [self.dequantized.get(name, name) for name in node.input]
                # What branches and loops read from outside is read as it is there.
                outside = {name: self.dequantized.get(name, name) for name in names_captured(node)}
                for inner in inner_graphs(node) if outside else ():
                    rename_tensors_(inner, outside)
                self.written.nodes.append(node)

    def _place(self, node: onnx.NodeProto) -> None:
        originals, row = list(node.input), operator_of(node.op_type)
        for position, name in enumerate(originals):
            if name in self.weights and position in weight_positions(node):
                node.input[position] = self._weight(node, originals)
            elif position == row.inputs.bias:
                node.input[position] = self._bias(node, originals)
            elif name in self.constants:
                if Fact.CONSTANT_VALUES in row.facts and self.constants[name].data_type == TensorProto.FLOAT:
                    node.input[position] = self._constant(name)
            elif name:
                node.input[position] = self._activation(name)
        self.written.nodes.append(node)
        floats_read = not any(reader.name in self.nodes for name in node.output for reader in self.readers[name])
        if Fact.FLOAT_OUTPUT in row.facts and floats_read and self.cut.isdisjoint(node.output):
            # They have kernels with float output: quantizing it only to convert it back would cost an operator and
            # the precision of, mostly, the logits. What a ReLU cut off before is cut off by rounding now.
            return
        for position, name in enumerate(node.output):
            grid = self.grids.get(originals[0]) if moves(node) else self.activations.get(name)
            if name and grid is not None and not (position and node.op_type == "MaxPool"):
                self._output(node, position, grid)

    def _activation(self, name: str) -> str:
        if name in self.dequantized:
            return self.dequantized[name]
        if name not in self.for_integers and name in self.activations:
            # What computes it is float, and so may be others that read it: they read the float values.
            self.grids[name] = self.activations[name]
            self.for_integers[name] = dequantized(name)
            self._pair(name, self.for_integers[name], self.grids[name], name)
        return self.for_integers.get(name, name)

    def _output(self, node: onnx.NodeProto, position: int, grid: ActivationGrid) -> None:
        name = node.output[position]
        self.grids[name] = grid
        if name in self.outputs:
            node.output[position] = unrounded(name)
            self._pair(node.output[position], name, grid, name)
            self.dequantized[name] = name
        else:
            self.dequantized[name] = dequantized(name)
            self._pair(name, self.dequantized[name], grid, name)

    def _pair(self, source: str, target: str, grid: ActivationGrid, name: str) -> None:
        zero_point = grid.zero_point.numpy().astype(_NUMPY[grid.bits, grid.signed])
        parameters = self._parameters(name, grid.scale.numpy(), zero_point)
        # 16 bits came into ONNX's own operators with opset 21; ONNX Runtime's have them at any.
        domain = RUNTIME_DOMAIN if grid.bits == 16 else ""
        for kind, inputs, output in (
            ("QuantizeLinear", [source, *parameters], quantized(name)),
            ("DequantizeLinear", [quantized(name), *parameters], target),
        ):
            self.written.add(kind, inputs, output, name=conversion(name, kind), domain=domain)

    def _weight(self, node: onnx.NodeProto, inputs: list[str]) -> str:
        name = inputs[1]
        grid = self.weights[name]
        if grid.group_size is not None:
            raise StageError(
                f"{node.name} has a scale for every {grid.group_size} weights, for which ONNX Runtime has no kernel "
                "with calibrated activations; use PerChannel(), or form=WeightOnly()"
            )
        grid = self._room_for_bias(node, inputs, grid)
        self.weight_scales[name] = grid.scale
        integers, zero_point = (part.to(torch.int8).numpy() for part in (grid.integers, grid.zero_point))
        return self._stored(name, integers, grid.scale.numpy(), zero_point, grid.axis)

    def _bias_steps(self, node: onnx.NodeProto, inputs: list[str], scale: Tensor) -> tuple[Tensor, Tensor] | None:
        """(bias, its scale s_x * s_w), or None where it has to stay float."""
        tensor = self.constants.get(inputs[2]) if len(inputs) > 2 else None
        grid = self.grids.get(inputs[0])
        if tensor is None or grid is None or grid.bits != 8 or tensor.data_type != TensorProto.FLOAT:
            return None
        if attribute(node, "beta", 1.0) != 1.0 or attribute(node, "alpha", 1.0) != 1.0:
            return None
        values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
        if scale.ndim and values.shape != scale.shape:
            return None
        return values, grid.scale * scale

    def _room_for_bias(self, node: onnx.NodeProto, inputs: list[str], grid: WeightGrid) -> WeightGrid:
        found = self._bias_steps(node, inputs, grid.scale)
        if found is None:
            return grid
        share = (found[0].double().abs() / found[1].double()) / _BIAS_LIMIT
        factor = (share if grid.scale.ndim else share.max()).clamp(min=1)
        if not bool((factor > 1).any()):
            return grid
        return replace(grid, scale=(grid.scale.double() * factor).float()).rounded(grid.values())

    def _bias(self, node: onnx.NodeProto, inputs: list[str]) -> str:
        name = inputs[2]
        found = (
            self._bias_steps(node, inputs, self.weight_scales[inputs[1]]) if inputs[1] in self.weight_scales else None
        )
        if found is None:
            return self.dequantized.get(name, name)
        values, scale = found
        low, high = integer_bounds(32, signed=True)
        integers = (values.double() / scale.double()).round().clamp(low, high).to(torch.int32)
        zero_point = np.zeros(tuple(scale.shape), dtype=np.int32)
        return self._stored(name, integers.numpy(), scale.numpy(), zero_point, 0 if scale.ndim else None)

    def _constant(self, name: str) -> str:
        if name in self.for_integers:
            return self.for_integers[name]
        values = torch.from_numpy(numpy_helper.to_array(self.constants[name]).copy())
        scale, zero_point = choose_affine(*extremes(values), Asymmetric(), signed=self.signed)
        kind = _NUMPY[8, self.signed]
        integers = quantize(values, scale, zero_point, signed=self.signed).numpy().astype(kind)
        self.for_integers[name] = self._stored(name, integers, scale.numpy(), zero_point.numpy().astype(kind), None)
        return self.for_integers[name]

    def _stored(
        self,
        name: str,
        integers: npt.NDArray[Any],
        scale: npt.NDArray[Any],
        zero_point: npt.NDArray[Any],
        axis: int | None,
    ) -> str:
        """The floats that are made of a constant's integers; `axis` is that of scales that differ."""
        inputs = [self.written.constant(integers_of(name), integers), *self._parameters(name, scale, zero_point)]
        settings = {} if axis is None else {"axis": axis}
        label = conversion(name, "DequantizeLinear")
        return self.written.add("DequantizeLinear", inputs, dequantized(name), name=label, **settings)

    def _parameters(self, name: str, scale: npt.NDArray[Any], zero_point: npt.NDArray[Any]) -> tuple[str, str]:
        return (
            self.written.constant(scale_of(name), scale.astype(np.float32)),
            self.written.constant(zero_point_of(name), zero_point),
        )
