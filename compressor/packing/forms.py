"""Weights as symbols: which bytes, nibbles, exponents or numbers of values a tensor becomes before it is coded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from compressor.packing.classes import entropy_bits

Shape = tuple[int, int, int]

# Bytes of an element, and whether its sign goes to the other end, so that its highest byte is the exponent.
_WIDTHS: dict[int, tuple[int, bool]] = {
    TensorProto.FLOAT: (4, True),
    TensorProto.DOUBLE: (8, True),
    TensorProto.BFLOAT16: (2, True),
    TensorProto.FLOAT16: (2, False),
    TensorProto.INT32: (4, False),
    TensorProto.UINT32: (4, False),
    TensorProto.INT16: (2, False),
    TensorProto.UINT16: (2, False),
}
_NIBBLES = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}
# What a symbol means is the same in all tensors of these kinds, and they are coded by the same tables.
_SHARED = {*_NIBBLES, TensorProto.INT8}
_SIGNED = {TensorProto.INT4, TensorProto.INT8}
# Bytes of no sign may hold anything: two numbers of 4 bits too.
_HALVES = {*_NIBBLES, TensorProto.UINT8, TensorProto.UNDEFINED}
_MOST_VALUES = 256
# What a symbol of a table takes in bits, about: for choosing a form before any is fitted.
_TABLE_BITS = 6
# A line of numbers without rows is cut into rows of so many: weights that lie together are alike.
_BLOCK = 256
_LEAST_BLOCKS = 8
# Of a byte; what is nearer to 8 bits is stored as it is.
_NOT_CODED = 7.96
_FEW = 64
_INFINITE = 255


@dataclass(frozen=True)
class PlaneOf:
    """Symbols coded together with all others of `key`, in parts of `shapes`; without a key, bytes as they are."""

    key: Any
    symbols: NDArray[np.uint8]
    shapes: tuple[Shape, ...]
    alphabet: int


@dataclass(frozen=True)
class Form:
    """One way to write a weight, as `reader.Segment` has it; `bits` is about what it takes."""

    width: int
    planes: tuple[PlaneOf, ...]
    turned: bool = False
    bare: int = 0
    fold: int = 1
    signed: bool = False
    values: bytes = b""

    @property
    def bits(self) -> float:
        """About what it takes, tables included where they are for this weight alone."""
        found = 8.0 * len(self.values)
        for plane in self.planes:
            if plane.key is None:
                found += 8.0 * plane.symbols.size
                continue
            counts = np.bincount(plane.symbols, minlength=1)
            found += entropy_bits(counts) + (_TABLE_BITS * np.count_nonzero(counts) if "own" in plane.key else 0)
        return found


def best_form(data: bytes, kind: int, shape: tuple[int, ...], *, own: int, inner: tuple[Shape, ...] = ()) -> Form:
    """The form of a weight that takes the fewest bits, about.

    `own` is a number of this weight alone; `inner` are the shapes of weights of 8 bits or fewer that lie in its bytes.
    """
    return min(_forms(data, kind, shape, own, inner), key=lambda form: form.bits)


def _forms(data: bytes, kind: int, shape: tuple[int, ...], own: int, inner: tuple[Shape, ...]) -> Iterator[Form]:
    width, turned = _WIDTHS.get(kind, (1, False))
    if len(data) % width:
        width, turned = 1, False
    count = len(data) // width
    if width == 1:
        symbols = np.frombuffer(data, np.uint8)
        # Integers of two signs are told in their order: tables of neighbours are alike then.
        key: tuple[Any, ...] = ("bytes", kind) if kind in _SHARED else ("bytes", kind, "own", own)
        usual = (2,) if kind in _NIBBLES else (1, 2) if kind in _HALVES else (1,)
        told = tuple(fold for fold in (1, 2, 4, 8) if 0 <= fold * count - _total(inner) < fold)
        for fold in told or usual:
            bits = 8 // fold
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            folded = (symbols[:, None] >> shifts & (2**bits - 1)).reshape(-1) if fold > 1 else symbols
            signed = kind in _SIGNED
            folded = folded ^ np.uint8(1 << bits - 1) if signed else folded
            shapes = _filled(inner, folded.size) if told else shapes_of(shape, folded.size)
            yield Form(1, (PlaneOf((*key, fold), folded, shapes, 2**bits),), fold=fold, signed=signed)
        return
    numbers = np.frombuffer(data, f"<u{width}")
    shapes = shapes_of(shape, count)
    yield from _by_planes(numbers, width, kind, shapes, turned=turned)
    values = _few_values(numbers)
    if values is not None:
        index = np.searchsorted(values, numbers).astype(np.uint8)
        plane = PlaneOf(("values", "own", own), index, shapes, len(values))
        yield Form(width, (plane,), values=values.tobytes())


def _by_planes(
    numbers: NDArray[Any], width: int, kind: int, shapes: tuple[Shape, ...], *, turned: bool
) -> Iterator[Form]:
    if turned:
        numbers = numbers << 1 | numbers >> (8 * width - 1)
    table = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, width)
    top = table[:, -1]
    # Zeros need no other bytes. Those below zero, which masks and folded norms leave, take the place of infinities.
    negative = (numbers == 1) if turned else np.zeros(len(numbers), bool)
    bare = 0
    if not table[(top == 0) & ~negative].any():
        bare = 2 if negative.any() and not (top == _INFINITE).any() else int(not negative.any())
    if bare == 2:
        top = np.where(negative, np.uint8(_INFINITE), top)
    lower = table[(top != 0) & ~negative] if bare else table
    planes = [PlaneOf(("plane", kind, 0), np.ascontiguousarray(top), shapes, 256)]
    for place in range(2, width + 1):
        symbols = np.ascontiguousarray(lower[:, width - place])
        even = symbols.size == 0 or entropy_bits(np.bincount(symbols)) > _NOT_CODED * symbols.size
        noisy = turned and symbols.size < _FEW * _FEW
        key = None if even or noisy else ("plane", kind, place)
        planes.append(PlaneOf(key, symbols, (), 256))
    yield Form(width, tuple(planes), turned=turned, bare=bare)


def _few_values(numbers: NDArray[Any]) -> NDArray[Any] | None:
    """The different numbers where there are few, in the order of what a few thousand show first."""
    if len(np.unique(numbers[: 1 << 14])) > _MOST_VALUES:
        return None
    values = np.unique(numbers)
    return values if len(values) <= _MOST_VALUES else None


def shapes_of(shape: tuple[int, ...], count: int) -> tuple[Shape, ...]:
    """`count` symbols as parts of rows, columns and places: by the tensor's `shape` where that has as many."""
    total = int(np.prod(shape, dtype=np.float64)) if shape else 1
    known = tuple(size for size in shape if size != 1)
    if len(known) > 1 and 0 < total <= count < total + 8:
        rest = total // (known[0] * known[1])
        return _filled(((known[0], known[1], rest),), count)
    if count >= _BLOCK * _LEAST_BLOCKS:
        return _filled(((count // _BLOCK, 1, _BLOCK),), count)
    return ((1, 1, count),)


def _filled(shapes: tuple[Shape, ...], count: int) -> tuple[Shape, ...]:
    """`shapes` and a last part of what is left of `count` symbols."""
    left = count - _total(shapes)
    return (*shapes, (1, 1, left)) if left else shapes


def _total(shapes: tuple[Shape, ...]) -> int:
    return sum(rows * columns * places for rows, columns, places in shapes)
