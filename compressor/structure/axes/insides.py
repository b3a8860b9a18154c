"""What the modules of the user's own met while they ran: in them, and in the hands of their own code."""

import inspect
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from compressor.structure.axes.calls import Dims


class Insides:
    """The axes of all that was computed, by the modules that were running, and who called them with which arguments."""

    def __init__(self) -> None:
        self._log: list[Dims] = []
        self._open: list[tuple[str, int]] = []
        self._spans: dict[str, list[tuple[int, int]]] = {}
        self._held: dict[str, list[Dims]] = {}
        self._given: dict[str, set[str]] = {}
        self._callers: dict[str, set[str]] = {}
        self._results: dict[str, list[Dims]] = {}

    def begin(self) -> None:
        """Says that another call of the model begins."""
        self._open.clear()

    def add(self, dims: Dims) -> None:
        """Notes what an operator made."""
        self._log.append(dims)
        if self._open:
            self._held.setdefault(self._open[-1][0], []).append(dims)

    def enter(self, name: str, module: nn.Module, args: Any, kwargs: Any, every: Iterable[Dims]) -> None:
        """Notes that `module` is called with tensors of these axes."""
        given = {key for key, value in _bound(module, args, kwargs).items() if value is not None}
        self._given.setdefault(name, set()).update(given)
        if self._open:
            self._callers.setdefault(name, set()).add(self._open[-1][0])
        self._open.append((name, len(self._log)))
        for dims in every:
            self.add(dims)

    def leave(self, name: str, every: Iterable[Dims]) -> None:
        """Notes that the module `name` ends, and gives back tensors of these axes."""
        while self._open:
            last, start = self._open.pop()
            self._spans.setdefault(last, []).append((start, len(self._log)))
            if last == name:
                break
        if self._open:
            self._held.setdefault(self._open[-1][0], []).extend(every)

    def gives(self, name: str, every: Iterable[Dims]) -> None:
        """Notes what any module, torch's too, gives back."""
        self._results.setdefault(name, []).extend(every)

    def results(self, name: str) -> list[Dims]:
        """The axes of what the module `name` gave back."""
        return self._results.get(name, [])

    def called(self, name: str) -> bool:
        """Whether the module `name` ran."""
        return name in self._spans

    def met(self, name: str) -> Iterator[Dims]:
        """The axes of all that was given to the module `name`, and of all that was computed in it."""
        for start, stop in self._spans.get(name, ()):
            yield from self._log[start:stop]

    def held(self, name: str) -> list[Dims]:
        """The axes of what the own code of the module `name` had in its hands."""
        return self._held.get(name, [])

    def callers(self, name: str) -> set[str]:
        """The modules whose code called the module `name`."""
        return self._callers.get(name, set())

    def never_given(self, name: str, module: nn.Module) -> list[tuple[int, str]]:
        """The arguments that no call of `module` gave it, with their places."""
        try:
            wanted = inspect.signature(module.forward).parameters
        except (TypeError, ValueError):
            return []
        return [(place, key) for place, key in enumerate(wanted) if key not in self._given.get(name, set())]


def _bound(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by the names of the parameters; those collected in *args and **kwargs where there are."""
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    return {key: value or None if isinstance(value, tuple | dict) else value for key, value in bound.arguments.items()}
