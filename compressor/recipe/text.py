"""The YAML that recipes are written in: plain data, every value with its line, nothing that surprises.

YAML 1.2's scalars rather than PyYAML's: `1e-3` is a number, `on`, `010` and `1:30` are not something else. Refused are
tags, merge keys and duplicate keys, and what grows without bounds: large files, deep nesting, bombs of aliases.
"""

import re
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

_PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


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
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _starts in (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("merge", re.compile(r"^<<$"), ["<"]),
    ("int", _INT, _NUMBER_STARTS),
    ("float", _FLOAT, _NUMBER_STARTS),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _starts)
# Text that this loader would take for a number must be quoted when written.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _NUMBER_STARTS)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML loses Unicode's own line breaks outside of double quotes.
    odd = any(character in value for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if odd else None)


_Dumper.add_representer(str, _represent_text)


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
    except (_Limit, ValueError) as error:
        raise RecipeError([f"{source}:1: {error}"]) from error
    return Document(data=data, lines=lines, comment=leading_comment(text), problems=problems)


def parse_value(text: str) -> Any:
    """The value that `text` stands for, as on the right-hand side of `key: text`. Raises ValueError."""
    try:
        node = _compose(text)
        problems: list[tuple[int, str]] = []
        value = None if node is None else _Walk({}, problems).value(node, ())
    except yaml.YAMLError as error:
        raise ValueError(
            f"{text!r} is not a YAML value ({_problem(error)}); quote text that has : # or brackets"
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
        self.lines, self.problems, self.count, self.constructor = lines, problems, 0, _Loader("")

    def value(self, node: Any, place: Place) -> Any:
        self.count += 1
        if self.count > _MOST_VALUES or len(place) > _DEEPEST:
            raise _Limit(f"more than {_MOST_VALUES} values once aliases (*name) are written out; a recipe needs none")
        line = node.start_mark.line + 1
        # A key's own line was noted before its value, which may begin on the next one.
        self.lines.setdefault(place, line)
        if node.tag not in _PLAIN_TAGS:
            name = node.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append((line, f"the tag {name} is refused: a recipe is plain data and never builds objects"))
            return None
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*place, index)) for index, child in enumerate(node.value)]
        try:
            return self.constructor.construct_object(node)
        except ValueError:
            self.problems.append((line, f"{node.value[:40]!r} is not a value of type {node.tag.rpartition(':')[2]}"))
            return None

    def mapping(self, node: Any, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                self.problems.append((line, "merge keys (<<) are refused; write the values out"))
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
