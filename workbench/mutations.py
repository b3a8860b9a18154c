"""Files damaged at random: bytes changed, cut, moved; and JSON values replaced by others of any type."""

import json
import random
from typing import Any

# What stands nowhere in a good file, or stands there as another type.
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 1e308, "", "0", "\x00", [], {}, [[]], {"": {}}, "a" * 1000, [None], {"0": [0]},
)  # fmt: skip


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """`raw` with one fault: a flipped bit, an edited byte, a stretch cut out, doubled, zeroed or moved, a lost end."""
    place, length = chance.randrange(len(raw)), chance.randint(1, 64)
    stretch, after = raw[place : place + length], raw[place + length :]
    kind = chance.choice(("bit", "bit", "byte", "cut", "doubled", "zeroed", "moved", "truncated", "longer", "empty"))
    if kind == "bit":
        return raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :]
    if kind == "byte":
        return raw[:place] + bytes([chance.randrange(256)]) + raw[place + 1 :]
    if kind == "moved":
        rest = raw[:place] + after
        target = chance.randrange(len(rest) + 1)
        return rest[:target] + stretch + rest[target:]
    return {
        "cut": raw[:place] + after,
        "doubled": raw[:place] + stretch + stretch + after,
        "zeroed": raw[:place] + bytes(len(stretch)) + after,
        "truncated": raw[:place],
        "longer": raw + chance.randbytes(length),
        "empty": b"",
    }[kind]


def edited(value: Any, chance: random.Random) -> Any:
    """A copy of the JSON `value` with one entry somewhere inside replaced, removed, renamed, doubled or nested deep."""
    copied = json.loads(json.dumps(value))
    places = _places(copied)
    if not places:
        return chance.choice(ODD_VALUES)
    parent, key = chance.choice(places)
    kind = chance.choice(("replaced", "replaced", "removed", "renamed", "shifted", "swapped", "nested"))
    if kind == "removed":
        del parent[key]
    elif kind == "renamed" and isinstance(parent, dict):
        parent[f"{key}{chance.choice(('x', '.weight', ''))}"] = parent.pop(key)
    elif kind == "shifted" and isinstance(parent[key], int):
        parent[key] += chance.choice((-1, 1, 256))
    elif kind == "swapped":
        other_parent, other = chance.choice(_places(copied))
        swapped = json.loads(json.dumps([parent[key], other_parent[other]]))
        parent[key] = swapped[1]
        if other in (other_parent if isinstance(other_parent, dict) else range(len(other_parent))):
            other_parent[other] = swapped[0]
    elif kind == "nested":
        deep: Any = parent[key]
        for _ in range(chance.choice((1, 3, 200))):
            deep = [deep]
        parent[key] = deep
    else:
        parent[key] = chance.choice(ODD_VALUES)
    return copied


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside `value`."""
    found: list[tuple[Any, Any]] = []
    todo = [value] if isinstance(value, dict | list) else []
    while todo:
        container = todo.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list) and container[key]:
                todo.append(container[key])
    return found
