"""Where in the bytes of an ONNX file its weights lie: protocol buffers read in place, nothing of them changed.

A packed file gives back the very bytes, in whatever order and form another writer put them: so weights are found as
ranges of bytes, and all that is between them stays as it is. The encoding is that of protobuf.dev/programming-guides/
encoding, the fields those of onnx.proto.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from onnx import TensorProto

from compressor.errors import PackError

_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5
# Fields of ModelProto, GraphProto, NodeProto, FunctionProto, AttributeProto and SparseTensorProto that lead to tensors.
_MODEL = {7: "graph", 25: "function"}
_GRAPH = {1: "node", 5: "tensor", 15: "sparse"}
_FUNCTION = {7: "node", 11: "attribute"}
_NODE = {5: "attribute"}
_ATTRIBUTE = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_SPARSE = {1: "tensor", 2: "tensor"}
_INSIDE = {
    "model": _MODEL,
    "graph": _GRAPH,
    "function": _FUNCTION,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
    "sparse": _SPARSE,
}
_DIMS, _TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _LOCATION = 1, 2, 4, 8, 9, 10, 14
_DEEPEST = 100


@dataclass(frozen=True)
class Weight:
    """The numbers of one tensor: `length` bytes from `offset` on, of ONNX's `kind`, in `shape`."""

    offset: int
    length: int
    kind: int
    shape: tuple[int, ...]
    name: str


def weights_in(data: bytes) -> list[Weight]:
    """The weights of an ONNX file in the order of their bytes.

    Raises PackError where it is none, or where its weights lie in other files.
    """
    try:
        if not any(field == 7 and kind == _BYTES for field, kind, _, _ in _fields(data, 0, len(data))):
            raise PackError("it is no ONNX file: it has no graph")
        return sorted(_walk(data, 0, len(data), "model", 0), key=lambda weight: weight.offset)
    except (IndexError, UnicodeDecodeError) as error:
        raise PackError("it is no ONNX file: its bytes are no protocol buffer") from error


def _walk(data: bytes, start: int, end: int, what: str, depth: int) -> Iterator[Weight]:
    if depth > _DEEPEST:
        raise PackError(f"it has graphs in graphs, more than {_DEEPEST} deep, and no file is packed that has")
    if what == "tensor":
        yield from _tensor(data, start, end)
        return
    inside = _INSIDE[what]
    for field, kind, first, last in _fields(data, start, end):
        if kind == _BYTES and field in inside:
            yield from _walk(data, first, last, inside[field], depth + 1)


def _tensor(data: bytes, start: int, end: int) -> Iterator[Weight]:
    shape: list[int] = []
    kind, name, ranges = 0, "", []
    for field, wire, first, last in _fields(data, start, end):
        if field == _DIMS and wire == _VARINT:
            shape.append(first)
        elif field == _DIMS and wire == _BYTES:
            at = first
            while at < last:
                value, at = _number(data, at)
                shape.append(value)
        elif field == _TYPE:
            kind = first
        elif field == _NAME:
            name = data[first:last].decode()
        elif field == _LOCATION and first == TensorProto.EXTERNAL:
            raise PackError(
                f"its weight {name or '(without a name)'!r} lies in a file of its own, and one file is packed; store "
                "the model with its weights inside: onnx.save(onnx.load(path), path)"
            )
        elif wire == _BYTES and field in (_RAW, _FLOATS, _DOUBLES) and last > first:
            ranges.append((field, first, last))
    own = {_RAW: kind, _FLOATS: TensorProto.FLOAT, _DOUBLES: TensorProto.DOUBLE}
    for field, first, last in ranges:
        yield Weight(first, last - first, own[field], tuple(shape), name)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, value or first byte, last byte) of a message; raises IndexError where it is none."""
    at = start
    while at < end:
        tag, at = _number(data, at)
        field, wire = tag >> 3, tag & 7
        first = last = at
        if wire == _VARINT:
            first, at = _number(data, at)
            last = first
        elif wire == _BYTES:
            length, first = _number(data, at)
            at = last = first + length
        elif wire in (_LONG, _SHORT):
            at = last = at + (8 if wire == _LONG else 4)
        else:
            raise IndexError
        if at > end or field == 0:
            raise IndexError
        yield field, wire, first, last


def _number(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise IndexError
