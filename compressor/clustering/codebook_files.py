"""Weights of few values as codebooks in the file: the values once, and for every weight which of them it has.

Han et al. 2016, arXiv:1510.00149, sec. 3: n weights of k values take n log2(k) bits and k values. ONNX has no operator
for it, and needs none: nodes gather the values by the stored numbers, ONNX Runtime does so once, when it opens the
file, and what runs then is what would run of the plain one. Numbers of at most 16 values lie two in a byte.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import parse, replace_nodes_
from compressor.quantization.file.compact_graph import compact_graph, kernels, serialize
from compressor.quantization.file.packing import pack_plane

_NIBBLE, _BYTE = 16, 256
# What the nodes and shapes of a codebook take in the file.
_NODES = 160


@dataclass(frozen=True, kw_only=True)
class Codebook:
    """A weight as `numbers` into `values`, of equal rank; along `axis` each place has a codebook's values.

    The weight is GatherElements(values, numbers, axis), in `shape`.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    values: NDArray[np.float32]
    numbers: NDArray[np.uint8]

    @property
    def count(self) -> int:
        """How many values a codebook has."""
        return int(self.values.shape[self.axis])

    @property
    def size_bytes(self) -> int:
        """What it takes in the file."""
        return self.values.nbytes + self.numbers.size // (2 if self.count <= _NIBBLE else 1) + _NODES


def with_codebooks(onnx_bytes: bytes) -> tuple[bytes, tuple[Codebook, ...]]:
    """The file with codebooks in the place of float32 weights that become smaller by it, and what they are.

    It computes the same bits, with the same kernels. The file is given back as it is where nothing becomes smaller.
    """
    model = parse(onnx_bytes)
    graph = model.graph
    found = []
    for tensor in list(graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            weight = numpy_helper.to_array(tensor)
            best = min(_codebooks(tensor.name, weight), key=lambda one: one.size_bytes, default=None)
            if best is not None and best.size_bytes < weight.nbytes:
                found.append(best)
                graph.initializer.remove(tensor)
    nodes = [
        *_gathering(graph, [one for one in found if one.count <= _NIBBLE], bits=4),
        *_gathering(graph, [one for one in found if one.count > _NIBBLE], bits=8),
    ]
    replace_nodes_(graph, [*nodes, *graph.node])
    data = serialize(compact_graph(model))
    if not found or len(data) >= len(onnx_bytes) or kernels(data) != kernels(onnx_bytes):
        return onnx_bytes, ()
    return data, tuple(found)


def _codebooks(name: str, weight: NDArray[np.float32]) -> Iterator[Codebook]:
    """One codebook for the whole weight, one for every row, and for a matrix one for every column."""
    rows = weight.reshape(len(weight), -1)
    forms = [(rows.reshape(1, -1), 1), (rows, 1)] + ([(weight, 0)] if weight.ndim == 2 else [])
    for values, axis in forms:
        lines = values if axis == 1 else values.T
        books = [np.unique(line) for line in lines]
        count = max(map(len, books))
        if count > _BYTE:
            continue
        padded = np.stack([np.pad(book, (0, count - len(book))) for book in books])
        found = [np.searchsorted(book, line) for book, line in zip(books, lines, strict=True)]
        numbers: NDArray[np.uint8] = np.stack(found).astype(np.uint8)
        yield Codebook(
            name=name,
            shape=weight.shape,
            axis=axis,
            values=padded if axis == 1 else np.ascontiguousarray(padded.T),
            numbers=numbers if axis == 1 else np.ascontiguousarray(numbers.T),
        )


def _gathering(graph: onnx.GraphProto, books: list[Codebook], *, bits: int) -> list[onnx.NodeProto]:
    """The nodes that give the weights of `books` back, whose numbers of `bits` lie in one tensor of `graph`."""
    if not books:
        return []
    prefix = f"codebook{bits}"
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, array: NDArray[Any]) -> str:
        graph.initializer.append(numpy_helper.from_array(array, f"{prefix}_{name}"))
        return f"{prefix}_{name}"

    def node(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{prefix}_{name}"], f"{prefix}_{name}", **attributes))
        return f"{prefix}_{name}"

    flat = np.concatenate([book.numbers.reshape(-1) for book in books])
    if bits == 4:
        stored, shifts = constant("bytes", pack_plane(flat, 4)), constant("shifts", np.array([0, 4], np.uint8))
        part = node("BitShift", [stored, shifts], "shifted", direction="RIGHT")
        part = node("BitwiseAnd", [part, constant("mask", np.array(15, np.uint8))], "masked")
        part = node("Reshape", [part, constant("line", np.array([-1]))], "all")
        # An odd number of them is filled up to a whole byte.
        part = node("Slice", [part, constant("start", np.array([0])), constant("end", np.array([flat.size]))], "exact")
    else:
        part = constant("bytes", flat)
    wide = node("Cast", [part], "wide", to=TensorProto.INT32)
    sizes = constant("sizes", np.array([book.numbers.size for book in books]))
    pieces = [f"{prefix}_piece{index}" for index in range(len(books))]
    nodes.append(helper.make_node("Split", [wide, sizes], pieces, f"{prefix}_split", axis=0))
    for index, (book, piece) in enumerate(zip(books, pieces, strict=True)):
        form = constant(f"form{index}", np.array(book.numbers.shape))
        numbers = node("Reshape", [piece, form], f"numbers{index}")
        values = constant(f"values{index}", book.values)
        gathered = node("GatherElements", [values, numbers], f"gathered{index}", axis=book.axis)
        shape = constant(f"shape{index}", np.array(book.shape))
        nodes.append(helper.make_node("Reshape", [gathered, shape], [book.name], f"{prefix}_weight{index}"))
    return nodes
