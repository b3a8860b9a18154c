"""Where results are stored, and how a value in one is found."""

import re
from collections.abc import Sequence
from typing import Any

from compressor.storage import read_json
from workbench import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> Any | None:
    """The stored result `name`, without its ending; None where there is none."""
    path = RESULTS / f"{name}.json"
    return read_json(path) if path.exists() else None


def load_all(names: list[str]) -> dict[str, Any]:
    """The stored results by name, those that are there, in the order of `names`."""
    found = {name: load(name) for name in names}
    return {name: result for name, result in found.items() if result is not None}


def values_at(result: Any, path: Sequence[Any]) -> list[Any]:
    """Every value that `path` leads to; each of its steps says where to go on.

    "rows": the value under this key. -1: the item at this position. {"arm": "fp32"}: the one item of a list with these
    fields. {"each": {"outcome": "kept"}}: every item with these fields, and with {"each": {}} all. {"named": "^ours"}:
    every value of an object whose key matches this regular expression. After the last two a key that some items lack
    leads to nothing there. Raises KeyError, saying how far the path led, where it leads to nothing at all.
    """
    found, several = [result], False
    for position, step in enumerate(path):
        following = [value for one in found for value in _step(one, step)]
        if not following:
            raise KeyError(f"the path {list(path)} ends before step {position + 1}, {step!r}: {_described(found)}")
        single = isinstance(step, dict) and not step.keys() & {"each", "named"}
        if single and not several and len(following) > 1:
            raise KeyError(f"{len(following)} items match {step!r} in the path {list(path)}: name one, or use 'each'")
        several = several or (isinstance(step, dict) and not single)
        found = following
    return found


def _step(value: Any, step: Any) -> list[Any]:
    match step, value:
        case str(), dict():
            return [value[step]] if step in value else []
        case int(), list():
            return value[step:][:1] if step != -1 else value[-1:]
        case {"named": pattern}, dict():
            return [one for key, one in value.items() if re.search(pattern, key)]
        case {"each": fields}, list() | dict():
            return [one for one in _items(value) if _has(one, fields)]
        case dict(), list():
            return [one for one in value if _has(one, step)]
        case _:
            return []


def _items(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _has(value: Any, fields: dict[str, Any]) -> bool:
    return all(isinstance(value, dict) and value.get(name) == wanted for name, wanted in fields.items())


def _described(found: list[Any]) -> str:
    first = found[0]
    if isinstance(first, dict):
        return f"there are {', '.join(map(str, list(first)[:12]))}"
    return f"there are {len(first)} items" if isinstance(first, list) else f"there is {first!r}"
