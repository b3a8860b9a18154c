"""Locks what methods and expressions that no call comes through would take apart."""

from collections.abc import Collection, Iterable, Sequence

from torch import nn

from compressor.structure.axes.axis import Axis, leaves, lock
from compressor.structure.axes.trace import Trace
from compressor.structure.axes.unreached.other_methods import other_methods
from compressor.structure.axes.unreached.skipped_code import Skipped, skipped
from compressor.structure.calling.coverage import Coverage
from compressor.structure.tensor_ids import tensors_of

_WAY_OUT = "give inputs that reach it as other_inputs of the Workload"


def lock_what_others_take_apart(model: nn.Module, trace: Trace) -> None:
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


def lock_what_is_skipped(model: nn.Module, trace: Trace, coverage: Coverage, stored: Collection[str]) -> None:
    """Locks features that code beside what the calls of `coverage` ran takes apart, and tells it in `trace`.

    Where nothing but a setting of the model decides, which no call changes, it is told alone: `stored` are the
    attributes that calls assign. Under a debugger nothing is known of what ran, which is told as well.
    """
    if not coverage.complete:
        trace.unreached["debugger"] = "danger: under a debugger nobody sees which code of the model no call comes to"
        return
    settings = list[Skipped]()
    every = {name: tensor.numel() > 1 and name not in trace.used for name, tensor in tensors_of(model).items()}
    unread = {name.rpartition(".")[2] for name, free in every.items() if free}
    unread -= {name.rpartition(".")[2] for name, free in every.items() if not free}
    for found in skipped(coverage, unread, stored):
        if found.by_setting:
            settings.append(found)
            continue
        fresh = _fresh(_met(model, trace, found))
        for atom in fresh:
            lock(atom, f"{found.line} takes it apart or counts it, and no call comes to it; {_WAY_OUT}")
        if fresh:
            count = f"{len(fresh)} width{'s'[: len(fresh) != 1]} locked"
            trace.unreached[found.line] = (
                f"danger: no call comes to it, and it takes features apart; {count}; {_WAY_OUT}"
            )
    for found in settings:
        if _fresh(_met(model, trace, found)):
            text = "danger: as the model is set, no call comes to it; it takes features apart, and nothing is locked"
            trace.unreached.setdefault(found.line, text)


def _met(model: nn.Module, trace: Trace, found: Skipped) -> list[Sequence[Axis]]:
    """The axes that an expression would act on."""
    every = [
        dims
        for name in found.variables
        for dims in found.ran.variables.get(name, {}).values()
        # With another number of dimensions, the second is no longer the last, where these features are.
        if not (name in found.otherwise_ranked and len(dims) == 2 and not _fresh([dims[:1]]))
    ]
    for owner, module in model.named_modules():
        if type(module) is type(found.ran.owner):
            prefix = f"{owner}." if owner else ""
            every += [dims for member in found.members for dims in trace.insides.results(prefix + member)]
    return every


def _fresh(every: Iterable[Sequence[Axis]]) -> list[Axis]:
    """The unlocked atoms of the axes."""
    atoms = dict.fromkeys(atom for dims in every for axis in dims for atom in leaves(axis))
    return [atom for atom in atoms if atom.reason is None and atom.size > 1]
