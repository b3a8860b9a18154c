"""Copies of a model to try things on: with tensors that are shared, or with shapes alone and no numbers."""

import copy
from collections import OrderedDict
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from compressor.structure.tensor_ids import Sizes, tensors_of

# Values that nobody can change are never copied.
_FIXED = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device)
_CONTAINERS = (dict, OrderedDict, set, list)
# These only complete what old versions stored.
_SETTERS = (nn.Module.__setstate__, nn.modules.conv._ConvNd.__setstate__)  # noqa: SLF001 - no public name


def sharing_copy(model: nn.Module, own: Container[str] = ()) -> nn.Module:
    """A copy of `model` with buffers and the parameters named in `own` of its own; all others are those of `model`."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    mine = {id(parameter) for name, parameter in parameters.items() if name in own}
    return _copied(model, {id(other): other for other in parameters.values() if id(other) not in mine})


def shape_copy(model: nn.Module) -> nn.Module:
    """A copy of `model` on the meta device, whose operators compute shapes and no numbers; ties stay."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return _copied(model, memo)


def masked_copy(model: nn.Module, sizes: Sizes) -> nn.Module:
    """A copy of `model` with everything zero that `sizes` leaves out; parameters without such are those of `model`.

    Where channels do not mix, it computes what is left of the model computes.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    tensors = tensors_of(model)
    with torch.no_grad():
        for name, dims in sizes.kept.items():
            tensor = tensors[name]
            value = tensor.detach()
            for dim, indices in dims.items():
                left = torch.zeros(tensor.shape[dim], dtype=tensor.dtype)
                left[indices] = 1
                # A product is many times as fast as a choice.
                value = value * left.to(tensor.device).reshape(
                    [-1 if other == dim else 1 for other in range(tensor.ndim)]
                )
            memo[id(tensor)] = (
                nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            )
    return _copied(model, memo)


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
        if isinstance(value, _FIXED):
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
    known = memo.get(id(tensor))
    return copy.deepcopy(tensor, memo) if known is None else known
