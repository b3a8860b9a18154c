"""Which parts of a network are blocks that can be skipped: found by running it once and watching.

A block is a module, or a layer of a stacked nn.LSTM, nn.GRU or nn.RNN, which has a name as though it were one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from compressor.batches import Inputs
from compressor.errors import StageError
from compressor.structure.other_sizes import bound_to_size, first_and_result
from compressor.structure.parametrizations import is_of_parametrization
from compressor.structure.pass_through import PassThrough
from compressor.structure.plan import Entry
from compressor.structure.recurrent_layers import (
    droppable_layers,
    layer_name,
    layers_of,
    layers_skipped,
    stack_and_layer,
)
from compressor.structure.trials import evaluating, fault, outputs_at
from compressor.workload import predict

# Two modules with parameters of their own make a block; a single layer is not worth a shortcut, unless it is recurrent.
_MIN_LAYERS = 2
_BOUND = (
    "it keeps its input's shape at some sizes alone: {}; where only those of the example come, "
    'Workload(free_sizes="batch") says so'
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A droppable block: its group (class and activation shape), and what it returns where that is no tensor.

    `as_tuple`: a tuple of one; `with_state`: a sequence and a state. `in_stack`: a layer of a stacked recurrent module.
    `locked` is why it has to stay, where that is known without trying.
    """

    group: str
    as_tuple: bool = False
    with_state: bool = False
    in_stack: bool = False
    locked: str | None = None

    @property
    def is_recurrent(self) -> bool:
        """Whether it is a recurrent layer, alone or in a stack."""
        return self.with_state or self.in_stack


@dataclass(kw_only=True)
class _Calls:
    """What one module did during a forward pass; tensors are known by their number."""

    count: int = 0
    block: Block | None = None
    source: int = -1
    result: int = -1
    single_input: bool = True
    nearest: str = ""
    shape: str = ""


def find_blocks(
    model: nn.Module,
    inputs: Inputs,
    globs: tuple[str, ...] = ("*",),
    *,
    free: Sequence[frozenset[int]] | None = None,
) -> dict[str, Block]:
    """The droppable blocks of `model`, in eval mode, by name, in the order of its modules.

    What keeps its input's shape at the sizes of `inputs` but not at others that the model takes is locked; `free` are
    the dimensions of each input whose sizes vary, None for all. Raises StageError where there are none.
    """
    calls = _trace(model, inputs)
    names = dict(model.named_modules())
    fit = [
        name
        for name, call in calls.items()
        if call.block is not None
        and call.count == 1
        and not is_of_parametrization(name)
        and any(fnmatchcase(name, glob) for glob in globs)
        and (call.block.is_recurrent or _layer_count(names[name]) >= _MIN_LAYERS)
    ]
    bound = bound_to_size(model, inputs, [name for name in fit if name in names], free)
    fixed = [name for name in fit if name in bound]
    fit = [name for name in fit if name not in bound]
    chains = {name for name in fit if name in names and _is_chain(name, calls, names)}

    def settle(inside: list[str]) -> list[str]:
        kept: list[str] = []
        outer = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
        for name in outer:
            nested = settle([other for other in inside if other.startswith(f"{name}.")])
            steps = [calls[other] for other in nested if other not in chains]
            repeated = any(first.result == second.source for first, second in pairwise(steps))
            kept += nested if nested and (name in chains or repeated) else [name]
        return kept

    chosen = settle(fit)
    for name in fixed:
        if not any(_overlap(name, other) for other in chosen):
            chosen.append(name)
    blocks = {
        name: replace(block, locked=_BOUND.format(bound[name])) if name in bound else block
        for name, call in calls.items()
        if name in chosen and (block := call.block) is not None
    }
    if not blocks:
        near = [
            f"{name} {call.nearest}"
            for name, call in calls.items()
            if call.nearest and name in names and (_layer_count(names[name]) > 1 or isinstance(names[name], nn.RNNBase))
        ]
        raise StageError(
            f"{type(model).__name__} has no droppable block among {', '.join(globs)}: wanted a module of at least "
            f"{_MIN_LAYERS} layers or a recurrent layer, called once, whose output has its first argument's shape and "
            f"type; closest: {'; '.join(near[-3:]) or 'no module holds two layers'}"
        )
    return blocks


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, module)


@contextmanager
def skipped(model: nn.Module, blocks: Mapping[str, Block]) -> Iterator[None]:
    """`model` with `blocks` replaced by identity, and whole again afterwards."""
    with ExitStack() as stack:
        for name, layers in _by_stack(blocks).items():
            module = model.get_submodule(name)
            if isinstance(module, nn.RNNBase) and set(layers) < set(layers_of(module)):
                stack.enter_context(layers_skipped(module, layers))
            else:
                stack.enter_context(_replaced(model, name, PassThrough(with_state=True)))
        for name, block in blocks.items():
            if not block.in_stack:
                stand_in = PassThrough(as_tuple=block.as_tuple, with_state=block.with_state)
                stack.enter_context(_replaced(model, name, stand_in))
        yield


def fault_without_blocks(
    model: nn.Module, blocks: Mapping[str, Block], inputs: Inputs, wanted: Mapping[int, Tensor]
) -> str | None:
    """Why `model`, in eval mode, cannot do without `blocks`, or None: it must run, backwards too, with finite outputs.

    `wanted` are the outputs of the whole model by batch size, from `outputs_at`.
    """
    known = next((block.locked for block in blocks.values() if block.locked is not None), None)
    if known is not None:
        return known
    with skipped(model, blocks):
        reason = fault(model, inputs, dict(wanted))
        if reason is None:
            outputs = outputs_at(model, inputs, tuple(wanted))
            if any(wanted[size].isfinite().all() and not outputs[size].isfinite().all() for size in wanted):
                reason = "the output becomes infinite or NaN"
    return reason


def can_drop_blocks(model: nn.Module, inputs: Inputs, *, free: Sequence[frozenset[int]] | None = None) -> bool:
    """Whether `model` has a block that it can do without."""
    with evaluating(model):
        try:
            found, wanted = find_blocks(model, inputs, free=free), outputs_at(model, inputs)
        except Exception:  # noqa: BLE001 - a user's model may raise anything
            return False
        return any(fault_without_blocks(model, {name: found[name]}, inputs, wanted) is None for name in found)


def instead_of_channels(model: nn.Module, inputs: Inputs) -> str:
    """What is left to do with a model that loses no channels, as a phrase: blocks are named where some can go."""
    return "drop blocks or quantize instead" if can_drop_blocks(model, inputs) else "quantize instead"


def entries_without(model: nn.Module, blocks: Mapping[str, Block]) -> list[tuple[Entry, list[str]]]:
    """The plan entries that take `blocks` out of `model` for good, each with the names of those it takes."""
    found: list[tuple[Entry, list[str]]] = []
    for flags in ((), ("as_tuple",), ("with_state",)):
        names = [
            name
            for name, block in blocks.items()
            if not block.in_stack and flags == tuple(key for key in ("as_tuple", "with_state") if getattr(block, key))
        ]
        if names:
            found.append(({"kind": "identity", "modules": names, **dict.fromkeys(flags, True)}, names))
    stacks = _by_stack(blocks)
    if stacks:
        counts = {name: model.get_submodule(name).num_layers for name in stacks}
        entry = {"kind": "layers", "dropped": stacks, "counts": counts}
        found.append((entry, [name for name, block in blocks.items() if block.in_stack]))
    return found


def _by_stack(blocks: Mapping[str, Block]) -> dict[str, list[int]]:
    """The numbers of the layers among `blocks`, by the name of their stack."""
    stacks: dict[str, list[int]] = {}
    for name, block in blocks.items():
        if block.in_stack:
            stack, layer = stack_and_layer(name)
            stacks.setdefault(stack, []).append(layer)
    return {name: sorted(layers) for name, layers in stacks.items()}


@contextmanager
def _replaced(model: nn.Module, name: str, module: nn.Module) -> Iterator[None]:
    old = model.get_submodule(name)
    _set(model, name, module)
    try:
        yield
    finally:
        _set(model, name, old)


def _trace(model: nn.Module, inputs: Inputs) -> dict[str, _Calls]:
    calls = {name: _Calls() for name, module in model.named_modules() if name or isinstance(module, nn.RNNBase)}
    seen: list[Any] = []  # kept alive, so that no two tensors share an id

    def number(tensor: Any) -> int:
        seen.append(tensor)
        return id(tensor)

    handles = []
    for name in tuple(calls):

        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name
        ) -> None:
            call = calls[name]
            call.count += 1
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            call.single_input = len(given) == 1 or any(True for _ in module.parameters())
            recurrent = isinstance(module, nn.RNNBase)
            as_tuple = isinstance(output, tuple) and len(output) == 1
            first, result = first_and_result(module, args, output)
            if not (isinstance(first, Tensor) and isinstance(result, Tensor)):
                call.nearest = "does not take a tensor first and return one"
                return
            call.source, call.result = number(first), number(result)
            call.shape = "x".join(map(str, result.shape[1:]))
            if first.shape != result.shape or first.dtype != result.dtype:
                call.nearest = f"maps {tuple(first.shape)} to {tuple(result.shape)}"
            elif result.is_floating_point() and result.ndim > 1:
                group = f"{type(module).__name__} {call.shape}"
                call.block = Block(group=group, as_tuple=as_tuple, with_state=recurrent)
                call.nearest = f"runs {call.count} times" if call.count > 1 else ""

        handles.append(model.get_submodule(name).register_forward_hook(record, with_kwargs=True))
    try:
        with torch.no_grad():
            predict(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, _Calls] = {}
    for name, call in calls.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.RNNBase) and (len(layers_of(module)) > 1 or not name):
            # The layers are the blocks, and nothing could stand where the model itself was.
            call.block = None
            between = [number(object()) for _ in layers_of(module)[1:]]
            found |= {name: call} | _calls_of_layers(name, module, call, [call.source, *between, call.result])
        else:
            found[name] = call
    return found


def _calls_of_layers(name: str, stack: nn.RNNBase, call: _Calls, ends: list[int]) -> dict[str, _Calls]:
    """What the layers of `stack` did, each on the result of the one before; `ends` are the numbers of the tensors."""
    block = Block(group=f"{type(stack).__name__} layer {call.shape}", in_stack=True)
    free = droppable_layers(stack)
    if not name and free == layers_of(stack):
        del free[0]  # something of the model has to be left
    if not free:
        call.nearest = "has no layer with plain weights whose input is of the size of its output"
    return {
        layer_name(name, layer): _Calls(
            count=call.count, block=block if layer in free else None, source=ends[place], result=ends[place + 1]
        )
        for place, layer in enumerate(layers_of(stack))
    }


def _layer_count(module: nn.Module) -> int:
    """The modules inside that have parameters; one that computes its weights is one, whatever it computes them from."""
    return sum(
        any(True for _ in part.parameters(recurse=False)) or is_parametrized(part)
        for name, part in module.named_modules()
        if not is_of_parametrization(name)
    )


def _is_chain(name: str, calls: dict[str, _Calls], names: dict[str, nn.Module]) -> bool:
    """Whether the module only runs its parts one after the other, so that nothing skips them."""
    steps: dict[int, set[int]] = {}
    for other, call in calls.items():
        if other.startswith(f"{name}.") and call.count == 1 and call.single_input and call.source >= 0:
            steps.setdefault(call.source, set()).add(call.result)
    if not any(True for _ in names[name].children()):
        return False
    reached, front = set[int](), {calls[name].source}
    while front:
        reached |= front
        front = {result for source in front for result in steps.get(source, ())} - reached
    return calls[name].result in reached
