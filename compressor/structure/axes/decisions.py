"""Places where a program looks at numbers it computed, and what it does when they are others.

A condition reads one number; a selection by a mask makes a tensor whose size depends on numbers.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_VALUE, _SIZE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
_HUGE = sys.float_info.max / 1e270  # also a float32
_MANY = 64
_MASKS = ("torch.bool", "torch.uint8")

Place = tuple[str, str]


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


@dataclass
class Decisions:
    """What was decided by numbers, by place, and one decision that is to be taken otherwise.

    `ways` are the other ways at each place: numbers to read instead, or masks of ones or zeros. Only the first decision
    at `forced` is changed, so that no loop goes on for ever.
    """

    ways: dict[Place, tuple[Any, ...]] = field(default_factory=dict)
    forced: Place | None = None
    way: Any = None

    def taken(self, line: str, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """The result of a decision at `line`: `result`, unless it is to be another."""
        place = line, str(function)
        if self.forced is None:
            self.ways.setdefault(place, _others(function, result))
        if place != self.forced:
            return result
        self.forced = ("", "")
        if _VALUE in function.tags:
            return type(result)(self.way)
        if "nonzero" in str(function):  # of numbers of any type
            return function(torch.full_like(args[0], self.way), *args[1:], **kwargs)
        return function(*_masked(args, self.way), **_masked(kwargs, self.way))


def _others(function: Any, result: Any) -> tuple[Any, ...]:
    if _VALUE in function.tags:
        ways: tuple[Any, ...] = (0, _MANY, 1)
        if isinstance(result, bool):
            ways = (True, False)
        elif isinstance(result, float):
            ways = (_HUGE, -_HUGE, 0.0)
        return tuple(way for way in ways if way != result)
    return (1, 0) if any(name in str(function) for name in ("aten.index.", "nonzero", "masked_select")) else ()


def _masked(values: Any, number: int) -> Any:
    """The arguments with every mask full of `number`."""
    if isinstance(values, dict):
        return {key: _masked(value, number) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_masked(value, number) for value in values)
    return torch.full_like(values, number) if _is_mask(values) else values


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and str(value.dtype) in _MASKS
