"""Caches that a model brings along from earlier calls, emptied before its weights change.

They are known by what they do: empty, they are filled again by the next call, with the same values, and the model
computes what it computed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.kept_state import Holder, as_before, forget_, held_by, holds_tensor
from compressor.structure.calling.draws import seed_torch
from compressor.structure.trials import evaluating, same_outputs
from compressor.workload import output_tensor, raw_output

Contents = dict[Any, Any]


def empty_caches_(model: nn.Module, inputs: Inputs) -> nn.Module:
    """`model` itself without what it kept of calls in eval mode, where that can be found out on `inputs`.

    Constants, and everything that a call does not make again, stay as they are.
    """
    forget_(model)
    holders = [holder for holder in held_by(model) if _tensors(holder)]
    if not holders:
        return model
    with evaluating(model):
        before, _ = _run(model, inputs, None)
        if before is None:
            return model
        tried: set[tuple[object, ...]] = set()
        for holder in holders:
            # Modules of one class keep alike: what one cannot do without, the others cannot either.
            kind = (type(holder.owner), *_tensors(holder)) if holder.owner is not None else (id(holder),)
            if kind not in tried and not _emptied(model, inputs, holder, before):
                tried.add(kind)
    return model


def _emptied(model: nn.Module, inputs: Inputs, holder: Holder, before: Tensor) -> bool:
    """Whether `holder` has lost tensors, all or some, because a call makes them again."""
    names = _tensors(holder)
    if _emptied_of(model, inputs, holder, names, before):
        return True
    alone = [_emptied_of(model, inputs, holder, [name], before) for name in names if len(names) > 1]
    return any(alone)


def _emptied_of(model: nn.Module, inputs: Inputs, holder: Holder, names: list[Any], before: Tensor) -> bool:
    full = holder.read()
    for empty in _attempts(full, names):
        holder.write(empty, holder.read())
        output, filled = _run(model, inputs, holder)
        same = output is not None and same_outputs(output, before) is None
        if same and all(name in filled and _same(filled[name], full[name]) for name in names):
            return True
        holder.write(full, holder.read())
    return False


def _attempts(full: Contents, names: list[Any]) -> Iterator[Contents]:
    yield {name: value for name, value in full.items() if name not in names}
    none = full | dict.fromkeys(names)
    yield none
    yield {name: False if value is True else value for name, value in none.items()}


def _tensors(holder: Holder) -> list[Any]:
    """The names under which tensors are that a state dict does not hold."""
    stored = holder.owner.state_dict() if holder.owner is not None else {}
    return [name for name, value in holder.read().items() if name not in stored and holds_tensor(value)]


def _run(model: nn.Module, inputs: Inputs, holder: Holder | None) -> tuple[Tensor | None, Contents]:
    """The output, None where the model fails, and what is in `holder` by then; both are as before afterwards."""
    with as_before(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        seed_torch(0)
        try:
            output = output_tensor(raw_output(model, inputs))
        except Exception:  # noqa: BLE001 - a user's model may raise anything without what it kept
            return None, {}
        return output, holder.read() if holder is not None else {}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other)
