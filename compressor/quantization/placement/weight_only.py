"""An ONNX graph whose weights are integers, or float16, and whose arithmetic is float.

Linear layers become MatMulNBits, which reads 4- or 8-bit weights in blocks as it multiplies (Frantar et al. 2022,
arXiv:2210.17323, section 4, on why that pays where weights come from memory). All others are given back by a Cast and a
Mul of constants, which ONNX Runtime folds when it loads the file: the file is smaller, and what runs is the float
model, as fast. DequantizeLinear would not be folded, and would run at every call.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import RUNTIME_DOMAIN, attribute
from compressor.files.operators import operator_of
from compressor.quantization.grids.schemes import integer_bounds
from compressor.quantization.grids.weights import WeightGrid, weight_positions
from compressor.quantization.placement.names import (
    bias_of,
    blocks_of,
    integers_of,
    scale_of,
    unpacking,
    zero_point_of,
)
from compressor.quantization.placement.written import Rewriting

# MatMulNBits wants powers of two from 16 on.
_BLOCKS = frozenset({16, 32, 64, 128, 256})
# Weights with one scale a channel repeat it for every block: long blocks repeat it seldom.
_CHANNEL_BLOCK = 128
# Multiply in int8, with activations quantized by the kernel: in float it is several times slower.
_ACCURACY_LEVEL = 4
_FLOAT16_MAX = 65504.0
# Small tensors (biases, norms) cost a node each and save nothing worth it.
_FEW_VALUES = 256


def place_weight_only(model: onnx.ModelProto, nodes: set[str], weights: Mapping[str, WeightGrid]) -> onnx.ModelProto:
    """The graph with the weights of `nodes` stored as the integers of their grids, where they have one.

    Gemm and MatMul with one zero point 0 run as MatMulNBits; what is left computes on floats that are unpacked once.
    """
    placing = _Placing(model=model, weights=weights)
    for node in placing.model.graph.node:
        if node.name not in nodes or not placing.as_blocks(node):
            placing.written.nodes.append(node)
            if node.name in nodes:
                placing.unpack(node)
    return placing.finished()


def place_float16(model: onnx.ModelProto, nodes: set[str]) -> onnx.ModelProto:
    """The graph with the float weights of `nodes` stored as float16 and computed in float32.

    A weight that float16 cannot hold (beyond 65504) stays as it is.
    """
    placing = _Placing(model=model, weights={})
    for node in placing.model.graph.node:
        placing.written.nodes.append(node)
        for position in weight_positions(node) if node.name in nodes else ():
            placing.halve(node, position)
    return placing.finished()


def fits_float16(tensor: TensorProto) -> bool:
    """Whether `place_float16` stores this weight as float16: few values stay, and what float16 cannot hold."""
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    return values.size >= _FEW_VALUES and float(np.abs(values).max()) <= _FLOAT16_MAX


def block_product(
    grid: WeightGrid, rows: slice, source: str, target: str, bias: npt.NDArray[np.float32] | None
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """(nodes, initializers) of one MatMulNBits from `source` to `target` with the `rows` of a matrix (outputs, inputs).

    The grid has one scale, or one per row. Zero points other than 0 are stored, at 8 bits.
    """
    integers, scale = grid.integers[rows], grid.spread(grid.scale).expand(len(grid.integers), 1)[rows]
    zero_point = grid.spread(grid.zero_point).expand(len(grid.integers), 1)[rows]
    channels, inputs = integers.shape
    block = _block_of_rows(inputs)
    blocks = -(-inputs // block)
    centred = not bool(zero_point.any())
    bits = 4 if grid.bits <= 4 and centred else 8
    blocks_name, scale_name, zero_name, bias_name = (
        part(target) for part in (blocks_of, scale_of, zero_point_of, bias_of)
    )
    stored = {
        blocks_name: _blocked(integers.numpy(), blocks, block, bits),
        scale_name: scale.expand(channels, blocks).reshape(-1).contiguous().numpy(),
    }
    if not centred:
        stored[zero_name] = (zero_point.expand(channels, blocks) + 128).to(torch.uint8).contiguous().numpy()
    if bias is not None:
        stored[bias_name] = bias
    names = [name if name in stored else "" for name in (blocks_name, scale_name, zero_name, "", bias_name)]
    while not names[-1]:
        names.pop()
    node = _product([source, *names], target, target, shape=(channels, inputs), bits=bits, block=block)
    return [node], [numpy_helper.from_array(values, name) for name, values in stored.items()]


def _product(
    inputs: list[str], output: str, name: str, *, shape: tuple[int, int], bits: int, block: int
) -> onnx.NodeProto:
    """The node that multiplies by a matrix of `shape` (outputs, inputs) in blocks."""
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [output],
        name,
        domain=RUNTIME_DOMAIN,
        K=shape[1],
        N=shape[0],
        bits=bits,
        block_size=block,
        accuracy_level=_ACCURACY_LEVEL,
    )


def _block_of_rows(inputs: int) -> int:
    """The block for rows with one scale: not longer than a short row needs, since blocks are filled up."""
    return min(_CHANNEL_BLOCK, max(min(_BLOCKS), 1 << (inputs - 1).bit_length()))


@dataclass(kw_only=True)
class _Placing(Rewriting):
    def as_blocks(self, node: onnx.NodeProto) -> bool:
        """Whether `node` could be written as MatMulNBits, and was."""
        grid = self.weights.get(node.input[1]) if operator_of(node.op_type).multiplies_matrices else None
        scaled = any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta"))
        odd = scaled or attribute(node, "transA", 0)
        if grid is None or grid.integers.ndim != 2 or odd or bool(grid.zero_point.any()):
            return False
        name, rows = node.input[1], grid.integers
        if grid.axis == 1 or (grid.axis is None and not attribute(node, "transB", 0)):
            rows = rows.T
        channels, inputs = rows.shape
        block = _block_of_rows(inputs) if grid.group_size is None else grid.group_size
        if block not in _BLOCKS:
            return False
        blocks = -(-inputs // block)
        bits = 4 if grid.bits <= 4 else 8
        scale = grid.scale if grid.group_size else grid.scale.reshape(-1, 1).expand(channels, blocks)
        packed = _blocked(rows.numpy(), blocks, block, bits)
        inputs_of = [node.input[0], self.written.constant(blocks_of(name), packed)]
        inputs_of.append(self.written.constant(scale_of(name), scale.reshape(-1).contiguous().numpy()))
        product = node.output[0] if len(node.input) < 3 else f"{node.output[0]}_product"
        self.written.nodes.append(
            _product(inputs_of, product, node.name, shape=(channels, inputs), bits=bits, block=block)
        )
        if len(node.input) > 2:
            self.written.add("Add", [product, node.input[2]], node.output[0], name=f"{node.name}/bias")
        return True

    def unpack(self, node: onnx.NodeProto) -> None:
        """Gives `node` float weights that are computed from stored integers."""
        # Embeddings too: GatherBlockQuantized reads a file of the same size and gives the same floats, but 64 lookups
        # at 4 bits take it 2.6 times as long for 8000 x 128 (18 against 7 microseconds) and 1.8 to 2.3 times for
        # 30522 x 768. What it would spare is the unpacked table: 90 MiB and a second of loading for the larger one.
        for position in weight_positions(node):
            name = node.input[position] if position < len(node.input) else ""
            grid = self.weights.get(name)
            if grid is None:
                continue
            stored, scale, zero_point = _foldable(grid)
            integers = self.written.constant(integers_of(name), stored)
            part = self._step(name, "wide", "Cast", [integers], to=TensorProto.FLOAT)
            if bool(grid.zero_point.any()):
                middle = self.written.constant(zero_point_of(name), zero_point)
                part = self._step(name, "centred", "Sub", [part, middle])
            part = self._step(name, "scaled", "Mul", [part, self.written.constant(scale_of(name), scale)])
            node.input[position] = self._shaped(part, name, grid)

    def _shaped(self, part: str, name: str, grid: WeightGrid) -> str:
        if grid.group_size is None or grid.axis is None:
            return part
        shape, axis = list(grid.integers.shape), grid.axis
        moved = [shape[axis], *(size for index, size in enumerate(shape) if index != axis)]
        rows = self.written.constant(f"{name}_rows", np.array([shape[axis], -1]))
        part = self._step(name, "flat", "Reshape", [part, rows])
        inputs = grid.integers.numel() // shape[axis]
        if inputs % grid.group_size:
            ends = [
                self.written.constant(f"{name}_{key}", np.array([value]))
                for key, value in (("from", 0), ("to", inputs), ("of", 1))
            ]
            part = self._step(name, "exact", "Slice", [part, *ends])
        sizes = self.written.constant(f"{name}_shape", np.array(moved))
        part = self._step(name, "moved", "Reshape", [part, sizes])
        back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        return self._step(name, "float", "Transpose", [part], perm=back) if axis else part

    def _step(self, name: str, step: str, kind: str, inputs: list[str], **attributes: Any) -> str:
        """One step of unpacking the weight `name`, ahead of all that reads it."""
        return self.ahead.add(kind, inputs, unpacking(name, step), **attributes)

    def halve(self, node: onnx.NodeProto, position: int) -> None:
        """Gives `node` a float weight that is cast from float16."""
        tensor = self.constants.get(node.input[position])
        if tensor is None or not fits_float16(tensor):
            return
        half = self.written.constant(f"{tensor.name}_half", numpy_helper.to_array(tensor).astype(np.float16))
        node.input[position] = self._step(tensor.name, "float", "Cast", [half], to=TensorProto.FLOAT)


def _foldable(grid: WeightGrid) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(integers, scale, zero point) that broadcast against each other; groups as (channels, groups, size)."""
    integers, scale, zero_point = grid.integers.to(torch.int8), grid.scale, grid.zero_point.float()
    if grid.group_size is None or grid.axis is None:
        scale, zero_point = grid.spread(scale), grid.spread(zero_point)
    else:
        rows = integers.movedim(grid.axis, 0).flatten(1)
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % grid.group_size))
        integers = rows.reshape(len(rows), -1, grid.group_size)
        scale, zero_point = scale.unsqueeze(-1), zero_point.unsqueeze(-1)
    return integers.numpy(), scale.numpy(), zero_point.numpy()


def _blocked(rows: npt.NDArray[np.int32], blocks: int, block: int, bits: int) -> npt.NDArray[np.uint8]:
    """`rows` (channels, inputs) as MatMulNBits stores them: (channels, blocks, bytes), offset by half of the range."""
    half = -integer_bounds(bits, signed=True)[0]
    padded = np.full((len(rows), blocks * block), half, dtype=np.uint8)
    padded[:, : rows.shape[1]] = rows + half
    pieces = padded.reshape(len(rows), blocks, block)
    return pieces if bits == 8 else (pieces[..., ::2] | (pieces[..., 1::2] << 4)).astype(np.uint8)
