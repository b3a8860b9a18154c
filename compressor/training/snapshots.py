"""Training states on disk: one safetensors file with a JSON header, whole or absent, and no pickle."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from compressor.errors import StorageError
from compressor.storage import write_atomic

Tensors = dict[str, Tensor]


def capture(model: nn.Module) -> Tensors:
    """Copies of all parameters and buffers by name; a shared one appears once."""
    return {name: tensor.detach().clone() for name, tensor in _own_tensors(model).items()}


def restore_(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies `tensors`, as `capture` gave them, back into `model`, which keeps its memory layout."""
    with torch.no_grad():
        for name, tensor in _own_tensors(model).items():
            tensor.copy_(tensors[name])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The state of `optimizer` as tensors named `<number of the parameter>.<name>`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, entry in state.items() for name, value in entry.items()}


def restore_optimizer_(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        # Fused optimizers walk parameter and state by address: both need the same strides.
        same = value.shape == parameter.shape
        optimizer.state[parameter][name] = torch.empty_like(parameter).copy_(value) if same else value.clone()


def digest(model: nn.Module) -> str:
    """A SHA-256 digest of all parameters and buffers, in hexadecimal."""
    state = hashlib.sha256()
    for name, tensor in sorted(_own_tensors(model).items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def write_snapshot(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Puts tensors and JSON facts at `path`; a kill at any moment leaves the old file or the new one."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(flat, metadata={"facts": json.dumps(facts, allow_nan=False)}))


def read_snapshot(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and facts in `path`. Raises StorageError naming the file where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118 - safe_open is no mapping and cannot be iterated
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise StorageError(
            f"{path} is not a readable snapshot ({error}); delete it to start this training again"
        ) from error


def _own_tensors(model: nn.Module) -> Tensors:
    return dict(model.named_parameters()) | dict(model.named_buffers())
