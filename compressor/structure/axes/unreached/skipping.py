"""Locks what methods that no call comes through would take apart."""

from collections.abc import Iterable

from torch import nn

from compressor.structure.axes.axis import Axis, leaves, lock
from compressor.structure.axes.calls import Dims
from compressor.structure.axes.trace import Trace
from compressor.structure.axes.unreached.other_methods import other_methods


def lock_what_is_skipped(model: nn.Module, trace: Trace) -> None:
    """Locks features that methods which no call comes through take apart, and tells it in `trace`."""
    for method in other_methods(model):
        fresh = _fresh([dims for layer in method.layers for dims in trace.insides.results(layer)])
        what = f"{method.owner or type(model).__name__}.{method.name} ({method.line})"
        for atom in fresh:
            lock(atom, f"{what} takes it apart, and no call of the model comes through it")
        if fresh:
            name = f"{method.owner}.{method.name}" if method.owner else method.name
            trace.unreached[name] = (
                f"danger: no call of the model comes through it ({method.line}), and it takes features apart; "
                f"{len(fresh)} width{'s'[: len(fresh) != 1]} locked"
            )


def _fresh(every: Iterable[Dims]) -> list[Axis]:
    """The unlocked atoms of the axes."""
    atoms = dict.fromkeys(atom for dims in every for axis in dims for atom in leaves(axis))
    return [atom for atom in atoms if atom.reason is None and atom.size > 1]
