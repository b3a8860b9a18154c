"""Paths of a program that no example takes: walked by taking one decision otherwise, and told by their operators."""

from typing import Any, NamedTuple, Self

from torch.utils._python_dispatch import TorchDispatchMode

from compressor.structure.axes.calls import user_line, user_place
from compressor.structure.axes.decisions import Decisions, Place, looks_at_values
from compressor.structure.axes.read_out import ReadOut
from compressor.structure.axes.shapes_alone import shapes_of


class Path(NamedTuple):
    """The path that a program takes where the decision at `place` is taken that `way`."""

    place: Place
    way: Any


class Forced(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Lets the program that runs take `path`."""

    def __init__(self, path: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._decisions = Decisions()
        self._decisions.force(*path)
        self._read = ReadOut()

    def __enter__(self) -> Self:
        self._read.__enter__()  # type: ignore[no-untyped-call]  # as above
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]  # as above

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]  # as above
        self._read.__exit__(*raised)  # type: ignore[no-untyped-call]  # as above

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not looks_at_values(function, args):
            return result
        return self._decisions.taken(user_line(), function, args, kwargs, result)


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as above
    """Notes which operators run, each with the line that called it; `shapes_only` on the meta device."""

    def __init__(self, *, shapes_only: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.met: set[tuple[str, tuple[str, int] | None]] = set()
        self._shapes_only = shapes_only

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met.add((str(function), user_place()))
        kwargs = kwargs or {}
        return shapes_of(function, args, kwargs) if self._shapes_only else function(*args, **kwargs)
