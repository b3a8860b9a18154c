"""What part of a model's time and parameters hangs on groups of coupled layers, and on blocks."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from compressor.node_times import NodeTime
from compressor.structure.couplings import Coupled
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
        found = (
            time.ms
            for time in self.times
            if any(self._decides(group, time) for group in groups) or any(_inside(time.module, name) for name in blocks)
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
        modules = (self.model.get_submodule(name) for name in blocks)
        return sum(parameter.numel() for module in modules for parameter in module.parameters()) / self.parameters

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


def _inside(module: str, name: str) -> bool:
    return module == name or module.startswith(f"{name}.")
