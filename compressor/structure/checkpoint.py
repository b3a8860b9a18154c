"""A compressed model on disk: its plan as JSON and its weights, rebuilt from the user's own class without pickle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.checks import as_path
from compressor.errors import StorageError
from compressor.storage import parsed_json, read_bytes, sha256, write_atomic
from compressor.structure.extra_state import extra_states, set_extra_states_
from compressor.structure.plan import Entry, Slot, apply_plan_, laid_out_as, named_slots
from compressor.tensor_files import read_tensor_file, tensor_file
from compressor.trust.loading import signed_files

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "weights.safetensors"

# Those of the largest networks of the zoo have some megabytes.
_MOST_PLAN_BYTES = 64 << 20

_RESTORE = "restore both files from one run, or run again"
_UNVERIFIED = "load_checkpoint(..., verify=False) reads files without digests, as former versions wrote"


def save_checkpoint(folder: Path, model: nn.Module, plan: list[Entry]) -> None:
    """Puts plan.json and weights.safetensors into `folder`, each whole or absent; tied tensors are stored once.

    The weights hold a digest of every tensor and of the plan. Equal models give equal files.
    """
    for name, content in checkpoint_files(model, plan).items():
        write_atomic(folder / name, content)


def checkpoint_files(model: nn.Module, plan: list[Entry]) -> dict[str, bytes]:
    """The content of the two files by name. Raises StorageError for state that is neither tensors nor JSON."""
    states = extra_states(model)
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[Any, ...], str] = {}
    tied: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if name in states:
            continue
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
            tensors[name] = value
    text = json.dumps(plan, allow_nan=False) + "\n"
    facts: dict[str, Any] = {"tied": tied, "plan_sha256": sha256(text.encode())}
    # Memory of their own: a module may give a tensor that is a weight as well.
    tensors |= {name: value.detach().clone() for name, value in states.items() if isinstance(value, Tensor)}
    noted = {name: value for name, value in states.items() if not isinstance(value, Tensor)}
    if noted:
        facts["extra_state"] = noted
    # The weights name their plan: a kill between the two files is seen on loading.
    return {WEIGHTS_FILE: tensor_file(tensors, facts), PLAN_FILE: text.encode()}


def load_checkpoint(
    folder: Path | str,
    model_factory: Callable[[], nn.Module],
    *,
    verify: bool = True,
    require_signature: Any = None,
) -> nn.Module:
    """The saved model, rebuilt from the user's own class, in eval mode; nothing is unpickled.

    `model_factory` makes the model as it was before compression, with any weights. Both files must be, to the bit, what
    was written. The digests find damage and mixed-up files; they are no signature against someone who forges both.
    Without `verify` digests are not asked for: files of former versions have none, and an edited plan fits none.
    `require_signature` is a public key, a trust store, the path of either, or several keys: the folder must be signed
    by one of them (`compressor sign`), and the bytes that were checked are the ones that are loaded. Raises
    StorageError, naming file, tensor, wanted and got shape, where files are damaged or the factory's model is another
    one, and TrustError, which is one, where no signature holds.
    """
    folder = as_path(folder, "folder is where the checkpoint was saved")
    way_out = _RESTORE
    held: dict[str, bytes] = {}
    if require_signature is not None:
        held = signed_files(folder, (WEIGHTS_FILE, PLAN_FILE), key=require_signature)
    tensors, facts = read_tensor_file(
        folder / WEIGHTS_FILE,
        way_out=way_out,
        verify=verify,
        without_digests=f"{_RESTORE}; {_UNVERIFIED}",
        content=held.get(WEIGHTS_FILE),
    )
    raw = held[PLAN_FILE] if held else read_bytes(folder / PLAN_FILE, way_out=way_out, most=_MOST_PLAN_BYTES)
    if verify and facts.get("plan_sha256") != sha256(raw):
        raise StorageError(f"{folder / PLAN_FILE} is not the plan that {WEIGHTS_FILE} was saved with; {way_out}")
    plan = parsed_json(raw, folder / PLAN_FILE, way_out=way_out)
    tied = _tied(facts, tensors, folder / WEIGHTS_FILE, way_out)
    model = model_factory()
    if not isinstance(model, nn.Module):
        raise StorageError(
            f"model_factory must give a torch.nn.Module, got {type(model).__name__}; pass a function or a class that "
            "makes the model as it was before compression"
        )
    try:
        apply_plan_(model, plan)
    except Exception as error:
        # A plan may fit a model's names and still be nothing that the model can become.
        raise StorageError(f"{folder / PLAN_FILE} cannot be applied to {type(model).__name__}: {error}") from error
    noted = facts.get("extra_state", {})
    if not isinstance(noted, dict):
        raise StorageError(
            f"the extra state in {folder / WEIGHTS_FILE} must be values by name, got {type(noted).__name__}; {way_out}"
        )
    _fill_extra_(model, tensors, noted, folder)
    _fill_(model, tensors, tied, folder)
    return model.eval()


def _fill_extra_(model: nn.Module, tensors: dict[str, Tensor], noted: dict[str, Any], folder: Path) -> None:
    """Gives modules their extra state, and takes it out of `tensors`."""
    own = extra_states(model)
    states = noted | {name: tensors.pop(name) for name in own if name in tensors}
    if states.keys() != own.keys():
        raise StorageError(
            f"the checkpoint in {folder} has extra state of {sorted(states)[:5]}, and {type(model).__name__} wants "
            f"{sorted(own)[:5]}; give the factory of the model that was compressed"
        )
    try:
        set_extra_states_(model, states)
    except Exception as error:  # a module may refuse what it is given in any way
        raise StorageError(
            f"{type(model).__name__} does not take the extra state in {folder / WEIGHTS_FILE} back "
            f"({type(error).__name__}: {error}); give the factory of the model that was compressed"
        ) from error


def _fill_(model: nn.Module, tensors: dict[str, Tensor], tied: dict[str, str], folder: Path) -> None:
    slots = _state_slots(model)
    known = set(tensors) | set(tied)
    if known != set(slots):
        missing, extra = sorted(set(slots) - known), sorted(known - set(slots))
        raise StorageError(
            f"the checkpoint in {folder} does not fit {type(model).__name__}: missing {missing[:5]}, unknown "
            f"{extra[:5]}; give the factory of the model that was compressed"
        )
    # A tie that the factory does not make brings its own shape with it.
    joined = {name for name in tied if _is_parameter(slots[name]) == _is_parameter(slots[tied[name]])}
    for name in sorted(known - joined):
        value, own = tensors[tied.get(name, name)], _held(slots[name])
        if own.shape != value.shape:
            raise StorageError(
                f"tensor {name!r} has shape {tuple(value.shape)} in {folder / WEIGHTS_FILE}, but the model wants "
                f"{tuple(own.shape)}; give the factory of the model that was compressed"
            )
        if own.requires_grad and not (value.is_floating_point() or value.is_complex()):
            raise StorageError(
                f"tensor {name!r} is {value.dtype} in {folder / WEIGHTS_FILE}, but the model trains it as {own.dtype}; "
                "give the factory of the model that was compressed"
            )
    with torch.no_grad():
        for name, value in tensors.items():
            _put_(slots[name], value)
        for name, source in tied.items():
            shared = _held(slots[source])
            if name in joined:
                setattr(*slots[name], shared)
            else:
                # A buffer cannot be a parameter: what lay in one memory becomes two tensors of equal values.
                _put_(slots[name], shared.detach())


def _tied(facts: dict[str, Any], tensors: dict[str, Tensor], path: Path, way_out: str) -> dict[str, str]:
    """The names of tensors that are another's, by name."""
    tied = facts.get("tied", {})
    if isinstance(tied, str):  # in files of former versions
        tied = parsed_json(tied.encode(), path, way_out=way_out)
    if not isinstance(tied, dict):
        raise StorageError(f"the tied tensors in {path} must be names by name, got {type(tied).__name__}; {way_out}")
    for name, source in tied.items():
        if name in tensors or not isinstance(source, str) or source not in tensors:
            raise StorageError(f"{path} ties {name!r} to {source!r}, which is not a stored tensor; {way_out}")
    return tied


def _state_slots(model: nn.Module) -> dict[str, Slot]:
    names = model.state_dict().keys()
    return {name: slot for name, slot in named_slots(model) if name in names}


def _held(slot: Slot) -> Tensor:
    held: Tensor = getattr(*slot)
    return held


def _is_parameter(slot: Slot) -> bool:
    return isinstance(_held(slot), nn.Parameter)


def _put_(slot: Slot, value: Tensor) -> None:
    """Gives the tensor at `slot` the values of `value`, and its type."""
    own = _held(slot)
    if own.dtype == value.dtype:
        own.copy_(value)
        return
    new = laid_out_as(own, value.to(own.device))
    # A new Parameter, for autograd may still hold the old one's accumulator with the old shape.
    setattr(*slot, nn.Parameter(new, requires_grad=own.requires_grad) if isinstance(own, nn.Parameter) else new)
