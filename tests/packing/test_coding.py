"""The coders of packed files against their decoders, and against the entropy that bounds them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.packing.classes import entropy_bits, fitted, plain
from compressor.packing.coding import BitWriter, encode, followed, lanes_for, levels_of, write_tables
from compressor.packing.reader import Bits, Pool, Tables, UnpackError, decode, frequencies, read_tables, weight_of


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2**38), st.integers(0, 3)), max_size=60))
def test_numbers_come_back(numbers) -> None:
    """Any numbers in any contexts, the very large among them, with carries through bytes of 255."""
    writer = BitWriter()
    for value, context in numbers:
        writer.number(value, context)
        writer.signed(-value, context)
    reader = Bits(writer.finish())
    for value, context in numbers:
        assert reader.number(context) == value
        assert reader.signed(context) == -value


def test_likely_bits_take_little() -> None:
    """A thousand bits of which one in fifty is set take about their entropy, 141 bits, and what learning costs."""
    rng = np.random.default_rng(0)
    bits = (rng.random(1000) < 0.02).astype(int).tolist()
    writer = BitWriter()
    for bit in bits:
        writer.bit(bit, "same")
    data = writer.finish()
    assert len(data) < 40
    reader = Bits(data)
    assert [reader.bit("same") for _ in bits] == bits


def test_a_plan_without_an_end_is_refused() -> None:
    """Reading on and on behind the last byte ends in an error, not in zeros for ever."""
    reader = Bits(b"\xff\xff\xff")
    with pytest.raises(UnpackError, match="ends too early"):
        [reader.number("any") for _ in range(1000)]


def test_frequencies_sum_and_keep_the_rare() -> None:
    """2^14 in all, none of those that occur at 0: by hand for three, and with 255 rare ones beside a frequent one."""
    assert frequencies([1, 2, 1]) == [4096, 8192, 4096]
    assert frequencies([0, 5, 0]) == [0, 16384, 0]
    crowded = frequencies([10**9, *[1] * 255])
    assert sum(crowded) == 16384
    assert crowded[0] == 16384 - 255
    assert min(frequencies([3] * 256)) == 64


def test_levels_are_powers_and_steps_between_them() -> None:
    """With one step between powers: 2, 3, 4, 6, 8, 12; counts come back to within a quarter of themselves."""
    assert [weight_of(level, 1) for level in range(7)] == [0, 2, 3, 4, 6, 8, 12]
    counts = np.array([[0, 1, 2, 5, 17, 900, 123_456]])
    for fineness, error in ((0, 0.42), (1, 0.23), (2, 0.13)):
        found = np.array([weight_of(level, fineness) for level in levels_of(counts, fineness)[0]])
        assert found[0] == 0
        scale = 2 << fineness
        assert np.abs(found[1:] / (counts[0, 1:] * scale) - 1).max() <= error


@pytest.mark.parametrize("fineness", [0, 1, 2])
def test_tables_come_back(fineness) -> None:
    """What is read are the frequencies of the levels that were written."""
    counts = np.random.default_rng(1).poisson(3.0, (5, 37))
    levels = levels_of(counts, fineness)
    writer = BitWriter()
    write_tables(writer, levels, fineness)
    wanted = [frequencies([weight_of(level, fineness) for level in row]) for row in levels]
    assert read_tables(Bits(writer.finish()), 37, 5) == wanted


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_symbols_come_back(count, lanes, tables, seed) -> None:
    """Any number of symbols on any number of states, in contexts and without, with what the first states held."""
    rng = np.random.default_rng(seed)
    rows = [[frequencies([1, *rng.integers(0, 9, 19)]) for _ in range(tables)] for _ in range(3)]
    alone = frequencies([1, *rng.integers(0, 9, 19)])
    bounds = [(int(low), int(low + more)) for low, more in rng.integers(0, 9, (tables, 2))]
    pools = [Pool((*rows,), bounds), Pool(([alone],), [(0, 255)])]
    which = rng.integers(0, tables + 1, count).astype(np.uint8)
    symbols, context = np.zeros(count, np.uint8), np.zeros(count, np.int64)
    for at in range(count):  # one after the other: what may come depends on what came
        context[at] = followed(symbols[: at + 1], which[: at + 1], [*bounds, (0, 255)], 1)[at]
        begins = at % max(1, count // lanes) == 0 or at >= count // lanes * lanes
        context[at] = 1 if begins else context[at]
        symbols[at] = rng.choice(np.flatnonzero(alone if which[at] == tables else rows[context[at]][which[at]]))
    inside = rng.bytes(2 * lanes)
    assert (followed(symbols, which, [*bounds, (0, 255)], lanes) == context).all()
    every = [row for found in rows for row in [*found, alone]]
    states, words = encode(symbols, which + context * (tables + 1), every, lanes, inside)
    found, held = decode(states.astype(np.int64), words.astype(np.int64), Tables.of(pools), which)
    assert (found == symbols).all()
    assert held.tobytes() == inside


def test_symbols_take_their_entropy() -> None:
    """100,000 symbols of a known distribution, with 256 states: within 1 % of their entropy, less what those hold."""
    rng = np.random.default_rng(0)
    symbols = np.clip(np.rint(rng.normal(20, 4, 100_000)), 0, 40).astype(np.uint8)
    counts = np.bincount(symbols, minlength=41)
    rows = [frequencies(counts.tolist())]
    states, words = encode(symbols, np.zeros(len(symbols), np.uint8), rows, 256, b"")
    size = states.nbytes + words.nbytes - 2 * 256
    assert size <= 1.01 * entropy_bits(counts) / 8


def test_a_word_too_few_or_too_many_is_refused() -> None:
    """The stream has to end exactly where the first states are reached again."""
    rows = [frequencies([1, 1, 1, 1])]
    symbols = np.tile(np.arange(4, dtype=np.uint8), 64)
    which = np.zeros(256, np.uint8)
    states, words = (array.astype(np.int64) for array in encode(symbols, which, rows, 4, b""))
    for damaged in (words[:-1], np.append(words, 0)):
        with pytest.raises(UnpackError):
            decode(states, damaged, Tables.of([Pool((rows,), [(0, 255)])]), which)


def test_lanes_follow_the_size() -> None:
    """One state for few symbols, a state for every 512 bytes of many, and more where that would make many small steps.

    A state costs a byte: never more than a part in 160 of the symbols.
    """
    assert lanes_for(5, 3.0) == 1
    assert lanes_for(100_000, 60_000.0) == 117
    assert lanes_for(800_000, 96_000.0) == 600
    assert lanes_for(800_000, 200_000.0) == 768
    assert lanes_for(1_000_000, 512_000.0) == 1000
    assert lanes_for(2_000, 100_000.0) == 250


def test_classes_find_rows_and_columns_of_other_scales() -> None:
    """Rows and columns of other scales: with classes they take less than with one table, and near what truth would."""
    rng = np.random.default_rng(0)
    rows, columns = 2.0 ** rng.integers(0, 4, 64), 2.0 ** rng.integers(0, 3, 96)
    scales = rows[:, None, None] * columns[None, :, None] * np.ones(9)
    symbols = np.clip(np.rint(rng.normal(0, 1, scales.shape) * scales), -127, 127).astype(np.int64) + 127
    part = symbols.astype(np.uint8)
    known = sum(entropy_bits(np.bincount(part[scales == scale])) for scale in np.unique(scales))
    found, one = fitted([part], 255, most=32), plain([part], 255)
    assert found.bits < 0.9 * one.bits
    assert found.bits < 1.01 * known
    assert found.counts.sum() == part.size
    assert found.tables(0).max() < len(found.counts)


def test_the_symbol_before_is_a_context() -> None:
    """By hand: below 2, from 2 to 4, above 4; the first of a run, and what is left over, have none before them."""
    symbols = np.array([1, 3, 5, 0, 4, 9, 2], np.uint8)
    bounds = [(2, 4)]
    assert followed(symbols, np.zeros(7, np.uint8), bounds, 1).tolist() == [1, 0, 1, 2, 0, 1, 2]
    assert followed(symbols, np.zeros(7, np.uint8), bounds, 2).tolist() == [1, 0, 1, 1, 0, 1, 1]
