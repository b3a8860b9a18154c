"""Which modules of a network are blocks that can be skipped: found by running it once and watching."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.plan import PassThrough
from compressor.stage import StageError
from compressor.workload import predict

# Two modules with parameters of their own make a block; a single layer is not worth a shortcut.
_MIN_LAYERS = 2


@dataclass(frozen=True, kw_only=True)
class Block:
    """A droppable block: its group (class and activation shape), and whether it returns a tuple of one tensor."""

    group: str
    as_tuple: bool


@dataclass(kw_only=True)
class _Calls:
    """What one module did during a forward pass; tensors are known by their number."""

    count: int = 0
    block: Block | None = None
    source: int = -1
    result: int = -1
    single_input: bool = True
    nearest: str = ""


def find_blocks(model: nn.Module, inputs: Inputs, globs: tuple[str, ...] = ("*",)) -> dict[str, Block]:
    """The droppable blocks of `model` by name, in the order of its modules. Raises StageError where there are none."""
    calls = _trace(model, inputs)
    names = dict(model.named_modules())
    fit = [
        name
        for name, call in calls.items()
        if call.block is not None
        and call.count == 1
        and any(fnmatchcase(name, glob) for glob in globs)
        and _layer_count(names[name]) >= _MIN_LAYERS
    ]
    chains = {name for name in fit if _is_chain(name, calls, names)}

    def settle(inside: list[str]) -> list[str]:
        kept: list[str] = []
        outer = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
        for name in outer:
            nested = settle([other for other in inside if other.startswith(f"{name}.")])
            steps = [calls[other] for other in nested if other not in chains]
            repeated = any(first.result == second.source for first, second in pairwise(steps))
            kept += nested if nested and (name in chains or repeated) else [name]
        return kept

    blocks = {name: block for name in settle(fit) if (block := calls[name].block) is not None}
    if not blocks:
        near = [
            f"{name} {call.nearest}" for name, call in calls.items() if call.nearest and _layer_count(names[name]) > 1
        ]
        raise StageError(
            f"{type(model).__name__} has no droppable block among {', '.join(globs)}: wanted a module of at least "
            f"{_MIN_LAYERS} layers, called once, whose output has its first argument's shape and type; closest: "
            f"{'; '.join(near[-3:]) or 'no module holds two layers'}"
        )
    return blocks


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, module)


@contextmanager
def skipped(model: nn.Module, blocks: dict[str, Block]) -> Iterator[None]:
    """`model` with `blocks` replaced by identity, and whole again afterwards."""
    old = {name: model.get_submodule(name) for name in blocks}
    for name, block in blocks.items():
        _set(model, name, PassThrough(as_tuple=block.as_tuple))
    try:
        yield
    finally:
        for name, module in old.items():
            _set(model, name, module)


def _trace(model: nn.Module, inputs: Inputs) -> dict[str, _Calls]:
    calls = {name: _Calls() for name, _ in model.named_modules() if name}
    seen: list[Tensor] = []  # kept alive, so that no two tensors share an id

    def number(tensor: Tensor) -> int:
        seen.append(tensor)
        return id(tensor)

    handles = []
    for name, module in model.named_modules():
        if not name:
            continue

        def record(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name
        ) -> None:
            call = calls[name]
            call.count += 1
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            call.single_input = len(given) == 1 or any(True for _ in module.parameters())
            as_tuple = isinstance(output, tuple) and len(output) == 1
            result = output[0] if as_tuple else output
            if not (args and isinstance(args[0], Tensor) and isinstance(result, Tensor)):
                call.nearest = "does not take a tensor first and return one"
                return
            source = args[0]
            call.source, call.result = number(source), number(result)
            if source.shape != result.shape or source.dtype != result.dtype:
                call.nearest = f"maps {tuple(source.shape)} to {tuple(result.shape)}"
            elif result.is_floating_point() and source.ndim > 1:
                shape = "x".join(map(str, result.shape[1:]))
                call.block = Block(group=f"{type(module).__name__} {shape}", as_tuple=as_tuple)
                call.nearest = f"runs {call.count} times" if call.count > 1 else ""

        handles.append(module.register_forward_hook(record, with_kwargs=True))
    try:
        with torch.no_grad():
            predict(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _layer_count(module: nn.Module) -> int:
    return sum(any(True for _ in part.parameters(recurse=False)) for part in module.modules())


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
