"""What a model keeps from its calls besides its weights: caches in attributes, containers, buffers and closures.

Weights change between calls, by training and by pruning: what was computed from the old ones must not be used again,
nor go through a second backward pass. So a call in eval mode ends with what was kept before it.
"""

import copy
import functools
import sys
from collections import UserDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)

# What modules of these packages keep is no cache of a user's model.
_FOREIGN = {"torch", "compressor", "onnxruntime", "numpy", *sys.stdlib_module_names} - {"__main__"}
# These hold the model itself, and what is hooked onto it.
_STRUCTURE = frozenset(vars(nn.Module())) - {"_non_persistent_buffers_set"}
_DEPTH = 6
_PLAIN = (bool, int, float, str, bytes, type)
# Vocabularies and the like: containers of so many entries are looked at where their last one is a tensor.
_MANY = 1000


@contextmanager
def as_before(model: nn.Module, *, in_training_too: bool = False) -> Iterator[None]:
    """What the modules of `model` that are in eval mode keep is afterwards what they kept before, tensors at least.

    Looked at are attributes, buffers that a call adds or exchanges, attributes of classes, and everything that hangs on
    them in containers, objects and closures. Results that functools keeps for methods are forgotten. Numbers that are
    written into a tensor stay, and so do layers that a first call makes.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()  # any function can be called as a model
    still = [module for module in modules if (in_training_too or not module.training) and not _is_foreign(type(module))]
    if not still:
        yield
        return
    memory = _Memory()
    for module in still:
        memory.add_module(module)
    memory.forget_results()
    try:
        yield
    finally:
        memory.restore()


def private_copy(model: Model) -> Model:
    """A deep copy of `model` that has forgotten its calls; it may keep tensors that were computed with gradients."""
    return forget_(copy.deepcopy(model, computed_tensors(model)))


def forget_(model: Model) -> Model:
    """`model` itself, its modes as they were, without what its modules keep from calls in eval mode.

    Some cache what they compute from their weights, and drop it when they are set to train.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, mode in modes:
        module.training = mode
    return model


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """A memo for deep copies: what `model` keeps of computed tensors, by identity, as their values alone."""
    memory = _Memory()
    for module in model.modules():
        memory.add_attributes(module)
    return {id(tensor): tensor.detach().clone() for tensor in memory.tensors if tensor.grad_fn is not None}


@dataclass(kw_only=True, eq=False)
class Holder:
    """Something that can be changed: what is in it, by name or in order, and how to put that back.

    `write(wanted, present)` makes its contents `wanted` where they are `present`. `owner` is the module whose
    attributes or buffers these are, None for what hangs on them.
    """

    read: Callable[[], dict[Any, Any]]
    write: Callable[[dict[Any, Any], dict[Any, Any]], None]
    before: dict[Any, Any] = field(default_factory=dict)
    owner: nn.Module | None = None

    def __post_init__(self) -> None:
        self.before = self.read()


def held_by(model: nn.Module) -> list[Holder]:
    """Everything that the modules of `model` keep what they like in: attributes, buffers, containers, closures."""
    memory = _Memory()
    for module in model.modules():
        if not _is_foreign(type(module)):
            memory.add_module(module)
    return memory.holders


class _Memory:
    """What hangs on modules, as it was when it was looked at."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.holders: list[Holder] = []
        self._layers: list[tuple[nn.Module, list[int]]] = []
        self._results: list[Any] = []
        self._seen: set[int] = set()
        self._alive: list[Any] = []  # no id is given twice

    def add_module(self, module: nn.Module) -> None:
        """Everything that `module` keeps, but for its weights and its parts."""
        self.add_attributes(module)
        self._hold(
            lambda: dict(module._buffers),  # noqa: SLF001 - no public name holds buffers that are None
            lambda old, new: _put_back(module._buffers, old, new),  # noqa: SLF001 - as above
            owner=module,
        )
        self._layers.append((module, _layers_of(module)))
        for kind in type(module).__mro__:
            if not _is_foreign(kind):
                self._add_class(kind)

    def add_attributes(self, module: nn.Module) -> None:
        """What hangs on the attributes of `module`."""
        self._add_attributes(module, owner=module)

    def forget_results(self) -> None:
        """Empties what functools keeps for the methods of the modules."""
        for function in self._results:
            function.cache_clear()

    def restore(self) -> None:
        """Puts everything back, where a tensor is among what was changed."""
        self.forget_results()
        grown = {id(module) for module, layers in self._layers if _layers_of(module) != layers}
        changed = []
        for holder in self.holders:
            if holder.owner is not None and id(holder.owner) in grown:
                continue  # a first call made its layers: they stay, with all that says so
            now = holder.read()
            if now.keys() != holder.before.keys() or any(now[key] is not old for key, old in holder.before.items()):
                changed.append((holder, now))
        values = (
            value
            for holder, now in changed
            for key in now.keys() | holder.before.keys()
            if now.get(key) is not holder.before.get(key)
            for value in (now.get(key), holder.before.get(key))
        )
        if any(holds_tensor(value) for value in values):
            for holder, now in changed:
                holder.write(holder.before, now)

    def _hold(
        self,
        read: Callable[[], dict[Any, Any]],
        write: Callable[[dict[Any, Any], dict[Any, Any]], None],
        owner: nn.Module | None = None,
    ) -> None:
        self.holders.append(Holder(read=read, write=write, owner=owner))

    def _add_attributes(self, item: Any, owner: nn.Module | None = None, depth: int = 0) -> None:
        def read() -> dict[Any, Any]:
            return {key: value for key, value in vars(item).items() if key not in _STRUCTURE}

        self._hold(read, lambda old, new: _put_back(vars(item), old, new), owner)
        for value in read().values():
            self._add(value, depth + 1)

    def _add_class(self, kind: type) -> None:
        if id(kind) in self._seen:
            return
        self._seen.add(id(kind))

        def read() -> dict[Any, Any]:
            return {key: value for key, value in vars(kind).items() if not key.startswith("__")}

        def write(old: dict[Any, Any], new: dict[Any, Any]) -> None:
            for key in new.keys() - old.keys():
                delattr(kind, key)
            for key, value in old.items():
                if new.get(key) is not value:
                    setattr(kind, key, value)

        self._hold(read, write)
        for value in read().values():
            self._add(value, 1)

    def _add(self, value: Any, depth: int) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value)
            return
        if depth > _DEPTH or value is None or isinstance(value, _PLAIN):
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        self._alive.append(value)
        inner: Any = ()
        if isinstance(value, dict | UserDict | WeakKeyDictionary):
            inner = list(value.values())
            if _is_small(inner):
                self._hold(lambda: dict(value), lambda old, new: _put_back(value, old, new))
        elif isinstance(value, list | deque):
            inner = list(value)
            if _is_small(inner):
                self._hold(lambda: dict(enumerate(value)), lambda old, _: _refill(value, list(old.values())))
        elif isinstance(value, set):
            inner = list(value)
            if _is_small(inner):
                self._hold(lambda: {id(item): item for item in value}, lambda old, _: _refill_set(value, old))
        elif isinstance(value, tuple):
            inner = value
        elif hasattr(value, "cache_clear"):
            self._results.append(value)
            inner = (getattr(value, "__wrapped__", None),)
        elif isinstance(value, FunctionType):
            self._add_function(value, depth)
        elif isinstance(value, MethodType):
            inner = (value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            inner = (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, nn.Module):
            if not _is_foreign(type(value)) and not value.training:
                self._add_attributes(value, owner=value, depth=depth)
        elif hasattr(value, "__dict__") and (isinstance(value, SimpleNamespace) or not _is_foreign(type(value))):
            self._add_attributes(value, depth=depth)
        for item in inner if _is_small(inner) else ():
            self._add(item, depth + 1)

    def _add_function(self, function: FunctionType, depth: int) -> None:
        if _is_foreign_name(function.__module__ or ""):
            return
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__" and id(cell) not in self._seen:
                self._seen.add(id(cell))
                self._hold(functools.partial(_contents, cell), functools.partial(_fill, cell))
                for content in _contents(cell).values():
                    self._add(content, depth + 1)
        if vars(function):
            self._add_attributes(function, depth=depth)
        for default in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._add(default, depth + 1)


def _layers_of(module: nn.Module) -> list[int]:
    return [id(part) for held in (module._parameters, module._modules) for part in held.values()]  # noqa: SLF001 - as above


def _is_foreign(kind: type) -> bool:
    return _is_foreign_name(kind.__module__ or "")


@functools.cache
def _is_foreign_name(module: str) -> bool:
    parts = module.split(".")
    return parts[0] in _FOREIGN and parts[:2] != ["compressor", "workloads"]


def _is_small(items: Any) -> bool:
    return len(items) < _MANY or isinstance(items[-1], Tensor)


def holds_tensor(value: Any, depth: int = 3) -> bool:
    """Whether `value` is a tensor, or a container or object with one in it."""
    if isinstance(value, Tensor):
        return True
    if depth == 0:
        return False
    if isinstance(value, dict | UserDict | WeakKeyDictionary):
        return any(holds_tensor(item, depth - 1) for item in list(value.values()))
    if isinstance(value, list | tuple | set | frozenset | deque):
        return any(holds_tensor(item, depth - 1) for item in list(value))
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, type | nn.Module)
        and any(holds_tensor(item, depth - 1) for item in list(vars(value).values()))
    )


def _put_back(held: Any, old: dict[Any, Any], new: dict[Any, Any]) -> None:
    for key in new.keys() - old.keys():
        del held[key]
    for key, value in old.items():
        if key not in held or held[key] is not value:
            held[key] = value


def _refill(held: Any, items: list[Any]) -> None:
    held.clear()
    held.extend(items)


def _refill_set(held: set[Any], old: dict[Any, Any]) -> None:
    held.clear()
    for item in old.values():
        held.add(item)


def _contents(cell: CellType) -> dict[str, Any]:
    try:
        return {"cell": cell.cell_contents}
    except ValueError:  # nothing is in it yet
        return {}


def _fill(cell: CellType, old: dict[Any, Any], _new: dict[Any, Any]) -> None:
    if old:
        cell.cell_contents = old["cell"]
    else:
        del cell.cell_contents
