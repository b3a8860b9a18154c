"""Transposed convolutions written as convolutions, for which ONNX Runtime has integer kernels.

A transposed convolution of stride s computes s x s interleaved maps. Each is an ordinary convolution of the input with
every s-th weight (Shi et al. 2016, arXiv:1609.07009): one convolution gives them all as channels, and DepthToSpace
interleaves them. The outputs are the same, the places of the sums too; windows that the maps do not share hold zeros.
Of stride 1 it is one map, a convolution with the weights turned around.
"""

from collections.abc import Iterator, Mapping
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
    shapes,
)
from compressor.files.operators import operator_of

Array = NDArray[Any]
_Sizes = tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Phases:
    """The convolution that stands for a transposed one; `surplus` is what it gives too much at the ends of the axes."""

    weight: Array
    kernel: list[int]
    pads: list[int]
    stride: int
    surplus: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Site:
    """A transposed convolution, the activation behind it that is moved along, and what stands for it, or why nothing
    does.
    """

    node: onnx.NodeProto
    activation: onnx.NodeProto | None
    found: _Phases | str


def as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its transposed convolutions as Conv and DepthToSpace, where it pays; names and outputs stay.

    Only those over two axes, of one group, without dilation, with one stride for both axes. Without overlap it is a
    product of matrices already, and DepthToSpace costs what the integers gain, unless a Concat behind it waits for
    integers, as in a U-Net. Of stride 1 there is no DepthToSpace, and no such cost.
    """
    constants = initializers(model.graph)
    phases = {site.node.name: site for site in _sites(model) if not isinstance(site.found, str)}
    if not phases:
        return model
    rewritten = copy_of(model)
    graph = rewritten.graph
    moved = {site.activation.name for site in phases.values() if site.activation is not None}
    written: list[onnx.NodeProto] = []
    for node in model.graph.node:
        site = phases.get(node.name)
        if site is not None and not isinstance(site.found, str):
            written += _interleaved(graph, node, site.activation, site.found, constants)
        elif node.name not in moved:
            written.append(node)
    replace_nodes_(graph, written)
    drop_unused_initializers_(graph)
    return onnx.shape_inference.infer_shapes(rewritten)


def why_transposed(model: onnx.ModelProto) -> dict[str, str]:
    """Why each transposed convolution that `as_convolutions` leaves in `model` stays one, by the node's name."""
    return {site.node.name: site.found for site in _sites(model) if isinstance(site.found, str)}


def _sites(model: onnx.ModelProto) -> Iterator[_Site]:
    """The transposed convolutions of `model` in its order."""
    graph = model.graph
    nodes = [node for node in graph.node if node.op_type == "ConvTranspose"]
    if not nodes:
        return
    constants, read, outputs, sizes = initializers(graph), readers(graph.node), output_names(graph), shapes(model)
    for node in nodes:
        # A ReLU stays behind the convolution, where the rounding to integers stands for it.
        following = read.get(node.output[0], []) if node.output[0] not in outputs else []
        cut_off = len(following) == 1 and operator_of(following[0].op_type).bounds is not None
        activation = following[0] if cut_off else None
        last = node if activation is None else activation
        joined = any(reader.op_type == "Concat" for reader in read.get(last.output[0], []))
        found = _phases(node, constants, sizes.get(node.input[0], ()), joined=joined)
        yield _Site(node=node, activation=activation, found=found)


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
    if found.stride == 1:
        alone = helper.make_node(
            "Conv", inputs, [node.output[0]], node.name, kernel_shape=found.kernel, pads=found.pads
        )
        return [alone] if activation is None else [alone, activation]
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


def _phases(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], sizes: _Sizes, *, joined: bool
) -> _Phases | str:
    """The convolution for `node`, or why it cannot be one or does not pay.

    `sizes` are those of its input, () where they are not known; `joined`: a Concat reads its output.
    """
    settings = attributes(node)
    if any(name not in constants for name in node.input[1:] if name):
        return "its weight or bias is computed at run time"
    weight = numpy_helper.to_array(constants[node.input[1]])
    if weight.ndim != 4:
        return f"it runs over {weight.ndim - 2} axes, and over two alone it is written as a convolution"
    if settings.get("group", 1) != 1:
        return f"it has {settings['group']} groups, and is written as a convolution with one alone"
    if set(settings.get("dilations", [1])) != {1}:
        return f"it has the dilations {_told(settings['dilations'])}, and is written as a convolution without any alone"
    strides = settings.get("strides", [1, 1])
    stride = strides[0]
    if strides[1] != stride:
        return f"it has the strides {_told(strides)}, and is written as a convolution with equal ones alone"
    inputs, outputs = weight.shape[:2]
    extra = settings.get("output_padding", [0, 0])
    pads = _explicit_pads(settings, weight.shape[2:], sizes[2:])
    if isinstance(pads, str):
        return pads
    # Below the stride some outputs are the bias alone; at it, windows lie side by side.
    if min(weight.shape[2:]) < stride:
        return "its windows are smaller than its stride, so that nothing but its bias reaches some of its outputs"
    if 1 < stride == min(weight.shape[2:]) and not joined:
        return "its windows do not overlap: as a convolution it would cost as much as integers gain"
    axes = [_taps(size, stride, pads[axis]) for axis, size in enumerate(weight.shape[2:])]
    kernel = [1 + max(offset for _, _, offset in taps) - min(offset for _, _, offset in taps) for taps in axes]
    before = [-min(offset for _, _, offset in taps) for taps in axes]
    # The output is longer than stride times the input by this, which DepthToSpace can only round up.
    longer = [size - stride - pads[axis] - pads[axis + 2] + extra[axis] for axis, size in enumerate(weight.shape[2:])]
    added = [-(-length // stride) for length in longer]
    after = [more - begin + size - 1 for more, begin, size in zip(added, before, kernel, strict=True)]
    if min(*before, *after) < 0:
        return f"its padding, {_told(pads)}, cuts off more than a convolution can leave out"
    found = np.zeros((stride, stride, outputs, inputs, *kernel), dtype=weight.dtype)
    for row, row_weight, row_offset in axes[0]:
        for column, column_weight, column_offset in axes[1]:
            place = (row_offset + before[0], column_offset + before[1])
            found[row, column, :, :, place[0], place[1]] = weight[:, :, row_weight, column_weight].T
    surplus = [more * stride - length for more, length in zip(added, longer, strict=True)]
    return _Phases(
        weight=found.reshape(-1, inputs, *kernel), kernel=kernel, pads=[*before, *after], stride=stride, surplus=surplus
    )


def _explicit_pads(settings: Mapping[str, Any], kernel: tuple[int, ...], sizes: _Sizes) -> list[int] | str:
    """The pads of a transposed convolution over two axes without dilation, (begins, ends), or why they are not known.

    As ONNX Runtime resolves `auto_pad` and `output_shape`; `sizes` are those of the input's two axes.
    """
    mode = settings.get("auto_pad", b"NOTSET").decode()
    strides, extra = settings.get("strides", [1, 1]), settings.get("output_padding", [0, 0])
    # Some write samples and channels into it, too.
    wanted = list(settings.get("output_shape", []))[-2:]
    if wanted:
        known = [size for size in sizes if size is not None]
        if len(known) < 2:
            return "its output_shape is set, and the size of its input, with which its pads are known, is not"
        whole = zip(known, strides, extra, kernel, wanted, strict=True)
        totals = [(size - 1) * step + more + span - length for size, step, more, span, length in whole]
        if min(totals) < 0:
            return f"its output_shape, {_told(wanted)}, is larger than what its windows reach"
    elif mode.startswith("SAME"):
        totals = [max(0, span - step + more) for span, step, more in zip(kernel, strides, extra, strict=True)]
    else:
        return [0] * 4 if mode == "VALID" else list(settings.get("pads", [0] * 4))
    smaller = [total // 2 for total in totals]
    larger = [total - half for total, half in zip(totals, smaller, strict=True)]
    return [*smaller, *larger] if mode == "SAME_UPPER" else [*larger, *smaller]


def _told(sizes: list[int]) -> str:
    return "x".join(map(str, sizes))


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
