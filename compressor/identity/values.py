"""Digests of values of any kind: what they hold and what they do, the same in every process.

Addresses, hash seeds and the order of sets do not enter. What cannot be looked into (an open file, an object of a C
library that cannot be copied) is listed, never passed over.
"""

import copyreg
import hashlib
import io
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import (
    BuiltinFunctionType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compressor.identity.code import class_parts, function_parts, installed_as, module_parts
from compressor.identity.lookups import Unknown
from compressor.tensor_files import raw_bytes

_LITERALS = {int, float, str, bool, complex, bytes, type(None), type(...), type(NotImplemented)}
_DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)
# Of a text or a tuple, hash() gives a number of 62 bits; what somebody chose is smaller.
_LARGEST_SETTING = 1 << 32
# What torch keeps in every module. Hooks, which change what it computes, are looked at by themselves.
_TORCH_OWN = set(vars(nn.Module())) - {"training"}


@dataclass(frozen=True)
class Digest:
    """What a value is, in hexadecimal, and the kinds of those parts of it that could not be looked into."""

    text: str
    unknown: tuple[str, ...] = ()


class _UnknownError(Exception):
    """A value that cannot be looked into; the message says of which kind it is."""


@dataclass(frozen=True)
class _LeftOut:
    """What an object keeps and its `__getstate__` leaves out; what of it cannot be looked into is no content."""

    value: Any


@dataclass(frozen=True)
class _Weights:
    """A tensor of a module: whether it is trained, and with which other it is tied, belongs to it."""

    tensor: Tensor


class Identifier:
    """Makes digests of values. Tensors and arrays that several of them share are read once."""

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[Any, bytes]] = {}
        # Within one digest: where each value was met first. It tells ties, and ends circles.
        self._met: dict[int, tuple[int, Any]] = {}
        self._unknown: list[str] = []
        self._keep = True

    def digest(self, value: Any) -> Digest:
        """What `value` is."""
        self._met, self._unknown, self._keep = {}, [], True
        return self._digest(value)

    def passing(self, value: Any) -> Digest:
        """The same for a value that is read once and not kept, such as a batch."""
        self._met, self._unknown, self._keep = {}, [], False
        return self._digest(value)

    def _digest(self, value: Any) -> Digest:
        try:
            found = self._of(value)
        except RecursionError:
            self._unknown.append("values nested too deep")
            found = b""
        return Digest(found.hex()[:32], tuple(dict.fromkeys(self._unknown)))

    def _of(self, value: Any) -> bytes:
        if type(value) in _LITERALS:
            return _hash(type(value).__name__, [repr(value).encode()])
        if isinstance(value, Tensor | np.ndarray) and (found := self._array(value)) is not None:
            return found
        if type(value) in (list, tuple) and set(map(type, value)) <= _LITERALS:
            return _hash(type(value).__name__, [repr(value).encode()])
        if isinstance(value, _LeftOut):
            return self._perhaps(value.value)
        if type(value) is tuple:
            # Never by where it was met: the interpreter shares equal ones as it likes.
            return self._each("tuple", value)
        whole = value.tensor if isinstance(value, _Weights) else value
        if id(whole) in self._met and not isinstance(value, _Weights):
            return _hash("met before", [str(self._met[id(whole)][0]).encode()])
        number, _ = self._met.setdefault(id(whole), (len(self._met), whole))
        if isinstance(value, _Weights):
            return self._each("weights", [number, whole.requires_grad, whole])
        if isinstance(value, set | frozenset):
            return _hash("set", sorted(map(self._alone, value)))
        try:
            return self._each(*_taken_apart(value))
        except _UnknownError as unknown:
            self._unknown.append(str(unknown))
            return _hash("unknown", [])

    def _each(self, kind: str, parts: Iterable[Any]) -> bytes:
        return _hash(kind, [self._of(part) for part in parts])

    def _perhaps(self, value: Any) -> bytes:
        """The digest of `value`, or of nothing where it cannot be looked into (a session) or is not made yet."""
        if value is None:
            return _hash("left out", [])
        known, met = len(self._unknown), dict(self._met)
        found = self._of(value)
        if len(self._unknown) == known:
            return found
        del self._unknown[known:]
        self._met = met
        return _hash("left out", [])

    def _alone(self, value: Any) -> bytes:
        """The digest of a member of a set, whatever stands before it."""
        before = self._met
        self._met = dict(before)
        found = self._of(value)
        self._met = before
        return found

    def _array(self, value: "Tensor | np.ndarray[Any, Any]") -> bytes | None:
        """The digest of what lies densely in memory; None for what is laid out otherwise."""
        if id(value) in self._arrays:
            return self._arrays[id(value)][1]
        if isinstance(value, Tensor):
            dense = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
            if not dense or value.is_meta or value.is_quantized:
                return None
            head = f"{value.dtype} {tuple(value.shape)}"
            content = raw_bytes(value.resolve_conj().resolve_neg())
        else:
            # Others hold more than their numbers, as masked ones do.
            if value.dtype.hasobject or type(value) not in (np.ndarray, np.memmap):
                return None
            head = f"numpy {value.dtype.descr} {value.shape}"
            content = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        found = _hash(head, [content])
        if self._keep:
            self._arrays[id(value)] = value, found
        return found


def _taken_apart(value: Any) -> tuple[str, Iterable[Any]]:
    """A word for the kind of `value`, and what it consists of. Raises _UnknownError where that cannot be known."""
    for kinds, take in _KINDS:
        if isinstance(value, kinds):
            return take.__name__, take(value)
    return "object", _object(value)


def _object(value: Any) -> Iterable[Any]:
    kind = type(value)
    if value is random.random.__self__ or value is np.random.random.__self__:  # type: ignore[attr-defined]
        # What functions of these modules draw from is seeded by every run.
        return [kind, "shared by all"]
    known = copyreg.dispatch_table.get(kind)
    try:
        # What a copy would be made of.
        reduced = known(value) if known else value.__reduce_ex__(2)
    except Exception as error:
        raise _UnknownError(f"{kind.__module__}.{kind.__qualname__}") from error
    if isinstance(reduced, str):
        # What functools.cache makes is copied by its name, and holds the function.
        return [kind, reduced, getattr(value, "__dict__", None)]
    made, arguments, state, items, entries = (*reduced, None, None, None)[:5]
    return [made, arguments, state, list(items or ()), list(entries or ()), *_left_out(value, state)]


def _left_out(value: Any, state: Any) -> list[Any]:
    """The attributes of `value` that the user's own class does not give to copies; they act all the same."""
    makers = ("__getstate__", "__reduce__", "__reduce_ex__")
    makes = next((kind for kind in type(value).__mro__ for name in makers if name in vars(kind)), object)
    if makes is object or installed_as(str(makes.__module__)) is not None:
        return []
    given = state if isinstance(state, dict) else {}
    own = getattr(value, "__dict__", {})
    left = {key: kept for key, kept in own.items() if _is_left_out(given, key, kept)}
    return [part for key, kept in left.items() for part in (key, _LeftOut(kept))]


def _sequence(value: list[Any] | tuple[Any, ...]) -> Iterable[Any]:
    return [type(value), *value]


def _mapping(value: Mapping[Any, Any]) -> Iterable[Any]:
    # In its order: a dict of steps is worked through in it.
    return [part for entry in value.items() if not _is_own_hash(*entry) for part in entry]


def _is_own_hash(key: Any, value: Any) -> bool:
    """Whether an object remembers what hash() gave for it, another number in every process (transformers' configs)."""
    named = isinstance(key, str) and key.startswith("_") and key.endswith("_hash")
    return named and type(value) is int and abs(value) > _LARGEST_SETTING


def _function(value: FunctionType) -> Iterable[Any]:
    compiled = vars(value).get("_torchdynamo_orig_callable")
    return function_parts(value) if compiled is None else ["compiled", compiled]


def _builtin(value: BuiltinFunctionType) -> Iterable[Any]:
    # Methods of objects have no module; what pybind11 makes has one, and an owner that says nothing.
    module = sys.modules.get(value.__module__ or "")
    return [value.__qualname__, value.__self__ if module is None else module]


def _method(value: MethodType) -> Iterable[Any]:
    return [value.__func__, value.__self__]


def _wrapped(value: "staticmethod[..., Any] | classmethod[Any, ..., Any]") -> Iterable[Any]:
    return [type(value), value.__func__]


def _property(value: property) -> Iterable[Any]:
    return [value.fget, value.fset, value.fdel]


def _descriptor(value: Any) -> Iterable[Any]:
    return [value.__name__]


def _member(value: Enum) -> Iterable[Any]:
    return [type(value), value.name, value.value]


def _reference(value: "weakref.ref[Any]") -> Iterable[Any]:
    return [value()]


def _logger(value: logging.Logger) -> Iterable[Any]:
    return [value.name]


def _empty(value: Any) -> Iterable[Any]:
    return [type(value).__name__]


def _file(value: io.IOBase) -> Iterable[Any]:
    raise _UnknownError(f"an open file ({type(value).__qualname__})")


def _generator(value: torch.Generator) -> Iterable[Any]:
    # Its position too: what is drawn next depends on it. Those of data are seeded before they are looked at.
    return [value.initial_seed(), value.get_state()]


def _named(value: Any) -> Iterable[Any]:
    return [str(value)]


def _other_array(value: "np.ndarray[Any, Any]") -> Iterable[Any]:
    return [value.shape, value.tolist()] if type(value) is np.ndarray else _object(value)


def _tensor(value: Tensor) -> Iterable[Any]:
    """Of a kind of its own: sparse, or with attributes."""
    facts = [str(value.dtype), tuple(value.shape), str(value.layout)]
    if value.is_meta:
        return facts
    if value.layout == torch.sparse_coo:
        whole = value.coalesce()
        return [*facts, whole.indices(), whole.values()]
    if value.layout == torch.strided and not value.is_quantized:
        try:
            return [type(value), vars(value), value.detach().as_subclass(Tensor)]
        except Exception as error:
            raise _UnknownError(f"a tensor of the kind {type(value).__qualname__}") from error
    raise _UnknownError(f"a tensor laid out as {value.layout}, {value.dtype}")


def _script(value: Any) -> Iterable[Any]:
    if isinstance(value, torch.jit.ScriptModule):
        code = [(name, str(getattr(part, "code", ""))) for name, part in value.named_modules()]
        return [code, dict(value.state_dict()), value.training]
    return [str(value.code)]


def _network(module: nn.Module) -> Iterable[Any]:
    """Class, numbers, parts, settings and hooks; what is trained and in which mode counts as well."""
    own = vars(module)
    copied: Any = own
    if type(module).__getstate__ is not object.__getstate__:
        # Such a class knows what is not its content, an open session for instance. Parametrized ones refuse to say.
        with suppress(Exception):
            copied = module.__getstate__()  # type: ignore[no-untyped-call]
    tensors = {**own["_parameters"], **own["_buffers"]}
    return [
        type(module),
        [(name, None if tensor is None else _Weights(tensor)) for name, tensor in tensors.items()],
        own["_non_persistent_buffers_set"],
        list(own["_modules"].items()),
        {key: value for key, value in (copied if isinstance(copied, dict) else own).items() if key not in _TORCH_OWN},
        [(key, list(value.values())) for key, value in own.items() if key.endswith("_hooks") and value],
        *(
            {key: _LeftOut(kept)}
            for key, kept in own.items()
            if key not in _TORCH_OWN and _is_left_out(copied, key, kept)
        ),
    ]


def _is_left_out(copied: Any, key: str, kept: Any) -> bool:
    """Whether what a class gives to copies lacks `kept`; what is not made yet is taken for lacking as well."""
    if not isinstance(copied, dict) or key in _TORCH_OWN:
        return False
    return kept is None or copied.get(key, _LeftOut) is not kept


def _unknown(value: Unknown) -> Iterable[Any]:
    raise _UnknownError(value.what)


# The first that fits tells how a value is taken apart.
_KINDS: tuple[tuple[Any, Callable[[Any], Iterable[Any]]], ...] = (
    (FunctionType, _function),
    (MethodType, _method),
    ((type(torch.ops.aten.add), type(torch.ops.aten.add.Tensor)), _named),
    ((torch.dtype, torch.device, torch.layout, torch.memory_format), _named),
    (BuiltinFunctionType, _builtin),
    (type, class_parts),
    (ModuleType, module_parts),
    ((torch.jit.ScriptModule, torch.jit.ScriptFunction), _script),
    (nn.Module, _network),
    (Tensor, _tensor),
    (np.ndarray, _other_array),
    (Enum, _member),
    ((list, tuple), _sequence),
    ((dict, MappingProxyType), _mapping),
    ((staticmethod, classmethod), _wrapped),
    (property, _property),
    (_DESCRIPTORS, _descriptor),
    (weakref.ref, _reference),
    (logging.Logger, _logger),
    ((type(threading.Lock()), type(threading.RLock())), _empty),
    (io.IOBase, _file),
    (torch.Generator, _generator),
    (Unknown, _unknown),
)


def _hash(kind: str, contents: Iterable[bytes | memoryview]) -> bytes:
    digest = hashlib.sha256(kind.encode() + b"\0")
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()
