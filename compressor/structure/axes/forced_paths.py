"""Paths of a program that no example takes: walked by taking decisions otherwise, and told by their operators."""

from typing import Any, Self

from torch.utils._python_dispatch import TorchDispatchMode

from compressor.structure.axes.calls import user_line, user_place
from compressor.structure.axes.decisions import Decisions, Steps, looks_at_values
from compressor.structure.axes.read_out import ReadOut
from compressor.structure.axes.shapes_alone import shapes_of
from compressor.structure.calling.coverage import unwatched


class Forced(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
    """Lets the program that runs take a path that no example takes: `steps` say what is decided otherwise."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves its hook for subclasses untyped
        self._decisions = Decisions()
        self._decisions.force(steps)
        self._read = ReadOut()

    def __enter__(self) -> Self:
        self._read.__enter__()  # type: ignore[no-untyped-call]  # as above
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]  # as above

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]  # as above
        self._read.__exit__(*raised)  # type: ignore[no-untyped-call]  # as above

    @unwatched
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not looks_at_values(function, args):
            return result
        return self._decisions.taken(user_line(), function, args, kwargs, result)


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as above
    """Notes which operators run, each with the line that called it; `shapes_only` on the meta device.

    `cuts` are the positions that are cut or picked out, by operator and line, and part of what is `met` with `bounds`.
    """

    def __init__(self, *, shapes_only: bool, bounds: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.met: set[tuple[Any, ...]] = set()
        self.cuts: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
        self.shapes_only, self._bounds = shapes_only, bounds

    @unwatched
    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key = str(function), user_place()
        cut = _bounds(function, args)
        if cut is not None:
            self.cuts.setdefault(key, []).append(cut)
        self.met.add((*key, *(cut or ())) if self._bounds else key)
        kwargs = kwargs or {}
        return shapes_of(function, args, kwargs) if self.shapes_only else function(*args, **kwargs)


def _bounds(function: Any, args: Any) -> tuple[Any, ...] | None:
    """Which positions an operator cuts or picks out, None where it takes all of a dimension."""
    name = str(function).partition(".")[2].partition(".")[0]
    if name == "slice" and len(args) > 3:
        whole = (args[2] or 0) == 0 and (args[3] is None or args[3] >= args[0].shape[args[1]])
        return None if whole else tuple(args[1:])
    return tuple(args[1:]) if name in {"select", "narrow"} else None
