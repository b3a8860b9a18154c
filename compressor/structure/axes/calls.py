"""One call of an operator as the rules for axes see it: arguments by name, axes of every tensor, the user's line."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, nn

from compressor.structure.axes.axis import Axis, is_locked, lock
from compressor.structure.source_lines import short_path

Dims = list[Axis]

# How the reasons begin of axes that belong to how a layer is built, so that nobody asks why they stay.
STRUCTURAL = ("it counts", "it is the width")


@dataclass(frozen=True)
class Call:
    """An operator that ran. `name` is its own without overload or the underscore of the in-place form.

    `dims_of` gives the axes of any tensor; `computed` tells whether a tensor depends on the model's input; `makes`
    is told of every weight that a contraction used: tensor, its dimension that became output, module attributes.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    outputs: tuple[Tensor, ...]
    dims_of: Callable[[Tensor], Dims]
    computed: Callable[[Tensor], bool]
    made_by: Callable[[Tensor, int], None]
    counts: Callable[[Tensor, str, Axis], None]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def dims(self, name: str) -> Dims:
        """The axes of the tensor argument `name`."""
        return self.dims_of(self.arguments[name])

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor among the arguments."""
        return tensors_in(self.arguments.values())

    def shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return tuple(self.outputs[0].shape)

    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all outputs."""
        return [tuple(output.shape) for output in self.outputs]

    def lock(self, axis: Axis, reason: str) -> None:
        """Locks `axis` for `reason`, with the place in the user's code."""
        if not is_locked(axis):
            lock(axis, f"{reason}{user_line()}")


Rule = Callable[[Call], Any]


def adding_to(rules: dict[str, Rule]) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that puts a rule into `rules` under the names of its operators."""

    def named(*names: str) -> Callable[[Rule], Rule]:
        def add(rule: Rule) -> Rule:
            rules.update(dict.fromkeys(names, rule))
            return rule

        return add

    return named


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dicts."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


def broadcast(every: Sequence[Dims], shape: Sequence[int], join: Callable[[Axis, Axis], None]) -> Dims:
    """The axes of an elementwise result of `shape`: aligned from the right, those of size 1 meet nothing."""
    result: Dims = []
    for place, size in enumerate(reversed(shape), start=1):
        meeting = [dims[-place] for dims in every if len(dims) >= place and dims[-place].size == size]
        for other in meeting[1:]:
            join(meeting[0], other)
        result.insert(0, meeting[0] if meeting else Axis(size, None if size > 1 else "size 1"))
    return result


def user_line() -> str:
    """Where in the user's code the running operator was called, as " in <module class> (file:line)", or ""."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - a traceback object would be far slower
    inside = ""
    while frame is not None and not _is_end(frame):
        owner = frame.f_locals.get("self")
        if not inside and isinstance(owner, nn.Module):
            inside = f" in {type(owner).__name__}"
        if _is_users(frame):
            return f"{inside} ({short_path(Path(frame.f_code.co_filename))}:{frame.f_lineno})"
        frame = frame.f_back
    return inside


def user_place() -> tuple[str, int] | None:
    """The file and line of the user's code that called the running operator, None where torch alone did."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    while frame is not None and not _is_end(frame):
        if _is_users(frame):
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return None


def user_frames() -> Iterator[FrameType]:
    """The frames of the user's code that led to the running operator, the innermost first."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as above
    while frame is not None and not _is_end(frame):
        if _is_users(frame):
            yield frame
        frame = frame.f_back


def _is_end(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "compressor.workload"


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", ""))
    return package.partition(".")[0] != "torch" and not _is_own(package)


def _is_own(package: str) -> bool:
    parts = package.split(".")
    return parts[0] == "compressor" and (len(parts) < 2 or parts[1] != "workloads")
