"""Methods that no call of a model comes through, and code beside unread layers, that take features apart."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

from compressor.structure.axes.unreached.readers import SETTING_UP
from compressor.structure.calling.sources import is_installed, is_torch
from compressor.structure.source_lines import short_path

_Function = ast.FunctionDef | ast.AsyncFunctionDef
# What takes positions by their number, or whole numbers of them.
_APART = re.compile(
    r"(\w*_)?(view|reshape|unflatten|flip(lr|ud)?|roll|chunk|(tensor_|hsplit|vsplit|d)?split\w*|narrow|select|unbind"
    r"|index_select|gather|take\w*|topk|sort|arg(sort|max|min)|cum(sum|prod|max|min)|rearrange|pixel_(un)?shuffle"
    r"|channel_shuffle|index_add|index_copy|scatter\w*|as_strided|unfold)"
)


@dataclass(frozen=True)
class OtherMethod:
    """A method of the module `owner`, its line, and the modules of the model whose outputs it takes apart."""

    owner: str
    name: str
    line: str
    layers: tuple[str, ...]


def other_methods(model: nn.Module) -> Iterator[OtherMethod]:
    """The methods of the user's own modules that `forward` never leads to, by name, and that take features apart."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__ if _is_users(kind)}
    methods = {kind: _methods_of(kind) for kind in classes}
    reached = reached_from_forward([function for own in methods.values() for function in own])
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            for function in methods.get(kind, ()):
                if function.name in reached or SETTING_UP.fullmatch(function.name):
                    continue
                if getattr(type(module), function.name, None) is not vars(kind).get(function.name) or not _is_apart(
                    function
                ):
                    continue  # a subclass has another
                prefix = f"{name}." if name else ""
                layers = dict.fromkeys(prefix + path for path in _mentioned(function, module))
                if layers:
                    yield OtherMethod(name, function.name, f"{_path_of(kind)}:{function.lineno}", tuple(layers))


def takes_pieces(model: nn.Module, key: str) -> bool:
    """Whether code that mentions the attribute `key` takes something apart beside it, in the same branch."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__ if not is_torch(kind)}
    for kind in classes:
        for function in _methods_of(kind):
            for branch in _branches(function):
                own = any(isinstance(node, ast.Attribute) and node.attr == key for node in branch)
                if own and function.name != "__init__" and any(map(is_piece, branch)):
                    return True
    return False


def _branches(function: _Function) -> Iterator[list[ast.AST]]:
    """The nodes of each branch of `function`, without those of inner ones but with those of its condition."""
    rest: list[list[ast.AST]] = [list(function.body)]
    while rest:
        nodes, found = rest.pop(), list[ast.AST]()
        while nodes:
            node = nodes.pop()
            found.append(node)
            if isinstance(node, ast.If):
                rest += [list(node.body), list(node.orelse)]
                nodes.append(node.test)
            else:
                nodes += ast.iter_child_nodes(node)
        yield found


def is_piece(node: ast.AST) -> bool:
    """Whether an expression takes positions of a tensor by their number."""
    if isinstance(node, ast.Call):
        return bool(_APART.fullmatch(name_of(node.func))) and not _is_flattening(node)
    return isinstance(node, ast.Subscript) and _is_cut(node.slice)


def _is_flattening(node: ast.Call) -> bool:
    """Whether a view has a first size and leaves all the rest to be found out."""
    last = node.args[-1] if node.args else None
    if name_of(node.func) not in {"view", "reshape"}:
        return False
    return len(node.args) <= 2 and isinstance(last, ast.UnaryOp) and isinstance(last.op, ast.USub)


def _is_cut(index: ast.expr) -> bool:
    """Whether an index takes some positions of a dimension behind the first."""
    if not isinstance(index, ast.Tuple):
        return False
    whole = [isinstance(item, ast.Slice) and item.lower is item.upper is item.step is None for item in index.elts]
    plain = [isinstance(item, ast.Constant) and item.value in {None, Ellipsis} for item in index.elts]
    return not all(one or other for one, other in zip(whole[1:], plain[1:], strict=True))


def _is_apart(function: _Function) -> bool:
    return any(map(is_piece, ast.walk(function)))


def name_of(function: ast.expr) -> str:
    """The last name of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def reached_from_forward(functions: list[_Function]) -> set[str]:
    """The names of the functions that `forward` leads to, by the names that they mention."""
    mentioned: dict[str, set[str]] = {}
    for function in functions:
        names = {name_of(node) for node in ast.walk(function) if isinstance(node, ast.Attribute | ast.Name)}
        mentioned.setdefault(function.name, set()).update(names)
    rest, reached = ["forward"], {"forward"}
    while rest:
        fresh = mentioned.get(rest.pop(), set()) & set(mentioned) - reached
        reached |= fresh
        rest += fresh
    return reached


def _mentioned(function: _Function, module: nn.Module) -> Iterator[str]:
    """The members of `module` that `function` uses, by path; "" where it calls the module itself."""
    owner = function.args.args[0].arg if function.args.args else ""
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == owner:
            continue  # of what the model gives every width is kept
        path: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            path.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id == owner and path:
            yield from _member(module, path)


def _member(module: nn.Module, path: list[str]) -> Iterator[str]:
    found = list[str]()
    for key in path:
        if key not in module._modules:  # noqa: SLF001 - attributes may be named like members' methods
            break
        found.append(key)
        module = module._modules[key] or nn.Identity()  # noqa: SLF001 - as above
    if found:
        yield ".".join(found)


def _is_users(kind: type) -> bool:
    return not is_torch(kind) and not is_installed(kind.__module__)


def _path_of(kind: type) -> str:
    return short_path(Path(inspect.getsourcefile(kind) or ""))


@lru_cache(maxsize=512)
def _methods_of(kind: type) -> list[_Function]:
    """The functions in the body of the class, with the lines of its file."""
    try:
        lines, first = inspect.getsourcelines(kind)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError):
        return []
    ast.increment_lineno(tree, max(first, 1) - 1)
    body = tree.body[0]
    return [node for node in getattr(body, "body", []) if isinstance(node, _Function)]
