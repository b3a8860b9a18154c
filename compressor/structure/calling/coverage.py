"""Which instructions of the user's own functions ran, and which tensors their variables held."""

import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

# Of one function so many variables are looked at, for programs made by programs.
_VARIABLES = 200
# Line and column of the beginning, and of the end.
Place = tuple[int, int, int, int]
# The places in functions that are waited for, by file and by the first line of the function.
Awaited = Mapping[str, Mapping[int, Collection[Place]]]
_Known = Callable[[list[Tensor]], Iterable[Sequence[Any]]]


@dataclass
class Ran:
    """A function that ran: the offsets of its instructions that did, and what is known of what its variables held.

    `owner` is the first module among its variables, that of a method, and `owner_name` the
    variable; `names` are its global ones, `locals` its own.
    """

    offsets: set[int] = field(default_factory=set)
    variables: dict[str, dict[tuple[int, ...], Sequence[Any]]] = field(default_factory=dict)
    owner: nn.Module | None = None
    owner_name: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    locals: frozenset[str] = frozenset()


class Coverage:
    """What ran of the user's own code while it was `watched`, by function.

    `awaited` are places in functions that are watched until all of them were come to. `known` gives the axes of those
    tensors of which they are known. Nothing is noted under a debugger: `complete` is False.
    """

    def __init__(self, known: _Known, awaited: Awaited) -> None:
        self.ran: dict[CodeType, Ran] = {}
        self.complete = True
        self._known = known
        self._awaited = {
            path: {first: set(places) for first, places in known.items()} for path, known in awaited.items()
        }
        self._places: dict[CodeType, dict[int, Place]] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes what runs inside."""
        if not self._awaited:
            yield
            return
        if sys.gettrace() is not None:
            self.complete = False
            yield
            return
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def left(self, code: CodeType) -> Collection[Place]:
        """The places in a function that no call came to."""
        return self._awaited.get(code.co_filename, {}).get(code.co_firstlineno, ())

    def _call(self, frame: FrameType, _event: str, _value: Any) -> Any:
        code = frame.f_code
        functions = self._awaited.get(code.co_filename)
        awaited = None if functions is None else functions.get(code.co_firstlineno)
        return self._steps(frame, awaited) if awaited else None

    def _steps(self, frame: FrameType, awaited: set[Place]) -> Callable[[FrameType, str, Any], Any]:
        code = frame.f_code
        if code not in self.ran:
            self.ran[code] = Ran(names=frame.f_globals, locals=frozenset(code.co_varnames + code.co_cellvars))
            self._places[code] = dict(places_of(code))
        ran, places, last = self.ran[code], self._places[code], dict[str, int]()
        offsets, note = ran.offsets, self._note

        def step(frame: FrameType, event: str, _value: Any) -> Any:
            if event == "opcode":
                if frame.f_lasti not in offsets:
                    offsets.add(frame.f_lasti)
                    place = places.get(frame.f_lasti)
                    awaited.difference_update([each for each in awaited if place is not None and within(place, each)])
            elif event != "exception":
                note(frame, ran, last)
            if not awaited:
                frame.f_trace_lines = frame.f_trace_opcodes = False
                self._finish(code)
            return step

        frame.f_trace_lines, frame.f_trace_opcodes = True, True
        return step

    def _finish(self, code: CodeType) -> None:
        """Watches a function no more, and nothing where none is left."""
        functions = self._awaited.get(code.co_filename, {})
        functions.pop(code.co_firstlineno, None)
        if not functions:
            self._awaited.pop(code.co_filename, None)
        if not self._awaited:
            sys.settrace(None)

    def _note(self, frame: FrameType, ran: Ran, last: dict[str, int]) -> None:
        for name, value in frame.f_locals.items():
            if isinstance(value, Tensor):
                if last.get(name) != id(value) and (name in ran.variables or len(ran.variables) < _VARIABLES):
                    last[name] = id(value)
                    held = ran.variables.setdefault(name, {})
                    held.update({tuple(map(id, dims)): dims for dims in self._known([value])})
            elif ran.owner is None and isinstance(value, nn.Module):
                ran.owner, ran.owner_name = value, name


def unwatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which runs none of the user's own code but is called in its midst, without what watching costs."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tracer = sys.gettrace()
        if not isinstance(getattr(tracer, "__self__", None), Coverage):
            return function(*args, **kwargs)
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return call


def places_of(code: CodeType) -> Iterator[tuple[int, Place]]:
    """The offset of each instruction, and where it stands: first line and column, last line and column."""
    for number, place in enumerate(code.co_positions()):
        line, last, column, end = (-1 if each is None else each for each in place)
        if min(line, last, column, end) >= 0:
            yield 2 * number, (line, column, last, end)


def within(place: Place, other: Place) -> bool:
    """Whether all of a place stands in another one."""
    return other[:2] <= place[:2] and place[2:] <= other[2:]
