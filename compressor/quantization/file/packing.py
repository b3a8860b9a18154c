"""Integer weights stored in fewer bytes, and made whole once, when the file is loaded.

ONNX Runtime folds graphs of constants at load, so that what runs is the same as if the file held every weight as int8,
which is what its integer kernels read.

- Integers of fewer than 8 bits are stored bit by bit: nodes shift and mask the packed bytes, and the file is smaller by
  the unused bits. All weights of one width share one tensor: each costs a reshape, not the unpacking's dozen nodes.
- Weights are stored without the channels of zeros that fill them up: a Pad adds those, and the file is smaller by them.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import copy_of, replace_nodes_
from compressor.quantization.file.compact_graph import compact_graph, kernels, serialize

# Bits of each plane, by the width of the integers: a byte holds 8, 4 or 2 values of a plane. 7 bits would save an
# eighth of the file and are left as they are.
_PLANES: dict[int, tuple[int, ...]] = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2)}
# Zeros worth the node that adds them, in bytes.
_WORTH = 64


def pack_weights(model: onnx.ModelProto, bits: Mapping[str, int]) -> onnx.ModelProto:
    """The same computation with the int8 initializers that `bits` names stored in as many bits as it says (2 to 6).

    Names with more bits, and names that are no int8 initializer of the graph, stay as they are. Raises ValueError where
    an integer does not fit.
    """
    packed = copy_of(model)
    groups: dict[int, list[onnx.TensorProto]] = defaultdict(list)
    for tensor in packed.graph.initializer:
        if bits.get(tensor.name, 8) in _PLANES and tensor.data_type == TensorProto.INT8:
            groups[bits[tensor.name]].append(tensor)
    ahead: list[onnx.NodeProto] = []
    for width, tensors in sorted(groups.items()):
        ahead += _unpacking(packed.graph, width, tensors)
    replace_nodes_(packed.graph, [*ahead, *packed.graph.node])
    return packed


def _unpacking(graph: onnx.GraphProto, bits: int, tensors: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    """The nodes that give `tensors` back from packed initializers, which replace them in `graph`."""
    values = [numpy_helper.to_array(tensor) for tensor in tensors]
    half = 2 ** (bits - 1)
    flat = np.concatenate([array.reshape(-1) for array in values]).astype(np.int16) + half
    if flat.size and (flat.min() < 0 or flat.max() >= 2 * half):
        raise ValueError(
            f"integers of {bits} bits lie in [{-half}, {half - 1}], got {flat.min() - half} to {flat.max() - half}"
        )
    prefix = f"packed{bits}"
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, array: npt.NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(array, f"{prefix}_{name}"))
        return f"{prefix}_{name}"

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{prefix}_{name}"], f"{prefix}_{name}", **attributes))
        return f"{prefix}_{name}"

    total, above = "", bits
    for width in _PLANES[bits]:
        above -= width
        plane = ((flat >> above) & (2**width - 1)).astype(np.uint8)
        stored = constant(f"bytes{width}", pack_plane(plane, width))
        shifts = constant(f"shifts{width}", np.arange(0, 8, width, dtype=np.uint8))
        mask = constant(f"mask{width}", np.array(2**width - 1, dtype=np.uint8))
        part = node("BitShift", [stored, shifts], f"shifted{width}", direction="RIGHT")
        part = node("BitwiseAnd", [part, mask], f"masked{width}")
        # Planes are padded to whole bytes of their own.
        part = node("Reshape", [part, constant(f"flat{width}", np.array([-1]))], f"values{width}")
        ends = [constant(f"{end}{width}", np.array([at])) for end, at in (("start", 0), ("end", flat.size))]
        part = node("Slice", [part, *ends], f"exact{width}")
        if above:
            part = node(
                "BitShift", [part, constant(f"above{width}", np.array(above, np.uint8))], f"up{width}", direction="LEFT"
            )
        total = node("BitwiseOr", [total, part], f"joined{width}") if total else part
    wide = node("Cast", [total], "wide", to=TensorProto.INT32)
    centred = node("Sub", [wide, constant("half", np.array(half, np.int32))], "centred")
    integers = node("Cast", [centred], "integers", to=TensorProto.INT8)
    sizes = constant("sizes", np.array([array.size for array in values]))
    pieces = [f"{prefix}_piece{index}" for index in range(len(values))]
    nodes.append(helper.make_node("Split", [integers, sizes], pieces, f"{prefix}_split", axis=0))
    for index, (tensor, array) in enumerate(zip(tensors, values, strict=True)):
        shape = constant(f"shape{index}", np.array(array.shape, dtype=np.int64))
        nodes.append(helper.make_node("Reshape", [pieces[index], shape], [tensor.name], f"{prefix}_reshape{index}"))
        graph.initializer.remove(tensor)
    return nodes


def pack_plane(values: npt.NDArray[np.uint8], width: int) -> npt.NDArray[np.uint8]:
    """(bytes, 1) with 8 / `width` values in each byte, the first in the lowest bits; `width` is 1, 2 or 4."""
    count = 8 // width
    padded = np.zeros(-(-values.size // count) * count, dtype=np.uint8)
    padded[: values.size] = values
    shifted = padded.reshape(-1, count) << np.arange(0, 8, width, dtype=np.uint8)
    result: npt.NDArray[np.uint8] = np.bitwise_or.reduce(shifted, axis=1, keepdims=True)
    return result


def without_filling(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """(the same computation, {initializer: the int8 weight that it becomes with zeros behind its channels}).

    Channels lie on the first two axes; a weight that would save little stays as it is.
    """
    stored = copy_of(model)
    graph = stored.graph
    becomes: dict[str, str] = {}
    ahead: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        places = np.argwhere(values.reshape(*values.shape[:2], -1).any(axis=-1))
        rows, columns = (int(end) + 1 for end in places.max(axis=0)) if len(places) else (1, 1)
        kept = values[:rows, :columns]
        if values.size - kept.size < _WORTH:
            continue
        name = f"{tensor.name}_stored"
        missing = [whole - part for whole, part in zip(values.shape, kept.shape, strict=True)]
        pads = numpy_helper.from_array(np.array([0] * values.ndim + missing), f"{name}_pads")
        graph.initializer.remove(tensor)
        graph.initializer.extend([numpy_helper.from_array(kept, name), pads])
        ahead.append(helper.make_node("Pad", [name, pads.name], [tensor.name]))
        becomes[name] = tensor.name
    replace_nodes_(graph, [*ahead, *graph.node])
    return stored, becomes


def smallest_file(
    plain: bytes, quantized: onnx.ModelProto, bits: Mapping[str, int], *, signed_activations: bool
) -> bytes:
    """The smallest file of the placed graph `quantized` that runs with the kernels of its `plain` one.

    `bits` are those of its integer weights, by initializer.
    """
    # ONNX Runtime matches patterns: a smaller file that fuses differently would be a worse one.
    running = kernels(plain, signed_activations=signed_activations)
    stored, becomes = without_filling(quantized)
    candidates = [compact_graph(quantized), compact_graph(stored)]
    packed = pack_weights(stored, {**bits, **{name: bits.get(whole, 8) for name, whole in becomes.items()}})
    if len(packed.graph.node) > len(stored.graph.node):
        candidates += [compact_graph(packed), packed]
    for data in sorted((serialize(candidate) for candidate in candidates), key=len):
        if len(data) < len(plain) and kernels(data, signed_activations=signed_activations) == running:
            return data
    return plain
