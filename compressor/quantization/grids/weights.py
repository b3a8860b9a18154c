"""The integers, scales and zero points of a float graph's weights, before a graph holds them.

Rounding methods choose other integers on the same grid; `place_static` writes exactly the grid it is given. The range
of few-bit weights is the one of least squared rounding error (Nagel et al. 2021, arXiv:2106.08295, section 3.1), since
a single outlier would otherwise widen every step.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor

from compressor.files.graphs import all_nodes, attribute, initializers
from compressor.files.operators import operator_of
from compressor.quantization.grids.schemes import PerBlock, PerChannel, Scheme, choose_affine, extremes, integer_bounds

WeightRange = Literal["auto", "minmax", "mse"]

# Shrinking a range below a fifth never paid in a search over ResNet and transformer weights of 2 to 4 bits.
_SHRINK_FACTORS = torch.linspace(0.2, 1.0, 81)
# With more bits the rounding error is small against what clipping would cost, and min-max keeps every weight.
FEW_BITS = 5
# Dimensions of a matrix: what has more is a stack of them, a kernel or two directions.
_MATRIX = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightGrid:
    """The integers of one weight and what they stand for: scale * (integer - zero_point).

    `bits` is 2 to 8; `integers` (int32) has the weight's shape and lies in `integer_bounds(bits, signed=True)`. `scale`
    (float32) and `zero_point` (int32) are scalars per tensor, (channels,) along `axis` per channel, and
    (channels, groups) per group: the weight with `axis` moved to the front and the rest flattened, cut into pieces of
    `group_size`, of which the last may be shorter.
    """

    bits: int
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    group_size: int | None
    integers: Tensor

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits of weights are 2 to 8, got {self.bits}")
        if self.scale.shape != self.zero_point.shape:
            raise ValueError(
                f"scale and zero_point need one shape, got {tuple(self.scale.shape)} and {tuple(self.zero_point.shape)}"
            )
        low, high = integer_bounds(self.bits, signed=True)
        if self.integers.numel() and not (low <= int(self.integers.min()) and int(self.integers.max()) <= high):
            raise ValueError(f"integers of {self.bits} bits lie in [{low}, {high}], got others; clamp them")

    def values(self) -> Tensor:
        """What the integers stand for, float32 of the weight's shape, as DequantizeLinear computes it."""
        return (self.integers - self.spread(self.zero_point)).float() * self.spread(self.scale)

    def with_integers(self, integers: Tensor) -> "WeightGrid":
        """The same grid with other integers of the same shape."""
        if integers.shape != self.integers.shape:
            raise ValueError(
                f"the weight has shape {tuple(self.integers.shape)}, got integers of {tuple(integers.shape)}"
            )
        return replace(self, integers=integers.to(torch.int32))

    def continuous(self, weight: Tensor) -> Tensor:
        """`weight` in steps of the grid, weight / scale + zero_point, neither rounded nor clamped; the same shape."""
        return weight / self.spread(self.scale) + self.spread(self.zero_point)

    def rounded(self, weight: Tensor) -> "WeightGrid":
        """The same grid with the integers nearest to `weight`, halves to even."""
        low, high = integer_bounds(self.bits, signed=True)
        steps = (weight / self.spread(self.scale)).round() + self.spread(self.zero_point)
        return self.with_integers(steps.clamp(low, high))

    def spread(self, parameter: Tensor) -> Tensor:
        """`scale` or `zero_point` (or any tensor of their shape) so that it broadcasts against the weight."""
        shape = self.integers.shape
        if self.axis is None:
            return parameter
        if self.group_size is None:
            return parameter.reshape([-1 if index == self.axis else 1 for index in range(len(shape))])
        moved = [shape[self.axis], *(size for index, size in enumerate(shape) if index != self.axis)]
        inputs = self.integers.numel() // max(1, shape[self.axis])
        full = parameter.repeat_interleave(self.group_size, dim=1)[:, :inputs]
        return full.reshape(moved).movedim(0, self.axis)


def nearest_grids(
    graph: onnx.ModelProto,
    scheme_of: Mapping[str, Scheme],
    *,
    weight_range: WeightRange = "auto",
    multiplied: bool = True,
) -> dict[str, WeightGrid]:
    """{initializer: grid} of the constant weights of the nodes that `scheme_of` names, rounded to nearest.

    Weights are input 1 of Conv, ConvTranspose, Gemm and MatMul, inputs 1 and 2 of recurrent nodes, the table of a
    Gather. `weight_range` is "minmax", "mse" (the scale of least squared rounding error, per channel or group), or
    "auto": "mse" up to 5 bits, "minmax" above. Vectors have one scale whatever the scheme says, and so has a stack of
    matrices whose integers are `multiplied`: ONNX Runtime's kernels know a scale for every channel of one matrix alone.
    """
    constants = initializers(graph.graph)
    grids = {}
    for node in all_nodes(graph.graph):
        scheme = scheme_of.get(node.name)
        if scheme is None:
            continue
        for position in weight_positions(node):
            tensor = constants.get(node.input[position]) if position < len(node.input) else None
            if tensor is None or tensor.data_type != TensorProto.FLOAT:
                continue
            values = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            stacked = values.ndim > _MATRIX and operator_of(node.op_type).multiplies_matrices
            axis = None if stacked and multiplied else weight_axis(node, values.ndim)
            grids[tensor.name] = nearest_grid(values, scheme, axis=axis, weight_range=weight_range)
    return grids


def nearest_grid(weight: Tensor, scheme: Scheme, *, axis: int | None, weight_range: WeightRange = "auto") -> WeightGrid:
    """The grid of one weight whose output channels lie along `axis`, rounded to nearest; one scale for all at None."""
    per_tensor = axis is None or not isinstance(scheme.granularity, PerChannel | PerBlock)
    group_size = scheme.granularity.size if isinstance(scheme.granularity, PerBlock) and not per_tensor else None
    rows = weight.reshape(1, -1) if axis is None or per_tensor else weight.movedim(axis, 0).flatten(1)
    # Zeros that fill up the last group change no range, because every range contains zero.
    pieces = _groups(rows, group_size)
    low, high = extremes(pieces.flatten(0, 1), 0)
    if weight_range == "mse" or (weight_range == "auto" and scheme.bits <= FEW_BITS):
        factors = _best_shrink(pieces.flatten(0, 1), low, high, scheme)
        low, high = low * factors, high * factors
    scale, zero_point = choose_affine(low, high, scheme, signed=True)
    shape = () if per_tensor else pieces.shape[:2] if group_size else pieces.shape[:1]
    empty = WeightGrid(
        bits=scheme.bits,
        scale=scale.reshape(shape),
        zero_point=zero_point.reshape(shape),
        axis=None if per_tensor else axis,
        group_size=group_size,
        integers=torch.zeros(weight.shape, dtype=torch.int32),
    )
    return empty.rounded(weight)


def _groups(rows: Tensor, size: int | None) -> Tensor:
    """`rows` (channels, inputs) as (channels, groups, size); one group without a size."""
    if size is None:
        return rows.unsqueeze(1)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % size))
    return padded.reshape(len(rows), -1, size)


def _best_shrink(rows: Tensor, low: Tensor, high: Tensor, scheme: Scheme) -> Tensor:
    """For every row the factor on its range that leaves the least squared rounding error; the largest of equals."""
    qmin, qmax = integer_bounds(scheme.bits, signed=True)
    best = torch.full((len(rows),), float("inf"))
    factors = torch.ones(len(rows))
    for factor in _SHRINK_FACTORS.flip(0):
        scale, zero_point = choose_affine(low * factor, high * factor, scheme, signed=True)
        steps = ((rows / scale[:, None]).round() + zero_point[:, None]).clamp(qmin, qmax)
        error = ((steps - zero_point[:, None]) * scale[:, None] - rows).square().sum(dim=1)
        better = error < best
        best, factors = torch.where(better, error, best), torch.where(better, factor, factors)
    return factors


def weight_positions(node: onnx.NodeProto) -> tuple[int, ...]:
    """The inputs of `node` that may hold weights."""
    return operator_of(node.op_type).inputs.weights


def weight_axis(node: onnx.NodeProto, rank: int) -> int | None:
    """The axis of the output channels in the weight of a node: rows of an embedding, gates of a recurrent layer.

    None for a vector: a product makes one number of it, and every row of such a table is one.
    """
    if rank < _MATRIX:
        return None
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return 0
    axis = operator_of(node.op_type).inputs.channel_axis
    return axis if axis >= 0 else rank + axis
