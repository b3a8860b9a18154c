"""Packs the bytes of an ONNX file: cut into chunks, each of which `reader` reads without the others."""

import hashlib
import zlib
from collections.abc import Callable, Iterator, Mapping

from onnx import TensorProto

from compressor.errors import PackError
from compressor.files.graphs import parse
from compressor.packing.chunk import Placed, chunk_body, deflated, middle
from compressor.packing.forms import Shape, best_form
from compressor.packing.layouts import inner_shapes
from compressor.packing.reader import MAGIC, MOST_CHUNK, MOST_TOTAL, VERSION
from compressor.packing.wire import Weight, weights_in

# Below this a weight is no shorter than its place in the plan.
_LEAST = 24
# Half a chunk, so that weights fill chunks well.
_MOST_WEIGHT = MOST_CHUNK // 2
_SAMPLE = 1 << 16
# LZMA is tried where deflate, which is quick and finds what repeats as well, comes below this part of what a weight
# takes as symbols, or of what a whole chunk does: on noise LZMA is no better. How much better it is than deflate on a
# piece from the middle of a whole chunk has to make up for the rest.
_NEAR, _WORSE = 0.98, 1.1
# So many bytes are quick by LZMA.
_SMALL = 1 << 16
# What is computed with as a rule: indices and shapes, in which LZMA finds more than their frequencies tell.
_NOT_WEIGHTS = {TensorProto.BOOL, TensorProto.INT64, TensorProto.UINT64, TensorProto.COMPLEX64, TensorProto.COMPLEX128}


def packed(data: bytes, *, told: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The parts of the packed file that gives `data`, an ONNX file, back; `told` hears of every so many bytes done.

    Raises PackError where `data` is no ONNX file, has its weights elsewhere, or is longer than protocol buffers can be.
    """
    if len(data) > MOST_TOTAL:
        raise PackError(f"it has {len(data):,} bytes, and at most {MOST_TOTAL:,} are packed, where ONNX files end")
    weights = weights_in(data)
    inner = _inner(data)
    head = MAGIC + bytes([VERSION]) + len(data).to_bytes(8, "little") + hashlib.sha256(data).digest()
    yield head + zlib.crc32(head).to_bytes(4, "little")
    seen: dict[bytes, int] = {}
    for start, end, own in _chunks(len(data), [piece for weight in weights for piece in _cut(weight)]):
        body = _chunk(data, (start, end), own, inner, seen)
        yield len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
        if told is not None:
            told(end - start)


def _inner(data: bytes) -> dict[str, tuple[Shape, ...]]:
    try:
        return inner_shapes(parse(data))
    except ValueError as error:
        raise PackError(f"it is no ONNX file: {error}") from error


def _cut(weight: Weight) -> Iterator[Weight]:
    """A weight in pieces that fit into a chunk: some rows each, or some numbers."""
    if weight.length <= _MOST_WEIGHT:
        yield weight
        return
    rows = weight.shape[0] if weight.shape and weight.shape[0] and weight.length % weight.shape[0] == 0 else 1
    row = weight.length // rows
    step = max(1, _MOST_WEIGHT // row) * row if row <= _MOST_WEIGHT else _MOST_WEIGHT
    for at in range(0, weight.length, step):
        length = min(step, weight.length - at)
        shape = (length // row, *weight.shape[1:]) if row <= _MOST_WEIGHT else ()
        yield Weight(weight.offset + at, length, weight.kind, shape, "")


def _chunks(size: int, weights: list[Weight]) -> Iterator[tuple[int, int, list[Weight]]]:
    """(start, end, the weights in it) of every chunk."""
    start, own = 0, list[Weight]()
    for weight in [*weights, Weight(size, 0, 0, (), "")]:
        while weight.offset + weight.length - start > MOST_CHUNK:
            end = min(weight.offset, start + MOST_CHUNK)
            yield start, end, own
            start, own = end, []
        own.append(weight)
    yield start, size, own[:-1]


def _chunk(
    data: bytes,
    span: tuple[int, int],
    weights: list[Weight],
    inner: Mapping[str, tuple[Shape, ...]],
    seen: dict[bytes, int],
) -> bytes:
    """The body of one chunk, the shorter one of two: weights as symbols, and, where much repeats, all by LZMA."""
    (start, end), placed = span, []
    for number, weight in enumerate(weights):
        raw = data[weight.offset : weight.offset + weight.length]
        if weight.length < _LEAST or weight.kind in _NOT_WEIGHTS:
            continue
        digest = hashlib.sha256(raw).digest()
        if digest in seen:
            placed.append(Placed(weight.offset, weight.length, None, copied=seen[digest]))
            continue
        seen[digest] = weight.offset
        form = best_form(raw, weight.kind, weight.shape, own=number, inner=inner.get(weight.name, ()))
        if not _repeats(raw, form.bits / 8):
            placed.append(Placed(weight.offset, weight.length, form))
    body = chunk_body(data, start, end, placed)
    if placed and (end - start <= _SMALL or _repeats_in_all(data[start:end], len(body))):
        return min(body, chunk_body(data, start, end, []), key=len)
    return body


def _repeats_in_all(raw: bytes, size: int) -> bool:
    """Whether a whole chunk that takes `size` bytes as symbols may be shorter by LZMA."""
    found = len(zlib.compress(raw, 6))
    if found >= _WORSE * size:
        return False
    piece = middle(raw)
    return found * len(deflated(piece)[0]) < size * len(zlib.compress(piece, 6))


def _repeats(raw: bytes, estimate: float) -> bool:
    """Whether a weight is shorter by LZMA, among the graph: something repeats in it."""
    if len(zlib.compress(raw[:_SAMPLE], 6)) > _NEAR * estimate * min(1, _SAMPLE / len(raw)):
        return False
    return len(deflated(raw)[0]) < estimate
