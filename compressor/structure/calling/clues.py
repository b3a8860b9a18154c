"""Numbers that a program's text mentions: what it compares with, written out, in texts, or kept in attributes."""

import ast
import inspect
import math
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import nn

from compressor.structure.calling.sources import is_installed, is_torch

_Compared = tuple[list[int], list[str], bool]
# Numbers of one container, and of one program, that are taken.
_ITEMS = 16
_MOST = 12


def numbers_near(frames: Iterable[FrameType]) -> tuple[float, ...]:
    """The numbers that the functions of `frames`, the innermost first, could compare a number with, and some between.

    They are constants and texts of their code, local and global variables, and attributes of modules.
    """
    found: dict[float, None] = {}
    for frame in frames:
        names = set(_names(frame.f_code))
        owners = [value for value in frame.f_locals.values() if isinstance(value, nn.Module)]
        for value in (
            *_constants(frame.f_code),
            *frame.f_locals.values(),
            *(value for name, value in frame.f_globals.items() if name in names),
            *(value for owner in owners for name, value in vars(owner).items() if name in names),
        ):
            for number in _numbers(value):
                found.setdefault(number)
    numbers = list(found)[:_MOST]
    between = [(one + other) / 2 for one, other in pairwise(sorted(numbers)) if other - one < 1 or one % 1 or other % 1]
    return *numbers, *between


def sizes_mentioned(model: nn.Module) -> list[int]:
    """The sizes (> 0) at which a comparison or a remainder in the code of `model` may turn out otherwise.

    That is the code of its classes first, then that of the user's functions that they call or keep. What a number of
    dimensions is compared with is none.
    """
    found: dict[int, None] = {}
    functions: dict[FunctionType, None] = {}
    for module in model.modules():
        compared: list[_Compared] = []
        for kind in (kind for kind in type(module).__mro__ if not is_torch(kind)):
            compared += _compared_in(kind)
            functions.update(dict.fromkeys(value for value in vars(kind).values() if isinstance(value, FunctionType)))
        _note(compared, vars(module), found)
        functions.update(dict.fromkeys(value for value in vars(module).values() if isinstance(value, FunctionType)))
    for function in _called(list(functions)):
        _note(_compared_in(function), {}, found)
    return [size for size in found if size > 0]


def _note(compared: Iterable[_Compared], kept: dict[str, Any], found: dict[int, None]) -> None:
    for numbers, attributes, order in compared:
        values = [value for value in map(kept.get, attributes) if type(value) is int]
        for number in (*numbers, *values):
            for size in (number + 1, number - 1) if order else (number,):
                found.setdefault(size)


def _called(functions: list[FunctionType]) -> Iterator[FunctionType]:
    """The user's own functions that `functions` enclose or name, and those behind them; of `functions` the lambdas."""
    rest, seen = list(functions), set(functions)
    while rest:
        function = rest.pop(0)
        names = set(_names(function.__code__))
        known = [value for name, value in function.__globals__.items() if name in names]
        known += [value for holder in known if isinstance(holder, ModuleType) for value in _named(holder, names)]
        for cell in function.__closure__ or ():
            with suppress(ValueError):
                known.append(cell.cell_contents)
        for holder in known[:]:
            if isinstance(holder, dict | list | tuple) and len(holder) <= _ITEMS:
                known += holder.values() if isinstance(holder, dict) else holder
        fresh = [value for value in known if isinstance(value, FunctionType) and value not in seen]
        fresh = [value for value in fresh if not is_installed(value.__module__ or "")]
        seen |= set(fresh)
        rest += fresh
        if function not in functions or function.__name__ == "<lambda>":
            yield function


def _named(holder: ModuleType, names: set[str]) -> Iterator[Any]:
    yield from (value for name, value in vars(holder).items() if name in names)


@lru_cache(maxsize=512)
def _compared_in(code: type | FunctionType) -> list[_Compared]:
    try:
        return _compared(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError):
        return []
    except SyntaxError:  # a lambda amid an expression
        assert isinstance(code, FunctionType)  # classes stand by themselves
        numbers = [number for value in _constants(code.__code__) for number in _numbers(value)]
        whole = [int(number) for number in numbers if number % 1 == 0]
        return [(whole, [], False), (whole, [], True)]


def _compared(source: str) -> list[_Compared]:
    """Of each comparison in `source` the numbers and the attributes, and whether it is one of order."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        order = False
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            order = any(isinstance(sign, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for sign in node.ops)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod | ast.FloorDiv):
            sides = [node.left, node.right]
        elif isinstance(node, ast.MatchValue):
            sides = [node.value]
        else:
            continue
        parts = [part for side in sides for part in ast.walk(side)]
        if any(isinstance(part, ast.Attribute) and part.attr in {"ndim", "dim"} for part in parts):
            continue
        numbers = [part.value for part in parts if isinstance(part, ast.Constant) and type(part.value) is int]
        attributes = [part.attr for part in parts if isinstance(part, ast.Attribute)]
        found.append((numbers, attributes, order))
    return found


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _constants(value)
        else:
            yield value


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, bool):
        return
    if isinstance(value, str) and len(value) < _ITEMS:
        try:
            value = float(value)
        except ValueError:
            return
    if isinstance(value, int | float):
        if abs(value) < 1e30 and math.isfinite(value):
            yield float(value)
    elif isinstance(value, dict | list | tuple | set | frozenset) and len(value) <= _ITEMS:
        for item in value:  # of a dict, what is looked up
            yield from _numbers(item)
