"""One chunk of a packed file: its plan, its symbols and the rest, in the order in which `reader` reads them."""

import lzma
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.packing.classes import Classes, Fitted, fitted
from compressor.packing.coding import (
    BitWriter,
    encode,
    followed,
    lanes_for,
    levels_of,
    tables_bits,
    write_tables,
)
from compressor.packing.forms import Form, PlaneOf
from compressor.packing.reader import MOST_CHUNK, MOST_TABLES, PRECISION, frequencies, weight_of

# How many tables are tried, by the bytes that symbols take without classes: a table has to be paid by them.
_TRIED = ((300, (1,)), (4_000, (1, 2, 4)), (60_000, (1, 6, 16)), (1_500_000, (4, 16, 32)), (MOST_CHUNK, (32,)))
_FINENESS = (0, 1, 2)
# What the coder of tables adds to their information differs by fewer bytes than this from one to another.
_CLOSE = 4.0
# What lies this part of the symbols or farther from the middle says most of the next one.
_OUTER = 0.27
# Settings of LZMA (lc, lp, pb): its usual ones, those for text, and those for numbers of four bytes.
_SETTINGS: tuple[tuple[int, int, int], ...] = ((3, 0, 2), (3, 0, 0), (4, 0, 0), (0, 2, 2))
# All are tried on so many bytes, and on a piece of so many from the middle of more.
_SMALL, _PIECE = 1 << 18, 1 << 15
# So many weights of a chunk have tables of their own, the others share some.
_MOST_OWN, _JOINED = 24, ("joined",)


@dataclass(frozen=True)
class Placed:
    """A byte range of the file, and how it is written: by `form`, or as a copy of what stands at `copied`."""

    offset: int
    length: int
    form: Form | None
    copied: int | None = None


@dataclass(frozen=True)
class _Pool:
    """How symbols of one kind are coded: their classes, `bounds` where the symbol before them is a context as well.

    `size_bytes` is about what they take, with their tables at this `fineness`.
    """

    fit: Fitted
    fineness: int
    size_bytes: float
    bounds: tuple[tuple[int, int], ...] | None = None

    @property
    def tables(self) -> int:
        """How many tables it has, for one context."""
        return len(self.fit.counts)


@dataclass(frozen=True)
class _Sized:
    """A pool whose `size_bytes` are all but those of its tables, and the levels of these."""

    pool: _Pool
    levels: list[list[int]]

    @classmethod
    def of(cls, pool: _Pool, counts: NDArray[np.int64]) -> "_Sized":
        """`pool`, whose `size_bytes` are those of its classes, with symbols that occur so often."""
        levels = levels_of(counts, pool.fineness)
        return cls(replace(pool, size_bytes=pool.size_bytes + _coded_bytes(counts, levels, pool.fineness)), levels)

    @cached_property
    def about_bytes(self) -> float:
        """What it takes with its tables, but for the few bytes that their coder adds."""
        return self.pool.size_bytes + tables_bits(np.array(self.levels, np.int64)) / 8

    @cached_property
    def coded(self) -> _Pool:
        """The pool with what it takes in all."""
        side = BitWriter()
        write_tables(side, self.levels, self.pool.fineness)
        return replace(self.pool, size_bytes=self.pool.size_bytes + len(side.finish()))


def chunk_body(data: bytes, start: int, end: int, placed: Sequence[Placed]) -> bytes:
    """The body of the chunk that holds `data[start:end]`, with `placed` as the weights in it."""
    placed = _few_kinds(placed)
    gaps, at = [], start
    for one in placed:
        gaps.append(data[at : one.offset])
        at = one.offset + one.length
    graph, filters = deflated(b"".join([*gaps, data[at:end]]))
    pools = _pools([plane for one in placed if one.form for plane in one.form.planes if plane.key is not None])
    numbers = {key: number for number, key in enumerate(pools)}
    firsts = dict(zip(pools, np.cumsum([0, *(pool.tables for pool in pools.values())]), strict=False))
    used = dict.fromkeys(pools, 0)
    plan, rest = BitWriter(), [graph]
    symbols, which = [np.empty(0, np.uint8)], [np.empty(0, np.uint8)]
    for one, gap in zip(placed, gaps, strict=True):
        plan.number(len(gap), "gap")
        plan.number(one.length, "length")
        plan.bit(int(one.form is None), "copy")
        if one.form is None:
            plan.number(one.copied or 0, "copied")
            continue
        _write_form(plan, one.form)
        rest.append(one.form.values)
        for place, plane in enumerate(one.form.planes):
            if plane.key is None:
                rest.append(plane.symbols.tobytes())
                own = None
            else:
                own = _tables_of(plane, pools[plane.key].fit, used)
                symbols.append(plane.symbols)
                which.append((own[1] + firsts[plane.key]).astype(np.uint8))
            if place == 0:
                _write_classes(plan, plane, own[0] if own else ())
            if place == 1 and one.form.bare:
                plan.number(plane.symbols.size, "full")
            plan.number(0 if plane.key is None else numbers[plane.key] + 1, "lower" if place else "pool")
    late, coded, base = b"".join(rest), np.concatenate(symbols), np.concatenate(which)
    lanes = lanes_for(coded.size, sum(pool.size_bytes for pool in pools.values())) if coded.size else 0
    rows, tables = _write_pools(plan, list(pools.values()), coded, base, lanes)
    states, words = encode(coded, tables, rows, lanes, late[: 2 * lanes])
    told = plan.finish()
    return b"".join(
        [
            _number(end - start),
            _number(len(late)),
            _number(len(graph)),
            bytes([filters]),
            _number(len(placed)),
            _number(len(told)),
            told,
            _number(lanes),
            _number(len(words)),
            states.tobytes(),
            words.tobytes(),
            late[2 * lanes :],
        ]
    )


def deflated(data: bytes) -> tuple[bytes, int]:
    """(`data` by LZMA, its settings as one number), by those that suit it best, or a piece from its middle."""
    if not data:
        return b"", 0
    tried = _SETTINGS
    if len(data) > _SMALL:
        piece = middle(data)
        tried = (min(_SETTINGS, key=lambda settings: len(_by_lzma(piece, settings))),)
    found = [(_by_lzma(data, (lc, lp, pb)), lc + 9 * lp + 45 * pb) for lc, lp, pb in tried]
    return min(found, key=lambda one: len(one[0]))


def middle(data: bytes) -> bytes:
    """A piece from the middle of `data`, which stands for all of it."""
    return data[max(0, (len(data) - _PIECE) // 2) :][:_PIECE]


def _by_lzma(data: bytes, settings: tuple[int, int, int]) -> bytes:
    chosen: dict[str, int] = dict(zip(("lc", "lp", "pb"), settings, strict=True))
    chosen |= {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": MOST_CHUNK}
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[chosen])


def _few_kinds(placed: Sequence[Placed]) -> list[Placed]:
    """The same with the smallest weights that have tables of their own sharing some, so that there are few kinds."""
    sizes: dict[Any, int] = {}
    for plane in (plane for one in placed if one.form for plane in one.form.planes if plane.key is not None):
        sizes[plane.key] = sizes.get(plane.key, 0) + plane.symbols.size
    own = sorted((key for key in sizes if "own" in key), key=sizes.__getitem__, reverse=True)
    joined = set(own[_MOST_OWN:])
    found = []
    for one in placed:
        if one.form is not None and any(plane.key in joined for plane in one.form.planes):
            planes = tuple(replace(plane, key=_JOINED) if plane.key in joined else plane for plane in one.form.planes)
            found.append(replace(one, form=replace(one.form, planes=planes)))
        else:
            found.append(one)
    return found


def _write_pools(
    plan: BitWriter, pools: Sequence[_Pool], coded: NDArray[np.uint8], base: NDArray[np.uint8], lanes: int
) -> tuple[list[list[int]], NDArray[np.int64]]:
    """(the frequencies of all tables, the table of every symbol), once the pools are told to `plan`."""
    plan.number(len(pools), "pools")
    if not lanes:
        return [], np.empty(0, np.int64)
    bounds = [bound for pool in pools for bound in pool.bounds or ((0, 255),) * pool.tables]
    contexts = 3 if any(pool.bounds for pool in pools) else 1
    each = len(bounds)
    context = followed(coded, base, bounds, lanes) if contexts > 1 else np.zeros(coded.size, np.int64)
    tables = base + context * each
    counts = np.bincount(tables << 8 | coded, minlength=contexts * each << 8).reshape(contexts, each, 256)
    rows: list[list[list[int]]] = [[] for _ in range(contexts)]
    first = 0
    for pool in pools:
        own = counts[:, first : first + pool.tables, : pool.fit.counts.shape[1]]
        own = own if pool.bounds else own.sum(axis=0, keepdims=True)
        first += pool.tables
        plan.number(own.shape[2] - 1, "alphabet")
        plan.number(pool.tables - 1, "tables")
        plan.bit(int(pool.bounds is not None), "contexts")
        _write_bounds(plan, pool.bounds or ())
        levels = levels_of(own.reshape(-1, own.shape[2]), pool.fineness)
        write_tables(plan, levels, pool.fineness)
        told = _frequencies(levels, pool.fineness)
        for number in range(contexts):
            at = number * pool.tables if pool.bounds else 0
            rows[number] += told[at : at + pool.tables]
    return [row for found in rows for row in found], tables


def _write_bounds(plan: BitWriter, bounds: Sequence[tuple[int, int]]) -> None:
    low, high = 0, 0
    for bound in bounds:
        plan.signed(bound[0] - low, "low")
        plan.signed(bound[1] - high, "high")
        low, high = bound


def _pools(planes: Sequence[PlaneOf]) -> dict[Any, _Pool]:
    """The tables of every kind of symbols, at most as many in all as a chunk may have."""
    by_key: dict[Any, list[PlaneOf]] = {}
    for plane in planes:
        by_key.setdefault(plane.key, []).append(plane)
    pools = {key: _pool(own, MOST_TABLES) for key, own in by_key.items()}
    while sum(pool.tables for pool in pools.values()) > MOST_TABLES:
        widest = max(pools, key=lambda key: pools[key].tables)
        pools[widest] = _pool(by_key[widest], max(1, pools[widest].tables // 2))
    return pools


def _pool(planes: Sequence[PlaneOf], most: int) -> _Pool:
    """The tables of symbols of one kind: as many, and told as finely, as pays."""
    parts = [part for plane in planes for part in _parts(plane)]
    alphabet = max(plane.alphabet for plane in planes)
    if not any(plane.shapes for plane in planes):
        most = 1
    one = fitted(parts, alphabet, most=1)
    used = int(np.flatnonzero(one.counts[0]).max()) + 1 if one.counts.any() else 1
    tried = next((counts for size, counts in _TRIED if one.bits / 8 <= size), (32,))
    found = []
    for count in sorted({min(count, most) for count in tried}):
        fit = one if count == 1 else fitted(parts, alphabet, most=count)
        fit = Fitted(fit.classes, fit.counts[:, :used])
        side = _classes_size(fit)
        found += [_Sized.of(_Pool(fit, fineness, side), fit.counts) for fineness in _FINENESS]
    best = _smallest(found)
    return _smallest([best, _with_contexts(best.pool, parts)]).coded


def _smallest(tried: Sequence[_Sized]) -> _Sized:
    """The one of `tried` that takes the fewest bytes: where several may be it they are coded, else estimated."""
    least = min(one.about_bytes for one in tried)
    near = [one for one in tried if one.about_bytes <= least + _CLOSE]
    return near[0] if len(near) == 1 else min(near, key=lambda one: one.coded.size_bytes)


def _with_contexts(pool: _Pool, parts: Sequence[NDArray[np.uint8]]) -> _Sized:
    """The same with the symbol before each as a context: below, among or above the middle half of its table."""
    counts = pool.fit.counts
    middle = (np.cumsum(counts, axis=1) - counts / 2) / np.maximum(1, counts.sum(axis=1, keepdims=True))
    low = (middle < _OUTER).sum(axis=1)
    high = np.maximum((middle <= 1 - _OUTER).sum(axis=1), low) - 1
    bounds = tuple((int(first), int(last)) for first, last in zip(low, high, strict=True))
    found = np.zeros((3 * len(counts), counts.shape[1]), np.int64)
    for number, part in enumerate(parts):
        which, symbols = pool.fit.tables(number).reshape(-1).astype(np.uint8), part.reshape(-1)
        context = followed(symbols, which, bounds, 1)
        key = (which + context * len(counts)) * counts.shape[1] + symbols
        found += np.bincount(key, minlength=found.size).reshape(found.shape)
    side = BitWriter()
    _write_bounds(side, bounds)
    more = len(side.finish()) + _classes_size(pool.fit)
    return _smallest([_Sized.of(_Pool(pool.fit, fineness, more, bounds), found) for fineness in _FINENESS])


def _classes_size(fit: Fitted) -> int:
    """The bytes that the classes take."""
    side = BitWriter()
    for classes in fit.classes if len(fit.counts) > 1 else ():
        for axis, own in enumerate(classes):
            _write_axis(side, axis, own)
    return len(side.finish())


def _coded_bytes(counts: NDArray[np.int64], levels: list[list[int]], fineness: int) -> float:
    """The bytes of symbols that occur so often, (tables, alphabet), by tables of these levels."""
    rows = np.array(_frequencies(levels, fineness), np.float64)
    return float(-(counts * np.log2(np.maximum(rows, 1) / (1 << PRECISION))).sum()) / 8


def _frequencies(levels: list[list[int]], fineness: int) -> list[list[int]]:
    return [frequencies([weight_of(level, fineness) for level in row]) for row in levels]


def _parts(plane: PlaneOf) -> list[NDArray[np.uint8]]:
    """The symbols of a plane as its parts, (rows, columns, places) each."""
    found, at = [], 0
    for shape in plane.shapes or ((1, 1, plane.symbols.size),):
        size = shape[0] * shape[1] * shape[2]
        found.append(plane.symbols[at : at + size].reshape(shape))
        at += size
    return found


def _tables_of(plane: PlaneOf, fit: Fitted, used: dict[Any, int]) -> tuple[tuple[Classes, ...], NDArray[np.int64]]:
    """(the classes of a plane's parts, the table in its pool of every symbol); `used` counts the parts of each pool."""
    first = used[plane.key]
    used[plane.key] = last = first + max(1, len(plane.shapes))
    tables = [fit.tables(part).reshape(-1) for part in range(first, last)]
    return fit.classes[first:last], np.concatenate(tables)


def _write_form(plan: BitWriter, form: Form) -> None:
    plan.number(form.width.bit_length() - 1, "width")
    count = len(form.values) // form.width
    plan.number(count, "values")
    if count == 0 and form.width == 1:
        plan.number(form.fold.bit_length() - 1, "fold")
        plan.bit(int(form.signed), "signed")
    elif count == 0:
        plan.bit(int(form.turned), "turned")
        plan.number(form.bare, "bare")


def _write_classes(plan: BitWriter, plane: PlaneOf, classes: tuple[Classes, ...]) -> None:
    classed = any(own.any() for part in classes for own in part)
    plan.bit(int(classed), "classed")
    if not classed:
        return
    for shape, part in zip(plane.shapes, classes, strict=True):
        for axis, size in enumerate(shape):
            plan.number(size - 1, ("size", axis))
        for axis, own in enumerate(part):
            _write_axis(plan, axis, own)


def _write_axis(plan: BitWriter, axis: int, classes: NDArray[np.int64]) -> None:
    plan.number(int(classes[0]), ("first", axis))
    context = 0
    for change in np.diff(classes).tolist():
        plan.signed(change, ("class", axis, context))
        context = min(abs(change), 2)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
