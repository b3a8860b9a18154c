"""Sweeps: a value given as a list, `remove: {sweep: [0.3, 0.5]}`, which makes several recipes of one.

A sweep may stand for any value of a stage, of the budget, for the seed, and for a stage as a whole, where null leaves
the stage out. Several of them make every combination.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from compressor.recipe.text import Document, Place
from compressor.storage import sha256

# Of one recipe: more are no comparison that anybody reads, and a search besides.
MOST_RECIPES = 500
SWEEP = "sweep"
_WHERE = ("stages", "budget", "seed")
_LONGEST_NAME, _LONGEST_LABEL = 100, 40


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the recipes that sweeps make: its `document`, and where each of its places stood `before`.

    `choices` are the values that were chosen, as `--set` takes them, and `suffix` what sets its name apart.
    """

    document: Document
    before: Mapping[Place, Place]
    choices: tuple[str, ...]
    suffix: str

    def place_before(self, place: Place) -> Place:
        """Where in the recipe with its sweeps `place` is, without the choices on the way."""
        old = list(self.before.get(place, place))
        while SWEEP in old:
            at = old.index(SWEEP)
            del old[at : at + 2]
        return tuple(old)


@dataclass(frozen=True)
class _Choice:
    place: Place
    label: str
    value: Any


# A value without sweeps, where each place in it stood before, and what was chosen for it; places are relative to it.
_Part = tuple[Any, dict[Place, Place], tuple[_Choice, ...]]
_LEFT_OUT = object()


def sweeps_in(data: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every sweep in `data`, plain data of a recipe, by its place, with what stands behind `sweep:`."""
    if _is_sweep(data):
        yield place, data[SWEEP]
        data = data[SWEEP]
        place = (*place, SWEEP)
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from sweeps_in(value, (*place, key))


def problems(data: Any) -> list[tuple[Place, str]]:
    """What is wrong with the sweeps in `data`: the place of each, and a sentence."""
    found = []
    for place, values in sweeps_in(data):
        shown = _dotted(place)
        if not place or place[0] not in _WHERE or place == ("stages",):
            found.append(
                (place, f"{shown or 'the recipe'} cannot be a sweep; {', '.join(_WHERE)} and what is in them can")
            )
        elif not isinstance(values, list) or not values:
            found.append((place, f"{shown} is a sweep without a list of values; write {{sweep: [0.3, 0.5]}}"))
        elif len({repr(value) for value in values}) < len(values):
            found.append((place, f"{shown} is a sweep that names a value twice; give each once"))
    count = 1 if found else _count(data)
    if count > MOST_RECIPES:
        found.append(
            ((), f"the sweeps make {count} recipes, and at most {MOST_RECIPES} are compared; give fewer values")
        )
    return found


def variants(document: Document) -> list[Variant]:
    """The recipes that the sweeps of `document` make, which have no `problems`, the last sweep's values in turn."""
    made = []
    for data, before, choices in _parts(document.data, ()):
        lines = {place: document.lines[old] for place, old in before.items() if old in document.lines}
        # What stood in a list of which stages were left out, and has no line of its own, is asked for by its parents.
        told = tuple(f"{_dotted(choice.place)}={_flow(choice.value)}" for choice in choices)
        made.append(
            Variant(
                document=replace(document, data=data, lines={**lines, (): 1}),
                before=before,
                choices=told,
                suffix=_suffix(choices),
            )
        )
    return made


def name_of(name: str, suffix: str) -> str:
    """The name of a variant: one word, at most 100 characters."""
    whole = f"{name}-{suffix}" if suffix else name
    return whole if len(whole) <= _LONGEST_NAME else f"{whole[: _LONGEST_NAME - 9]}-{sha256(whole.encode())[:8]}"


def _is_sweep(data: Any) -> bool:
    return isinstance(data, dict) and data.keys() == {SWEEP}


def _count(data: Any) -> int:
    if _is_sweep(data):
        return sum(map(_count, data[SWEEP]))
    values = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    total = 1
    for value in values:
        total *= _count(value)
    return total


def _parts(data: Any, old: Place) -> Iterator[_Part]:
    """Every way to choose in `data`, which stood at `old`."""
    if _is_sweep(data):
        labels = _labels(data[SWEEP])
        for number, option in enumerate(data[SWEEP]):
            chosen = _Choice((), labels[number], option)
            is_stage = len(old) == 2 and old[0] == "stages"
            if option is None and is_stage:
                yield _LEFT_OUT, {(): old}, (chosen,)
                continue
            for value, before, choices in _parts(option, (*old, SWEEP, number)):
                yield value, before, (chosen, *choices)
    elif isinstance(data, dict):
        keys = list(data)
        for parts in product(*(list(_parts(data[key], (*old, key))) for key in keys)):
            yield _joined(old, dict(zip(keys, parts, strict=True)), {})
    elif isinstance(data, list):
        for parts in product(*(list(_parts(item, (*old, number))) for number, item in enumerate(data))):
            yield _joined(old, dict(enumerate(parts)), [])
    else:
        yield data, {(): old}, ()


def _joined(old: Place, parts: Mapping[Any, _Part], into: Any) -> _Part:
    before: dict[Place, Place] = {(): old}
    choices: list[_Choice] = []
    for key, (value, inner, chosen) in parts.items():
        place = key if isinstance(into, dict) else len(into)
        # What was left out is said by the place at which the recipe has it.
        choices += [replace(choice, place=(key, *choice.place)) for choice in chosen]
        if value is _LEFT_OUT:
            continue
        before |= {(place, *rest): was for rest, was in inner.items()}
        if isinstance(into, dict):
            into[key] = value
        else:
            into.append(value)
    return into, before, tuple(choices)


def _suffix(choices: tuple[_Choice, ...]) -> str:
    """What sets a variant apart: remove_0.3-fine_tune; the stage stands before a key that two sweeps share."""
    keys = [_key(choice.place) for choice in choices]
    words = []
    for key, choice in zip(keys, choices, strict=True):
        if not key:
            words.append(choice.label)
            continue
        stage = next((part for part in choice.place if isinstance(part, str) and part != "stages"), "")
        shown = f"{stage}.{key}" if Counter(keys)[key] > 1 and stage != key else key
        words.append(f"{shown}_{choice.label}")
    return "-".join(words)


def _key(place: Place) -> str:
    """The name of the value at `place`, "" where a whole stage is chosen."""
    return str(place[-1]) if isinstance(place[-1], str) else "" if len(place) == 2 else f"{place[-2]}.{place[-1]}"


def _labels(options: list[Any]) -> list[str]:
    """A word for each option, all of them different."""
    words = [_word(option) for option in options]
    return [
        word if Counter(words)[word] == 1 and len(word) <= _LONGEST_LABEL else f"{_first(option)}_{number}"
        for number, (word, option) in enumerate(zip(words, options, strict=True), start=1)
    ]


def _word(value: Any) -> str:
    """`value` as one word: distill, or quantize_bits_4 for a stage with its settings."""
    if value is None:
        return "without"
    if isinstance(value, dict):
        # What a sweep inside it gives is said by that sweep.
        given = {key: inner for key, entry in value.items() if (inner := _inner(entry)) or not _is_sweep(entry)}
        return "_".join(f"{_word(key)}_{inner}" if inner else _word(key) for key, inner in given.items())
    if isinstance(value, list):
        return "_".join(map(_word, value)) or "none"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-") or "empty"


def _inner(value: Any) -> str:
    """The settings inside a stage or a value object, without the keys on the way to them; "" for none and sweeps."""
    if value is None or _is_sweep(value):
        return ""
    if isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value.values())), dict):
        return _inner(next(iter(value.values())))
    return _word(value)


def _first(value: Any) -> str:
    while isinstance(value, dict | list) and value:
        value = next(iter(value))
    return _word(value)[:_LONGEST_LABEL]


def _dotted(place: Place) -> str:
    return ".".join(str(part) for part in place if part != SWEEP)


def _flow(value: Any) -> str:
    import yaml

    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("...\n").strip()
