"""Where an argument that a module was never given could come from: its caller's own arguments, or anything."""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def handed_on(caller: nn.Module, attribute: str, parameter: str, place: int) -> set[str] | None:
    """The arguments of `caller.forward` that its code hands on as they are to `self.<attribute>`, as its `parameter`.

    `place` is that of the parameter. None where it could be something else: whatever the code computes.
    """
    found: set[str] = set()
    for kind in type(caller).__mro__:
        if kind.__module__.partition(".")[0] in {"torch", "builtins"}:
            break
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            return None
        for function in (node for node in ast.walk(tree) if isinstance(node, _Function)):
            names = _in_function(function, attribute, parameter, place)
            if names is None or (names and function.name != "forward"):
                return None
            found |= names
    return found


def _in_function(function: _Function, attribute: str, parameter: str, place: int) -> set[str] | None:
    calls = {id(node.func): node for node in ast.walk(function) if isinstance(node, ast.Call)}
    read = {
        id(node.value)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr not in {"forward", "__call__"}
    }
    every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    own = {argument.arg for argument in (*every, function.args.kwarg) if argument is not None}
    own -= {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    found: set[str] = set()
    for node in ast.walk(function):
        if not (isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, ast.Load)):
            continue
        if id(node) not in calls:
            if id(node) in read:
                continue  # an attribute of it
            return None
        for value in given_as(calls[id(node)], parameter, place):
            if isinstance(value, ast.Name) and value.id in own:
                found.add(value.id)
            elif not isinstance(value, ast.Constant):
                return None
    return found


def given_as(call: ast.Call, parameter: str, place: int) -> Iterator[ast.expr]:
    """What `call` gives as the parameter, and every collection that may hold it."""
    yield from call.args[place : place + 1]
    yield from (argument for argument in call.args[:place] if isinstance(argument, ast.Starred))
    yield from (keyword.value for keyword in call.keywords if keyword.arg in {parameter, None})
