"""Which layers of a model can become chains of thinner ones, why others cannot, and what each of them is given."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from compressor.batches import Batch, Inputs
from compressor.latency.operators import Operator
from compressor.pruning.choice.layer_calls import LayerCall, calls_of
from compressor.structure.bisection import bisected
from compressor.structure.calling.hooks import hooks
from compressor.structure.factored.chains import SVD, factor_, full_ranks, weight_of, why_not
from compressor.structure.model_copies import sharing_copy
from compressor.structure.parametrizations import computed_weights, is_of_parametrization
from compressor.structure.preparing.matching import matching_glob
from compressor.structure.recurrent_layers import plain
from compressor.structure.trials import fault, outputs_at, same_outputs
from compressor.workload import predict


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that can become a chain: its weight's shape, (outputs, inputs, *kernel), and what is computed with it."""

    name: str
    shape: tuple[int, ...]
    operators: tuple[Operator, ...]

    @property
    def macs(self) -> int:
        """The multiply-accumulates of all its calls, of the whole batch."""
        return sum(operator.macs for operator in self.operators)

    @property
    def parameters(self) -> int:
        """The weights of its matrix or kernels."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers that can become chains, those that cannot with their reasons, and everything that a call computes."""

    free: tuple[Layer, ...]
    locked: dict[str, str]
    calls: tuple[LayerCall, ...]

    def without(self, others: Mapping[str, str]) -> "Layers":
        """The same where those named in `others` are locked, too, for the reasons given there."""
        free = tuple(layer for layer in self.free if layer.name not in others)
        return replace(self, free=free, locked={**self.locked, **others})


def find_layers(
    model: nn.Module, example: Inputs, timed: Inputs, *, ignore: Sequence[str], held: Collection[str] = ()
) -> Layers:
    """What of `model`, in eval mode, can become chains, but for layers that match a glob of `ignore`.

    Tensors named in `held` have to keep zeros or equal values that an earlier stage made: their layers stay whole.

    All of them at once were exchanged at full rank in a trial, and the model computed for `example` what it computed
    before. `timed` are inputs of the batch that costs are for. The model stays as it is.
    """
    calls = tuple(calls_of(model, timed))
    made: dict[str, list[LayerCall]] = {}
    for call in calls:
        made.setdefault(call.name, []).append(call)
    own = _own_calls(model, timed)
    shared, computed = _owners(model), computed_weights(model)
    locked: dict[str, str] = {}
    found: dict[str, Layer] = {}
    for name, module in model.named_modules():
        holds = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)) or name in computed
        if not holds or is_of_parametrization(name):
            continue
        reason = _reason(name, module, ignore, shared, computed)
        if reason is None and any(f"{name}.{key}" in held for key, _ in module.named_parameters(recurse=False)):
            reason = "an earlier stage made zeros or equal values in it, which a product would not keep"
        if reason is None and not own[name]:
            reason = "it is not called: it does not run, or its weight is read instead"
        if reason is None and len(made[name]) > own[name]:
            reason = "its weight is multiplied outside of it, too"
        operators = tuple(operator for call in made.get(name, ()) for operator in changing(call))
        if reason is None and not operators:
            reason = "it is given nothing to compute"
        if reason is None:
            found[name] = Layer(name=name, shape=tuple(weight_of(module).shape), operators=operators)
        elif name:
            locked[name] = reason
    names, faults = bisected(list(found), lambda chosen: _fault_of(model, [found[name] for name in chosen], example))
    return Layers(free=tuple(found[name] for name in names), locked=locked | faults, calls=calls)


def changing(call: LayerCall) -> tuple[Operator, ...]:
    """What of a call becomes something else when its layer becomes a chain: of stacked layers the first."""
    return call.operators[:1] if call.kind == "recurrent" else call.operators


def _own_calls(model: nn.Module, inputs: Inputs) -> Counter[str]:
    """How often each module is called in one call of `model`."""
    count: Counter[str] = Counter()
    with hooks() as handles, torch.no_grad():
        handles += [
            module.register_forward_pre_hook(lambda _module, _args, name=name: count.update([name]))
            for name, module in model.named_modules()
        ]
        predict(model, inputs)
    return count


def _reason(
    name: str,
    module: nn.Module,
    ignore: Iterable[str],
    shared: Mapping[int, Sequence[str]],
    computed: Mapping[str, Any],
) -> str | None:
    ignored = matching_glob(name, ignore)
    if ignored is not None:
        return f"ignored by {ignored!r}"
    if name in computed:
        return f"its {' and '.join(computed[name])} is computed from other tensors"
    if not name:
        return "it is the model itself"
    reason = why_not(module)
    if reason is not None:
        return reason
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:  # noqa: SLF001 - no public name
        return "hooks hang on it, which a chain would lose"
    own = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1]
    others = sorted({owner for parameter in own for owner in shared[id(parameter)]} - {name})
    if others:
        return f"its weight is that of {', '.join(others)}, too"
    if not weight_of(module).is_floating_point():
        return f"its weight is {weight_of(module).dtype}"
    return None


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The modules that hold each tensor as their own, by its identity; a module of several names counts once."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _fault_of(model: nn.Module, layers: Sequence[Layer], example: Inputs) -> str | None:
    """Why these layers cannot be chains: at full rank the model fails, or computes something else."""
    plan = {
        layer.name: {"by": SVD, "ranks": list(full_ranks(layer.shape, SVD)), "shape": list(layer.shape)}
        for layer in layers
    }
    wanted = outputs_at(model, example)
    trial = factor_(sharing_copy(model), plan)
    reason = fault(trial, example, wanted)
    if reason is not None:
        return reason
    got = outputs_at(trial, example)
    if any(same_outputs(got[size], wanted[size]) is not None for size in wanted):
        return "with a chain of full rank in its place the model computes something else"
    return None


def input_moments(model: nn.Module, layers: Sequence[Layer], data: Sequence[Batch]) -> dict[str, Tensor]:
    """The second moments (inputs, inputs) of what each layer is given at one position, over all of `data`."""
    found: dict[str, Tensor] = {}

    def look(given: Tensor, layer: Layer) -> None:
        # Features stand last, channels before the kernel's dimensions.
        dim = -1 - len(layer.shape[2:])
        rows = plain(given).detach().movedim(dim, -1).flatten(0, -2).to("cpu", torch.float64)
        moments = rows.t() @ rows
        found[layer.name] = found[layer.name] + moments if layer.name in found else moments

    with hooks() as handles, torch.no_grad():
        for layer in layers:

            def hook(_: nn.Module, args: Any, kwargs: Any, layer: Layer = layer) -> None:
                look(args[0] if args else next(iter(kwargs.values())), layer)

            handles.append(model.get_submodule(layer.name).register_forward_pre_hook(hook, with_kwargs=True))
        for inputs, _ in data:
            predict(model, inputs)
    return found
