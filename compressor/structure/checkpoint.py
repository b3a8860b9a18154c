"""A compressed model on disk: its plan as JSON and its weights, rebuilt from the user's own class without pickle."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from compressor.errors import StorageError
from compressor.storage import read_json, write_atomic
from compressor.structure.plan import Entry, Slot, apply_plan_, laid_out_as, named_slots

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"


def save_checkpoint(folder: Path, model: nn.Module, plan: list[Entry]) -> None:
    """Puts plan.json and weights.safetensors into `folder`, each whole or absent; tied tensors are stored once."""
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise StorageError(
                f"{name!r} of {type(model).__name__} is {type(value).__name__}, and a checkpoint holds tensors only; "
                "keep such state in the model's constructor"
            )
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype) if value.numel() else (name,)
        if key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            tensors[name] = value.detach().cpu().contiguous()
    text = json.dumps(plan, allow_nan=False) + "\n"
    metadata = {"tied": json.dumps(tied, sort_keys=True), "plan_sha256": hashlib.sha256(text.encode()).hexdigest()}
    # The weights name their plan: a kill between the two files is seen on loading.
    write_atomic(folder / WEIGHTS_FILE, save(tensors, metadata=metadata))
    write_atomic(folder / PLAN_FILE, text)


def load_checkpoint(folder: Path, model_factory: Callable[[], nn.Module]) -> nn.Module:
    """The saved model, rebuilt from the user's own class, in eval mode; nothing is unpickled.

    `model_factory` makes the model as it was before compression, with any weights. Raises StorageError, naming file,
    tensor, wanted and got shape, where files are damaged or the factory's model is another one.
    """
    folder = Path(folder)
    plan = read_json(folder / PLAN_FILE)
    tensors, metadata = _read_weights(folder / WEIGHTS_FILE)
    digest = hashlib.sha256((folder / PLAN_FILE).read_bytes()).hexdigest()
    if metadata.get("plan_sha256", digest) != digest:
        raise StorageError(
            f"{folder / PLAN_FILE} is not the plan that {WEIGHTS_FILE} was saved with; restore both files from one run"
        )
    tied: dict[str, str] = json.loads(metadata.get("tied", "{}"))
    model = model_factory()
    try:
        apply_plan_(model, plan)
    except ValueError as error:
        raise StorageError(str(error)) from error
    slots = _state_slots(model)
    known = set(tensors) | set(tied)
    if known != set(slots):
        missing, extra = sorted(set(slots) - known), sorted(known - set(slots))
        raise StorageError(
            f"the checkpoint in {folder} does not fit {type(model).__name__}: missing {missing[:5]}, unknown "
            f"{extra[:5]}; give the factory of the model that was compressed"
        )
    with torch.no_grad():
        for name, value in tensors.items():
            module, key = slots[name]
            own: Tensor = getattr(module, key)
            if own.shape != value.shape:
                raise StorageError(
                    f"tensor {name!r} has shape {tuple(value.shape)} in {folder / WEIGHTS_FILE}, but the model wants "
                    f"{tuple(own.shape)}; give the factory of the model that was compressed"
                )
            if own.dtype == value.dtype:
                own.copy_(value)
            else:
                _put_([slots[name]], own, laid_out_as(own, value.to(own.device)))
    for name, source in tied.items():
        module, key = slots[name]
        setattr(module, key, getattr(*slots[source]))
    return model.eval()


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no dict
    except SafetensorError as error:
        raise StorageError(f"{path} is not a readable safetensors file ({error}); restore it or run again") from error


def _state_slots(model: nn.Module) -> dict[str, Slot]:
    names = model.state_dict().keys()
    return {name: slot for name, slot in named_slots(model) if name in names}


def _put_(slots: list[Slot], old: Tensor, new: Tensor) -> None:
    # A new Parameter, for autograd may still hold the old one's accumulator with the old shape.
    shared = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    for module, key in slots:
        setattr(module, key, shared)
