"""Every tensor of what a model hands back, whatever it comes in: its widths belong to whoever calls the model."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinMethodType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What a model keeps for its next call and nobody else reads.
CACHES = frozenset({"past_key_values"})
_CACHE_CLASSES = "transformers.cache_utils"
_OF_CLASSES = {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__"}
_PLAIN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    torch.dtype,
    torch.device,
    nn.Module,
    torch.Generator,
    ModuleType,
)


def returned_tensors(raw: Any) -> list[Tensor]:
    """The tensors of `raw`, each once: in containers of any kind, in the attributes of any object, and what functions,
    methods and properties of it have enclosed.

    Caches for the next call, by name or class, are left out; arrays count as tensors. Tensors of a set come in the
    order of their shapes. Raises TypeError for generators and other iterators, which can be read only once.
    """
    return list(returned_by_name(raw).values())


def returned_by_name(raw: Any) -> dict[str, Tensor]:
    """What `returned_tensors` gives, by name: keys, fields and attributes, the place from 0 on where there is none.

    Names of what lies deeper are joined by dots, as in `boxes.0`; a lone tensor is called "output".
    """
    found: dict[str, Tensor] = {}
    seen: dict[int, Any] = {}
    rest: list[tuple[str, Any]] = [("", raw)]
    while rest:
        path, value = rest.pop()
        if isinstance(value, _PLAIN) or id(value) in seen:
            continue
        seen[id(value)] = value  # alive, so that no other gets its identity
        if isinstance(value, Tensor):
            found[_unused(path or "output", found)] = value
        elif isinstance(value, np.ndarray) and value.dtype != object:
            found[_unused(path or "output", found)] = torch.as_tensor(value)
        elif isinstance(value, Iterator):
            raise TypeError(
                f"the model returns a {type(value).__name__}, which can be read once only; return a list or a tuple"
            )
        elif not _is_cache(value):
            named = [(name or str(number), item) for number, (name, item) in enumerate(_inside(value))]
            rest += [(f"{path}.{name}" if path else name, item) for name, item in reversed(named) if name not in CACHES]
    return found


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    """`name`, with a mark where an object has both a key and an attribute of that name."""
    return name if name not in taken else _unused(f"{name}'", taken)


def _inside(value: Any) -> Iterator[tuple[str, Any]]:
    """What `value` holds, with the name of each where it has one."""
    if isinstance(value, Mapping):
        yield from ((key if isinstance(key, str) else "", item) for key, item in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=False)
    elif isinstance(value, AbstractSet):
        yield from (("", item) for item in sorted(value, key=_order))
    elif isinstance(value, partial):
        yield from (("", item) for item in (*value.args, *value.keywords.values()))
    elif isinstance(value, FunctionType):
        yield from _enclosed(value)
    elif isinstance(value, MethodType | BuiltinMethodType | MethodWrapperType):
        yield "", value.__self__
        yield from (("", item) for item in [getattr(value, "__func__", None)])
    elif isinstance(value, property):
        yield from (("", function) for function in (value.fget, value.fset))
    elif isinstance(value, staticmethod | classmethod):
        yield "", value.__func__
    elif isinstance(value, Callable) and not hasattr(value, "__dict__"):  # type: ignore[arg-type]  # a protocol of typing
        return
    elif hasattr(value, "__len__") and hasattr(value, "__getitem__"):
        yield from (("", item) for item in _items(value))
    names = [field.name for field in fields(value)] if is_dataclass(value) and not isinstance(value, type) else []
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    for kind in type(value).__mro__:
        if "<locals>" in kind.__qualname__:  # made in a call, it may hold what that computed
            yield from (("", item) for key, item in vars(kind).items() if key not in _OF_CLASSES)
    own = dict.fromkeys((*names, *getattr(value, "__dict__", {})))
    yield from ((name, getattr(value, name)) for name in own if hasattr(value, name))


def _enclosed(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function brings along: variables of the call that made it, and defaults."""
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it may not be set yet
            if not isinstance(cell.cell_contents, Iterator):  # which is nothing that is handed back
                yield "", cell.cell_contents
    yield from (("", item) for item in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()))


def _items(value: Any) -> Iterator[Any]:
    try:
        yield from (value[number] for number in range(len(value)))
    except (LookupError, TypeError, ValueError):
        return


def _order(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Tensor):
        return 1, (), 0.0
    return 0, tuple(value.shape), 0.0 if value.is_meta or not value.numel() else float(value.detach().double().sum())


def _is_cache(value: Any) -> bool:
    return any(kind.__module__ == _CACHE_CLASSES for kind in type(value).__mro__)
