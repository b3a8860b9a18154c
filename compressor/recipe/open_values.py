"""Values that a recipe leaves open, `student: <my_models:small>`: whoever runs it gives them, or it is refused."""

from collections.abc import Iterator
from typing import Any

from compressor.recipe.problems import dotted
from compressor.recipe.text import Place

_STUDENT, _TEACHES = "student", "distill"


def open_values(data: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Every value in `data`, a recipe's plain data, that is left open, a text in angle brackets, by its place."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        if isinstance(value, str) and len(value) > 2 and value[0] == "<" and value[-1] == ">":
            yield (*place, key), value
        else:
            yield from open_values(value, (*place, key))


def problems(data: dict[str, Any]) -> list[tuple[Place, str]]:
    """What the stages of `data` leave open: the place of each, and a sentence that says how it is given."""
    return [
        (
            place,
            f"{dotted(place)} is left open, {value}, and nothing goes in its place; "
            + (
                "give the function of yours that makes it with --student my_models:small"
                if place[-1] == _STUDENT
                else f"give it with --set {dotted(place)}=..."
            ),
        )
        for place, value in open_values(data.get("stages"), ("stages",))
    ]


def teach_(data: dict[str, Any], student: str, *, name: str) -> Place:
    """The place in `data`, the recipe `name`, that `student` was written to: the first that is left open for one.

    Without such a place it is that of the first `distill`. Raises ValueError where there is none.
    """
    left = [place for place, _ in open_values(data.get("stages"), ("stages",)) if place[-1] == _STUDENT]
    if left:
        owner: Any = data
        for key in left[0][:-1]:
            owner = owner[key]
        owner[_STUDENT] = student
        return left[0]
    given = data.get("stages")
    stages: list[Any] = given if isinstance(given, list) else []
    names = list(map(_name, stages))
    if _TEACHES not in names:
        raise ValueError(
            f"--student is taught by the first distill of a recipe, and {name} has {', '.join(names) or 'no stages'}; "
            "take student_int8, or write one with distill"
        )
    number = names.index(_TEACHES)
    settings = stages[number][_TEACHES] if isinstance(stages[number], dict) else None
    if settings is not None and not isinstance(settings, dict):
        raise ValueError(f"--student is one of the settings of distill, and {name} has {settings!r} there")
    stages[number] = {_TEACHES: {**(settings or {}), _STUDENT: student}}
    return ("stages", number, _TEACHES, _STUDENT)


def _name(stage: Any) -> str:
    return str(next(iter(stage), "")) if isinstance(stage, dict) else str(stage)
