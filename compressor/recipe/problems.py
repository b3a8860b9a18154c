"""What is wrong with a recipe, in sentences: pydantic's findings with the value that was met and the way out."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from compressor.checks import BYTES, RATES, did_you_mean, unknown_setting
from compressor.plugins import reasons
from compressor.recipe.models import is_mark, options, settings
from compressor.recipe.text import Place

# How a number is written where its unit stands beside it, or a comma in it, and what each unit is worth.
_WITH_UNIT = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*([a-zA-Zµ%]*)")
_UNITS: dict[str, dict[str, float]] = {
    "": {"": 1.0, "%": 0.01, "x": 1.0, "db": 1.0},
    "_ms": {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3},
    "_bytes": dict(BYTES),
}
_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "none_required": "null",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "finite_number": "a finite number",
}


def explain(
    error: ValidationError, data: Any, kinds: Mapping[str, type[Any]], top: Iterable[str]
) -> list[tuple[Place, str]]:
    """(place, message) of everything in `error`. `kinds` are the dataclasses by name, `top` the keys of a recipe."""
    wanted: dict[Place, list[str]] = {}
    found: list[tuple[Place, str]] = []
    for item in error.errors(include_url=False):
        loc = tuple(part for part in item["loc"] if not is_mark(part))
        place, kind = _existing(loc, data), item["type"]
        value, context = _at(data, place), item.get("ctx", {})
        if kind == "extra_forbidden":
            found.append((place, _unknown_key(loc, kinds, list(top), value)))
        elif kind == "missing":
            owner = _owner(loc)
            found.append((place, f"{owner or 'the recipe'} needs {loc[-1]!r}{_keys(kinds, owner)}"))
        elif kind == "unknown_name":
            found.append((place, _unknown_name(place, value, context["names"].split("\n"))))
        elif kind == "value_error":
            found.append((_named_key(place, str(context["error"]), data), str(context["error"])))
        elif kind in {"literal_error", "enum"}:
            wanted.setdefault(place, []).append(str(context["expected"]))
        elif kind == "string_pattern_mismatch":
            wanted.setdefault(place, []).append("one word of letters, digits, dots, dashes and underscores")
        elif kind == "greater_than_equal":
            wanted.setdefault(place, []).append(f"at least {context['ge']}")
        elif kind == "too_short":
            found.append((place, f"{dotted(place)} is empty; give at least {context['min_length']}"))
        elif kind in _WANTED:
            wanted.setdefault(place, []).append(_WANTED[kind])
        else:
            found.append((place, f"{dotted(place)}: {_lower(item['msg'])}, got {_shown(value)}"))
    for place, texts in wanted.items():
        what, value = " or ".join(dict.fromkeys(texts)), _at(data, place)
        hint = _number_meant(place, value) if any("number" in text for text in texts) else ""
        if _WANTED["list_type"] in texts and isinstance(value, str | Mapping) and value and place:
            named = [value] if isinstance(value, str) else list(map(str, value))
            hint = f"; write {place[-1]}: [{', '.join(named)}], or a line with a dash for each"
        found.append((place, f"{dotted(place)} must be {what}, got {_shown(value)}{hint}"))
    return found


def dotted(place: Place) -> str:
    """A place as it is written in --set: stages.0.distill.epochs."""
    return ".".join(map(str, place)) or "the recipe"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value)) or 'nothing in it'}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _existing(loc: Place, data: Any) -> Place:
    """The longest beginning of `loc` that is in the data: what follows it names choices, or what is missing."""
    place: list[str | int] = []
    for item in loc:
        in_mapping = isinstance(data, Mapping) and item in data
        in_list = isinstance(data, list) and isinstance(item, int) and item < len(data)
        if not in_mapping and not in_list:
            break
        data = data[item]
        place.append(item)
    return tuple(place)


def _at(data: Any, place: Place) -> Any:
    for item in place:
        data = data[item]
    return data


def _owner(loc: Place) -> str:
    """The name of the mapping that the last key of `loc` belongs to."""
    names = [item for item in loc[:-1] if isinstance(item, str)]
    return names[-1] if names else ""


def _named_key(place: Place, message: str, data: Any) -> Place:
    """The key that a dataclass's own refusal begins with, where it is given: its line is the one to look at."""
    word = message.partition(" ")[0].strip("`:,'\"")
    value = _at(data, place)
    return (*place, word) if isinstance(value, Mapping) and word in value else place


def _keys(kinds: Mapping[str, type[Any]], owner: str) -> str:
    return f"; its keys: {', '.join(settings(kinds[owner]))}" if owner in kinds else ""


def _unknown_key(loc: Place, kinds: Mapping[str, type[Any]], top: list[str], value: Any) -> str:
    key, owner = loc[-1], _owner(loc)
    if owner not in kinds:
        return f"a recipe has no {key!r}{_elsewhere(key, kinds, top, value)} (it has {', '.join(top)})"
    known = list(settings(kinds[owner]))
    if any(field.name == key for field in dataclasses.fields(kinds[owner])):
        return f"{owner}.{key} is an object of Python and cannot be set in a recipe; use the Python API for it"
    if key in RATES and "optimizer" in known:
        rate = value if isinstance(value, int | float) else 0.01
        return (
            f"{owner} has no {key!r}: the rate is the optimizer's; write optimizer: {{sgd: "
            f"{{rate: {rate}}}}} or {{adam_w: {{rate: {rate / 50:g}}}}}, or leave it out to have it found"
        )
    chosen = next((name for name, hint in settings(kinds[owner]).items() if key in options(hint)), None)
    if chosen is not None:
        return f"{owner} has no {key!r}, but its {chosen} can be one: write {chosen}: {{{key}: {_plain(value)}}}"
    inside = _inside(kinds[owner], str(key))
    if inside:
        where = dotted((*loc[:-1], *inside)) if loc[0] == "stages" else dotted(tuple(inside))
        return (
            f"{owner} has no {key!r}, but its {inside[0]} has: write {inside[0]}: {{{inside[1]}: "
            f"{{{key}: {_plain(value)}}}}}, or --set {where.replace(f'.{owner}.', '.')}={_plain(value)}"
        )
    return unknown_setting(owner, str(key), known)


def _elsewhere(key: Any, kinds: Mapping[str, type[Any]], top: list[str], value: Any) -> str:
    """Where a key that stands at the top of a recipe, or what stands below it, belongs; else what was meant."""
    if "budget" in kinds and key in settings(kinds["budget"]):
        return f"; it belongs into the budget: budget: {{{key}: {_plain(value)}}}"
    below = next((name for name in value if name in top), None) if isinstance(value, Mapping) else None
    if below is not None:
        return f"; {below} stands at the top: {below}: {_plain(value[below])}"
    return did_you_mean(key, top)


def _inside(kind: type[Any], key: str) -> tuple[str, str, str] | tuple[()]:
    """(field, value object, key) of the first field of `kind` whose value objects have a field `key`."""
    for name, hint in settings(kind).items():
        for choice, member in options(hint).items():
            if key in settings(member):
                return name, choice, key
    return ()


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _number_meant(place: Place, value: Any) -> str:
    """The number that a text says with its unit, in quotes or with a comma, as a question; "" where it says none."""
    found = _WITH_UNIT.fullmatch(value.strip()) if isinstance(value, str) else None
    key = next((end for end in ("_ms", "_bytes") if place and str(place[-1]).endswith(end)), "")
    worth = {**_UNITS[""], **_UNITS[key]}.get(found[2].lower()) if found else None
    if found is None or worth is None:
        return ""
    number = round(float(found[1].replace(",", ".")) * worth, 12)
    return f"; did you mean {int(number) if number == int(number) else number}?"


def _number_type(place: Place, name: str, names: list[str]) -> str:
    """What to write for a number type's name, such as int4, where another way of saying it is wanted."""
    found = re.fullmatch(r"u?int(\d+)", name.lower())
    scheme = next((each for each in ("symmetric", "asymmetric") if each in names), None)
    if found and scheme:
        return f"; {found[1]} bits are written {place[-1]}: {{{scheme}: {{bits: {found[1]}}}}}"
    if re.fullmatch(r"(fp|float|half)_?(16)?", name.lower()) and "float16" not in names:
        return "; weights stored as float16 are form: float16"
    return ""


def _unknown_name(place: Place, value: Any, names: list[str]) -> str:
    known = f"known: {', '.join(names)}"
    is_stage = len(place) == 2 and place[0] == "stages"
    what = "stage" if is_stage else f"value for {dotted(place)}"
    if isinstance(value, Mapping) and len(value) != 1:
        hint = "; indent its parameters below its name" if is_stage and len(value) > 1 else ""
        form = f"{dotted(place)} must name one {what}, `name` or `name: {{parameters}}`"
        return f"{form}, got {_shown(value)}{hint} ({known})"
    name = next(iter(value)) if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return f"{dotted(place)} must be the name of a {what}, got {_shown(value)} ({known})"
    if name in (left_out := reasons()):
        return f"the {what} {name!r} cannot be used: {left_out[name]}"
    hint = _number_type(place, name, names) or did_you_mean(name, names)
    return f"unknown {what} {name!r}{hint} ({known})"
