"""The YAML that recipes are written in: plain data, every value with its line, nothing that surprises.

YAML 1.2's scalars rather than PyYAML's: `1e-3` is a number, `on`, `010` and `1:30` are not something else. Refused are
tags, merge keys and duplicate keys, and what grows without bounds: large files, deep nesting, bombs of aliases.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from compressor.errors import RecipeError

Place = tuple[str | int, ...]

# A recipe is some dozen lines; PyYAML needs seconds for a megabyte.
LARGEST_BYTES = 100_000
_DEEPEST = 20
_MOST_ALIASES = 50
_MOST_VALUES = 10_000

# What a whole number of 64 bits holds: seeds, counts and sizes end there.
_LARGEST_INTEGER = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class Document:
    """Parsed YAML: the `data`, the line of every place in it (from 1), and the comment that the text begins with.

    `problems` are (line, message) of what parsing could go on after: duplicate keys, tags, keys that are no text.
    """

    data: Any
    lines: dict[Place, int]
    comment: str
    problems: list[tuple[int, str]]


class _Limit(yaml.YAMLError):
    pass


class _Loader(yaml.SafeLoader):
    depth = 0
    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > _MOST_ALIASES:
                raise _Limit(f"more than {_MOST_ALIASES} aliases (*name); a recipe needs none: write the values out")
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _Limit(f"nested more than {_DEEPEST} levels deep; a recipe has at most eight")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        del data  # a value that occurs twice is written twice
        return True


_NUMBER_STARTS = list("-+0123456789.")
_FLOAT = re.compile(
    r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN)$"
)
_INT = re.compile(r"^[-+]?[0-9]+$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("merge", re.compile(r"^<<$"), ["<"]),
    ("int", _INT, _NUMBER_STARTS),
    ("float", _FLOAT, _NUMBER_STARTS),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _starts)
# Text that this loader would take for a number must be quoted when written.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS)
_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML loses Unicode's own line breaks outside of double quotes.
    odd = any(character in value for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if odd else None)


_Dumper.add_representer(str, _represent_text)


def _number(text: str) -> float:
    # Python's own words for what YAML writes as .inf and .nan.
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _integer(text: str) -> int:
    # Python refuses to read some thousand digits, by a ValueError of its own.
    value = int(text) if len(text) <= 20 else _LARGEST_INTEGER + 1
    if abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"a whole number is at most {_LARGEST_INTEGER}, got {_short(text)!r}")
    return value


# By tag: how its text looks, and what it stands for. Tags can be written out before any text (`!!bool maybe`).
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "str": (re.compile(r"(?s).*"), str),
    "int": (_INT, _integer),
    "float": (re.compile(f"{_FLOAT.pattern}|{_INT.pattern}"), _number),
    "bool": (_BOOL, lambda text: text.lower() == "true"),
    "null": (_NULL, lambda _: None),
}
_COLLECTIONS = {"seq": yaml.SequenceNode, "map": yaml.MappingNode}


def parse(text: str, source: str) -> Document:
    """The document in `text`. Raises RecipeError naming `source` and the line where it is no YAML or beyond limits."""
    if len(text) > LARGEST_BYTES:
        raise RecipeError([f"{source}:1: a recipe has at most {LARGEST_BYTES} bytes, this one has {len(text)}"])
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        raise RecipeError([_explain(error, text, source)]) from error
    lines: dict[Place, int] = {(): 1}
    problems: list[tuple[int, str]] = []
    try:
        data = None if node is None else _Walk(lines, problems).value(node, ())
    except _Limit as error:
        raise RecipeError([f"{source}:1: {error}"]) from error
    return Document(data=data, lines=lines, comment=leading_comment(text), problems=problems)


def parse_value(text: str) -> Any:
    """The value that `text` stands for, as on the right-hand side of `key: text`. Raises ValueError."""
    if len(text) > LARGEST_BYTES:
        raise ValueError(f"a value has at most {LARGEST_BYTES} bytes, this one has {len(text)}")
    try:
        node = _compose(text)
        problems: list[tuple[int, str]] = []
        value = None if node is None else _Walk({}, problems).value(node, ())
    except yaml.YAMLError as error:
        raise ValueError(
            f"{_short(text)!r} is not a YAML value ({_problem(error)}); quote text that has : # or brackets"
        ) from error
    if problems:
        raise ValueError(problems[0][1])
    return value


def to_yaml(data: dict[str, Any]) -> str:
    """The YAML text of plain data, in its own order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None)
    return text


def leading_comment(text: str) -> str:
    """The comment lines that `text` begins with, without their # marks."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        found.append(line.removeprefix("#").strip())
    return "\n".join(found).strip()


def _compose(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _Walk:
    """Turns nodes into data and notes where each value stands."""

    def __init__(self, lines: dict[Place, int], problems: list[tuple[int, str]]) -> None:
        self.lines, self.problems, self.count = lines, problems, 0

    def value(self, node: Any, place: Place) -> Any:
        self.count += 1
        if self.count > _MOST_VALUES or len(place) > _DEEPEST:
            raise _Limit(f"more than {_MOST_VALUES} values once aliases (*name) are written out; a recipe needs none")
        line = node.start_mark.line + 1
        # A key's own line was noted before its value, which may begin on the next one.
        self.lines.setdefault(place, line)
        kind = self.kind(node)
        if not kind:
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*place, index)) for index, child in enumerate(node.value)]
        pattern, value_of = _SCALARS[kind]
        if not pattern.fullmatch(node.value):
            self.problems.append((line, f"{_short(node.value)!r} is not a value of type {kind}"))
            return None
        try:
            return value_of(node.value)
        except ValueError as error:
            self.problems.append((line, str(error)))
            return None

    def kind(self, node: Any) -> str:
        """The plain name of the node's tag, "" where it is refused."""
        kind: str = node.tag.removeprefix("tag:yaml.org,2002:")
        wanted = yaml.ScalarNode if kind in _SCALARS else _COLLECTIONS.get(kind)
        line = node.start_mark.line + 1
        if wanted is None or kind == node.tag:
            name = node.tag.replace("tag:yaml.org,2002:", "!!")
            told = f"the tag {_short(name)} is refused: a recipe is plain data and never builds objects"
        elif not isinstance(node, wanted):
            told = f"the tag !!{kind} does not fit the {node.id} behind it; leave it out"
        else:
            return kind
        self.problems.append((line, told))
        return ""

    def mapping(self, node: Any, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.problems.append((line, "merge keys (<<) are refused; write the values out"))
                continue
            if not self.kind(key_node):
                continue
            key = key_node.value
            if not isinstance(key, str):
                self.problems.append((line, "a key must be a name, got a list or a mapping"))
                continue
            if key in found:
                first = self.lines[(*place, key)]
                self.problems.append((line, f"duplicate key {key!r}, first given in line {first}; keep one of the two"))
                continue
            self.lines[(*place, key)] = line
            found[key] = self.value(value_node, (*place, key))
        return found


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def _problem(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        return " ".join(part for part in (error.context, error.problem) if part)
    return " ".join(str(error).split())


def _explain(error: yaml.YAMLError, text: str, source: str) -> str:
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    if mark and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
        return f"{source}:{line}: a tab in the indentation; YAML wants spaces"
    if isinstance(error, _Limit):
        return f"{source}:1: {error}"
    return f"{source}:{line}: not YAML: {_problem(error)}"
