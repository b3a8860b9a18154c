"""What a loader keeps between its passes: random generators of its own, counters, the number of its epoch, workers.

torch's, NumPy's and Python's global generators are seeded by whoever reads; these are not. They are found by walking
through what the loader is made of: attributes, containers, closures, bound methods, and globals that its code reads.
"""

import hashlib
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

Counters = dict[str, int | float]

_Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
# Data, not what draws or counts.
_DATA = (Tensor, np.ndarray, str, bytes, bytearray, int, float, complex, bool, type, type(None))
_LIBRARIES = {"torch", "numpy", "compressor", *sys.stdlib_module_names} - {"__main__"}
_WALKED_OF_TORCH = (DataLoader, Dataset, Sampler, nn.Module)
_DEPTH = 10
_OBJECTS = 5000
_MANY = 200  # entries of a container beyond which it holds data


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnState:
    """All that was found in a loader, by the path that leads there.

    `generators` are its random generators, `counting` the objects whose whole numbers and fractions may count
    passes or samples, `epochs` those that are told the number of the epoch (`set_epoch`), `persistent` loaders whose
    worker processes outlive a pass, and `modules` those of torch.
    """

    generators: dict[str, Any]
    counting: dict[str, Any]
    epochs: dict[str, Any]
    persistent: dict[str, Any]
    modules: dict[str, nn.Module]

    @classmethod
    def of(cls, data: Any) -> "OwnState":
        """What `data` keeps; nothing where it keeps nothing that is known here."""
        found = cls(generators={}, counting={}, epochs={}, persistent={}, modules={})
        _Walk(found).through(data)
        return found

    def begin_(self, epoch: int | None = None) -> None:
        """Readies a pass: its generators follow from torch's global one, its samplers are told `epoch`."""
        if self.generators:
            number = int(torch.randint(2**62, ()))
            for place, generator in enumerate(self.generators.values()):
                _seed_(generator, int(hashlib.sha256(f"{number}/{place}".encode()).hexdigest()[:15], 16))
        if epoch is not None:
            for told in self.epochs.values():
                told.set_epoch(epoch)

    def counters(self) -> Counters:
        """The numbers that it keeps, by name."""
        return {
            f"{path}.{name}" if path else name: value
            for path, keeper in self.counting.items()
            for name, value in vars(keeper).items()
            if type(value) in (int, float)
        }

    def set_counters_(self, counters: Mapping[str, int | float]) -> None:
        """Puts back what `counters` gave."""
        for path, keeper in self.counting.items():
            for name, value in list(vars(keeper).items()):
                before = counters.get(f"{path}.{name}" if path else name)
                if type(value) in (int, float) and before is not None and before != value:
                    vars(keeper)[name] = before

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All of it is afterwards as before; workers start anew in every pass within, those that wait are left alone.

        Workers that persist draw on from where the last pass ended: no seed reaches them.
        """
        states = [(generator, _state(generator)) for generator in self.generators.values()]
        counters = self.counters()
        persisted = [(vars(loader), loader.persistent_workers) for loader in self.persistent.values()]
        for loader, _ in persisted:
            loader["persistent_workers"] = False  # its __setattr__ refuses
        try:
            yield
        finally:
            for loader, before in persisted:
                loader["persistent_workers"] = before
            for generator, state in states:
                _put_back_(generator, state)
            self.set_counters_(counters)

    def says(self) -> str:
        """What it keeps and what is done about it, for the report; "" for nothing."""
        parts = []
        if self.generators:
            parts.append(f"random generators of its own ({_listed(self.generators)}) are seeded for every pass")
        if self.persistent:
            parts.append(f"worker processes that persist ({_listed(self.persistent)}) start anew in every pass")
        if self.epochs:
            parts.append(f"told the number of the epoch ({_listed(self.epochs)})")
        return "; ".join(parts)


def _listed(found: dict[str, Any]) -> str:
    names = [path or "the loader itself" for path in found]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _seed_(generator: _Generator, number: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)
    elif isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        bits.state = type(bits)(number).state
    else:
        generator.seed(number % 2**32)


def _state(generator: _Generator) -> Any:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        return generator.get_state()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.getstate()


def _put_back_(generator: _Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif not isinstance(generator, random.SystemRandom):
        generator.setstate(state)


class _Walk:
    """One walk through an object and what hangs on it, each thing once, what is near before what is far."""

    def __init__(self, found: OwnState) -> None:
        self._found = found
        # The global generators are everybody's; whoever reads has seeded them.
        self._seen = {id(torch.default_generator), id(getattr(random, "_inst", None))}
        self._paths: dict[str, int] = {}
        self._alive: list[Any] = []  # so that no id is given twice

    def through(self, data: Any) -> None:
        open_parts = deque([("", data, _DEPTH)])
        while open_parts and len(self._alive) < _OBJECTS:
            path, value, depth = open_parts.popleft()
            if isinstance(value, _DATA) or id(value) in self._seen or depth < 0:
                continue
            self._seen.add(id(value))
            self._alive.append(value)
            if not isinstance(value, _GENERATORS):
                parts = self._parts(path, value)
                open_parts += [
                    (self._free(f"{path}.{name}" if path else name), part, depth - 1) for name, part in parts
                ]
            elif not isinstance(value, random.SystemRandom):  # it takes no seed
                self._found.generators[path] = value

    def _free(self, path: str) -> str:
        """`path`, with a number where two things have it: functions of two classes may bear one name."""
        self._paths[path] = self._paths.get(path, 0) + 1
        return path if self._paths[path] == 1 else f"{path} ({self._paths[path]})"

    def _parts(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, Mapping):
            yield from ((str(key), part) for key, part in _few(value.items()))
        elif isinstance(value, list | tuple):
            yield from ((str(number), part) for number, part in enumerate(_few(value)))
        elif isinstance(value, partial):
            yield from (("func", value.func), ("args", value.args), ("keywords", value.keywords))
        elif isinstance(value, MethodType):
            yield from (("self", value.__self__), (value.__name__, value.__func__))
        elif isinstance(value, FunctionType):
            yield from _held(value)
        elif isinstance(value, ModuleType) or (_is_library(type(value)) and not isinstance(value, _WALKED_OF_TORCH)):
            # Batches of this package hold what users gave.
            if type(value).__module__.startswith("compressor."):
                yield from vars(value).items()
        else:
            if hasattr(value, "__dict__"):
                self._note(path, value)
                yield from list(vars(value).items())
            for kind in type(value).__mro__:
                if not _is_library(kind):
                    slots = vars(kind).get("__slots__", ())
                    slots = (slots,) if isinstance(slots, str) else slots
                    yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))
                    for method, own in vars(kind).items():
                        if function := _function(own):
                            yield from ((f"{method}.{name}", part) for name, part in _held(function))

    def _note(self, path: str, value: Any) -> None:
        # Of the class: what answers to any name is no sampler.
        if callable(getattr(type(value), "set_epoch", None)):
            self._found.epochs[path] = value
        if isinstance(value, DataLoader):
            if value.persistent_workers:
                self._found.persistent[path] = value
        elif isinstance(value, nn.Module):
            self._found.modules[path] = value
        else:
            self._found.counting[path] = value


def _few(values: Any) -> list[Any]:
    return list(values) if len(values) <= _MANY else []


def _is_library(kind: type) -> bool:
    return str(kind.__module__).partition(".")[0] in _LIBRARIES


def _function(value: Any) -> FunctionType | None:
    value = getattr(value, "__func__", getattr(value, "fget", value))
    return value if isinstance(value, FunctionType) else None


def _held(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """What `function` closes over, its defaults, and of the globals that it reads the generators and functions."""
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:  # None for code that ran without a name
        return
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that is not bound yet
            continue
    yield from ((f"default {number}", part) for number, part in enumerate(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()
    for name in _names(function.__code__):
        part = function.__globals__.get(name)
        if isinstance(part, (*_GENERATORS, FunctionType)):
            yield name, part


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
