"""The groups of parameters that an optimizer is given: which decay, and at which part of the rate each layer learns."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from compressor.structure.preparing.matching import check_names_match
from compressor.training.freezing import lies_in
from compressor.training.optimizers.choices import Known

_NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

LayerRates = tuple[tuple[str, float], ...]


def optimizer_for(
    model: nn.Module, choice: Known, *, weight_decay: float, layer_rates: LayerRates = ()
) -> torch.optim.Optimizer:
    """The optimizer `choice` over what is not frozen in `model`; biases and norms do not decay.

    Every group carries its rate at the peak as "lr". Raises StageError where a glob of `layer_rates` matches nothing.
    """
    check_names_match("layer_rates", [glob for glob, _ in layer_rates], model)
    # Decay shrinks what the next normalisation rescales; biases and norms have nothing to make up for it.
    exempt = {id(own) for module in model.modules() if isinstance(module, _NORM_LAYERS) for own in module.parameters()}
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter, own in names.items():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in exempt
            groups.setdefault((_factor(own, layer_rates), decays), []).append(parameter)
    ordered: list[dict[str, Any]] = [
        {"params": members, "lr": choice.rate * factor, "weight_decay": weight_decay if decays else 0.0}
        for (factor, decays), members in sorted(groups.items(), key=lambda entry: (-entry[0][0], not entry[0][1]))
    ]
    trained = [parameter for group in ordered for parameter in group["params"]]
    # One kernel for all parameters: the update of a small network otherwise takes several milliseconds a batch.
    fused = all(parameter.device.type in {"cpu", "cuda"} and parameter.is_floating_point() for parameter in trained)
    return choice.make(ordered, fused=fused)


def _factor(names: Iterable[str], layer_rates: LayerRates) -> float:
    """What the rate of a parameter is multiplied by: the factor of the last glob that matches one of its `names`."""
    return next((rate for glob, rate in reversed(layer_rates) if any(lies_in(name, (glob,)) for name in names)), 1.0)
