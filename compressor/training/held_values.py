"""Equal weights that stay equal while a model is trained: the plan names their tensors, the tensors hold the values.

An entry `{"kind": "clusters", "tensors": [names]}` of a plan says that equal weights in these tensors share one value.
What learns is the value: each of its weights gets the same part of the sum of all their gradients (Han et al. 2016,
arXiv:1510.00149, eq. 3; the mean, so that a step is as long as one of free weights), and equal weights with equal
gradients stay equal. Which they are is seen in the tensors, as `held_zeros` sees its zeros.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compressor.structure.plan import Entry
from compressor.training.held_zeros import HeldZeros, held_parameters


def clusters_entry(names: Sequence[str]) -> Entry:
    """The plan entry which says that equal weights of the tensors `names` share their value."""
    return {"kind": "clusters", "tensors": sorted(names)}


def clustered_names(plan: Sequence[Entry]) -> tuple[str, ...]:
    """The tensors whose equal weights are to stay equal, by a plan."""
    return tuple(sorted({name for entry in plan if entry.get("kind") == "clusters" for name in entry["tensors"]}))


def torn_values(before: nn.Module, now: nn.Module, plan: Sequence[Entry]) -> dict[str, tuple[int, int]]:
    """How many different values tensors had in `before` and have `now`, by name, where they are more than they were.

    Those tensors are looked at whose equal weights are to stay equal by `plan`, where both models have them. One more
    is no sign of it: zeros may have come.
    """
    names = clustered_names(plan)
    pairs = [held_parameters(model, names) for model in (before, now)]
    counts = {
        name: tuple(len(torch.unique(own[name].detach())) for own in pairs)
        for name in names
        if all(name in own for own in pairs)
    }
    return {name: (had, has) for name, (had, has) in counts.items() if has > had + 1}


class HeldValues:
    """Some parameters whose equal weights stay equal while they are trained."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        # Of each the number of the value of every weight, how many share a value, and where the first of them is.
        self._shared: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def read(self) -> None:
        """Takes what is equal now for what is to stay equal."""
        for number, own in enumerate(self._parameters):
            _, index, counts = torch.unique(own.detach().flatten(), return_inverse=True, return_counts=True)
            places = torch.arange(len(index), device=index.device)
            first = torch.full_like(counts, len(index)).scatter_reduce_(0, index, places, reduce="amin")
            self._shared[number] = index, counts, first

    def restore_(self) -> None:
        """Makes equal again what a step of the optimizer may have moved apart: all are what the first of them is."""
        with torch.no_grad():
            for number, (index, _, first) in self._shared.items():
                own = self._parameters[number]
                own.copy_(own.flatten()[first][index].reshape(own.shape))

    def even_gradients_(self) -> None:
        """Gives weights that share a value the mean of their gradients."""
        for number, (index, counts, _) in self._shared.items():
            gradient = self._parameters[number].grad
            if gradient is not None:
                sums = torch.zeros(len(counts), dtype=gradient.dtype, device=gradient.device)
                sums.index_add_(0, index, gradient.flatten())
                gradient.copy_((sums / counts)[index].reshape(gradient.shape))


class Held:
    """What a plan holds of the weights while they are trained: zeros, and values that several share."""

    def __init__(self, zeros: HeldZeros, values: HeldValues) -> None:
        self._zeros, self._values = zeros, values

    def read(self) -> None:
        """Takes the weights as they are for what is to be held."""
        self._zeros.read()
        self._values.read()

    def restore_(self) -> None:
        """Puts back what a step of the optimizer moved."""
        self._values.restore_()
        self._zeros.restore_()

    def after(self, after_step: Callable[[float], None] | None) -> Callable[[float], None]:
        """What is to be done after every step, given what else is: what that makes zero or equal stays so, too."""

        def both(fraction: float) -> None:
            self.restore_()
            if after_step is not None:
                after_step(fraction)
                self.read()

        return both

    def even_gradients_(self) -> None:
        """Takes from the gradients what would move apart what is held."""
        self._values.even_gradients_()
        self._zeros.forget_gradients_()
