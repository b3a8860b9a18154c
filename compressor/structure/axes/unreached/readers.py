"""Which modules of a model could read a tensor: those in whose own code its name stands, followed through methods."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

from compressor.structure.calling.sources import helpers_of, is_torch, source_of

# Methods that set tensors up, store or show them, and that no call of the model comes through.
SETTING_UP = re.compile(
    r"_*init(ialize)?(_?\w*(weight|param|buffer)\w*)?_*|reset_parameters|\w*state_dict\w*|from_pretrained"
    r"|__(post_init|repr|getstate|setstate|deepcopy|reduce)__|extra_repr"
)
_LOOKING_UP = {"getattr", "attrgetter", "get_parameter", "get_buffer", "__getattr__", "__getattribute__"}
# Names that are followed for one tensor at most.
_MOST = 50


@dataclass(frozen=True)
class Readers:
    """The modules whose `forward` could read a tensor, by name. `found`: its name stands in code that a call runs."""

    modules: frozenset[str]
    found: bool


@dataclass(frozen=True)
class _Mention:
    """Where a name stands: the class and function around it, None outside of one, and whether as `self.<name>`."""

    kind: str | None
    function: str | None
    own: bool


def readers_of(model: nn.Module, owner: str, key: str) -> Readers | None:
    """The readers of what `owner`, the name of a module, keeps as `key`; None where they cannot be told.

    A method that mentions it is followed to the `forward` that calls it. Whatever else does, a function of the module's
    file or a method that nobody calls, could be given any tensor. Names alone are compared, so that more modules than
    there are may be found, and no fewer: but for names that a program puts together.
    """
    modules = dict(model.named_modules())
    classes = {kind for module in modules.values() for kind in type(module).__mro__ if not is_torch(kind)}
    sources = {source_of(kind.__module__) for kind in classes}
    if None in sources:
        return None
    sources |= {path for kind in classes for path in helpers_of(kind.__module__)}
    mentions: dict[str, list[_Mention]] = {}
    for source in sources:
        for name, found in _mentions_in(str(source)).items():
            mentions.setdefault(name, []).extend(found)
    known = {kind.__name__ for kind in classes}
    # Modules of the same files that the model has none of do not run.
    absent = {
        name
        for module in {kind.__module__ for kind in classes}
        for name, value in vars(sys.modules[module]).items()
        if name not in known and isinstance(value, type) and issubclass(value, nn.Module)
    }
    mentioned, readers = False, {owner}
    rest, seen = [key], {key}
    while rest:
        name = rest.pop()
        for mention in _calling(mentions.get(name, []), known, absent, type(modules[owner])):
            if mention.kind is None or mention.function is None:
                return None
            mentioned = True
            if mention.function == "forward":
                readers |= {owner} if mention.own else _instances(modules, mention.kind)
            elif mention.function.startswith("__") or len(seen) > _MOST:
                return None
            elif mention.function not in seen:
                if not any(_calling(mentions.get(mention.function, []), known, absent, type(modules[owner]))):
                    return None  # for whoever uses the model
                seen.add(mention.function)
                rest.append(mention.function)
    return Readers(frozenset(readers), mentioned)


def _calling(mentions: list[_Mention], known: set[str], absent: set[str], owner: type) -> Iterator[_Mention]:
    """Those of `mentions` that can mean the tensor, or a method, of an `owner`, and run when the model is called."""
    own = {kind.__name__ for kind in owner.__mro__}
    for mention in mentions:
        if mention.function is not None and SETTING_UP.fullmatch(mention.function):
            continue
        if mention.own and mention.kind is not None and mention.kind not in own:
            continue  # an attribute of another class
        if mention.kind in absent:
            continue
        if mention.kind is not None and mention.kind not in known:
            yield _Mention(None, mention.function, own=False)
        else:
            yield mention


def _instances(modules: dict[str, nn.Module], kind: str) -> set[str]:
    return {name for name, module in modules.items() if any(base.__name__ == kind for base in type(module).__mro__)}


@lru_cache(maxsize=64)
def _mentions_in(path: str) -> dict[str, list[_Mention]]:
    found: dict[str, list[_Mention]] = {}
    _visit(ast.parse(Path(path).read_text(encoding="utf-8")), None, None, found)
    return found


def _looked_up(node: ast.Call | ast.Subscript) -> list[str]:
    """The texts by which an expression looks up attributes."""
    if isinstance(node, ast.Call):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = node.args if function in _LOOKING_UP else []
    else:
        stored = isinstance(node.value, ast.Attribute) and node.value.attr in {"__dict__", "_buffers", "_parameters"}
        texts = [node.slice] if stored or isinstance(node.value, ast.Call) else []
    return [text.value for text in texts if isinstance(text, ast.Constant) and isinstance(text.value, str)]


def _visit(node: ast.AST, kind: str | None, function: str | None, found: dict[str, list[_Mention]]) -> None:
    names: list[str] = []
    own = False
    if isinstance(node, ast.ClassDef):
        kind, function = node.name, None
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function is None:
        function = node.name
    elif isinstance(node, ast.Lambda) and function is None:
        function = "__lambda__"
    elif isinstance(node, ast.Attribute):
        names = [node.attr]
        own = isinstance(node.value, ast.Name) and node.value.id == "self"
    elif isinstance(node, ast.Call | ast.Subscript):
        names = [name for text in _looked_up(node) for name in text.split(".")]
    if function is not None:
        for name in names:
            found.setdefault(name, []).append(_Mention(kind, function, own))
    for child in ast.iter_child_nodes(node):
        _visit(child, kind, function, found)
