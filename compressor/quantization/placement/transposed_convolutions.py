"""Transposed convolutions written as convolutions, for which ONNX Runtime has integer kernels.

A transposed convolution of stride s computes s x s interleaved maps. Each is an ordinary convolution of the input with
every s-th weight (Shi et al. 2016, arXiv:1609.07009): one convolution gives them all as channels, and DepthToSpace
interleaves them. The outputs are the same, the places of the sums too; windows that the maps do not share hold zeros.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compressor.files.graphs import (
    attributes,
    copy_of,
    drop_unused_initializers_,
    initializers,
    output_names,
    readers,
    replace_nodes_,
)
from compressor.files.operators import operator_of

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Phases:
    """The convolution that stands for a transposed one; `surplus` is what it gives too much at the ends of the axes."""

    weight: Array
    kernel: list[int]
    pads: list[int]
    stride: int
    surplus: list[int]


def as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its transposed convolutions as Conv and DepthToSpace, where it pays; names and outputs stay.

    Only those over two axes, of one group, without dilation, with one stride for both axes. Without overlap it is a
    product of matrices already, and DepthToSpace costs what the integers gain, unless a Concat behind it waits for
    integers, as in a U-Net.
    """
    rewritten = copy_of(model)
    graph = rewritten.graph
    constants = initializers(graph)
    read = readers(graph.node)
    outputs = output_names(graph)
    written: list[onnx.NodeProto] = []
    ahead: set[str] = set()
    for node in model.graph.node:
        # A ReLU stays behind the convolution, where the rounding to integers stands for it.
        following = read.get(node.output[0], []) if node.output[0] not in outputs else []
        cut_off = len(following) == 1 and operator_of(following[0].op_type).bounds is not None
        activation = following[0] if cut_off else None
        last = node if activation is None else activation
        joined = any(reader.op_type == "Concat" for reader in read.get(last.output[0], []))
        found = _phases(node, constants, joined=joined) if node.op_type == "ConvTranspose" else None
        if found is None:
            if node.name not in ahead:
                written.append(node)
            continue
        if activation is not None:
            ahead.add(activation.name)
        written += _interleaved(graph, node, activation, found, constants)
    if len(written) == len(graph.node):
        return model
    replace_nodes_(graph, written)
    drop_unused_initializers_(graph)
    return onnx.shape_inference.infer_shapes(rewritten)


def _interleaved(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    activation: onnx.NodeProto | None,
    found: _Phases,
    constants: dict[str, onnx.TensorProto],
) -> list[onnx.NodeProto]:
    """The nodes that compute `node` and the `activation` behind it; their constants go to `graph`."""

    def constant(name: str, values: Array) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    inputs = [node.input[0], constant(f"{node.input[1]}_phases", found.weight)]
    if len(node.input) > 2:
        bias = numpy_helper.to_array(constants[node.input[2]])
        inputs.append(constant(f"{node.input[2]}_phases", np.tile(bias, found.stride**2)))
    maps, output = f"{node.output[0]}_phases", node.output[0]
    written = [helper.make_node("Conv", inputs, [maps], node.name, kernel_shape=found.kernel, pads=found.pads)]
    if activation is not None:
        moved = onnx.NodeProto()
        moved.CopyFrom(activation)
        output = activation.output[0]
        moved.input[0], maps = maps, f"{output}_phases"
        moved.output[:] = [maps]
        written.append(moved)
    whole = f"{output}_whole" if any(found.surplus) else output
    name = f"{node.name}/interleave"
    written.append(helper.make_node("DepthToSpace", [maps], [whole], name, blocksize=found.stride, mode="DCR"))
    if any(found.surplus):
        ends = [-size if size else np.iinfo(np.int64).max for size in found.surplus]
        bounds = {"starts": [0, 0], "ends": ends, "axes": [2, 3]}
        names = [constant(f"{node.name}/cut_{bound}", np.array(values, np.int64)) for bound, values in bounds.items()]
        written.append(helper.make_node("Slice", [whole, *names], [output], f"{node.name}/cut"))
    return written


def _phases(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], *, joined: bool) -> _Phases | None:
    """The convolution for `node`, None where it cannot be one or does not pay; `joined`: a Concat reads its output."""
    settings = attributes(node)
    if any(name not in constants for name in node.input[1:]) or "output_shape" in settings:
        return None
    weight = numpy_helper.to_array(constants[node.input[1]])
    if weight.ndim != 4 or settings.get("group", 1) != 1 or set(settings.get("dilations", [1])) != {1}:
        return None
    if settings.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    strides = settings.get("strides", [1, 1])
    pads, extra = settings.get("pads", [0] * 4), settings.get("output_padding", [0, 0])
    stride = strides[0]
    if strides[1] != stride or stride < 2:
        return None
    inputs, outputs = weight.shape[:2]
    # Below the stride some outputs are the bias alone; at it, windows lie side by side.
    if min(weight.shape[2:]) < stride + (not joined):
        return None
    axes = [_taps(size, stride, pads[axis]) for axis, size in enumerate(weight.shape[2:])]
    kernel = [1 + max(offset for _, _, offset in taps) - min(offset for _, _, offset in taps) for taps in axes]
    before = [-min(offset for _, _, offset in taps) for taps in axes]
    # The output is longer than stride times the input by this, which DepthToSpace can only round up.
    longer = [size - stride - pads[axis] - pads[axis + 2] + extra[axis] for axis, size in enumerate(weight.shape[2:])]
    added = [-(-length // stride) for length in longer]
    after = [more - begin + size - 1 for more, begin, size in zip(added, before, kernel, strict=True)]
    if min(*before, *after) < 0:
        return None
    found = np.zeros((stride, stride, outputs, inputs, *kernel), dtype=weight.dtype)
    for row, row_weight, row_offset in axes[0]:
        for column, column_weight, column_offset in axes[1]:
            place = (row_offset + before[0], column_offset + before[1])
            found[row, column, :, :, place[0], place[1]] = weight[:, :, row_weight, column_weight].T
    surplus = [more * stride - length for more, length in zip(added, longer, strict=True)]
    return _Phases(
        weight=found.reshape(-1, inputs, *kernel), kernel=kernel, pads=[*before, *after], stride=stride, surplus=surplus
    )


def _taps(size: int, stride: int, pad: int) -> list[tuple[int, int, int]]:
    """(phase, index of the weight, offset of the input that it multiplies), along one axis.

    Output stride * j + phase is the sum of input i times weight k over all i * stride + k - pad equal to it: with
    i = j + offset, k = phase + pad - stride * offset.
    """
    return [
        (phase, phase + pad - stride * offset, offset)
        for phase in range(stride)
        for offset in range(-size, size + pad + 1)
        if 0 <= phase + pad - stride * offset < size
    ]
