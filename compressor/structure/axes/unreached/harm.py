"""What an expression that was never evaluated would do to features, as far as its text tells."""

import ast
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from types import FunctionType
from typing import Any

from torch import nn

from compressor.structure.axes.unreached.other_methods import is_piece, name_of
from compressor.structure.axes.unreached.texts import Function, function_of
from compressor.structure.calling.sources import is_foreign

# What depends on how many positions there are, or on those that are zero, along dimensions that are given by number.
_COUNTING = re.compile(r"mean|std|var|var_mean|std_mean|softmax|log_softmax|softmin|median|logsumexp|prod|normalize")
_EXTREMES = re.compile(r"max|min|amax|amin|aminmax")
_WHOLLY = re.compile(r"layer_norm|group_norm|fft\w*|glu")
# What makes as many positions as are written there.
_MAKING = re.compile(r"linspace|logspace|arange|eye|rand\w*|zeros|ones|full|empty|tensor")
_MODULES = re.compile(r"(Log)?Soft(max|min)|Pixel(Uns|S)huffle|ChannelShuffle|Unflatten|GLU|(Layer|Group|RMS)Norm")


class Harm(Enum):
    """Whether an expression acts on whatever stands in it, or what it makes meets what else stands in its statement."""

    APART = "apart"
    MEETING = "meeting"


@dataclass(frozen=True)
class Scope:
    """What the names in a function mean: its text, its module, and its global variables.

    `unread` are the names of tensors that no call reads: whatever these could look up is judged by their values.
    """

    function: Function
    owner: nn.Module | None
    names: Mapping[str, Any]
    unread: Collection[str]


def harm_of(node: ast.AST, scope: Scope, seen: frozenset[Function] = frozenset()) -> Harm | None:
    """What `node` would do to the features in it, None for nothing.

    Functions, methods and members of the user's own that it calls are looked into, those that are `seen` once.
    """
    if is_piece(node):
        return None if isinstance(node, ast.Subscript) and _is_looked_up(node, scope) else Harm.APART
    if not isinstance(node, ast.Call):
        return None
    name = name_of(node.func)
    numbers = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and type(part.value) is int]
    if _MAKING.fullmatch(name):
        return Harm.MEETING if any(number > 1 for number in numbers) else None
    if _WHOLLY.fullmatch(name):
        return Harm.APART
    if _COUNTING.fullmatch(name):
        return None if _counts(node) is False else Harm.APART
    if _EXTREMES.fullmatch(name):
        return Harm.APART if isinstance(node.func, ast.Attribute) and _counts(node) else None
    member = _member(scope, name)
    if member is not None and _MODULES.fullmatch(type(member).__name__):
        return Harm.APART
    called = _called(node.func, name, scope)
    if called is None or called.function in seen:
        return None
    seen |= {called.function}
    return Harm.APART if any(harm_of(each, called, seen) for each in ast.walk(called.function)) else None


def counts_from_the_front(node: ast.AST) -> bool:
    """Whether `node` is given dimensions by number, or an index, and all of them are counted from the front."""
    if isinstance(node, ast.Subscript):
        index = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return not any(isinstance(each, ast.Constant) and each.value is Ellipsis for each in index)
    dims = _dims(node)
    return bool(dims) and min(dims) >= 0


def assigned_in(function: Function) -> dict[str, list[ast.expr]]:
    """What each variable of a function is made of."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(function):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None) or getattr(node, "iter", None)
        for inner in (inner for target in targets if isinstance(target, ast.AST) for inner in ast.walk(target)):
            if isinstance(inner, ast.Name) and isinstance(value, ast.expr):
                found.setdefault(inner.id, []).append(value)
    return found


def _counts(node: ast.Call) -> bool | None:
    """Whether the dimensions that a call is given by number could be those of features, None where it is given none."""
    dims = _dims(node)
    return bool(dims & {1, -3}) or (-1 in dims and -2 not in dims) if dims else None


def _dims(node: ast.AST) -> set[int]:
    """The whole numbers that are written in an expression."""
    below = {id(each.operand) for each in ast.walk(node) if isinstance(each, ast.UnaryOp)}
    known = [(id(each), each.value) for each in ast.walk(node) if isinstance(each, ast.Constant)]
    return {
        -value if key in below else value
        for key, value in known
        if isinstance(value, int) and not isinstance(value, bool)
    }


def _is_looked_up(node: ast.Subscript, scope: Scope) -> bool:
    """Whether every index behind the first is a whole slice, or a tensor that no call reads."""
    assigned = assigned_in(scope.function)

    def is_unread(index: ast.expr) -> bool:
        if isinstance(index, ast.Name):
            return index.id in assigned and all(
                not isinstance(each, ast.Name) and is_unread(each) for each in assigned[index.id]
            )
        if isinstance(index, ast.IfExp):
            return is_unread(index.body) and is_unread(index.orelse)
        if isinstance(index, ast.Subscript):
            return isinstance(index.value, ast.Attribute) and is_unread(index.value)
        return isinstance(index, ast.Attribute) and index.attr in scope.unread

    behind = node.slice.elts[1:] if isinstance(node.slice, ast.Tuple) else []
    whole = [isinstance(each, ast.Slice) and each.lower is each.upper is each.step is None for each in behind]
    return all(one or is_unread(each) for one, each in zip(whole, behind, strict=True))


def _member(scope: Scope, name: str) -> nn.Module | None:
    members = {} if scope.owner is None else dict(scope.owner.named_children())
    return members.get(name)


def _called(function: ast.expr, name: str, scope: Scope) -> Scope | None:
    """The text of the user's own function that a call means, and what the names in it do."""
    owner, member = scope.owner, _member(scope, name)
    if isinstance(function, ast.Name):
        for each in ast.walk(scope.function):
            if isinstance(each, ast.FunctionDef) and each.name == name and each is not scope.function:
                return Scope(each, owner, scope.names, scope.unread)
        found, owner = scope.names.get(name), None
    elif member is not None:
        found, owner = type(member).forward, member
    else:
        found = vars(owner).get(name, getattr(type(owner), name, None)) if owner is not None else None
    if not isinstance(found, FunctionType) or is_foreign(found.__code__.co_filename):
        return None
    text = function_of(found.__code__)
    return None if text is None else Scope(text, owner, found.__globals__, scope.unread)
