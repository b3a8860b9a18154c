"""JSON with one form for each value: what is signed has no second spelling, and what is read is refused in any other.

RFC 8785 (JSON Canonicalization Scheme): no white space, names sorted by their UTF-16 code units, strings escaped as
little as JSON allows, numbers as ECMAScript writes them.
"""

import json
import math
import re
from typing import Any

from compressor.errors import TrustError
from compressor.storage import json_safe, values_in

# RFC 7493, sec. 2.2: beyond, readers that have doubles alone read another number.
LARGEST_INTEGER = (1 << 53) - 1
_DEEPEST = 64
# A manifest of a hundred thousand files has fewer; each takes a hundred bytes or so in Python.
_MOST_VALUES = 1_000_000
_PARTS = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:e([+-]\d+))?")


def canonical(value: Any) -> bytes:
    """`value` as RFC 8785 writes it, in UTF-8. Raises ValueError for what it has no form for.

    Those are NaN and infinities, integers beyond 2**53 - 1, text with half a character, names that are no text, and
    more than 64 levels.
    """
    return _written(value, 0).encode()


def parsed(raw: bytes, *, what: str, most_bytes: int) -> Any:
    """The value that `raw` is the canonical form of; `what` names it in errors.

    Raises TrustError for anything else: other JSON, names given twice, white space, a number spelled in another way.
    """
    if len(raw) > most_bytes:
        raise TrustError(f"{what} has {len(raw):,} bytes, and at most {most_bytes:,} are read")
    require_few_values(raw, what)
    try:
        value = json.loads(
            raw.decode(), parse_int=_integer, parse_constant=_no_constant, object_pairs_hook=without_twins
        )
        same = canonical(value) == raw
    except (ValueError, RecursionError) as error:
        raise TrustError(f"{what} is not the JSON that was written ({error}); get the file again") from error
    if not same:
        raise TrustError(
            f"{what} is not in the form in which it was written: an editor or a formatter changed it (even by a line "
            "break at the end); get the file again"
        )
    return value


def require_few_values(raw: bytes, what: str) -> None:
    """Raises TrustError where the JSON `raw` may hold more values than are read: small ones fill the memory."""
    if (count := values_in(raw)) > _MOST_VALUES:
        raise TrustError(f"{what} has up to {count:,} values, and at most {_MOST_VALUES:,} are read")


def fitting(value: Any) -> Any:
    """`value` as canonical JSON has it: what it has no form for becomes text or null."""
    return _fitting(json_safe(value))


def is_text(value: str) -> bool:
    """Whether `value` is characters alone, none of them a half."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these `pairs`, for `json.loads`; raises ValueError where a name stands there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:100]!r} stands there twice")
    return found


def _written(value: Any, depth: int) -> str:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    match value:
        case None | True | False:
            return json.dumps(value)
        case str():
            value.encode()  # half a character is refused here, where the value is known
            return json.dumps(value, ensure_ascii=False)
        case int():
            if abs(value) > LARGEST_INTEGER:
                raise ValueError(f"the integer {str(value)[:30]} is beyond 2**53 - 1; write it as text")
            return str(value)
        case float():
            return _number(value)
        case list() | tuple():
            return f"[{','.join(_written(entry, depth + 1) for entry in value)}]"
        case dict():
            if not all(isinstance(name, str) for name in value):
                raise ValueError("names in JSON are text")
            names = sorted(value, key=lambda name: name.encode("utf-16-be"))
            return f"{{{','.join(f'{_written(name, 0)}:{_written(value[name], depth + 1)}' for name in names)}}}"
    raise ValueError(f"JSON has no form for {type(value).__name__}")


def _fitting(value: Any) -> Any:
    if isinstance(value, dict):
        return {_text(name): _fitting(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_fitting(entry) for entry in value]
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_INTEGER:
        return str(value)
    return value


def _text(value: str) -> str:
    return value if is_text(value) else value.encode("utf-8", "backslashreplace").decode()


def _number(value: float) -> str:
    """ECMA-262, Number::toString: the shortest digits that are read as `value`, which Python's repr has as well."""
    if not math.isfinite(value):
        raise ValueError(f"JSON has no form for {value}")
    if value == 0:
        return "0"
    found = _PARTS.fullmatch(repr(value))
    assert found is not None
    sign, whole, fraction, exponent = found.groups()
    digits = whole + (fraction or "")
    point = len(whole) + int(exponent or 0)  # digits before the point
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if 0 < point <= 21:
        digits = digits.ljust(point, "0")
        return sign + digits[:point] + (f".{digits[point:]}" if len(digits) > point else "")
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    rest = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{rest}e{'+' if point > 0 else '-'}{abs(point - 1)}"


def _integer(text: str) -> int | float:
    value = int(text)
    # Whole numbers are written without a point up to 21 digits; beyond 2**53 they were floats.
    return value if abs(value) <= LARGEST_INTEGER else float(text)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")
