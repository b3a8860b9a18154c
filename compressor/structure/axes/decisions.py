"""Places where a program looks at numbers it computed, and what it does when they are others.

A condition reads one number; a selection by a mask makes a tensor whose size depends on numbers.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

_VALUE, _SIZE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
_HUGE = sys.float_info.max / 1e270  # also a float32
_MANY = 64
# Decisions of one place that are noted.
_TURNS = 8
_MASKS = ("torch.bool", "torch.uint8")


def looks_at_values(function: Any, args: Any) -> bool:
    """Whether what the operator gives, or its shape, depends on numbers as no other operator's does."""
    if _VALUE in function.tags:
        return True
    if _SIZE not in function.tags:
        return False
    return not str(function).startswith("aten.index.") or any(_is_mask(index) for index in args[1])


def is_chance_or_count(function: Any, outputs: tuple[Tensor, ...]) -> bool:
    """Whether an operator of training alone is none that structure depends on: it draws, or counts batches."""
    drawn = torch.Tag.nondeterministic_seeded in function.tags
    return drawn or (outputs[0].ndim == 0 and not outputs[0].is_floating_point())


class Place(NamedTuple):
    """A decision: the user's line, the operator, and how often it was taken there before in the same call."""

    line: str
    operator: str
    turn: int


# Places with the ways that are to be taken there, one for each.
Steps = tuple[tuple[Place, Any], ...]


@dataclass
class Decisions:
    """What was decided by numbers, by place, and decisions that are to be taken otherwise.

    `ways` are the other ways at each place: numbers to read instead, or masks of ones or zeros. `clues` are numbers
    more, which the program mentions. `beyond` are the ways at places that were met only since something was forced.
    Each forced decision is taken once in a call, so that no loop goes on for ever.
    """

    ways: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    clues: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    beyond: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    _forced: dict[Place, Any] = field(default_factory=dict)
    _met: set[Place] = field(default_factory=set)
    _turns: Counter[tuple[str, str]] = field(default_factory=Counter)
    _any: bool = False

    def force(self, steps: Steps) -> None:
        """Lets the decisions of `steps` be taken so from now on."""
        self._forced, self._met, self.beyond = dict(steps), set(), {}

    def begin(self) -> None:
        """Says that another call begins."""
        self._turns.clear()
        self._met.clear()
        self._any = False

    @property
    def met(self) -> bool:
        """Whether the call came to everything that was forced."""
        return self._met == set(self._forced)

    @property
    def any(self) -> bool:
        """Whether the call took a decision that is noted."""
        return self._any

    def taken(
        self,
        line: str,
        function: Any,
        args: Any,
        kwargs: Any,
        result: Any,
        *,
        clues: Callable[[], Iterable[float]] | None = None,
    ) -> Any:
        """The result of a decision at `line`: `result`, unless it is to be another.

        It is noted where `clues` are given, which finds the numbers that the program mentions.
        """
        key = line, str(function)
        place = Place(*key, self._turns[key])
        self._turns[key] += 1
        self._any |= clues is not None
        if clues is not None and place.turn < _TURNS and place not in self.ways:
            ways = _others(function, result)
            numbers = _as_read(clues(), result, ways) if _VALUE in function.tags else ()
            if self._forced:
                self.beyond.setdefault(place, (*ways, *numbers))
            else:
                self.ways[place], self.clues[place] = ways, numbers
        if place not in self._forced or place in self._met:
            return result
        self._met.add(place)
        way = self._forced[place]
        if _VALUE in function.tags:
            return type(result)(way)
        if "unique" in str(function):  # no two alike, or all
            numbers = torch.arange(args[0].numel()).view_as(args[0]) * (1 - way)
            return function(numbers.to(args[0]), *args[1:], **kwargs)
        if "nonzero" in str(function):  # of numbers of any type
            return function(torch.full_like(args[0], way), *args[1:], **kwargs)
        return function(*_masked(args, way), **_masked(kwargs, way))


def _as_read(numbers: Iterable[float], result: Any, ways: Iterable[Any]) -> tuple[Any, ...]:
    """Those of `numbers` that can be read in the place of `result`, each as its type and once."""
    if isinstance(result, bool) or not isinstance(result, int | float):
        return ()
    known = {result, *ways}
    fitting = (type(result)(number) for number in numbers if isinstance(result, float) or number % 1 == 0)
    return tuple(dict.fromkeys(number for number in fitting if number not in known))


def _others(function: Any, result: Any) -> tuple[Any, ...]:
    if _VALUE in function.tags:
        ways: tuple[Any, ...] = (0, _MANY, 1)
        if isinstance(result, bool):
            ways = (True, False)
        elif isinstance(result, float):
            ways = (_HUGE, -_HUGE, 0.0, 1.0)
        return tuple(way for way in ways if way != result)
    known = ("aten.index.", "nonzero", "masked_select", "unique")
    return (1, 0) if any(name in str(function) for name in known) else ()


def _masked(values: Any, number: int) -> Any:
    """The arguments with every mask full of `number`."""
    if isinstance(values, dict):
        return {key: _masked(value, number) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_masked(value, number) for value in values)
    return torch.full_like(values, number) if _is_mask(values) else values


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and str(value.dtype) in _MASKS
