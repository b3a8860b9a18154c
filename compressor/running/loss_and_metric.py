"""Whether loss and metric judge each output by its own target: finite, of the right shape, not broadcast."""

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from compressor.batches import Batch, Inputs, Targets, judged_target, with_judged
from compressor.errors import WorkloadError
from compressor.given.notices import WorkloadWarning
from compressor.metrics import Metric
from compressor.running.broadcasts import Crossing, crossing, forgets_the_order, grows
from compressor.running.described import described
from compressor.running.failures import FAULTS
from compressor.scoring.shapes import fitting
from compressor.structure.calling.compiled import compiles_again
from compressor.workload import Workload

# What torch's own losses say where two shapes broadcast.
_SIZES_DIFFER = re.compile(r"target size \(torch\.Size\((.*?)\)\).*input size \(torch\.Size\((.*?)\)\)")


def check_judged(name: str, outputs: Tensor, given: Targets, workload: Workload, *, by_metric: bool = True) -> None:
    """Nothing where loss and metric judge the first batch of the set `name` as they should. Raises WorkloadError.

    Both must be finite, the loss one number, the metric one row a sample that depends on no other sample's target by
    accident: outputs (N, 1) against targets (N,) broadcast to (N, N). Warns, with WorkloadWarning, where such a
    broadcast may be meant. The loss has all of the targets that are `given`, the metric the one that is judged by,
    unless `by_metric` says that it sees none of this set.
    """
    metric, where = workload.metric, f"the first batch of {name}"
    targets = judged_target(given)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return workload.loss(outputs, with_judged(given, targets))

    checked: list[tuple[str, Callable[[Tensor, Tensor], Any], Callable[[Tensor, Tensor], Any]]] = [
        ("the loss", loss, loss)
    ]
    if by_metric:
        checked.insert(0, (f"the metric {metric.name}", metric.rows, metric.score))
    for kind, judged, function in checked:
        shown = given if judged is loss else targets
        label = f"{kind}, on {where} with outputs {described(outputs)} and targets {described(shown)}"
        with _sizes_differ(outputs, targets) as differing:
            value = _value(label, function, outputs, targets, several=shown is not targets)
        if not math.isfinite(value):
            raise WorkloadError(f"{label}, must be finite, got {value}; {_way_to_a_number(function, outputs, targets)}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were passed on the first time
            found = Crossing.ACCIDENT if differing else _crossing(judged, outputs, targets)
            # An accident gives one value whichever sample a target belongs to; asked for, it may.
            forgets = found is not Crossing.NONE and forgets_the_order(
                lambda *pair, function=function: float(function(*pair)), outputs, targets
            )
        if found is Crossing.ACCIDENT or (found is Crossing.LIKELY and forgets):
            raise WorkloadError(f"{_every_pair(label, outputs, targets)}; if every pair is meant, write targets[None]")
        if found is Crossing.LIKELY or forgets:
            text = f"{_every_pair(label, outputs, targets)}; if that is meant, all is well"
            warnings.warn(text, WorkloadWarning, stacklevel=2)
    if not by_metric:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_rows(f"the metric {metric.name}, on {where}", metric, outputs, targets)


def check_lengths(name: str, workload: Workload, first: Batch, other: Batch, given: Callable[[Inputs], Tensor]) -> None:
    """Nothing where the metric can score two batches of the set `name` together, whose samples differ in their size.

    `given` answers inputs. Raises WorkloadError.
    """
    metric = workload.metric
    try:
        metric.together([metric.rows(given(inputs), judged_target(targets)) for inputs, targets in (first, other)])
    except WorkloadError as error:
        raise WorkloadError(f"{name} has batches of two sizes: {error}") from error


def _value(
    label: str, function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor, *, several: bool
) -> float:
    try:
        kept = outputs.clone(), targets.clone()
        found = function(outputs, targets)
        _check_unwritten(label, (outputs, targets), kept)
        if isinstance(found, Tensor) and found.numel() == 1:
            return float(found)
        if not (found is None or isinstance(found, Tensor | str | tuple | list | Mapping)):
            return float(found)
    except WorkloadError as error:
        raise WorkloadError(f"{label}: {error}") from error
    except FAULTS as error:  # user code may raise anything
        helps = _differ_by_ones(outputs, targets) and _works(function, outputs, targets.reshape(outputs.shape))
        way_out = f"; {fitting(outputs.shape, targets.shape)}" if helps else _other_type(function, outputs, targets)
        if several:
            way_out = "; it is given all targets: let it take what it needs of them, such as targets['labels']"
        raise WorkloadError(
            f"{label}, fails: {type(error).__name__}: {str(error).strip() or 'no message'}. It must take "
            f"(outputs, targets) of these shapes and types{way_out}"
        ) from error
    if isinstance(found, str):
        raise WorkloadError(f"{label}, must be a number, got the text {found!r}; give the number itself")
    if not isinstance(found, Tensor):
        raise WorkloadError(f"{label}, must be one number, got {_kind(found)}; {_number_of(found)}")
    raise WorkloadError(
        f"{label}, must be one number, got shape {tuple(found.shape)}; give the mean over samples "
        "(reduction='mean', or .mean() at the end)"
    )


def _check_unwritten(label: str, given: tuple[Tensor, Tensor], kept: tuple[Tensor, Tensor]) -> None:
    for name, now, before in zip(("outputs", "targets"), given, kept, strict=True):
        if not torch.equal(now.nan_to_num(), before.nan_to_num()):
            # The data may lie in memory: the next pass would find what this one wrote.
            raise WorkloadError(
                f"{label}, writes into its {name}, which others read after it; let it begin with a copy: "
                f"{name} = {name}.clone()"
            )


def _kind(found: Any) -> str:
    return "None" if found is None else f"a {type(found).__name__} of {len(found)}"


def _number_of(found: Any) -> str:
    if isinstance(found, Mapping) and found:
        key = next(iter(found))
        return f"give the entry that counts, as in lambda outputs, targets: loss(outputs, targets)[{key!r}]"
    if found:
        return "give the one that counts, as in lambda outputs, targets: loss(outputs, targets)[0]"
    return "let it end with its return"


def _works(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> bool:
    try:
        return math.isfinite(float(function(outputs, targets)))
    except FAULTS:  # user code may raise anything
        return False


def _other_type(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> str:
    """A type of numbers in which the targets do work, "" where there is none."""
    for written, dtype in (("float", torch.float32), ("long", torch.int64)):
        if targets.dtype != dtype and _works(function, outputs, targets.to(dtype)):
            return f"; with targets.{written}() it works: convert them in the dataset, or in the loss"
    return ""


def _way_to_a_number(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> str:
    """What makes a number of a value that is infinite or none."""
    with torch.enable_grad():
        found = function(outputs.detach().requires_grad_(), targets)
    open_nodes, met = [getattr(found, "grad_fn", None)], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in met:
            continue
        if "ctc" in type(node).__name__.lower():
            return (
                "a label that is longer than its outputs, with what stands between equal neighbours, has no path in "
                "CTC: take zero_infinity=True, or leave such samples out"
            )
        met.add(node)
        open_nodes += [following for following, _ in node.next_functions]
    if len(targets) and bool((targets == targets.flatten()[0]).all()):
        return f"all of its targets are {targets.flatten()[0].item():g}, of which nothing can be told: give others, too"
    return "check the scale"


def _every_pair(label: str, outputs: Tensor, targets: Tensor) -> str:
    way_out = (
        fitting(outputs.shape, targets.shape)
        if _differ_by_ones(outputs, targets)
        else "give both the same shape before they are compared"
    )
    return f"{label}, compares every output with every target, as shapes that differ are broadcast; {way_out}"


def _check_rows(label: str, metric: Metric, outputs: Tensor, targets: Tensor) -> None:
    """Rows must be a sample's own: those of half a batch are the first half of those of the whole."""
    half = len(outputs) // 2
    if half < 2:
        return
    rows = metric.rows(outputs, targets)
    try:
        fewer = metric.rows(outputs[:half], targets[:half])
    except FAULTS:  # user code may refuse a small batch; the run will say so where it has one
        return
    if fewer.shape[1:] != rows.shape[1:]:
        raise WorkloadError(
            f"{label}, gives rows of {_width(rows)} for {len(outputs)} samples and of {_width(fewer)} for {half}: "
            f"a row must be of one sample alone, and outputs {tuple(outputs.shape)} met targets "
            f"{tuple(targets.shape)} of other samples; {_way_to_one_shape(outputs, targets)}"
        )
    if _broadcast(outputs, targets) and not torch.allclose(rows[:half].double(), fewer.double(), equal_nan=True):
        raise WorkloadError(_every_pair(label, outputs, targets))


def _way_to_one_shape(outputs: Tensor, targets: Tensor) -> str:
    if _differ_by_ones(outputs, targets):
        return fitting(outputs.shape, targets.shape)
    return "average over what belongs to one sample, as in error.flatten(1).mean(dim=1)"


def _width(rows: Tensor) -> str:
    return "one number" if rows.ndim == 1 else f"{rows.shape[1]} numbers"


def _crossing(function: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor) -> Crossing:
    try:
        return crossing(function, outputs, targets)
    except FAULTS as error:  # it runs, but not while it is watched: compiled code, for instance
        compiles_again(error)
        return Crossing.NONE


def _broadcast(outputs: Tensor, targets: Tensor) -> bool:
    """Whether the shapes alone would bring every sample together with every other."""
    return outputs.ndim != targets.ndim and grows(outputs, targets)


def _differ_by_ones(outputs: Tensor, targets: Tensor) -> bool:
    own, other = ([size for size in tensor.shape if size != 1] for tensor in (outputs, targets))
    return outputs.shape != targets.shape and own == other


@contextmanager
def _sizes_differ(outputs: Tensor, targets: Tensor) -> Iterator[list[str]]:
    """Collects what torch's losses warn of the shapes of `outputs` and `targets`; all other warnings go on."""
    shapes = {str(list(outputs.shape)), str(list(targets.shape))}
    differing: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield differing
    for warning in caught:
        sizes = _SIZES_DIFFER.search(str(warning.message))
        if sizes and set(sizes.groups()) == shapes:
            differing.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
