"""Conv, Gemm and MatMul as the product of rows and columns: one row of weights an output, one column an input patch."""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.files.graphs import attribute

# Elements of the patches that are made at once: 64 MiB.
_MAX_ELEMENTS = 1 << 24


def to_rows(node: onnx.NodeProto, weight: Tensor) -> Tensor:
    """`weight` as (groups, outputs, inputs): of a group of a convolution, of a matrix of a stack, or the only group."""
    if node.op_type == "Conv":
        groups = int(attribute(node, "group", 1))
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    rows = weight if _rows_first(node) else weight.mT
    return rows.reshape(-1, *rows.shape[-2:])


def has_rows(node: onnx.NodeProto, shape: Sequence[int]) -> bool:
    """Whether a weight of this shape is a product of rows and columns: no vector, and no stack of matrices along a 1.

    A convolution always is, of one input channel, as every depthwise one, too.
    """
    if node.op_type == "Conv":
        return True
    return len(shape) > 1 and (len(shape) == 2 or all(size > 1 for size in shape[:-2]))


def to_weight(node: onnx.NodeProto, rows: Tensor, shape: Sequence[int]) -> Tensor:
    """What `to_rows` made rows of, in its own `shape`."""
    if node.op_type == "Conv":
        return rows.reshape(*shape)
    return (rows if _rows_first(node) else rows.mT).reshape(*shape)


def input_columns(node: onnx.NodeProto, values: Tensor, shape: Sequence[int]) -> Iterator[Tensor]:
    """The inputs of the node as (groups, inputs, columns), some samples at a time; `shape` is that of its weight."""
    if node.op_type != "Conv":
        if node.op_type == "Gemm" and attribute(node, "transA", 0):
            values = values.mT
        stack = tuple(shape[:-2])
        # Every matrix of a stack reads its own part of the inputs, or all read the same.
        values = values if values.ndim > 1 else values.unsqueeze(0)
        values = values.expand(*np.broadcast_shapes(values.shape[:-2], stack), *values.shape[-2:])
        matrices = values.reshape(-1, torch.Size(stack).numel(), *values.shape[-2:]).movedim(1, 0)
        yield matrices.reshape(len(matrices), -1, values.shape[-1]).mT
        return
    kernel = list(shape[2:])
    rank = len(kernel)
    strides = attribute(node, "strides", [1] * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    spans = [(width - 1) * dilation + 1 for width, dilation in zip(kernel, dilations, strict=True)]
    values = F.pad(values, _padding(node, values.shape[2:], spans, strides))
    # A patch is copied for every position that it is read at.
    step = max(1, _MAX_ELEMENTS * min(strides) ** rank // max(1, values[0].numel() * torch.Size(kernel).numel()))
    groups = int(attribute(node, "group", 1))
    for start in range(0, len(values), step):
        patches = values[start : start + step]
        for axis, (span, stride) in enumerate(zip(spans, strides, strict=True)):
            patches = patches.unfold(2 + axis, span, stride)
        for axis, dilation in enumerate(dilations):
            patches = patches[(slice(None),) * (2 + rank + axis) + (slice(None, None, dilation),)]
        # (samples, channels, positions..., kernel...) -> (channels, kernel..., samples, positions...)
        moved = patches.permute(1, *range(2 + rank, 2 + 2 * rank), 0, *range(2, 2 + rank))
        yield moved.reshape(groups, -1, moved.shape[rank + 1 :].numel())


def paired_columns(
    node: onnx.NodeProto, exact: Tensor, quantized: Tensor, shape: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """`input_columns` of the float and of the quantized input side by side."""
    return zip(input_columns(node, exact, shape), input_columns(node, quantized, shape), strict=True)


def _padding(node: onnx.NodeProto, spatial: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The padding as torch's `pad` takes it: (before, after) of the last dimension first."""
    rank, mode = len(spatial), attribute(node, "auto_pad", b"NOTSET").decode()
    pads = [0] * 2 * rank if mode == "VALID" else list(attribute(node, "pads", [0] * 2 * rank))
    pairs = list(zip(pads[:rank], pads[rank:], strict=True))
    if mode.startswith("SAME"):
        pairs = []
        for size, span, stride in zip(spatial, spans, strides, strict=True):
            total = max(0, (-(-size // stride) - 1) * stride + span - size)
            pairs.append((total // 2, total - total // 2) if mode == "SAME_UPPER" else (total - total // 2, total // 2))
    return [side for pair in reversed(pairs) for side in pair]


def _rows_first(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
