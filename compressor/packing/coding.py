"""Symbols and numbers into bytes: the other direction of what `reader.py` decodes, where the sources stand."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from compressor.packing.reader import MOST_LANES, PRECISION, learn, level_guess, weight_of

_MASK = (1 << PRECISION) - 1
# A state costs about a byte more than it carries: this keeps all of them to a part in some hundreds of the symbols.
_BYTES_PER_LANE = 512
# A step of few states takes as long as one of so many, for its calls take the time: symbols of few bytes, as those of
# sparse weights, are given as many at a higher price. Small files are not, which are decoded in no time.
_QUICK, _BYTES_PER_QUICK_LANE, _SMALL_BYTES = 768, 160, 1 << 16
_LEAST_STEPS = 8


class BitWriter:
    """What `Bits` reads: numbers by bits, each with the probability that its context has learned."""

    def __init__(self) -> None:
        self._low, self._range, self._cache, self._pending = 0, 0xFFFFFFFF, 0, 0
        self._out = bytearray()
        self._contexts: dict[object, list[int]] = {}

    def bit(self, bit: int, context: object) -> None:
        """Appends `bit`."""
        known = [32768, 0] if context is None else self._contexts.setdefault(context, [32768, 0])
        bound = (self._range >> 16) * known[0]
        if bit == 0:
            self._range = bound
        else:
            self._low, self._range = self._low + bound, self._range - bound
        learn(known, bit)
        while self._range < 1 << 24:
            self._range <<= 8
            self._shift()

    def number(self, value: int, context: object) -> None:
        """Appends `value` (>= 0)."""
        length = (value + 1).bit_length() - 1
        for place in range(length):
            self.bit(1, (context, place))
        self.bit(0, (context, length))
        for place in range(length):
            above = (value + 1) >> (length - place)
            self.bit((value + 1) >> (length - place - 1) & 1, (context, length, above) if place < 3 else None)

    def signed(self, value: int, context: object) -> None:
        """Appends `value` of either sign."""
        self.number(2 * value if value >= 0 else -2 * value - 1, context)

    def finish(self) -> bytes:
        """All bytes; up to four zeros at the end, which a reader adds, are left out."""
        for _ in range(5):
            self._shift()
        out = bytes(self._out[1:])  # the first is what a carry out of the very first number would go to: none can
        return out[:-4] + out[-4:].rstrip(b"\0")

    def _shift(self) -> None:
        # A carry goes through all bytes of 255 that are not written yet.
        if self._low < 0xFF000000 or self._low > 0xFFFFFFFF:
            carry = self._low >> 32
            self._out.append(self._cache + carry & 255)
            self._out += bytes([255 + carry & 255]) * self._pending
            self._cache, self._pending = self._low >> 24 & 255, 0
        else:
            self._pending += 1
        self._low = (self._low & 0x00FFFFFF) << 8


def levels_of(counts: NDArray[np.int64], fineness: int) -> list[list[int]]:
    """The level of every count, (tables, alphabet): the one whose weight is nearest, by the scale that it is on."""
    scale = 1 << fineness + 1
    found = np.searchsorted(_bounds(fineness), counts * scale) + 1
    levels: list[list[int]] = np.where(counts > 0, found, 0).tolist()
    return levels


@cache
def _bounds(fineness: int) -> NDArray[np.float64]:
    """The counts between two levels each, on the scale of levels."""
    weights = np.array([weight_of(level, fineness) for level in range(1, (40 << fineness) + 1)], np.float64)
    return np.sqrt(weights[1:] * weights[:-1])


def write_tables(bits: BitWriter, levels: list[list[int]], fineness: int) -> None:
    """Appends tables by their levels."""
    bits.number(fineness, "fineness")
    above = [0] * len(levels[0])
    for number, row in enumerate(levels):
        for place, level in enumerate(row):
            guess, context = level_guess(row[:place], above, place, number)
            bits.signed(level - guess, ("level", context))
        above = row


def tables_bits(levels: NDArray[np.int64]) -> float:
    """About the bits that `write_tables` appends for these levels, (tables, alphabet): what each bit informs of.

    Contexts learn from their own bits alone, so that each can be gone through by itself; it takes a tenth of the time.
    """
    left, above, corner = np.zeros_like(levels), np.zeros_like(levels), np.zeros_like(levels)
    left[:, 1:], above[1:], corner[1:, 1:] = levels[:, :-1], levels[:-1], levels[:-1, :-1]
    corner[1:, 0] = above[1:, 0]
    low, high = np.minimum(left, above), np.maximum(left, above)
    guess = np.where(corner >= high, low, np.where(corner <= low, high, left + above - corner))
    guess[:, 0] = above[:, 0]
    context = 5 * (1 + np.minimum(above, 1)) + np.minimum(np.abs(left - corner), 3)
    context[:, 0] = 5 * (1 + np.minimum(above[:, 0], 1)) + 4
    guess[0], context[0] = left[0], np.minimum(left[0], 1)
    change, context = (levels - guess).reshape(-1), context.reshape(-1)
    number = np.where(change >= 0, 2 * change, -2 * change - 1) + 1
    length = np.frexp(number)[1].astype(np.int64) - 1
    total, keys, bits = 0.0, list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for place in range(int(length.max(initial=0)) + 1):
        there, more = length >= place, length > place
        keys.append(context[there] << 16 | place)
        bits.append(more[there].astype(np.int64))
        if place >= 3:
            total += float(more.sum())
            continue
        rest = length[more] - place
        keys.append(context[more] << 16 | length[more] + 1 << 8 | number[more] >> rest)
        bits.append(number[more] >> rest - 1 & 1)
    key, bit = np.concatenate(keys), np.concatenate(bits)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1, append=-1))
    found = bit[order].tolist()
    costs = _costs()
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        known = [32768, 0]
        for one in found[start:end]:
            total += costs[65536 - known[0] if one else known[0]]
            learn(known, one)
    return total


@cache
def _costs() -> list[float]:
    """The bits of what has so many chances of 65536."""
    return [16.0, *(16 - np.log2(np.arange(1, 65537))).tolist()]


def lanes_for(count: int, size_bytes: float) -> int:
    """How many states `count` symbols of `size_bytes` in all are spread over."""
    lanes = size_bytes // _BYTES_PER_LANE
    if size_bytes > _SMALL_BYTES:
        lanes = max(lanes, min(_QUICK, size_bytes // _BYTES_PER_QUICK_LANE))
    return int(min(max(1, lanes), MOST_LANES, max(1, count // _LEAST_STEPS)))


def followed(
    symbols: NDArray[np.uint8], which: NDArray[np.uint8], bounds: Sequence[tuple[int, int]], lanes: int
) -> NDArray[np.int64]:
    """The context of every symbol, 0 to 2, by the one before it in the run of its state; `bounds` are by table."""
    low, high = np.array(bounds, np.int64).T
    own = np.where(symbols < low[which], 0, np.where(symbols > high[which], 2, 1))
    found = np.ones(len(symbols), np.int64)
    found[1:] = own[:-1]
    steps = len(symbols) // lanes
    found[: steps * lanes : max(1, steps)] = 1
    found[steps * lanes :] = 1
    return found


def encode(
    symbols: NDArray[np.uint8], tables: NDArray[np.int64], frequencies: list[list[int]], lanes: int, inside: bytes
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """(the states, the words) of which `reader.decode` makes `symbols`, with `inside`, 2 bytes for each lane.

    `tables` is the table of every symbol, a row of `frequencies`.
    """
    counts = np.zeros((len(frequencies), 256), np.int64)
    for row, found in zip(counts, frequencies, strict=True):
        row[: len(found)] = found
    firsts = (np.cumsum(counts, axis=1) - counts).reshape(-1)
    steps = len(symbols) // max(1, lanes)
    whole = steps * lanes
    key = tables.astype(np.int64) << 8 | symbols
    keys = [key[whole:], *np.ascontiguousarray(key[:whole].reshape(lanes, steps).T)[::-1]] if lanes else []
    state = np.frombuffer(inside.ljust(2 * lanes, b"\0"), "<u2").astype(np.int64) + (1 << 16)
    groups = [np.empty(0, np.uint16)]
    for now in keys:
        x, f = state[: len(now)], counts.reshape(-1)[now]
        full = np.flatnonzero(x >= f << 32 - PRECISION)
        groups.append((x[full] & 0xFFFF).astype(np.uint16))
        x[full] >>= 16
        whole_, over = np.divmod(x, f)
        x[:] = (whole_ << PRECISION) + firsts[now] + over
    return state.astype("<u4"), np.concatenate(groups[::-1]).astype("<u2")
