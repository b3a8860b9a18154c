"""The weights that make each channel of a group of coupled layers, read and scaled channel by channel."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from compressor.batches import Inputs
from compressor.checks import told_reasons
from compressor.errors import StageError
from compressor.pruning.narrowing import reason_to_lock
from compressor.structure.calling.shown import Shown
from compressor.structure.couplings import Coupled, Part
from compressor.structure.graph import trace_structure
from compressor.structure.preparing.matching import matching_glob
from compressor.structure.trials import evaluating

_NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)
# Their statistics run over channels: one that is zero still takes part, so that taking it out changes the others.
_MIXING = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Slice:
    """A parameter with the dimension of the channels; `indices[i]` of it belongs to channel `channels[i]`."""

    parameter: nn.Parameter
    dim: int
    indices: Tensor
    channels: Tensor

    def per_channel(self, powers: Tensor, width: int) -> Tensor:
        """`powers` (shaped as the parameter) summed up by channel, (width,) in float64."""
        others = [dim for dim in range(powers.ndim) if dim != self.dim]
        lines = powers.sum(dim=others) if others else powers
        sums = torch.zeros(width, dtype=torch.float64)
        return sums.index_add_(0, self.channels, lines.double().cpu()[self.indices])


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelSlices:
    """The slices of parameters that belong to the channels of one group."""

    width: int
    slices: tuple[_Slice, ...]

    @classmethod
    def making(cls, model: nn.Module, group: Coupled) -> "ChannelSlices":
        """Everything that makes a channel: weights and biases of the layers it comes out of, and its normalizations."""
        parts = (part for part in group.parts if part.makes or part.is_norm)
        return cls._of(model, group, ((name, dim, part) for part in parts for name, dim in part.tensors))

    @classmethod
    def deciding(cls, model: nn.Module, group: Coupled, norm_after: dict[str, str]) -> "ChannelSlices":
        """What decides how large a channel is: as `making`, without layers whose output is normalized right away.

        `norm_after` names the normalization behind a layer. Such a layer may shrink without any effect until it is
        zero: the scale and shift of the normalization stand for it.
        """
        norms = {part.module for part in group.parts if part.is_norm and part.tensors}
        parts = (
            part for part in group.parts if part.is_norm or (part.makes and norm_after.get(part.module) not in norms)
        )
        return cls._of(model, group, ((name, dim, part) for part in parts for name, dim in part.tensors))

    @classmethod
    def scales(cls, model: nn.Module, group: Coupled) -> "ChannelSlices | None":
        """The scales of the group's batch normalizations, None where there are none."""
        return cls._of_norms(model, group, "weight")

    @classmethod
    def shifts(cls, model: nn.Module, group: Coupled) -> "ChannelSlices | None":
        """The shifts of the group's batch normalizations, None where there are none."""
        return cls._of_norms(model, group, "bias")

    @property
    def count(self) -> float:
        """How many values belong to a channel, the mean where channels differ."""
        sizes = (item.parameter.numel() / item.parameter.shape[item.dim] * len(item.indices) for item in self.slices)
        return sum(sizes) / self.width

    def norms(self) -> Tensor:
        """The Euclidean norm of every channel, (width,) in float64."""
        squares = [item.per_channel(item.parameter.detach().square(), self.width) for item in self.slices]
        return torch.stack(squares).sum(dim=0).sqrt()

    def sums(self) -> Tensor:
        """The sum of absolute values of every channel, (width,) in float64."""
        sums = [item.per_channel(item.parameter.detach().abs(), self.width) for item in self.slices]
        return torch.stack(sums).sum(dim=0)

    def scale_(self, factors: Tensor) -> None:
        """Multiplies every channel by its factor, (width,)."""
        if bool((factors == 1).all()):
            return
        for item in self.slices:
            line = torch.ones(item.parameter.shape[item.dim], dtype=item.parameter.dtype)
            line[item.indices] = factors[item.channels].to(line.dtype)
            shape = [-1 if dim == item.dim else 1 for dim in range(item.parameter.ndim)]
            item.parameter.data.mul_(line.to(item.parameter.device).reshape(shape))

    @classmethod
    def _of_norms(cls, model: nn.Module, group: Coupled, kind: str) -> "ChannelSlices | None":
        norms = (part for part in group.parts if part.is_norm)
        wanted = [(name, dim, part) for part in norms for name, dim in part.tensors if name.rpartition(".")[2] == kind]
        return cls._of(model, group, wanted) if wanted else None

    @classmethod
    def _of(cls, model: nn.Module, group: Coupled, tensors: Iterable[tuple[str, int, Part]]) -> "ChannelSlices":
        parameters = dict(model.named_parameters(remove_duplicate=False))
        # A tied parameter has several names, and is to be scaled once.
        found: dict[tuple[int, int], _Slice] = {}
        for name, dim, part in tensors:
            if name in parameters:
                found[id(parameters[name]), dim] = _Slice(
                    parameter=parameters[name],
                    dim=dim,
                    indices=torch.tensor(part.indices),
                    channels=torch.tensor(part.channels),
                )
        return cls(width=group.width, slices=tuple(found.values()))


def penalised_weights(model: nn.Module, layers: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The trained weights by name that single zeros make sense in: no biases, no normalization scales.

    `layers` are globs of the names of their modules. Raises StageError where there are none.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _NORM_LAYERS) or matching_glob(name, layers) is None:
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and parameter.requires_grad and parameter.is_floating_point():
                found[f"{name}.{key}" if name else key] = parameter
    if not found:
        raise StageError(f"{type(model).__name__} has no trained weight in a layer that matches {', '.join(layers)}")
    return found


def penalised_groups(model: nn.Module, inputs: Inputs | Shown, layers: tuple[str, ...]) -> list[Coupled]:
    """The groups whose channels may be driven to zero: they could be removed, are trained, and match `layers`.

    Raises StageError, with the reason for every group, where there are none.
    """
    with evaluating(model):
        groups = trace_structure(model, inputs).groups
    reasons = {group.name: _reason_against(model, group, layers) for group in groups}
    free = [group for group in groups if reasons[group.name] is None]
    if not free:
        listed = told_reasons({name: str(reason) for name, reason in reasons.items()})
        raise StageError(
            f"{type(model).__name__} has no channels that may become zero{': ' + listed if listed else ''}; drive "
            "single weights to zero (l1_penalty) instead"
        )
    return free


def removal_lock(group: Coupled, model: nn.Module, *, ignore: tuple[str, ...] = (), align: int = 0) -> str | None:
    """Why no zero channel of `group` may be removed, where that is known without trying."""
    reason = reason_to_lock(group, model, ignore=ignore, align=align)
    if reason is not None:
        return reason
    for part in group.parts:
        if isinstance(model.get_submodule(part.module), _MIXING):
            return f"{part.module} mixes the channels: one that is zero takes part in its statistics"
    return None if any(part.makes for part in group.parts) else "no layer with weights makes its channels"


def _reason_against(model: nn.Module, group: Coupled, layers: tuple[str, ...]) -> str | None:
    lock = removal_lock(group, model)
    if lock is not None:
        return lock
    makers = [part.module for part in group.parts if part.makes]
    outside = [name for name in makers if matching_glob(name, layers) is None]
    if outside:
        return f"{outside[0]} does not match {', '.join(layers)}"
    frozen = [item for item in ChannelSlices.making(model, group).slices if not item.parameter.requires_grad]
    return "some of its weights are frozen" if frozen else None
