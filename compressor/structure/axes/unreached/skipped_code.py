"""Expressions in the user's own functions that no call evaluates, and that would take features apart."""

import ast
import builtins
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

from torch import Tensor, nn

from compressor.structure.axes.unreached.harm import Harm, Scope, assigned_in, counts_from_the_front, harm_of
from compressor.structure.axes.unreached.other_methods import reached_from_forward
from compressor.structure.axes.unreached.texts import Function, function_of, functions_in, place_of
from compressor.structure.calling.coverage import Awaited, Coverage, Place, Ran, places_of, within
from compressor.structure.calling.sources import helpers_of, is_foreign, is_torch, source_of
from compressor.structure.source_lines import short_path

# What may go round, and its parts be evaluated, not once.
_PERHAPS = ast.For | ast.AsyncFor | ast.While
_COMPREHENSION = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Skipped:
    """An expression that was not evaluated: its line, the variables in it, and the members of its module that it uses.

    `by_setting`: nothing but settings of the model, which no call changes, decides whether it is evaluated.
    `otherwise_ranked` are the variables that have another number of dimensions where it is evaluated, and of which it
    counts dimensions from the front.
    """

    line: str
    variables: tuple[str, ...]
    members: tuple[str, ...]
    ran: Ran
    by_setting: bool
    otherwise_ranked: frozenset[str]


@dataclass(frozen=True)
class Worth:
    """The places in functions that a call could pass by, and the attributes that calls assign."""

    awaited: Awaited
    stored: set[str]


@dataclass(frozen=True)
class _Node:
    """An expression, its statement, and the conditions that it stands under, outer ones first."""

    node: ast.expr
    statement: ast.AST
    tests: tuple[ast.expr, ...]


def worth_watching(model: nn.Module) -> Worth:
    """The functions of the user's own code, those of `model` and its files, that hold what a call could pass by.

    Of modules that the model has none of, nothing runs. A function that all its harm happens in whenever it is called
    is none.
    """
    kinds = {kind: module for module in model.modules() for kind in type(module).__mro__ if not is_torch(kind)}
    named = {kind.__name__: module for kind, module in kinds.items()}
    sources = {source_of(kind.__module__) for kind in kinds}
    sources |= {path for kind in kinds if source_of(kind.__module__) for path in helpers_of(kind.__module__)}
    held = [value for module in model.modules() for value in vars(module).values() if isinstance(value, FunctionType)]
    sources |= {value.__code__.co_filename for value in held}
    every = [vars(module) for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    loaded = {names["__file__"]: names for names in every if names.get("__file__") in sources}
    awaited, functions = dict[str, dict[int, set[Place]]](), list[ast.FunctionDef | ast.AsyncFunctionDef]()
    for path in sources:
        if path is None or is_foreign(path):
            continue
        names = loaded.get(path, {})
        for first, kind, function in functions_in(path):
            other = names.get(kind)
            if kind not in named and isinstance(other, type) and issubclass(other, nn.Module):
                continue
            if not isinstance(function, ast.Lambda):
                functions.append(function)
            places = _passed_by(Scope(function, named.get(kind), names, ()))
            if places:
                awaited.setdefault(path, {}).setdefault(first, set()).update(places)
    reached = reached_from_forward(functions) if awaited else set()
    stored = {name for function in functions if function.name in reached for name in _stored(function)}
    return Worth(awaited, stored)


def _passed_by(scope: Scope) -> list[Place]:
    """Where a function does harm that not every call of it comes to."""
    return [place_of(node) for node in _optional(scope.function) if harm_of(node, scope) is not None]


@lru_cache(maxsize=4096)
def _optional(function: Function) -> list[ast.expr]:
    """The calls and subscripts in a function that not every call of it comes to."""
    inside = list(ast.walk(function))
    perhaps = {id(node) for each in inside if isinstance(each, _PERHAPS) for node in ast.walk(each)}
    tries = any(isinstance(each, ast.Try | ast.TryStar) for each in inside)
    return [found.node for found in _nodes(function) if found.tests or tries or id(found.node) in perhaps]


def skipped(coverage: Coverage, unread: Collection[str], stored: Collection[str]) -> Iterator[Skipped]:
    """What no call evaluated, in the order of the functions that ran.

    `unread` are the names of tensors that no call reads, and `stored` the attributes that calls assign.
    """
    functions = {code: function for code in coverage.ran if (function := function_of(code)) is not None}
    spans = dict[tuple[str, int], list[Place]]()
    for code, ran in coverage.ran.items():
        # Functions within functions have instructions of their own.
        for offset, place in places_of(code):
            if offset in ran.offsets:
                spans.setdefault((code.co_filename, place[0]), []).append(place)
    for code, function in functions.items():
        ran, path, left = coverage.ran[code], code.co_filename, coverage.left(code)
        assigned, scope = assigned_in(function), Scope(function, ran.owner, ran.names, unread)
        for found in _nodes(function):
            if place_of(found.node) not in left:
                continue
            harm = harm_of(found.node, scope)
            if harm is None:
                continue
            tests = [test for test in found.tests if _evaluated(spans, path, test)]
            by_setting = bool(tests) and _is_setting(tests[-1], ran, stored)
            variables, members = _used(found.statement if harm is Harm.MEETING else found.node, ran, assigned)
            line = f"{short_path(Path(path))}:{found.node.lineno}"
            ranked = _ranked(tests[-1]) & set(variables) if tests and counts_from_the_front(found.node) else set()
            yield Skipped(line, variables, members, ran, by_setting, frozenset(ranked))


def _used(node: ast.AST, ran: Ran, assigned: dict[str, list[ast.expr]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables and the attributes in `node`, and in what the variables that never held anything are made of."""
    variables, members, rest = dict[str, None](), dict[str, None](), [node]
    while rest:
        for inner in ast.walk(rest.pop()):
            if isinstance(inner, ast.Attribute):
                members[inner.attr] = None
            elif isinstance(inner, ast.Name) and inner.id not in variables:
                variables[inner.id] = None
                if inner.id not in ran.variables:
                    rest += assigned.get(inner.id, [])
    return tuple(variables), tuple(members)


def _nodes(function: Function) -> Iterator[_Node]:
    """The calls and subscripts in `function`, but for those in errors, in functions within it and in comprehensions."""
    body: list[ast.stmt] | list[ast.expr] = function.body if isinstance(function.body, list) else [function.body]
    rest: list[tuple[ast.AST, ast.AST, tuple[ast.expr, ...]]] = list(_block(body, ()))
    while rest:
        node, statement, tests = rest.pop()
        if isinstance(node, ast.Call | ast.Subscript):
            yield _Node(node, statement, tests)
        if isinstance(node, ast.Raise | Function | _COMPREHENSION):  # which have code of their own, or make an error
            continue
        if isinstance(node, ast.IfExp):
            rest += [(node.test, statement, tests)]
            rest += [(child, statement, (*tests, node.test)) for child in (node.body, node.orelse)]
        elif isinstance(node, ast.BoolOp):
            rest += [(one, statement, (*tests, *node.values[:place])) for place, one in enumerate(node.values)]
        elif not isinstance(node, ast.stmt | ast.match_case | ast.ExceptHandler):
            rest += [(child, statement, tests) for child in ast.iter_child_nodes(node)]
        else:
            test = getattr(node, "test", None) or getattr(node, "subject", None)
            beneath = tests if test is None else (*tests, test)
            compound = hasattr(node, "body") or hasattr(node, "cases")
            for _, value in ast.iter_fields(node):
                if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                    rest += _block(value, beneath)
                else:
                    inner = value if isinstance(value, list) else [value]
                    below = beneath if inner and isinstance(inner[0], ast.match_case) else tests
                    rest += [(one, one if compound else node, below) for one in inner if isinstance(one, ast.AST)]


def _block(
    nodes: Iterable[ast.AST], tests: tuple[ast.expr, ...]
) -> Iterator[tuple[ast.AST, ast.AST, tuple[ast.expr, ...]]]:
    """The statements of a block: what stands behind a branch that leaves it stands under its condition as well."""
    for node in nodes:
        yield node, node, tests
        if isinstance(node, ast.If) and any(branch and _leaves(branch[-1]) for branch in (node.body, node.orelse)):
            tests = (*tests, node.test)


def _leaves(node: ast.stmt) -> bool:
    return isinstance(node, ast.Return | ast.Raise | ast.Continue | ast.Break)


def _is_setting(test: ast.expr, ran: Ran, stored: Collection[str]) -> bool:
    """Whether a condition reads constants and attributes of the module alone, neither the mode nor what calls change.

    `stored` are the attributes that calls assign.
    """
    for node in ast.walk(test):
        if isinstance(node, ast.Attribute):
            value = getattr(ran.owner, node.attr, None)
            if node.attr == "training" or node.attr in stored or isinstance(value, Tensor | FunctionType | MethodType):
                return False
        elif isinstance(node, ast.Name) and node.id != ran.owner_name:
            fixed = ran.names.get(node.id, getattr(builtins, node.id, None))
            if node.id in ran.locals or not isinstance(fixed, int | float | str | type | type(len)):
                return False
    return True


def _ranked(test: ast.expr) -> set[str]:
    """The variable whose number of dimensions alone a condition asks for."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return _ranked(inner)
        case ast.Compare(left=left, comparators=[ast.Constant()]):
            asked = left
        case _:
            return set()
    match asked:
        case ast.Attribute(value=ast.Name(id=name), attr="ndim"):
            return {name}
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="dim" | "ndimension"), args=[]):
            return {name}
        case ast.Call(func=ast.Name(id="len"), args=[ast.Attribute(value=ast.Name(id=name), attr="shape")]):
            return {name}
        case _:
            return set()


def _stored(function: Function) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.attr


def _evaluated(spans: dict[tuple[str, int], list[Place]], path: str, node: ast.expr) -> bool:
    """Whether an instruction of an expression ran."""
    lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
    return any(within(place, place_of(node)) for line in lines for place in spans.get((path, line), ()))
