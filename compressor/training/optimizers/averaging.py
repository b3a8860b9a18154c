"""An exponential average of a model's weights over the updates of a training.

Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; exponentially, and shorter at the
beginning, when there is little to average, as in Tan & Le 2019, arXiv:1905.11946.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from compressor.structure.extra_state import as_tensors, extra_states
from compressor.training.snapshots import Tensors, capture, restore_


@dataclass(kw_only=True)
class Average:
    """The average of the parameters and buffers of a model after `updates` updates, and the part `keep` that stays."""

    keep: float
    tensors: Tensors
    updates: int = 0

    @classmethod
    def of(cls, model: nn.Module, keep: float) -> "Average":
        """The average of a model that has not been trained yet."""
        return cls(keep=keep, tensors=capture(model))

    def update_(self, model: nn.Module) -> None:
        """Takes in what `model` is after one more update; whole numbers and extra states are as the model's."""
        self.updates += 1
        keep = min(self.keep, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if tensor.is_floating_point():
                    self.tensors[name].lerp_(tensor, 1 - keep)
                else:
                    self.tensors[name].copy_(tensor)
        self.tensors |= as_tensors(extra_states(model))

    def copy(self) -> Tensors:
        """The average as it is now."""
        return {name: tensor.clone() for name, tensor in self.tensors.items()}

    @contextmanager
    def stands_in(self, model: nn.Module) -> Iterator[None]:
        """`model` with the average as its weights; its own are back afterwards."""
        own = capture(model)
        restore_(model, self.tensors)
        try:
            yield
        finally:
            restore_(model, own)
