"""The layers that read the channels of a group, what they are fed, and how they take over channels that go."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compressor.batches import Inputs
from compressor.progress.bars import progress_bar
from compressor.pruning.constant_channels import read_inputs
from compressor.pruning.merging.elimination import Reading
from compressor.pruning.merging.fed import batch_statistics
from compressor.structure.couplings import Coupled, Part
from compressor.structure.tensor_ids import tensors_of
from compressor.training.precision import Form
from compressor.workload import call_model

# Rows of a layer's input that are looked at in one call, evenly spread.
_ROWS = 1 << 16
# Moments are of finitely many rows: each variance grows by this part of the mean one, and by a tenth of the width over
# the rows, which keeps shares small where there are hardly more rows than channels.
_RIDGE = 1e-5


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """A linear layer or convolution that reads a group's channels.

    Row i of `places` (width, positions) holds the indices along dimension `dim` of the weight `tensor` of channel i.
    `holds`: whether it, or the batch normalization `norm` behind it, can hold a constant.
    """

    module: str
    tensor: str
    dim: int
    places: Tensor
    norm: str | None
    holds: bool

    def rows(self, weight: Tensor) -> Tensor:
        """The weights of every channel, (width, positions, values) in float64."""
        return weight.detach().double().cpu().movedim(self.dim, 0).flatten(1)[self.places]

    def take_over_(self, model: nn.Module, moments: "Moments", part: Tensor, gone: list[int], kept: list[int]) -> None:
        """The layer of `model` with the weights of `gone` on `kept`, by the shares `part` (gone, kept)."""
        weight = tensors_of(model)[self.tensor]
        rows = self.rows(weight)
        lines = weight.data.movedim(self.dim, 0)
        taken = rows[kept] + torch.einsum("gk,gpv->kpv", part, rows[gone])
        lines[self.places[kept].flatten().to(weight.device)] = (
            taken.flatten(0, 1).reshape(-1, *lines.shape[1:]).to(lines)
        )
        layer = model.get_submodule(self.module)
        bias = getattr(layer, "bias", None)
        if self.norm is None and self.holds and isinstance(bias, Tensor):
            constants = moments.mean[gone] - part @ moments.mean[kept]
            given = torch.einsum("g,gpv->v", constants, rows[gone])
            # (outputs, positions of a kernel): every one of them sees the constant.
            bias.data.add_(given.reshape(len(bias), -1).sum(dim=1).to(bias))


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """What a reader is fed: the `mean` (width,) and the `second` moments (width, width), about zero, of `rows` rows."""

    mean: Tensor
    second: Tensor
    rows: int

    def about(self, *, holds: bool) -> Tensor:
        """The moments that matter: about the mean where the layer can hold a constant, else about zero."""
        return self.second - torch.outer(self.mean, self.mean) if holds else self.second

    def reading(self, reader: Reader, weight: Tensor) -> Reading:
        """How the reader, with this `weight`, reads the channels."""
        moments = self.about(holds=reader.holds)
        extra = _RIDGE + len(moments) / (10 * self.rows)
        level = float(moments.diagonal().mean()) or 1.0
        return Reading(
            weights=reader.rows(weight).flatten(1),
            moments=moments + extra * level * torch.eye(len(moments), dtype=torch.float64),
        )


def readers_of(
    model: nn.Module, group: Coupled, norm_after: dict[str, str], held: Collection[str]
) -> list[Reader] | str:
    """The layers that read the group's channels, or why what goes cannot be taken over by them.

    `held` are the tensors whose zeros or shared values are meant to stay.
    """
    if group.kind not in {"channels", "neurons"}:
        return f"only channels and neurons are merged, not {group.kind}"
    tensors = tensors_of(model)
    owners = Counter(id(tensor) for module in model.modules() for tensor in module.parameters(recurse=False))
    found = []
    for part in group.parts:
        slots = [(name, dim) for name, dim in part.tensors if tensors[name].ndim > 1]
        if part.makes or part.is_norm or not slots:
            continue
        layer = model.get_submodule(part.module)
        if not isinstance(layer, nn.Linear | _ConvNd) or len(slots) > 1 or getattr(layer, "groups", 1) > 1:
            return f"{part.module} ({type(layer).__name__}) reads it, whose weights cannot take channels over"
        (name, dim) = slots[0]
        if owners[id(tensors[name])] > 1:
            return f"the weights of {part.module}, which reads it, are shared"
        if name in held:
            return f"{part.module}, which reads it, has zeros or shared values that merging would lose"
        places = _places(part, group.width)
        if places is None:
            return f"{part.module} reads some of its channels more often than others"
        norm = norm_after.get(part.module)
        holder = model.get_submodule(norm) if norm is not None else None
        repaired = isinstance(holder, _BatchNorm) and holder.running_mean is not None
        holds = repaired or (layer.bias is not None and not isinstance(layer, _ConvTransposeNd))
        found.append(
            Reader(
                module=part.module, tensor=name, dim=dim, places=places, norm=norm if repaired else None, holds=holds
            )
        )
    return found or "no linear layer or convolution reads it"


def norms_behind(model: nn.Module, inputs: Inputs) -> dict[str, str]:
    """The batch normalization that is given the very output of a layer, by the layer's name; seen in a call."""
    return read_inputs(model, Form.of(model).place(inputs)).norm_after


def moments_of(model: nn.Module, readers: Sequence[Reader], batches: Sequence[Inputs]) -> dict[Reader, Moments]:
    """What the readers are fed over the `batches`; those that are not called by their module are left out."""
    sums: dict[Reader, list[Any]] = {}

    def watch(reader: Reader, values: Tensor, layer: nn.Module) -> None:
        rows = _features_last(values, layer)
        rows = rows[:: max(1, len(rows) // _ROWS)].double().cpu()
        fed = rows[:, reader.places.flatten()].reshape(len(rows), *reader.places.shape)
        fed = fed.movedim(1, -1).flatten(0, 1)
        found = sums.setdefault(reader, [0.0, 0.0, 0])
        found[0] = found[0] + fed.sum(dim=0)
        found[1] = found[1] + fed.T @ fed
        found[2] += len(fed)

    with watched(model, readers, watch):
        run(model, batches)
    return {
        reader: Moments(mean=mean / count, second=second / count, rows=count)
        for reader, (mean, second, count) in sums.items()
    }


def run(model: nn.Module, batches: Sequence[Inputs]) -> None:
    """Calls `model` on the batches, without gradients, with batch normalization by the statistics of each."""
    form = Form.of(model)
    with batch_statistics(model), torch.no_grad():
        for inputs in progress_bar(batches, desc="statistics of channels", unit="batch"):
            call_model(model, form.place(inputs))


@contextmanager
def watched(
    model: nn.Module, readers: Sequence[Reader], see: Callable[[Reader, Tensor, nn.Module], None]
) -> Iterator[None]:
    """Gives `see` what every reader is called with."""

    def hook(reader: Reader) -> Any:
        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs.get("input")
            if isinstance(given, Tensor):
                see(reader, given.detach(), layer)

        return record

    handles = [
        model.get_submodule(reader.module).register_forward_pre_hook(hook(reader), with_kwargs=True)
        for reader in readers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(part: Part, width: int) -> Tensor | None:
    by_channel: list[list[int]] = [[] for _ in range(width)]
    for index, channel in zip(part.indices, part.channels, strict=True):
        by_channel[channel].append(index)
    return torch.tensor(by_channel) if len({len(indices) for indices in by_channel}) == 1 else None


def _features_last(values: Tensor, layer: nn.Module) -> Tensor:
    """`values` as (rows, features)."""
    if isinstance(layer, nn.Linear):
        return values.reshape(-1, values.shape[-1])
    # A convolution takes a sample alone, too.
    dim = 1 if values.ndim == layer.weight.ndim else 0
    return values.movedim(dim, -1).reshape(-1, values.shape[dim])
