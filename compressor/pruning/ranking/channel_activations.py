"""How strongly channels fire on data (neurons, heads and recurrent units, too): hooks watch the layers around them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.batches import Batch
from compressor.progress.bars import progress_bar
from compressor.structure.couplings import Coupled, Part
from compressor.structure.tensor_ids import tensors_of
from compressor.workload import call_model

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(kw_only=True, eq=False)
class _Meter:
    """The sum of the absolute values of each feature that a module reads or writes, and over how many it runs."""

    module: str
    reads: bool
    sums: Tensor | None = None
    count: int = 0

    def add(self, values: Tensor, dim: int, repeats: int) -> None:
        """Counts `values`, whose features lie along `dim`, `repeats` times over (the directions of an LSTM)."""
        dim %= values.ndim
        others = [other for other in range(values.ndim) if other != dim]
        sums = values.detach().abs().sum(dim=others, dtype=torch.float64) if others else values.detach().abs().double()
        sums = sums.reshape(repeats, -1).sum(dim=0).cpu()
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += repeats * values.numel() // values.shape[dim]

    def by_channel(self, part: Part, size: int, width: int) -> Tensor | None:
        """The mean of each channel's features, (width,); None where the module did not run or has other features."""
        if self.sums is None or len(self.sums) != size:
            return None
        features = part.fold(torch.ones(size, dtype=torch.float64), width)
        return part.fold(self.sums / self.count, width) / features.clamp(min=1)


def mean_activations(
    model: nn.Module, groups: Sequence[Coupled], batches: Sequence[Batch], *, progress: bool = False
) -> dict[str, list[Tensor]]:
    """The mean |activation| of each group's channels over `batches`, by group name: (width,) for each layer watched.

    Watched are the layers that read the channels, so that norm and activation function in between are seen; where no
    such layer can be watched, those that make them. None can where the weights are used without calling the layer they
    belong to, and in an LSTM whose hidden state is projected: such a group has an empty list.
    """
    weights = tensors_of(model)
    meters: dict[tuple[str, bool], _Meter] = {}
    watched: dict[str, list[tuple[Part, _Meter, int]]] = {}
    for group in groups:
        found = watched.setdefault(group.name, [])
        for part in group.parts:
            side = _side(model.get_submodule(part.module), part)
            if side is not None:
                name, dim, reads = side
                meter = meters.setdefault((part.module, reads), _Meter(module=part.module, reads=reads))
                found.append((part, meter, weights[name].shape[dim]))
    with torch.no_grad(), ExitStack() as hooks:
        for meter in meters.values():
            module = model.get_submodule(meter.module)
            handle = (
                module.register_forward_pre_hook(_reader(meter), with_kwargs=True)
                if meter.reads
                else module.register_forward_hook(_writer(meter))
            )
            hooks.callback(handle.remove)
        for inputs, _ in progress_bar(batches, desc="activations", shown=progress):
            call_model(model, inputs)
    means = {}
    for group in groups:
        seen = {
            reads: [
                values
                for part, meter, size in watched[group.name]
                if meter.reads is reads and (values := meter.by_channel(part, size, group.width)) is not None
            ]
            for reads in (True, False)
        }
        means[group.name] = seen[True] or seen[False]
    return means


def _side(module: nn.Module, part: Part) -> tuple[str, int, bool] | None:
    """The tensor and dimension whose features `part` are, and whether the module reads (or else makes) them."""
    for name, dim in part.tensors:
        leaf = name.rpartition(".")[2]
        if isinstance(module, _RECURRENT):
            if dim == 1 and leaf in {"weight_ih", "weight_ih_l0"}:
                return name, dim, True
            # What the recurrent weights read is the state, which is the output.
            if dim == 1 and leaf in {"weight_hh", "weight_hh_l0"}:
                return name, dim, False
        elif leaf == "weight":
            if isinstance(module, _ConvTransposeNd):
                if dim == 0 or module.groups == 1:
                    return name, dim, dim == 0
            elif isinstance(module, _ConvNd):
                if dim == 0 or module.groups == 1:
                    return name, dim, dim == 1
            elif isinstance(module, nn.Linear):
                return name, dim, dim == 1
            elif _is_linear_of_transformers(module):
                return name, dim, dim == 0
    return None


def _is_linear_of_transformers(module: nn.Module) -> bool:
    # GPT-2's `Conv1D`: a linear layer with its weight as (in, out).
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _reader(meter: _Meter) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = next(_tensors([*args, *kwargs.values()]), None)
        if values is not None:
            meter.add(values, _feature_dim(module), 1)

    return hook


def _writer(meter: _Meter) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def hook(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        values = next(_tensors([output]), None)
        if values is not None:
            directions = 2 if isinstance(module, nn.RNNBase) and module.bidirectional else 1
            meter.add(values, _feature_dim(module), directions)

    return hook


def _feature_dim(module: nn.Module) -> int:
    return -1 - len(module.kernel_size) if isinstance(module, _ConvNd) else -1


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, nn.utils.rnn.PackedSequence):
            yield value.data
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
