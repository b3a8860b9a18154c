"""What a loss keeps from call to call: running means in buffers and attributes, numbers that count, generators.

A training begins with what its user gave, whatever was tried before it, and goes on with what a snapshot holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressor.streams.own_state import Counters, OwnState
from compressor.training.snapshots import Tensors

# Elements of a tensor beyond which it is data, and not what a loss counts or averages.
_MOST = 1 << 24


@dataclass(frozen=True, kw_only=True, eq=False)
class LossState:
    """The state of a loss, found by walking through it as through a loader (`compressor.streams.own_state`)."""

    own: OwnState

    @classmethod
    def of(cls, loss: Any) -> "LossState":
        """What `loss`, a function, an object or a module, keeps."""
        return cls(own=OwnState.of(loss))

    def tensors(self) -> Tensors:
        """Copies of the tensors that it keeps, by name."""
        return {
            f"{path}.{name}": value.detach().clone()
            for path, kept in self._kept()
            for name, value in kept.items()
            if isinstance(value, Tensor) and value.numel() <= _MOST
        }

    def numbers(self) -> Counters:
        """The numbers that it keeps, by name."""
        return {
            f"{path}.{name}": value
            for path, kept in self._kept()
            for name, value in kept.items()
            if type(value) in (int, float)
        }

    def restore_(self, tensors: Tensors, numbers: Mapping[str, int | float]) -> None:
        """Puts back what `tensors` and `numbers` gave."""
        for path, kept in self._kept():
            for name, value in list(kept.items()):
                key = f"{path}.{name}"
                if key in numbers and type(value) in (int, float):
                    kept[name] = numbers[key]
                elif key in tensors and isinstance(value, Tensor):
                    kept[name] = _put_back(value, tensors[key])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """All of it is afterwards as before."""
        tensors, numbers = self.tensors(), self.numbers()
        with self.own.kept():
            try:
                yield
            finally:
                self.restore_(tensors, numbers)

    @contextmanager
    def frozen(self, *models: nn.Module) -> Iterator[tuple[str, ...]]:
        """Its parameters that want gradients want none within, and are named; those of `models` are theirs.

        A training moves the model alone, and must leave no gradients behind in what it does not move.
        """
        others = {id(parameter) for model in models for parameter in model.parameters()}
        found = {
            f"{path}.{name}".replace("_modules.", "").lstrip("."): parameter
            for path, module in self.own.modules.items()
            for name, parameter in vars(module)["_parameters"].items()
            if parameter is not None and parameter.requires_grad and id(parameter) not in others
        }
        for parameter in found.values():
            parameter.requires_grad_(False)
        try:
            yield tuple(found)
        finally:
            for parameter in found.values():
                parameter.requires_grad_()

    def _kept(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for path, keeper in (*self.own.counting.items(), *self.own.modules.items()):
            yield path, vars(keeper)
        for path, module in self.own.modules.items():
            yield f"{path}.buffers", vars(module)["_buffers"]


def _put_back(now: Tensor, before: Tensor) -> Tensor:
    """`now` itself with the values of `before`, which others may hold too, or `before` where it cannot take them."""
    before = before.to(now.device)
    if now.shape != before.shape or now.dtype != before.dtype:
        return before
    if torch.equal(now, before):
        return now
    if not now.is_leaf or now.is_inference():
        return before
    with torch.no_grad():
        return now.copy_(before)
