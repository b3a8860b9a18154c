"""What differs between two JSON values, key by key, in lines for people."""

import json
from collections.abc import Iterator
from typing import Any

_ABSENT = object()
_SHOWN = 60


def changes(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """One line for each entry that differs: where it is, what it was, what it is."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            place = f"{path}.{key}" if path else str(key)
            yield from changes(before.get(key, _ABSENT), now.get(key, _ABSENT), place)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from changes(old, new, f"{path}.{number}")
    elif before is _ABSENT or now is _ABSENT or type(before) is not type(now) or before != now:
        yield f"{path}: was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = "not given" if value is _ABSENT else json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
