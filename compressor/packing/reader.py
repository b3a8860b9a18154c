"""Reads packed models: one file that needs Python, NumPy and nothing else, made to be copied to where models run.

`python reader.py model.pack model.onnx` writes the very bytes that were packed, or says what is wrong and writes
nothing. The format is written down in `docs/packing.md`; in short, a file is cut into chunks, and of each chunk

- the *plan* says which byte ranges are weights, how they become symbols (bytes, nibbles, exponents, numbers of values),
  and which table of frequencies each symbol is coded by. It is coded bit by bit with adaptive probabilities: G. N. N.
  Martin 1979, "Range encoding: an algorithm for removing redundancy from a digitised message", sec. 4, for two symbols.
- the *symbols* are coded by asymmetric numeral systems in the range variant: J. Duda 2013, arXiv:1311.2540, eq. 4
  (C(s, x) = 2^n floor(x / f) + c + x mod f and its inverse), many interleaved states as in F. Giesen 2014,
  arXiv:1402.3392, sec. 3: one NumPy operation decodes a symbol of each state.
- the *rest* is what does not become fewer bits that way: the graph, by LZMA, and the low bits of floats as they are.
"""

import argparse
import hashlib
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

MAGIC, VERSION = b"\x93CPACK", 1
# Of one chunk, in bytes of the file that was packed: what bounds the memory of a reader.
MOST_CHUNK = 1 << 23
# Protocol buffers end at 2 GiB, and so do the files that are packed.
MOST_TOTAL = 1 << 31
PRECISION = 14
SHORTEST = 1 << 16
MOST_TABLES, MOST_LANES = 80, 1 << 14
_ONE = 1 << PRECISION
# Where in a step the next symbol's tables stand, above a frequency of up to 2^14 and a first slot.
_NEXT = 2 * PRECISION + 1
# A chunk that gained nothing is a little longer than what it holds.
_MOST_BODY = MOST_CHUNK + (1 << 16)
# 40 bits: no number of a plan needs more.
_MOST_BITS = 40
# How fast a context learns, by how often it was used.
_RATES = tuple((used + 1).bit_length() + 1 for used in range(15))

Bytes = NDArray[np.uint8]


class UnpackError(ValueError):
    """A file that is no packed model, one of another version, beyond a limit, or damaged."""


@dataclass(frozen=True)
class Header:
    """What the first bytes say: how long the packed file is in `size` bytes, and its SHA-256."""

    size: int
    sha256: bytes


class Bits:
    """Numbers out of bytes, bit by bit, each with a probability that its context has learned.

    A context is whatever can be a key; all begin at one half and learn quickly first, then slowly. Past the end there
    are zeros, of which a sound plan reads at most four.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._range = data, 4, 0xFFFFFFFF
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"))
        self._contexts: dict[object, list[int]] = {}

    def bit(self, context: object) -> int:
        """The next bit; a `context` of None says that both are as likely."""
        known = self._contexts.get(context)
        if known is None:
            known = [32768, 0]
            if context is not None:
                self._contexts[context] = known
        bound = (self._range >> 16) * known[0]
        if self._code < bound:
            self._range, bit = bound, 0
        else:
            self._code, self._range, bit = self._code - bound, self._range - bound, 1
        learn(known, bit)
        while self._range < 0x1000000:
            if self._at > len(self._data) + 8:
                raise UnpackError("the plan of a chunk ends too early")
            self._code = (self._code << 8 | (self._data[self._at] if self._at < len(self._data) else 0)) & 0xFFFFFFFF
            self._range, self._at = self._range << 8, self._at + 1
        return bit

    def number(self, context: object) -> int:
        """The next number from 0 on: how many bits it has, by one decision each, then those below the highest one."""
        length = 0
        while self.bit((context, length)):
            length += 1
            if length > _MOST_BITS:
                raise UnpackError("the plan of a chunk has a number that none can have")
        value = 1
        for place in range(length):
            value = value << 1 | self.bit((context, length, value) if place < 3 else None)
        return value - 1

    def signed(self, context: object) -> int:
        """The next number of either sign: 0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
        value = self.number(context)
        return -(value + 1 >> 1) if value & 1 else value >> 1


def learn(known: list[int], bit: int) -> None:
    """Moves the probability of a 0, of 65536, towards what came: by a fourth first, by a 32nd after some."""
    probability, used = known
    rate = _RATES[used] if used < len(_RATES) else 5
    if bit:
        probability -= probability >> rate
        known[0] = probability if probability > 64 else 64  # noqa: FURB136  # a call takes as long as all the rest
    else:
        probability += 65536 - probability >> rate
        known[0] = probability if probability < 65472 else 65472  # noqa: FURB136
    known[1] = used + 1


def weight_of(level: int, fineness: int) -> int:
    """What a table's level stands for: 0, then numbers that double every 2^fineness levels."""
    if level == 0:
        return 0
    exponent, place = divmod(level - 1, 1 << fineness)
    return ((1 << fineness) + place) << exponent


def frequencies(weights: list[int]) -> list[int]:
    """`weights` as whole frequencies that sum to 2^14, none above 0 becoming 0; a table of zeros is one nobody uses."""
    total = sum(weights)
    if total == 0:
        return [_ONE] + [0] * (len(weights) - 1)
    found = [max(1, weight * _ONE // total) if weight else 0 for weight in weights]
    left = _ONE - sum(found)
    while left:
        largest = max(range(len(found)), key=found.__getitem__)
        # Where many rare symbols were rounded up, the largest pay; they stay above 0.
        step = left if left > 0 else max(left, -(found[largest] // 2))
        found[largest] += step
        left -= step
    return found


@dataclass(frozen=True)
class Pool:
    """The tables of symbols of one kind: `rows[context][table]` are frequencies, for one context or for three.

    Which of three a symbol has follows from the symbol before it: 0 where that is below the first of `bounds` of its
    own table, 2 where it is above the second, else 1.
    """

    rows: tuple[list[list[int]], ...]
    bounds: list[tuple[int, int]]


@dataclass(frozen=True)
class Tables:
    """All tables of a chunk: the symbol of every slot, and of every symbol its frequency, first slot and what follows.

    Those of the first context come first, then those of the second and of the third, as many each. `usual` is how far
    the tables are from the first ones where no symbol came before.
    """

    symbols: Bytes  # (tables * 2^14,)
    steps: NDArray[np.int64]  # (tables * 256,): how far the next one's tables are << 29 | frequency << 14 | first slot
    usual: int

    @classmethod
    def of(cls, pools: list[Pool]) -> "Tables":
        """Those of `pools`, one behind the other."""
        contexts = max(len(pool.rows) for pool in pools)
        rows = [row for context in range(contexts) for pool in pools for row in pool.rows[context % len(pool.rows)]]
        counts = np.zeros((len(rows), 256), np.int64)
        for row, found in zip(counts, rows, strict=True):
            row[: len(found)] = found
        each = len(rows) // contexts
        next_ = np.full((each, 256), each if contexts > 1 else 0)
        for row, (low, high) in zip(next_, (bound for pool in pools for bound in pool.bounds), strict=True):
            if contexts > 1:
                row[:low], row[high + 1 :] = 0, 2 * each
        first = np.cumsum(counts, axis=1) - counts
        symbols = np.concatenate([np.repeat(np.arange(256, dtype=np.uint8), row) for row in counts])
        steps = np.tile(next_, (contexts, 1)) << _NEXT | counts << PRECISION | first & _ONE - 1
        return cls(symbols, steps.reshape(-1), each if contexts > 1 else 0)


def read_tables(bits: Bits, alphabet: int, count: int) -> list[list[int]]:
    """`count` tables over `alphabet` symbols: levels, each told from its left and upper neighbours, as frequencies."""
    fineness = bits.number("fineness")
    if fineness > 3:
        raise UnpackError("a table is finer than any is")
    above, found = [0] * alphabet, []
    for number in range(count):
        row: list[int] = []
        for place in range(alphabet):
            guess, context = level_guess(row, above, place, number)
            level = guess + bits.signed(("level", context))
            if not 0 <= level <= 48 << fineness:
                raise UnpackError("a table has a level that none can have")
            row.append(level)
        found.append(frequencies([weight_of(level, fineness) for level in row]))
        above = row
    return found


def level_guess(row: list[int], above: list[int], place: int, number: int) -> tuple[int, tuple[int, int]]:
    """(what a level is likely to be, the context of its difference): by M. Weinberger et al. 2000, LOCO-I, eq. 1."""
    left = row[place - 1] if place else 0
    if number == 0:
        return left, (0, min(left, 1))
    upper, corner = above[place], above[place - 1] if place else above[place]
    low, high = min(left, upper), max(left, upper)
    guess = low if corner >= high else high if corner <= low else left + upper - corner
    if place == 0:
        guess = upper
    return guess, (1 + min(upper, 1), min(abs(left - corner), 3) if place else 4)


def decode(states: NDArray[np.int64], words: NDArray[np.int64], tables: Tables, which: Bytes) -> tuple[Bytes, Bytes]:
    """(the symbol of every place, the bytes that the first states of the encoder held).

    `which` is the table of every place in the first context. Each state has a run of symbols, all as long, so that the
    symbol before one is known when it is decoded; what is left in the end is one symbol more for the first states.
    """
    lanes, count = len(states), len(which)
    steps = count // lanes
    whole = steps * lanes
    found = np.empty(count, np.uint8)
    x, at = states.copy(), 0
    runs = np.empty((steps, lanes), np.uint8)
    # A conversion of all is quicker than one in every step.
    rows = np.ascontiguousarray(which[:whole].reshape(lanes, steps).T).astype(np.int64)
    context: NDArray[np.int64] | int = tables.usual
    mask, twice = _ONE - 1, 2 * _ONE - 1
    for number in range(steps + (whole < count)):
        last = number == steps
        state = x[: count - whole] if last else x
        row = which[whole:].astype(np.int64) + tables.usual if last else rows[number] + context
        slot = state & mask
        symbol = tables.symbols.take((row << PRECISION) + slot)
        if last:
            found[whole:] = symbol
        else:
            runs[number] = symbol
        step = tables.steps.take((row << 8) + symbol)
        context = step >> _NEXT
        state >>= PRECISION
        state *= step >> PRECISION & twice
        state += slot
        state -= step & mask
        short = np.flatnonzero(state < SHORTEST)
        if at + len(short) > len(words):
            raise UnpackError("the symbols of a chunk end too early")
        state[short] = state[short] << 16 | words[at : at + len(short)]
        at += len(short)
    if at != len(words) or (x >> 16 != 1).any():
        raise UnpackError("the symbols of a chunk do not end where they should")
    found[:whole] = runs.T.reshape(-1)
    return found, (x & 0xFFFF).astype("<u2").view(np.uint8)


@dataclass(frozen=True)
class Plane:
    """Symbols of one kind and place in their elements: `pool` -1 for bytes as they are; `which` by symbol or None."""

    pool: int
    count: int
    which: Bytes | None


@dataclass(frozen=True)
class Segment:
    """A byte range that is no part of the graph: `gap` bytes behind the one before it, `length` bytes long.

    It is a copy of what stands at `copied` in the file, or elements of `width` bytes, each of which is told by its
    `planes`: a number of one of `values` values; `fold` symbols in a byte, in the order of numbers of two signs where
    `signed`; or its bytes from the highest to the lowest,
    rotated by one bit to the left where `turned`. Where `bare` is not 0, elements whose highest byte is 0 are 0 and
    have no lower ones; where it is 2, those whose highest byte is 255 have none either and are -0.0.
    """

    gap: int
    length: int
    copied: int | None = None
    width: int = 1
    turned: bool = False
    bare: int = 0
    fold: int = 1
    signed: bool = False
    values: int = 0
    planes: tuple[Plane, ...] = ()


def read_plan(bits: Bits, size: int, count: int) -> tuple[list[Segment], list[Pool]]:
    """(the `count` segments of a chunk of `size` bytes, the tables of each pool)."""
    segments, at = [], 0
    for _ in range(count):
        gap, length = bits.number("gap"), bits.number("length")
        at += gap + length
        if at > size or length == 0:
            raise UnpackError("a weight lies outside of its chunk")
        if bits.bit("copy"):
            segments.append(Segment(gap, length, copied=bits.number("copied")))
            continue
        segments.append(_read_segment(bits, gap, length))
    return segments, [_read_pool(bits) for _ in range(_least(bits.number("pools"), MOST_TABLES, "pools"))]


def _read_pool(bits: Bits) -> Pool:
    alphabet = _least(bits.number("alphabet") + 1, 256, "symbols")
    count = _least(bits.number("tables") + 1, MOST_TABLES, "tables")
    if not bits.bit("contexts"):
        return Pool((read_tables(bits, alphabet, count),), [(0, 255)] * count)
    bounds, low, high = [], 0, 0
    for _ in range(count):
        low, high = low + bits.signed("low"), high + bits.signed("high")
        if not 0 <= low <= high + 1 <= alphabet:
            raise UnpackError("a table has bounds that none can have")
        bounds.append((low, high))
    rows = read_tables(bits, alphabet, 3 * count)
    return Pool((rows[:count], rows[count : 2 * count], rows[2 * count :]), bounds)


def _read_segment(bits: Bits, gap: int, length: int) -> Segment:
    width = 1 << _least(bits.number("width"), 3, "bytes in an element")
    if length % width:
        raise UnpackError("a weight is no whole number of elements")
    count, values = length // width, _least(bits.number("values"), 256, "values")
    turned, bare, fold, signed = False, 0, 1, False
    if values == 0 and width == 1:
        fold, signed = 1 << _least(bits.number("fold"), 3, "symbols in a byte"), bool(bits.bit("signed"))
    elif values == 0:
        turned, bare = bool(bits.bit("turned")), _least(bits.number("bare"), 2, "kinds of zeros")
    symbols = count * fold
    which = _read_classes(bits, symbols)
    planes = [Plane(bits.number("pool") - 1, symbols, which)]
    lower = 0 if values else width - 1
    if bare:
        symbols = _least(bits.number("full"), symbols, "elements")
    planes += [Plane(bits.number("lower") - 1, symbols, None) for _ in range(lower)]
    return Segment(
        gap,
        length,
        width=width,
        turned=turned,
        bare=bare,
        fold=fold,
        signed=signed,
        values=values,
        planes=tuple(planes),
    )


def _read_classes(bits: Bits, symbols: int) -> Bytes | None:
    """The table of every symbol in its pool, from the classes of rows, columns and places; None where all are 0."""
    if not bits.bit("classed"):
        return None
    found, left = [], symbols
    while left:
        shape = [bits.number(("size", axis)) + 1 for axis in range(3)]
        if shape[0] * shape[1] * shape[2] > left:
            raise UnpackError("a weight has more rows and columns than elements")
        left -= shape[0] * shape[1] * shape[2]
        rows, columns, places = (_read_axis(bits, axis, size) for axis, size in enumerate(shape))
        if int(rows.max() + columns.max() + places.max()) >= MOST_TABLES:
            raise UnpackError("a weight has a class that none can have")
        sums = rows[:, None, None] + columns[None, :, None] + places[None, None, :]
        found.append(sums.astype(np.uint8).reshape(-1))
    return np.concatenate(found) if found else None


def _read_axis(bits: Bits, axis: int, size: int) -> NDArray[np.int64]:
    found, last = [], bits.number(("first", axis))
    found.append(last)
    context = 0
    for _ in range(size - 1):
        change = bits.signed(("class", axis, context))
        context, last = min(abs(change), 2), last + change
        if not 0 <= last < MOST_TABLES:
            raise UnpackError("a weight has a class that none can have")
        found.append(last)
    return np.array(found, np.int64)


def _least(value: int, most: int, what: str) -> int:
    if value > most:
        raise UnpackError(f"a chunk says that it has {value} {what}, and at most {most} are possible")
    return value


class Cursor:
    """Bytes read from the front; whatever is wanted beyond their end is an error."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = memoryview(data), 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        if count > len(self._data) - self._at:
            raise UnpackError("a chunk ends too early")
        self._at += count
        return bytes(self._data[self._at - count : self._at])

    def left(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self._at)

    def number(self) -> int:
        """The next number, seven bits in a byte, the lowest first."""
        value = 0
        for place in range(6):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * place
            if byte < 128:
                return value
        raise UnpackError("a chunk has a number that none can have")


def read_chunk(body: bytes, fetch: Callable[[int, int], bytes], start: int, most: int) -> bytes:
    """The bytes that `body` holds, at most `most`; `fetch(offset, length)` gives those before the chunk's `start`."""
    cursor = Cursor(body)
    size = _least(cursor.number(), min(most, MOST_CHUNK), "bytes")
    rest_size, graph_size, filters = cursor.number(), cursor.number(), cursor.take(1)[0]
    count = _least(cursor.number(), size, "weights")
    segments, pools = read_plan(Bits(cursor.take(cursor.number())), size, count)
    symbols, inside = _read_symbols(cursor, segments, pools)
    rest = Cursor((inside + cursor.left())[:rest_size])
    graph = Cursor(_inflated(rest.take(graph_size), filters, size - sum(segment.length for segment in segments)))
    out, at = bytearray(), 0
    for segment in segments:
        out += graph.take(segment.gap)
        if segment.copied is not None:
            out += _copied(segment, fetch, start, out)
            continue
        values = rest.take(segment.values * segment.width)
        planes = []
        for plane in segment.planes:
            if plane.pool < 0:
                planes.append(np.frombuffer(rest.take(plane.count), np.uint8))
            else:
                planes.append(symbols[at : at + plane.count])
                at += plane.count
        out += _joined(segment, planes, values)
    out += graph.left()
    if len(out) != size or rest.left():
        raise UnpackError("a chunk does not hold as much as it says")
    return bytes(out)


def _read_symbols(cursor: Cursor, segments: list[Segment], pools: list[Pool]) -> tuple[Bytes, bytes]:
    first = np.cumsum([0, *(len(pool.bounds) for pool in pools)])
    if first[-1] > MOST_TABLES:
        raise UnpackError(f"a chunk has {first[-1]} tables, and at most {MOST_TABLES} are possible")
    which = []
    for plane in (plane for segment in segments for plane in segment.planes if plane.pool >= 0):
        if plane.pool >= len(pools):
            raise UnpackError("a weight is coded by tables that are not there")
        own = np.zeros(plane.count, np.uint8) if plane.which is None else plane.which
        if own.size and own.max() >= len(pools[plane.pool].bounds):
            raise UnpackError("a weight is coded by a table that is not there")
        which.append(own + np.uint8(first[plane.pool]))
    lanes, words = _least(cursor.number(), MOST_LANES, "lanes"), cursor.number()
    states = np.frombuffer(cursor.take(4 * lanes), "<u4").astype(np.int64)
    stream = np.frombuffer(cursor.take(2 * words), "<u2").astype(np.int64)
    if not any(map(len, which)) or lanes == 0:
        if any(map(len, which)) or words:
            raise UnpackError("a chunk has no symbols where it should")
        return np.empty(0, np.uint8), b""
    if (states < SHORTEST).any():
        raise UnpackError("a chunk has a state that none can have")
    found, inside = decode(states, stream, Tables.of(pools), np.concatenate(which))
    return found, inside.tobytes()


def _joined(segment: Segment, planes: list[Bytes], values: bytes) -> bytes:
    """The bytes of a segment out of its planes."""
    top = planes[0]
    if segment.values:
        if top.size and int(top.max()) >= segment.values:
            raise UnpackError("a weight is a value that is not there")
        return bytes(np.frombuffer(values, f"V{segment.width}")[top].tobytes())
    width = 8 // segment.fold
    if top.size and int(top.max()) >> width:
        raise UnpackError("a weight has more bits than it should")
    if segment.signed:
        top = top ^ np.uint8(1 << width - 1)
    if segment.fold > 1:
        shifts = np.arange(0, 8, width, dtype=np.uint8)
        return bytes(np.bitwise_or.reduce(top.reshape(-1, segment.fold) << shifts, axis=1).astype(np.uint8).tobytes())
    if segment.width == 1:
        return top.tobytes()
    table = np.zeros((len(top), segment.width), np.uint8)
    table[:, -1] = top
    full = np.ones(len(top), bool) if segment.bare == 0 else top != 0
    if segment.bare == 2:
        negative = top == 255
        full &= ~negative
        table[negative, -1] = 0
        table[negative, 0] = 1
    if any(len(plane) != np.count_nonzero(full) for plane in planes[1:]):
        raise UnpackError("a weight has more elements than it should")
    for place, plane in enumerate(planes[1:], start=2):
        table[full, segment.width - place] = plane
    numbers = table.reshape(-1).view(f"<u{segment.width}")
    if segment.turned:
        numbers = numbers >> 1 | numbers << (8 * segment.width - 1)
    return numbers.astype(f"<u{segment.width}").tobytes()


def _copied(segment: Segment, fetch: Callable[[int, int], bytes], start: int, out: bytearray) -> bytes:
    offset = segment.copied or 0
    if offset + segment.length <= start:
        return fetch(offset, segment.length)
    if offset < start or offset + segment.length > start + len(out):
        raise UnpackError("a weight is a copy of something that comes later")
    return bytes(out[offset - start : offset - start + segment.length])


def _inflated(data: bytes, filters: int, size: int) -> bytes:
    """What `data` holds by LZMA, exactly `size` bytes; `filters` is lc + 9 lp + 45 pb, as in LZMA's own files."""
    if not data and not size:
        return b""
    pb, rest = divmod(_least(filters, 224, "settings"), 45)
    lp, lc = divmod(rest, 9)
    chosen = [{"id": lzma.FILTER_LZMA1, "dict_size": MOST_CHUNK, "lc": lc, "lp": lp, "pb": pb}]
    try:
        inflater = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chosen)
        found = inflater.decompress(data, max_length=size + 1)
    except (lzma.LZMAError, ValueError) as error:
        raise UnpackError(f"the graph of a chunk is damaged ({error})") from error
    if len(found) != size:
        raise UnpackError("the graph of a chunk does not hold as much as it says")
    return found


def read_header(source: BinaryIO, *, most: int = MOST_TOTAL) -> Header:
    """What the file says of itself. Raises UnpackError where it is none, of another version, or beyond `most` bytes."""
    head = source.read(len(MAGIC) + 1)
    if head[: len(MAGIC)] != MAGIC:
        raise UnpackError("it is no packed model: it begins otherwise")
    if head[len(MAGIC) :] != bytes([VERSION]):
        raise UnpackError(
            f"it is packed in version {head[-1] if len(head) > len(MAGIC) else '?'} of the format, and this reader "
            f"knows version {VERSION}"
        )
    fixed = source.read(44)
    if len(fixed) != 44 or zlib.crc32(head + fixed[:-4]) != int.from_bytes(fixed[-4:], "little"):
        raise UnpackError("its first bytes are damaged")
    size = int.from_bytes(fixed[:8], "little")
    if size > most:
        raise UnpackError(f"it says that it holds {size:,} bytes, and at most {most:,} are unpacked")
    return Header(size, fixed[8:40])


def chunks(source: BinaryIO, header: Header, fetch: Callable[[int, int], bytes]) -> Iterator[bytes]:
    """The packed file's bytes, chunk by chunk, from a `source` behind its header; the hash is checked before the last.

    `fetch(offset, length)` gives bytes that came before. Raises UnpackError for whatever is not as it was written.
    """
    digest, at = hashlib.sha256(), 0
    while at < header.size or at == 0:
        frame = source.read(8)
        length = int.from_bytes(frame[:4], "little")
        if len(frame) != 8 or length > _MOST_BODY:
            raise UnpackError(f"it ends, or is damaged, after {at:,} of {header.size:,} bytes")
        body = source.read(length)
        if len(body) != length or zlib.crc32(body) != int.from_bytes(frame[4:], "little"):
            raise UnpackError(f"it ends, or is damaged, after {at:,} of {header.size:,} bytes")
        try:
            found = read_chunk(body, fetch, at, header.size - at)
        except (IndexError, OverflowError, MemoryError) as error:
            raise UnpackError(f"a chunk is damaged ({type(error).__name__})") from error
        digest.update(found)
        at += len(found)
        if not found and header.size:
            raise UnpackError("a chunk holds nothing")
        if at == header.size and (digest.digest() != header.sha256 or source.read(1)):
            raise UnpackError("what it holds is not what was packed: its SHA-256 differs, or something follows it")
        yield found
        if not header.size:
            return


def unpack_into(source: BinaryIO, target: BinaryIO, *, most: int = MOST_TOTAL) -> Header:
    """Writes to `target`, which is read as well, what `source` holds, and gives back its header.

    Raises UnpackError; `target` holds a part then and is not to be used.
    """
    header = read_header(source, most=most)

    def fetch(offset: int, length: int) -> bytes:
        target.seek(offset)
        found = target.read(length)
        target.seek(0, os.SEEK_END)
        return found

    target.writelines(chunks(source, header, fetch))
    return header


def main() -> None:
    """The command: a packed model, and where to put what it holds."""
    parser = argparse.ArgumentParser(description="Unpacks a packed model: the very bytes that were packed.")
    parser.add_argument("packed", type=Path)
    parser.add_argument("out", type=Path, help="where the model goes, such as model.onnx")
    arguments = parser.parse_args()
    if arguments.out.exists() and arguments.packed.exists() and arguments.out.samefile(arguments.packed):
        sys.exit(f"error: {arguments.packed} cannot be unpacked onto itself; name another file to write to")
    part = arguments.out.with_name(f"{arguments.out.name}.part")
    try:
        with arguments.packed.open("rb") as source, part.open("w+b") as target:
            unpack_into(source, target)
        part.replace(arguments.out)
    except (UnpackError, OSError) as error:
        part.unlink(missing_ok=True)
        sys.exit(f"error: {arguments.packed}: {error}")


if __name__ == "__main__":
    main()
