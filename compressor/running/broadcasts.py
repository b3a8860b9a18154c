"""Whether a loss or a metric compares outputs with the targets of other samples by accident, watched as torch runs it.

Outputs (N, 1) against targets (N,) broadcast to (N, N): every output meets every target, and training fits their mean.
"""

from collections.abc import Callable
from enum import IntEnum
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Crossing(IntEnum):
    """How outputs and targets of different samples met: not at all, asked for, likely or surely by accident."""

    NONE = 0
    ASKED = 1
    LIKELY = 2
    ACCIDENT = 3


def crossing(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> Crossing:
    """What of outputs and targets meets across samples in one call of `function`, in the operators that torch runs.

    An accident is an operator on outputs and targets in their own shapes, whose first dimensions, the samples, land on
    two dimensions of the result. It is likely where their shapes have changed since, and asked for where a dimension
    was put into one of them on purpose (`targets[None]`). What only outputs or only targets make among themselves is
    nobody's mistake. Raises what `function` raises.
    """
    watch = _Watch(outputs, targets)
    with watch:
        function(outputs, targets)
    return watch.found


def forgets_the_order(function: Callable[[Tensor, Tensor], float], outputs: Tensor, targets: Tensor) -> bool:
    """Whether `function` gives one value whichever sample a target belongs to, though outputs and targets differ."""
    # A turn by one and by two: targets may repeat themselves.
    turned = [targets.roll(shift, 0) for shift in (1, 2)]
    if any(torch.equal(outputs.roll(shift, 0), outputs) for shift in (1, 2)):
        return False
    told = [other for other in turned if not torch.equal(other, targets)]
    value = function(outputs, targets)
    return bool(told) and all(abs(function(outputs, other) - value) <= 1e-6 * abs(value) for other in told)


def grows(one: Tensor, other: Tensor) -> bool:
    """Whether the two broadcast to more numbers than either has."""
    try:
        together = torch.empty(one.shape, device="meta").add(torch.empty(other.shape, device="meta"))
    except RuntimeError:
        return False
    return together.numel() > max(one.numel(), other.numel())


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not annotate it
    """Knows of every tensor whether it comes from outputs or targets, and looks at operators that take each by each."""

    def __init__(self, outputs: Tensor, targets: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # the same
        self.found = Crossing.NONE
        self._batch = len(outputs)
        self._own: dict[str, torch.Size] = {"outputs": outputs.shape, "targets": targets.shape}
        self._sources: dict[int, frozenset[str]] = {
            _memory(outputs): frozenset({"outputs"}),
            _memory(targets): frozenset({"targets"}),
        }
        self._widened: set[Any] = set()  # views that were given a dimension on purpose, and what was made of them
        self._narrow: dict[Any, Tensor] = {}  # what a tensor was before torch repeated it
        self._alive: list[Any] = [outputs, targets]  # memory that is known must not be given to other tensors

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        sources = frozenset().union(*(self._sources.get(_memory(tensor), frozenset()) for tensor in given))
        if not sources:
            return result
        if torch.Tag.pointwise in func.tags:
            for one, other in combinations(given, 2):
                self._meet(one, other)
        widened = any(_view(tensor) in self._widened for tensor in given)
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            self._alive.append(tensor)
            if func is torch.ops.aten.expand.default and tensor.numel() > given[0].numel():
                self._narrow[_view(tensor)] = given[0]
            grown = any(_memory(tensor) == _memory(other) and tensor.ndim > other.ndim for other in given)
            self._sources[_memory(tensor)] = sources | self._sources.get(_memory(tensor), frozenset())
            if widened or grown:
                self._widened.add(_view(tensor))
        return result

    def _meet(self, one: Tensor, other: Tensor) -> None:
        origins = [self._sources.get(_memory(tensor), frozenset()) for tensor in (one, other)]
        if sorted(map(sorted, origins)) != [["outputs"], ["targets"]]:
            return
        # Some functions bring both to the common shape before they begin.
        repeated = all(_view(tensor) in self._narrow for tensor in (one, other))
        if repeated:
            one, other = self._narrow[_view(one)], self._narrow[_view(other)]
        if one.ndim == other.ndim:
            return
        if not (one.ndim and other.ndim and one.shape[0] == other.shape[0] == self._batch > 1):
            return
        if not grows(one, other):
            return
        if any(_view(tensor) in self._widened for tensor in (one, other)):
            found = Crossing.ASKED
        elif all(tensor.shape == self._own[min(origin)] for tensor, origin in zip((one, other), origins, strict=True)):
            found = Crossing.ACCIDENT
        else:
            found = Crossing.LIKELY
        self.found = max(self.found, found)


def _memory(tensor: Tensor) -> Any:
    return tensor.untyped_storage()._cdata  # noqa: SLF001 - the storage object is made anew for every question


def _view(tensor: Tensor) -> Any:
    return _memory(tensor), tensor.shape, tensor.stride(), tensor.storage_offset()
