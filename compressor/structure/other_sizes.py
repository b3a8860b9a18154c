"""Modules whose output has their input's shape at some sizes of the model's inputs only: found by trying others."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Inputs, map_tensors
from compressor.structure.model_copies import shape_copy, sharing_copy
from compressor.structure.recurrent_layers import plain
from compressor.workload import call_model, input_tensors

Site = tuple[int, int]
# Odd sizes and even ones, smaller and larger: maps of one pixel grow, and those that fit by chance do not.
_SIZES: tuple[Callable[[int], int], ...] = (
    lambda size: 2 * size,
    lambda size: size + 1,
    lambda size: size - 1,
    lambda size: size // 2,
    lambda size: 3 * size,
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Inputs of more elements are not tried where the model needs numbers: a run of them could take minutes.
_LARGEST = 1 << 22


def first_and_result(module: nn.Module, args: Any, output: Any) -> tuple[Any, Any]:
    """What a module was given first and what it gave back: tensors, if it takes a tensor first and returns one."""
    alone = isinstance(output, tuple) and len(output) == 1
    result = plain(output[0]) if alone or isinstance(module, nn.RNNBase) else output
    return (plain(args[0]) if args else None), result


def bound_to_size(
    model: nn.Module, inputs: Inputs, names: Iterable[str], free: Sequence[frozenset[int]] | None = None
) -> dict[str, str]:
    """Which modules `names` of `model` change the shape where the inputs have other sizes, and how, by name.

    `model` is in eval mode and runs on `inputs`; each of them keeps the shape of its first argument there. Tried are
    the sizes that the model takes without an error: of each dimension but the batch alone, of the same dimension of
    several inputs together, and of all places of a map together. `free` are the dimensions of each input that may vary
    at all, None for all of them.
    """
    wanted = tuple(names)
    found: dict[str, str] = {}
    if not wanted:
        return found
    trial, given, largest = _runnable(model, inputs)
    shapes: dict[str, tuple[Any, Any]] = {}

    def recorder(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            first, result = first_and_result(module, args, output)
            if isinstance(first, Tensor) and isinstance(result, Tensor) and first.shape != result.shape:
                shapes[name] = tuple(first.shape), tuple(result.shape)

        return record

    for name in wanted:
        trial.get_submodule(name).register_forward_hook(recorder(name))
    for other in _resized(given, largest, free):
        shapes.clear()
        try:
            with torch.no_grad():
                call_model(trial, other)
        except Exception:  # noqa: BLE001, S112 - whatever a model raises for a size that it does not take
            continue
        sizes = " and ".join(str(tuple(tensor.shape)) for tensor in input_tensors(other))
        for name, (before, after) in shapes.items():
            found.setdefault(name, f"for inputs of shape {sizes} it maps {before} to {after}")
    return found


def _runnable(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs, float]:
    """A copy that runs, if it can without numbers, its inputs, and how many elements these may have."""
    try:
        trial, given = shape_copy(model), map_tensors(inputs, lambda tensor: torch.empty_like(tensor, device="meta"))
        with torch.no_grad():
            call_model(trial, given)
    except Exception:  # noqa: BLE001 - many programs need numbers: they look at values, or bring tensors along
        return sharing_copy(model), inputs, _LARGEST
    return _norms_passed(shape_copy(model)), given, float("inf")


def _norms_passed(model: nn.Module) -> nn.Module:
    """`model`, which knows shapes alone, with nothing computed of batch normalization in eval mode: it keeps them.

    What torch does for its shapes takes half of the time of a run of a deep residual network.
    """
    for module in model.modules():
        if type(module) in _NORMS and not module.training and module.running_mean is not None:
            module.forward = partial(_passed, module)
    return model


def _passed(norm: Any, x: Tensor) -> Tensor:
    norm._check_input_dim(x)  # noqa: SLF001 - what its own forward begins with
    if x.shape[1] != norm.num_features:
        raise ValueError(f"batch normalization of {norm.num_features} channels is given {x.shape[1]}")
    return x


def _resized(inputs: Inputs, largest: float, free: Sequence[frozenset[int]] | None) -> Iterator[Inputs]:
    tensors = input_tensors(inputs)
    batch = tensors[0].shape[0] if tensors[0].ndim else 0
    sites = [
        (number, axis)
        for number, tensor in enumerate(tensors)
        for axis in range(tensor.ndim)
        if (axis > 0 or tensor.shape[0] != batch) and (free is None or axis in free[number])
    ]
    together: dict[object, list[Site]] = {}
    for number, axis in sites:
        together.setdefault((axis, tensors[number].shape[axis]), []).append((number, axis))
        if axis > 1:
            together.setdefault(("places", number), []).append((number, axis))
    for group in dict.fromkeys(map(tuple, together.values())):
        for size in _SIZES:
            lengths = {site: size(tensors[site[0]].shape[site[1]]) for site in group}
            resized = [
                _taken(tensor, {axis: length for (other, axis), length in lengths.items() if other == number})
                for number, tensor in enumerate(tensors)
            ]
            if min(lengths.values()) > 0 and sum(tensor.numel() for tensor in resized) <= largest:
                yield _like(inputs, resized)


def _taken(tensor: Tensor, lengths: Mapping[int, int]) -> Tensor:
    # Longer inputs repeat real values, so that indices stay in range and masks stay masks.
    for axis, length in lengths.items():
        size = tensor.shape[axis]
        if size:
            tensor = tensor.index_select(axis, torch.arange(length, device=tensor.device) % size)
    return tensor


def _like(inputs: Inputs, tensors: list[Tensor]) -> Inputs:
    if isinstance(inputs, Mapping):
        return dict(zip(inputs, tensors, strict=True))
    return tuple(tensors) if isinstance(inputs, tuple) else tensors[0]
