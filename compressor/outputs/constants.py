"""The whole numbers that a function holds: in its code, closure, defaults, globals, and attributes of what it calls."""

from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_DEPTH = 4


def constants_in(function: Callable[..., Any]) -> tuple[int, ...]:
    """Whole numbers that `function`, a function, a partial one, a method, a module or an object, may compare with."""
    return tuple(sorted(set(_numbers(function, _DEPTH, set()))))


def _numbers(value: Any, depth: int, met: set[int]) -> Iterator[int]:
    if type(value) is int:
        yield value
    if not depth or id(value) in met:
        return
    met.add(id(value))
    for part in _parts(value):
        yield from _numbers(part, depth - 1, met)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield from (value.__func__, value.__self__)
    elif isinstance(value, FunctionType) and not (value.__module__ or "").startswith("torch."):
        yield value.__code__
        yield from (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        yield from (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        yield from (value.__globals__[name] for name in value.__code__.co_names if name in value.__globals__)
    elif isinstance(value, CodeType):
        # Codes of functions within, too.
        yield from (part for part in value.co_consts if isinstance(part, int | CodeType))
    elif isinstance(value, nn.Module):
        yield from (*vars(value).values(), *value.children())
        yield type(value).forward
    elif callable(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        yield from vars(value).values()
        yield type(value).__call__


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where there is none
    except ValueError:
        return False
    return True
