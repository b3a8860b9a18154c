"""Training states on disk: one file of tensors and facts, whole or absent, checked when read, and no pickle."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import StageError
from compressor.storage import write_atomic
from compressor.structure.extra_state import as_tensors, extra_states, from_tensors, set_extra_states_
from compressor.tensor_files import raw_bytes, read_tensor_file, tensor_file

Tensors = dict[str, Tensor]
# What an optimizer keeps of its parameters: tensors, and numbers where it is one of somebody's own.
Saved = dict[str, Any]


def capture(model: nn.Module) -> Tensors:
    """Copies of all parameters and buffers by name, and of extra states; a shared one appears once."""
    own = {name: tensor.detach().clone() for name, tensor in _own_tensors(model).items()}
    return own | as_tensors(extra_states(model))


def restore_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies `tensors`, as `capture` gave them, back into `model`, which keeps its memory layout."""
    with torch.no_grad():
        for name, tensor in _own_tensors(model).items():
            tensor.copy_(tensors[name])
    set_extra_states_(model, from_tensors(tensors))


# What the settings say of a group of parameters.
_SET = {"params", "lr", "weight_decay"}


def optimizer_state(optimizer: torch.optim.Optimizer) -> Saved:
    """What `optimizer` keeps, by `<number of the parameter>.<name>`: tensors, numbers, texts and None.

    What it keeps in a group of parameters, as those do that count or estimate there, is `group<number>.<name>`.
    Raises StageError where it keeps something else, which no snapshot can hold.
    """
    state = optimizer.state_dict()["state"]
    kept = {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}
    for name, value in kept.items():
        if not isinstance(value, Tensor | int | float | str | None):
            raise StageError(
                f"{type(optimizer).__name__} keeps a {type(value).__name__} ({name.partition('.')[2]}), which a "
                "snapshot cannot hold; take an optimizer that keeps tensors and numbers"
            )
    return kept | dict(_kept_in_groups(optimizer))


def _kept_in_groups(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    """What differs from the defaults in the groups; rates and decay follow from the settings."""
    for index, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name in _SET or not isinstance(value, Tensor | int | float | str | None):
                continue
            usual = optimizer.defaults.get(name)
            if name not in optimizer.defaults or type(value) is not type(usual) or not _same(value, usual):
                yield f"group{index}.{name}", value


def _same(value: Any, usual: Any) -> bool:
    if isinstance(value, Tensor):
        return value.device == usual.device and torch.equal(value, usual)
    return bool(value == usual)


def restore_optimizer_(optimizer: torch.optim.Optimizer, kept: Mapping[str, Any]) -> None:
    """Puts back what `optimizer_state` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in kept.items():
        index, _, name = key.partition(".")
        if index.startswith("group"):
            optimizer.param_groups[int(index.removeprefix("group"))][name] = value
            continue
        parameter = parameters[int(index)]
        if not isinstance(value, Tensor):
            optimizer.state[parameter][name] = value
            continue
        # Fused optimizers walk parameter and state by address: both need the same strides.
        same = value.shape == parameter.shape
        optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(value) if same else value.clone()


def digest(model: nn.Module) -> str:
    """A SHA-256 digest of all parameters, buffers and extra states, in hexadecimal."""
    state = hashlib.sha256()
    for name, tensor in sorted((_own_tensors(model) | as_tensors(extra_states(model))).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(raw_bytes(tensor))
    return state.hexdigest()


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Puts tensors and JSON facts at `path`; a kill at any moment leaves the old file or the new one."""
    write_atomic(path, tensor_file(tensors, facts))


def read_snapshot(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and facts in `path`. Raises StorageError naming the file where they are not as they were written."""
    return read_tensor_file(path, way_out="this training starts again without it")


def _own_tensors(model: nn.Module) -> Tensors:
    return dict(model.named_parameters()) | dict(model.named_buffers())
