"""What modules put into checkpoints besides their tensors (get_extra_state), where it needs no pickle."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import StorageError

_KEY = "_extra_state"  # torch's own name for it in a state_dict
_TEXT = ".json"


def extra_states(model: nn.Module) -> dict[str, Any]:
    """The extra state of every module that has one, by its name in the state_dict: tensors and JSON values.

    Raises StorageError, naming the module, for anything else, and for a module that cannot take its state back.
    """
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if type(module).get_extra_state is nn.Module.get_extra_state:
            continue
        where = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        if type(module).set_extra_state is nn.Module.set_extra_state:
            raise StorageError(f"{where} gives extra state and cannot take it back; add set_extra_state to its class")
        value = module.get_extra_state()
        if not isinstance(value, Tensor) and not _is_json(value):
            raise StorageError(
                f"the extra state of {where} must be a tensor or what JSON gives back as it was (dicts by text, lists, "
                f"text, numbers, True, False, None), as checkpoints hold no pickle; got {type(value).__name__}: give "
                "that in get_extra_state, or keep it in the constructor"
            )
        found[f"{path}.{_KEY}" if path else _KEY] = value
    return found


def set_extra_states_(model: nn.Module, states: dict[str, Any]) -> None:
    """Gives the modules of `model` what `extra_states` took from them. Raises what a module raises for it."""
    for name, value in states.items():
        model.get_submodule(name.removesuffix(_KEY).removesuffix(".")).set_extra_state(value)


def as_tensors(states: dict[str, Any]) -> dict[str, Tensor]:
    """`states` as tensors of their own, under names that no weight has: JSON values as the bytes of their text."""
    found = {}
    for name, value in states.items():
        if isinstance(value, Tensor):
            found[name] = value.detach().clone()
        else:
            found[f"{name}{_TEXT}"] = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return found


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The states among `tensors` that `as_tensors` made so."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if name.endswith(_KEY):
            found[name] = tensor.detach().clone()
        elif name.endswith(_KEY + _TEXT):
            found[name.removesuffix(_TEXT)] = json.loads(bytes(tensor.tolist()))
    return found


def _is_json(value: Any) -> bool:
    try:
        return _same(json.loads(json.dumps(value, allow_nan=False)), value)
    except (TypeError, ValueError, RecursionError):
        return False


def _same(one: Any, other: Any) -> bool:
    """Equal with equal types: JSON has no tuples, and 1 is not True."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
