"""Single values of a recipe replaced from the command line: `stages.0.remove=0.3`."""

from typing import Any

from compressor.errors import LONGEST_REASON, bounded
from compressor.recipe.text import Place, parse_value

# A stage, its number, its name, and a few value objects inside each other; written deep, others would end in Python's
# limit of recursion.
_MOST_KEYS = 20


def override_(data: dict[str, Any], override: str) -> Place:
    """The place in `data`, a recipe's plain data, that `override` (path=value) was written to.

    Paths are dotted; stages are counted from 0. Names of stages and value objects may be in the path or left out.
    Raises ValueError where the path leads nowhere.
    """
    path, separator, text = override.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not separator or not all(keys):
        raise ValueError("an override is path=value, such as stages.0.remove=0.3 or seed=3")
    if len(keys) > _MOST_KEYS:
        raise ValueError(f"the path has {len(keys)} keys, and no value of a recipe has more than {_MOST_KEYS}")
    if not text.strip():
        raise ValueError(
            f"{bounded(path, LONGEST_REASON)} is given no value; write {keys[-1]}=null where none is meant"
        )
    value = parse_value(text)
    if keys[0] != "stages":
        return _fields_(data, (), keys, value)
    stages = data.get("stages")
    if len(keys) == 1:
        data["stages"] = value
        return ("stages",)
    if not isinstance(stages, list):
        raise ValueError("the recipe has no list of stages")  # it is the caller's text that is wrong
    if not (keys[1].isascii() and keys[1].isdigit()) or len(keys[1]) > 9 or int(keys[1]) >= len(stages):
        raise ValueError(
            f"there is no stage {bounded(repr(keys[1]), LONGEST_REASON)}; the recipe has {len(stages)}, counted from 0"
        )
    return _named_(stages, int(keys[1]), ("stages", int(keys[1])), keys[2:], value)


def _named_(owner: Any, key: Any, place: Place, rest: list[str], value: Any) -> Place:
    """Writes into `owner[key]`, which is `name` or `{name: fields}`, or a value that has no fields."""
    if not rest:
        owner[key] = value
        return place
    current = owner[key] if isinstance(owner, list) else owner.get(key)
    if isinstance(current, str):
        current = {current: {}}
    if not isinstance(current, dict) or len(current) != 1:
        current = {rest[0]: {}}
    owner[key] = current
    name = next(iter(current))
    if current[name] is None:
        current[name] = {}
    rest = rest[1:] if rest[0] == name else rest
    if not rest:
        current[name] = value
        return (*place, name)
    if not isinstance(current[name], dict):
        raise ValueError(f"{name} has no parameters to set {rest[0]!r} in")  # the same
    return _fields_(current[name], (*place, name), rest, value)


def _fields_(fields: dict[str, Any], place: Place, keys: list[str], value: Any) -> Place:
    """Writes into the mapping `fields`: a plain key, or on into the value of one."""
    key, rest = keys[0], keys[1:]
    if not rest:
        fields[key] = value
        return (*place, key)
    if place or key != "budget":
        return _named_(fields, key, (*place, key), rest, value)
    if not isinstance(fields.get("budget"), dict):
        fields["budget"] = {}
    return _fields_(fields["budget"], ("budget",), rest, value)
