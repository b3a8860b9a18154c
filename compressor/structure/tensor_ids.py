"""The tensors of a network by name, and what a cut left of them: elements that hold their own numbers tell."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Kept = dict[str, dict[int, list[int]]]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of `model` by name; a shared one appears under each of its names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def number_(model: nn.Module) -> None:
    """Gives every element of every tensor of `model` its own position as value, in float64: exact up to 2**53."""
    for tensor in tensors_of(model).values():
        tensor.data = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)


def kept_indices(numbers: Tensor, shape: tuple[int, ...]) -> dict[int, list[int]]:
    """Which indices of each narrowed dimension are left in `numbers`, once a numbered tensor of `shape`.

    Raises ValueError where `numbers` is not the original with whole slices taken out.
    """
    if numbers.ndim != len(shape) or numbers.numel() == 0:
        raise ValueError(f"shape {shape} became {tuple(numbers.shape)}")
    whole = torch.zeros(numbers.shape, dtype=torch.float64)
    kept: dict[int, list[int]] = {}
    stride = 1
    for dim in reversed(range(len(shape))):
        line = numbers.detach()[tuple(slice(None) if other == dim else 0 for other in range(len(shape)))]
        indices = (line / stride).floor().long() % shape[dim]
        whole += (indices * stride).reshape([-1 if other == dim else 1 for other in range(len(shape))])
        if len(indices) != shape[dim]:
            kept[dim] = indices.tolist()
        stride *= shape[dim]
    if not torch.equal(whole, numbers.detach()):
        raise ValueError(f"what is left of shape {shape} is not a choice of whole slices")
    return kept


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a numbered model: indices kept of every narrowed tensor, and the size attributes of every module."""

    shapes: dict[str, tuple[int, ...]]
    kept: Kept
    attributes: dict[str, dict[str, Any]]

    @staticmethod
    def of(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> "Sizes":
        """The sizes of `model`, numbered when its tensors had `shapes`. Raises ValueError as `kept_indices` does."""
        now = tensors_of(model)
        kept = {}
        for name, shape in shapes.items():
            if tuple(now[name].shape) != shape:
                try:
                    kept[name] = kept_indices(now[name], shape)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        attributes = {name: _size_attributes(module) for name, module in model.named_modules()}
        return Sizes(shapes=shapes, kept=kept, attributes=attributes)

    def entry_from(self, before: "Sizes") -> dict[str, Any]:
        """The plan entry of kind "slice" that leads from `before` to here."""
        tensors: dict[str, dict[str, list[int]]] = {}
        shapes: dict[str, list[int]] = {}
        for name, dims in self.kept.items():
            old = [before.kept.get(name, {}).get(dim, range(size)) for dim, size in enumerate(self.shapes[name])]
            cuts: dict[str, list[int]] = {}
            for dim, indices in sorted(dims.items()):
                place = {index: position for position, index in enumerate(old[dim])}
                if len(indices) != len(place):
                    cuts[str(dim)] = [place[index] for index in indices]
            if cuts:
                tensors[name], shapes[name] = cuts, [len(line) for line in old]
        attributes: dict[str, dict[str, Any]] = {}
        for name, values in self.attributes.items():
            changed = {key: value for key, value in values.items() if before.attributes[name].get(key, value) != value}
            if changed:
                attributes[name] = {
                    key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()
                }
        return {"kind": "slice", "tensors": tensors, "shapes": shapes, "attributes": attributes}


def mask_(model: nn.Module, sizes: Sizes) -> nn.Module:
    """`model` itself with everything zero that `sizes` leaves out; where channels do not mix, it computes the same."""
    tensors = tensors_of(model)
    with torch.no_grad():
        for name, dims in sizes.kept.items():
            for dim, indices in dims.items():
                gone = torch.ones(tensors[name].shape[dim], dtype=torch.bool)
                gone[indices] = False
                tensors[name].index_fill_(dim, gone.nonzero().flatten().to(tensors[name].device), 0)
    return model


def _size_attributes(module: nn.Module) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(module).items()
        if type(value) is int or (type(value) is tuple and all(type(item) is int for item in value))
    }
