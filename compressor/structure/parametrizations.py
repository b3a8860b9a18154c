"""Weights that layers compute from other tensors (weight norm, spectral norm, masks, any parametrization), made plain.

A weight that is computed cannot lose channels by itself: the norm of what is left would be another one. What it is
worth at the moment can, once it is a parameter of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.prune import remove as remove_mask
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

_REMOVERS: dict[type, Callable[[nn.Module, str], Any]] = {
    WeightNorm: remove_weight_norm,
    SpectralNorm: remove_spectral_norm,
    BasePruningMethod: remove_mask,
}

# What computes each weight of a module: its name by the tensor's, and that by the module's.
Computed = dict[str, dict[str, str]]


def computed_weights(model: nn.Module) -> Computed:
    """Which tensors of which modules are computed, and by what: {"conv": {"weight": "_WeightNorm"}}.

    Modules inside of a parametrization are left out: they go with it.
    """
    found: Computed = {}
    for name, module in model.named_modules():
        if not is_of_parametrization(name) and (tensors := _computed_by(module)):
            found[name] = tensors
    return found


def is_of_parametrization(name: str) -> bool:
    """Whether the module `name` is a part of what computes another module's weights."""
    return "parametrizations" in name.split(".")


def fold_weights_(model: nn.Module, tensors: Mapping[str, Iterable[str]]) -> nn.Module:
    """`model` itself with the computed `tensors`, by module name, as parameters (or buffers) of their present values.

    The values are those of eval mode, and the original class of a parametrized module is back. Weights that came from
    one tensor by one computation stay one. A weight is trained where one of the tensors was that it came from. Other
    copies of the model are left alone: torch keeps parametrizations in a class that copies share. Raises ValueError
    where a module computes other tensors than these.
    """
    made: dict[tuple[int, ...], Tensor] = {}
    modules: dict[int, nn.Module] = {}
    for name, wanted in tensors.items():
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(f"the plan folds weights of {name!r}, which {type(model).__name__} lacks") from error
        if id(module) not in modules and set(_computed_by(module)) != set(wanted):
            raise ValueError(
                f"the plan folds {sorted(wanted)} of {name!r}, whose computed weights are "
                f"{sorted(_computed_by(module))}; give the model that the plan was made for"
            )
        modules[id(module)] = module
    for module in modules.values():
        with _in_eval_mode(module), torch.no_grad():
            _fold_(module, made)
    return model


def _computed_by(module: nn.Module) -> dict[str, str]:
    found = {_tensor_of(hook): type(hook).__name__ for hook in _hooks(module)}
    if is_parametrized(module):
        for name, steps in module.parametrizations.items():  # type: ignore[union-attr,operator]  # it has some
            found[name] = ", ".join(type(step).__name__ for step in steps)
    return found


def _hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm | BasePruningMethod]:
    """What torch's older functions leave in a module: hooks that compute or mask a weight before every call."""
    hooks = module._forward_pre_hooks.values()  # noqa: SLF001 - torch has no public name for them
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)]


def _tensor_of(hook: WeightNorm | SpectralNorm | BasePruningMethod) -> str:
    if isinstance(hook, BasePruningMethod):
        return str(hook._tensor_name)  # noqa: SLF001 - torch has no public name for it
    return str(hook.name)


def _fold_(module: nn.Module, made: dict[tuple[int, ...], Tensor]) -> None:
    others = list(module._parameters)  # noqa: SLF001 - torch has no public way to order them
    for hook in _hooks(module):
        name = _tensor_of(hook)
        keys = "gv" if isinstance(hook, WeightNorm) else ("orig",)
        trained = any(getattr(module, f"{name}_{key}").requires_grad for key in keys)
        _REMOVERS[next(kind for kind in _REMOVERS if isinstance(hook, kind))](module, name)
        getattr(module, name).requires_grad_(trained)
    if is_parametrized(module):
        _fold_parametrizations_(module, made)
    # Matrices come before their vectors, as in every layer of torch.
    for key in others:
        if key in module._parameters:  # noqa: SLF001 - as above
            module._parameters[key] = module._parameters.pop(key)  # noqa: SLF001 - as above


def _fold_parametrizations_(module: nn.Module, made: dict[tuple[int, ...], Tensor]) -> None:
    lists: dict[str, ParametrizationList] = dict(module.parametrizations.items())  # type: ignore[union-attr,operator]
    values = {name: _value(steps, made) for name, steps in lists.items()}
    # Not remove_parametrizations: it takes the weight out of the class, which copies of the module share.
    module.__class__ = type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if isinstance(value, nn.Parameter):
            setattr(module, name, value)
        else:
            module.register_buffer(name, value)


def _value(steps: ParametrizationList, made: dict[tuple[int, ...], Tensor]) -> Tensor:
    # `original`, or `original0`, `original1`, ...: what a parametrization of several tensors starts from.
    own = (*steps.named_parameters(recurse=False), *steps.named_buffers(recurse=False))
    originals = [tensor for key, tensor in own if key.startswith("original")]
    value: Tensor = steps().detach().clone()
    key = tuple(map(id, originals))
    known = made.get(key)
    if known is not None and torch.equal(known, value):
        return known
    if any(isinstance(original, nn.Parameter) for original in originals):
        trained = value.is_floating_point() and any(tensor.requires_grad for tensor in steps.parameters())
        value = nn.Parameter(value, requires_grad=trained)
    return made.setdefault(key, value)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    # In training mode the power iteration of a spectral norm goes on at every look.
    modes: list[tuple[Any, bool]] = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
