"""Grids of weights whose products no x86 CPU can saturate, whatever the activations are.

The kernels of CPUs without VNNI add two products of neighbours in 16 bits (see `saturation`). 255 * 128 still fits: a
pair is safe where its weights of one sign add up to at most 128. ONNX Runtime's own answer, 7 bits for every weight,
halves the resolution of all; here each output channel's scale grows only by what its largest pair needs, so that most
channels keep 8 bits and none can saturate.

Which weights are neighbours depends on the number of input channels where it is odd: `channel_alignment` may add a
channel of zeros. Such convolutions are made safe with it and without.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import ceil

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from compressor.files.graphs import all_nodes, initializers
from compressor.files.operators import IntegerForm, operator_of
from compressor.quantization.grids.weights import WeightGrid, weight_axis, weight_positions

# 255 * 128 = 32640 fits into 16 bits, 255 * 129 does not.
_LARGEST_PAIR = 128


def safe_grids(
    graph: onnx.ModelProto, grids: Mapping[str, WeightGrid], nodes: Collection[str]
) -> dict[str, WeightGrid]:
    """The `grids` of the float `graph` with scales grown where the pairs of `nodes` could saturate, rounded to nearest.

    `nodes` are those that multiply integers. Depthwise convolutions do not saturate and stay as they are.
    """
    constants = initializers(graph.graph)
    safe = dict(grids)
    for name, node in _multiplied(graph, grids, nodes).items():
        weight = torch.from_numpy(numpy_helper.to_array(constants[name]).copy())
        safe[name] = _lowered(_grown(grids[name], weight, node), node)
    return safe


def repaired_grids(
    graph: onnx.ModelProto, grids: Mapping[str, WeightGrid], nodes: Collection[str]
) -> dict[str, WeightGrid]:
    """`grids` whose scales `safe_grids` chose and whose integers were rounded anew, with every pair safe again.

    Learned rounding moves integers by a step, which can lift a pair over the bound: its weights go down again, by as
    little as makes the pair safe.
    """
    repaired = dict(grids)
    for name, node in _multiplied(graph, grids, nodes).items():
        repaired[name] = _lowered(grids[name], node)
    return repaired


def _multiplied(
    graph: onnx.ModelProto, grids: Mapping[str, WeightGrid], nodes: Collection[str]
) -> dict[str, onnx.NodeProto]:
    """{initializer: node} of the weights whose products may saturate."""
    found = {}
    for node in all_nodes(graph.graph):
        row = operator_of(node.op_type)
        if node.name not in nodes or not row.heavy or row.integer_form is IntegerForm.CONVOLUTION:
            continue
        for position in weight_positions(node):
            grid = grids.get(node.input[position])
            if grid is not None and grid.group_size is None and not _is_depthwise(node, grid):
                found[node.input[position]] = node
    return found


def _is_depthwise(node: onnx.NodeProto, grid: WeightGrid) -> bool:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return node.op_type == "Conv" and grid.integers.shape[1] == 1 and len(grid.integers) == groups


def _grown(grid: WeightGrid, weight: Tensor, node: onnx.NodeProto) -> WeightGrid:
    layouts = [_rows(_with_channels(grid.integers, spare), node) for spare in _spares(grid.integers, node)]
    largest = torch.from_numpy(np.max([_pair_sums(rows).max(axis=1, initial=0) for rows in layouts], axis=0))
    # Several matrices, those of an LSTM's directions for instance, share the scales of their channels.
    shared = largest.max() if grid.axis is None else largest.reshape(-1, grid.integers.shape[grid.axis]).amax(dim=0)
    growth = (shared / _LARGEST_PAIR).clamp(min=1.0).float()
    zero_point = (grid.zero_point / growth).round().to(torch.int32)
    return replace(grid, scale=grid.scale * growth, zero_point=zero_point).rounded(weight)


def _lowered(grid: WeightGrid, node: onnx.NodeProto) -> WeightGrid:
    """The grid with the weights of unsafe pairs nearer to zero: both share what is too much."""
    integers = grid.integers
    for spare in _spares(grid.integers, node):
        # Weights only come nearer to zero, so that a layout that was made safe stays so.
        lowered = _lowered_rows(_with_channels(integers, spare), node)
        integers = lowered[:, : integers.shape[1]] if spare else lowered
    return grid if torch.equal(integers, grid.integers) else grid.with_integers(integers)


def _lowered_rows(integers: Tensor, node: onnx.NodeProto) -> Tensor:
    rows = _rows(integers, node)
    unsafe = np.nonzero(_pair_sums(rows) > _LARGEST_PAIR)
    if not len(unsafe[0]):
        return integers
    for row, index in zip(*unsafe, strict=True):
        pair = rows[row, 2 * index : 2 * index + 2]
        excess = int(np.abs(pair.sum())) - _LARGEST_PAIR
        larger = int(np.abs(pair[1]) > np.abs(pair[0]))
        sign = np.sign(pair[larger])
        pair[larger] -= sign * ceil(excess / 2)
        pair[1 - larger] -= sign * (excess // 2)
    return _from_rows(rows, integers.shape, node)


def _spares(integers: Tensor, node: onnx.NodeProto) -> tuple[int, ...]:
    """How many channels of zeros may stand behind those of the weight: none, or one where their number is odd."""
    return (0, 1) if node.op_type == "Conv" and integers.shape[1] % 2 else (0,)


def _with_channels(integers: Tensor, spare: int) -> Tensor:
    return torch.cat([integers, torch.zeros_like(integers[:, :spare])], dim=1) if spare else integers


def _pair_sums(rows: NDArray[np.int32]) -> NDArray[np.int32]:
    """The larger of the two sums of one sign of every pair of neighbours: (rows, pairs)."""
    padded = np.pad(rows, [(0, 0), (0, rows.shape[1] % 2)]).reshape(len(rows), -1, 2)
    sums: NDArray[np.int32] = np.maximum(padded.clip(min=0).sum(2), -padded.clip(max=0).sum(2))
    return sums


def _rows(integers: Tensor, node: onnx.NodeProto) -> NDArray[np.int32]:
    """A copy of the weight as (rows, depth), the depth in the order in which the kernels add."""
    if node.op_type == "Conv":
        integers = integers.movedim(1, -1).flatten(1)
    elif weight_axis(node, integers.ndim) == integers.ndim - 1:
        integers = integers.transpose(-1, -2)
    return integers.reshape(-1, integers.shape[-1]).numpy().copy()


def _from_rows(rows: NDArray[np.int32], shape: torch.Size, node: onnx.NodeProto) -> Tensor:
    values = torch.from_numpy(rows)
    if node.op_type == "Conv":
        return values.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
    if weight_axis(node, len(shape)) == len(shape) - 1:
        return values.reshape(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    return values.reshape(shape)
