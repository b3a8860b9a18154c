"""Copies of a model to try things on: with tensors that are shared, or with shapes alone and no numbers."""

import copy
from collections import Counter, OrderedDict
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from compressor.kept_state import computed_tensors
from compressor.structure.tensor_ids import Sizes, tensors_of

# Values that nobody can change are never copied.
_FIXED = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
_CONTAINERS = (dict, OrderedDict, set, list)
_LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# These only complete what old versions stored.
_SETTERS = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)  # noqa: SLF001 - no public name


def sharing_copy(model: nn.Module, own: Container[str] = ()) -> nn.Module:
    """A copy of `model` with buffers and the parameters named in `own` of its own; all others are those of `model`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    mine = {id(parameter) for name, parameter in parameters.items() if name in own}
    shared = {id(other): other for other in parameters.values() if id(other) not in mine}
    return _copied(model, computed_tensors(model) | shared)


def shape_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, whose operators compute shapes and no numbers; ties stay."""
    memo = computed_tensors(model)
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return _copied(model, memo)


def masked_copy(model: nn.Module, sizes: Sizes, *, by_activations: bool = False) -> nn.Module:
    """A copy of `model` with everything zero that `sizes` leaves out; parameters without such are those of `model`.

    Where channels do not mix, it computes what is left of the model computes. With `by_activations`, linear layers and
    convolutions keep their weights, and what goes in and comes out of them is zeroed instead: the same numbers without
    the memory of a second model, unless the program uses a weight without calling its layer.
    """
    memo = computed_tensors(model) | {id(parameter): parameter for parameter in model.parameters()}
    tensors = tensors_of(model)
    layers = _maskable(model, sizes) if by_activations else {}
    spared = {f"{name}.{key}" if name else key for name in layers for key in ("weight", "bias")}
    with torch.no_grad():
        for name, dims in sizes.kept.items():
            if name in spared:
                continue
            tensor = tensors[name]
            value = tensor.detach()
            for number, (dim, indices) in enumerate(dims.items()):
                # A product is many times as fast as a choice.
                left = _mask(tensor, dim, indices, tensor.ndim - dim)
                value = value.mul_(left) if number else value * left
            memo[id(tensor)] = (
                nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            )
    masked = _copied(model, memo)
    for name, dims in layers.items():
        _mask_activations_(masked.get_submodule(name), dims)
    return masked


def _maskable(model: nn.Module, sizes: Sizes) -> dict[str, dict[int, list[int]]]:
    """The layers whose zeros can as well be in their inputs and outputs, with the kept indices of their weights."""
    owners = Counter(id(tensor) for module in model.modules() for tensor in module.parameters(recurse=False))
    found = {}
    for name, module in model.named_modules():
        if type(module) not in _LINEAR or getattr(module, "groups", 1) > 1:
            continue
        prefix = f"{name}." if name else ""
        weight, bias = sizes.kept.get(f"{prefix}weight", {}), sizes.kept.get(f"{prefix}bias", {})
        alone = all(owners[id(tensor)] == 1 for tensor in module.parameters(recurse=False))
        if alone and set(weight) <= {0, 1} and (module.bias is None or bias.get(0) == weight.get(0)):
            found[name] = weight
    return found


def _mask_activations_(layer: nn.Module, kept: dict[int, list[int]]) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]  # that of a linear layer or a convolution
    behind = weight.ndim - 1  # the channels come last, but for the places of a map
    if 1 in kept:
        inputs = _mask(weight, 1, kept[1], behind)

        def enter(_layer: nn.Module, args: Any, kwargs: Any) -> Any:
            given = {key: value * inputs if key == "input" else value for key, value in kwargs.items()}
            return ((args[0] * inputs, *args[1:]) if args else args), given

        layer.register_forward_pre_hook(enter, with_kwargs=True)
    if 0 in kept:
        outputs = _mask(weight, 0, kept[0], behind)
        # Without gradients what a layer gives is nobody else's.
        layer.register_forward_hook(
            lambda _layer, _args, output: output * outputs if torch.is_grad_enabled() else output.mul_(outputs)
        )


def _mask(tensor: Tensor, dim: int, kept: list[int], ndim: int) -> Tensor:
    """One where dimension `dim` of `tensor` is `kept` and zero elsewhere, the first of `ndim` dimensions."""
    mask = torch.zeros(tensor.shape[dim], dtype=tensor.dtype)
    mask[kept] = 1
    return mask.to(tensor.device).reshape(-1, *[1] * (ndim - 1))


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What copy.deepcopy(module, memo) gives, many times as fast: modules are mostly numbers and empty dicts."""
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return]  # a memo holds anything
    kind = type(module)
    # Whoever says how it is copied is asked.
    plain = (
        not hasattr(module, "__deepcopy__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and kind.__setstate__ in _SETTERS
    )
    if not plain:
        return copy.deepcopy(module, memo)
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    state = vars(twin)
    for key, value in vars(module).items():
        if isinstance(value, _FIXED) or (type(value) is tuple and all(isinstance(item, _FIXED) for item in value)):
            state[key] = value
        elif key == "_modules":
            state[key] = {name: child if child is None else _copied(child, memo) for name, child in value.items()}
        elif key in {"_parameters", "_buffers"}:
            state[key] = {name: tensor if tensor is None else _tensor(tensor, memo) for name, tensor in value.items()}
        elif type(value) in _CONTAINERS and not value:
            state[key] = type(value)()
        else:
            state[key] = copy.deepcopy(value, memo)
    return twin


def _tensor(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    known: Tensor | None = memo.get(id(tensor))
    if known is None and type(tensor) is Tensor and not tensor.requires_grad and not vars(tensor):
        known = memo[id(tensor)] = tensor.clone()
    return copy.deepcopy(tensor, memo) if known is None else known
