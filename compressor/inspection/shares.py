"""What part of a model's time and parameters hangs on groups of coupled layers, and on blocks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from compressor.measuring.node_times import NodeTime
from compressor.structure.couplings import Coupled
from compressor.structure.recurrent_layers import is_layer, stack_and_layer, weights_of_layer
from compressor.structure.tensor_ids import tensors_of


@dataclass(frozen=True, kw_only=True)
class Shares:
    """The times of a model's operators and the sizes of its tensors, to be asked for fractions of the whole.

    Fractions of time are None where nothing was timed. What hangs on several of the groups asked about counts once.
    """

    model: nn.Module
    times: Sequence[NodeTime]
    parameters: int
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, model: nn.Module, times: Sequence[NodeTime]) -> "Shares":
        """The shares of `model`, whose operators take `times`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(model).items()}
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return cls(model=model, times=times, parameters=max(1, parameters), shapes=shapes)

    def time(self, groups: Iterable[Coupled] = (), blocks: Iterable[str] = ()) -> float | None:
        """The fraction of the time in operators whose cost the groups' widths decide, or that are inside the blocks."""
        total = sum(time.ms for time in self.times)
        if not total:
            return None
        groups, blocks = tuple(groups), tuple(blocks)
        parts = [self._part_of_module(name) for name in blocks]
        found = (
            time.ms
            * (
                1.0
                if any(self._decides(group, time) for group in groups)
                else min(1.0, math.fsum(part for name, part in parts if _inside(time.module, name)))
            )
            for time in self.times
        )
        return sum(found) / total

    def held_by_groups(self, groups: Iterable[Coupled]) -> float:
        """The fraction of the parameters that goes with the whole of these groups."""
        rest: dict[str, dict[int, float]] = {}
        for group in groups:
            for part in group.parts:
                for name, dim in part.tensors:
                    if size := self.shapes.get(name, ()):
                        left = rest.setdefault(name, {})
                        left[dim] = left.get(dim, 1.0) - len(set(part.indices)) / size[dim]
        lost = sum(
            math.prod(self.shapes[name]) * (1 - math.prod(max(0.0, left) for left in dims.values()))
            for name, dims in rest.items()
        )
        return lost / self.parameters

    def held_by_blocks(self, blocks: Iterable[str]) -> float:
        """The fraction of the parameters inside these blocks."""
        parts = (self._part_of_module(name) for name in blocks)
        return sum(part * _size(self.model.get_submodule(name)) for name, part in parts) / self.parameters

    def _part_of_module(self, block: str) -> tuple[str, float]:
        """The module that `block` is, or is a layer of, and the part of that module's weights that is the block's.

        The products of a recurrent layer go with its weights, and its operator is not told from those of the others.
        """
        if not is_layer(self.model, block):
            return block, 1.0
        name, layer = stack_and_layer(block)
        stack = self.model.get_submodule(name)
        weights = (getattr(stack, key) for key in weights_of_layer(stack, layer))  # type: ignore[arg-type]  # is_layer has looked
        return name, sum(weight.numel() for weight in weights) / max(1, _size(stack))

    def operators(self) -> dict[str, float]:
        """The fraction of the time by kind of operator, largest first; empty where nothing was timed."""
        total = sum(time.ms for time in self.times)
        found: dict[str, float] = {}
        for time in self.times:
            found[time.operator] = found.get(time.operator, 0.0) + time.ms / total
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _decides(self, group: Coupled, time: NodeTime) -> bool:
        for part in group.parts:
            if part.module == time.layer and part.tensors:
                # What works on a layer's result has the cost of the width that the layer makes, not of what it reads.
                vectors = all(len(self.shapes.get(name, ())) == 1 for name, _ in part.tensors)
                if time.weighted or part.makes or vectors:
                    return True
        return False


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _inside(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")
