"""Every value has one JSON form, that of RFC 8785, and whatever is spelled otherwise is refused."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import TrustError
from compressor.trust.canonical import canonical, parsed

# RFC 8785, appendix B: the bits of a double, and its only form.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)
    ),
    max_leaves=12,
)


def read(raw: bytes):
    return parsed(raw, what="it", most_bytes=1000)


@pytest.mark.parametrize("bits", NUMBERS)
def test_numbers_are_written_as_ecmascript_writes_them(bits) -> None:
    """The table of the standard, number by number."""
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(value).decode() == NUMBERS[bits]


def test_names_are_sorted_by_utf_16_and_text_is_escaped_as_little_as_can_be() -> None:
    """RFC 8785, sec. 3.2.3: the example of the standard, whose smiley sorts before a letter of a higher code unit."""
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\u00f6": 7}
    assert list(json.loads(canonical(value))) == ["\r", "1", "\x80", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert canonical({"a": '\u20ac$\x0f\nA\'B"\\"/'}) == '{"a":"\u20ac$\\u000f\\nA\'B\\"\\\\\\"/"}'.encode()


@given(VALUES)
def test_what_is_written_is_read_as_the_same_value_and_written_so_again(value) -> None:
    """Reading loses nothing that the form holds."""
    raw = canonical(value)
    again = parsed(raw, what="it", most_bytes=1 << 20)
    assert again == value
    assert canonical(again) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"a": 1}',
        b'{"a":1}\n',
        b'\xef\xbb\xbf{"a":1}',
        b'{"b":1,"a":2}',
        b'{"a":1.0}',
        b'{"a":1e2}',
        b'{"a":-0}',
        b'{"a":NaN}',
        b'{"a":1e999}',
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b"{'a':1}",
        b'{"a":1}{}',
        b"",
        b"[" * 500,
        b"[" * 70 + b"]" * 70,
        b"9" * 900,
    ],
)
def test_any_other_spelling_is_refused(raw) -> None:
    """Names given twice, white space, other numbers and escapes, more after the end, no JSON, no end of nesting."""
    with pytest.raises(TrustError, match="it is not"):
        read(raw)


def test_more_bytes_than_the_limit_are_not_looked_at() -> None:
    """The size is told."""
    with pytest.raises(TrustError, match="1,001 bytes, and at most 1,000"):
        read(b" " * 1001)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800", {1: 2}, {"a"}, b"a"])
def test_what_has_no_form_is_refused(value) -> None:
    """Rather than written as something that reads as another value."""
    with pytest.raises(ValueError, match=r"form|2\*\*53|surrogates|text"):
        canonical([value])


def test_a_flood_of_small_values_is_not_read() -> None:
    """Millions of empty lists fit into some megabytes, and fill the memory of who reads them."""
    with pytest.raises(TrustError, match="1,000,002 values, and at most 1,000,000 are read"):
        parsed(b"[" + b"1," * 999_999 + b"[]]", what="it", most_bytes=1 << 24)
