"""Channels that carry nothing or a constant: which they are, and how the layers that read them take the constant over.

A layer reads a channel that is the same for every sample and position as a constant; its bias, or the running mean of
the batch normalization behind it, can hold what the channel gave, exactly. Zero padding is the exception: at the border
the layer sees less of the constant.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.batches import Inputs
from compressor.structure.couplings import Coupled, Part
from compressor.structure.tensor_ids import tensors_of
from compressor.workload import call_model

# Rounding of a sum of equal numbers, in multiples of the largest of them.
_ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What a call shows: each layer's inputs, lowest and highest by channel, and the norm that follows a layer."""

    lowest: dict[str, Tensor]
    highest: dict[str, Tensor]
    norm_after: dict[str, str]


def read_inputs(model: nn.Module, inputs: Inputs) -> Readings:
    """The readings of every convolution and linear layer of `model` in one call on `inputs`, without gradients.

    Channels are the last dimension of a linear layer's input and the second of a convolution's. `norm_after` has a
    layer where a batch normalization is given its very output.
    """
    readings = Readings(lowest={}, highest={}, norm_after={})
    with _watched(model, readings), torch.no_grad():
        call_model(model, inputs)
    return readings


@contextmanager
def _watched(model: nn.Module, readings: Readings) -> Iterator[None]:
    made: dict[int, tuple[str, Tensor]] = {}  # with the tensor, so that no other gets its id

    def watch_layer(name: str, module: nn.Module) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                given = args[0].movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)
                lowest, highest = given.amin(dim=1), given.amax(dim=1)
                if name in readings.lowest:
                    lowest = torch.minimum(lowest, readings.lowest[name])
                    highest = torch.maximum(highest, readings.highest[name])
                readings.lowest[name], readings.highest[name] = lowest, highest
                made[id(output)] = (name, output)

        return module.register_forward_hook(record)

    def watch_norm(name: str, module: nn.Module) -> Any:
        def record(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and id(args[0]) in made:
                readings.norm_after[made[id(args[0])][0]] = name

        return module.register_forward_pre_hook(record)

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            handles.append(watch_layer(name, module))
        elif isinstance(module, _BatchNorm):
            handles.append(watch_norm(name, module))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class ZeroChannels:
    """The channels of a group that can go, and `size` (width,): the largest absolute weight that every channel has.

    `silent` ones carry the same whatever comes in, `unread` ones meet no weight in any layer that reads them.
    """

    silent: list[int]
    unread: list[int]
    size: Tensor


def zero_channels_(
    model: nn.Module, group: Coupled, norm_after: dict[str, str], threshold: float, *, keep: frozenset[int]
) -> ZeroChannels:
    """The channels of `group` whose weights are at most `threshold`, which become exactly zero in `model`.

    A channel is silent where, for every layer that it comes out of, the layer's weights are that small or the scale of
    the batch normalization behind it is. Those in `keep` are not looked at.
    """
    tensors = tensors_of(model)
    norms = {
        part.module: (part, slot)
        for part in group.parts
        if part.is_norm
        for slot in part.tensors
        if slot[0].endswith("weight")
    }
    eligible = torch.ones(group.width, dtype=torch.bool)
    eligible[list(keep)] = False
    silent, size = eligible.clone(), torch.zeros(group.width, dtype=torch.float64)
    small: list[tuple[Part, tuple[str, int], Tensor]] = []
    for part in (part for part in group.parts if part.makes):
        weights = [(name, dim) for name, dim in part.tensors if tensors[name].ndim > 1]
        if not weights:
            continue
        own = _largest(tensors, part, weights, group.width)
        small += [(part, slot, own <= threshold) for slot in weights]
        if norm_after.get(part.module) in norms:
            norm, slot = norms[norm_after[part.module]]
            scale = _largest(tensors, norm, [slot], group.width)
            small.append((norm, slot, scale <= threshold))
            own = torch.minimum(own, scale)
        silent &= own <= threshold
        size = torch.maximum(size, own)
    readers, others = _readers(model, group), [part for part in group.parts if not part.makes and not part.is_norm]
    unread = torch.zeros(group.width, dtype=torch.bool)
    if readers and len(readers) == len(others):
        most = torch.stack([_largest(tensors, part, list(part.tensors), group.width) for part in readers]).amax(dim=0)
        unread = (most <= threshold) & eligible & ~silent
        small += [(part, slot, unread) for part in readers for slot in part.tensors]
        size = torch.minimum(size, most)
    gone = silent | unread
    for part, (name, dim), zero in small:
        chosen = _indices(part, set((zero & gone).nonzero().flatten().tolist()))
        tensors[name].data.index_fill_(dim, torch.tensor(chosen, dtype=torch.long, device=tensors[name].device), 0)
    return ZeroChannels(
        silent=silent.nonzero().flatten().tolist(), unread=unread.nonzero().flatten().tolist(), size=size
    )


def hindrance(model: nn.Module, group: Coupled, channel: int, readings: Readings) -> str | None:
    """Why the layers that read a silent channel cannot take over what it gives them, or None where they can."""
    for part in _readers(model, group):
        module = model.get_submodule(part.module)
        if part.module not in readings.lowest:
            return f"{part.module} is not called in a way that shows what it reads"
        for index in _indices(part, {channel}):
            low, high = _span(module, index, readings.lowest[part.module], readings.highest[part.module])
            if low == high == 0:
                continue
            if high - low > _ROUNDING * max(abs(low), abs(high)):
                return f"what {part.module} reads of it is not constant"
            if isinstance(module, _ConvNd):
                if isinstance(module, _ConvTransposeNd) or module.groups > 1:
                    return f"{part.module} cannot take its constant of {low:.3g} over"
                if module.padding_mode == "zeros" and _is_padded(module):
                    return f"its constant of {low:.3g} meets the zero padding of {part.module}"
            if _holder(model, part.module, readings) is None:
                return f"{part.module} has no bias and no batch normalization to take its constant of {low:.3g} over"
    return None


def fold_(model: nn.Module, group: Coupled, channels: list[int], readings: Readings) -> list[str]:
    """The layers that took over what the constant `channels` gave them; they read nothing of those any more.

    `hindrance` must be None for every one of the channels that is not unread.
    """
    folded = []
    for part in _readers(model, group):
        module = model.get_submodule(part.module)
        indices = _indices(part, set(channels))
        slot, dim = part.tensors[0]
        weight = tensors_of(model)[slot]
        low, high = readings.lowest.get(part.module), readings.highest.get(part.module)
        holder = _holder(model, part.module, readings)
        if low is not None and high is not None and holder is not None:
            constants = torch.tensor([_span(module, index, low, high)[0] for index in indices], dtype=torch.float64)
            # (outputs, inputs, kernel positions): every position of a kernel sees the constant.
            taps = weight.detach().double().movedim(dim, 1).unsqueeze(-1).flatten(2).sum(dim=2)[:, indices]
            given = taps @ constants.to(taps.device)
            if bool(given.any()):
                tensor, sign = holder
                tensor.data.add_((sign * given).to(tensor.dtype))
                folded.append(part.module)
        weight.data.index_fill_(dim, torch.tensor(indices, dtype=torch.long, device=weight.device), 0)
    return folded


def _readers(model: nn.Module, group: Coupled) -> list[Part]:
    """The parts of linear layers and convolutions that take the group's channels in."""
    return [
        part
        for part in group.parts
        if not part.makes and part.tensors and isinstance(model.get_submodule(part.module), nn.Linear | _ConvNd)
    ]


def _indices(part: Part, channels: set[int]) -> list[int]:
    return [index for index, channel in zip(part.indices, part.channels, strict=True) if channel in channels]


def _largest(tensors: dict[str, Tensor], part: Part, slots: list[tuple[str, int]], width: int) -> Tensor:
    """The largest absolute weight of every channel, (width,) in float64."""
    largest = torch.zeros(width, dtype=torch.float64)
    for name, dim in slots:
        weight = tensors[name].detach().double().cpu().abs().movedim(dim, 0)
        lines = weight.flatten(1).amax(dim=1) if weight.ndim > 1 else weight
        largest.scatter_reduce_(0, torch.tensor(part.channels), lines[list(part.indices)], reduce="amax")
    return largest


def _span(module: nn.Module, index: int, lowest: Tensor, highest: Tensor) -> tuple[float, float]:
    """The lowest and highest input that meets index `index` of a layer's weight, in every group of a grouped one."""
    groups = int(module.groups) if isinstance(module, _ConvNd) else 1
    met = slice(index, None, len(lowest) // groups) if groups > 1 else slice(index, index + 1)
    return float(lowest[met].min()), float(highest[met].max())


def _is_padded(module: _ConvNd) -> bool:
    return module.padding == "same" or (not isinstance(module.padding, str) and any(module.padding))


def _holder(model: nn.Module, layer: str, readings: Readings) -> tuple[Tensor, float] | None:
    """The tensor that can hold a constant output of `layer`, and the sign with which it does."""
    bias = getattr(model.get_submodule(layer), "bias", None)
    if isinstance(bias, Tensor):
        return bias, 1.0
    norm = model.get_submodule(readings.norm_after[layer]) if layer in readings.norm_after else None
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
        return norm.running_mean, -1.0
    return None
