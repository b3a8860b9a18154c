"""Zeros that stay zero while the rest of a model is trained: the plan names their tensors, the tensors hold them.

An entry `{"kind": "zeros", "tensors": [names]}` of a plan says that the zeros in these tensors are meant: a stage put
them there, and no later training may fill them. Which weights these are is seen in the tensors themselves, so that the
record follows every cut, is kept wherever weights and plan are, and puts nothing into the file that ships.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from compressor.structure.plan import Entry


def zeros_entry(names: Sequence[str]) -> Entry:
    """The plan entry which says that zeros in the tensors `names` are to stay."""
    return {"kind": "zeros", "tensors": sorted(names)}


def held_names(plan: Sequence[Entry]) -> tuple[str, ...]:
    """The tensors whose zeros are to stay, by a plan."""
    return tuple(sorted({name for entry in plan if entry.get("kind") == "zeros" for name in entry["tensors"]}))


def held_parameters(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """The parameters of `model` among `names`, each once; those that are no longer there are left out."""
    known = dict(model.named_parameters(remove_duplicate=False))
    found: dict[int, tuple[str, nn.Parameter]] = {}
    for name in names:
        if name in known:
            found.setdefault(id(known[name]), (name, known[name]))
    return dict(found.values())


class HeldZeros:
    """The zeros of some parameters while they are trained: no gradient reaches them, and no step moves them."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._masks: dict[int, Tensor] = {}

    def read(self) -> None:
        """Takes what is zero now for what is to stay zero: at the start of an epoch, and after a step made more."""
        self._masks = {number: own.detach() == 0 for number, own in enumerate(self._parameters)}

    def restore_(self) -> None:
        """Puts the zeros back where a step of the optimizer moved them."""
        with torch.no_grad():
            for number, mask in self._masks.items():
                self._parameters[number].masked_fill_(mask, 0.0)

    def forget_gradients_(self) -> None:
        """Makes the gradients of the zeros zero, so that they count in no norm and in no momentum."""
        for number, mask in self._masks.items():
            gradient = self._parameters[number].grad
            if gradient is not None:
                gradient.masked_fill_(mask, 0.0)
