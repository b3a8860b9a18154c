"""Which channels, heads, neurons and recurrent units of a model hang together, and the plan that takes some out."""

from collections.abc import Mapping
from typing import Protocol

from torch import nn

from compressor.batches import Inputs
from compressor.errors import StageError
from compressor.progress.bars import waiting
from compressor.structure.axes.axis import Axis, lock
from compressor.structure.axes.groups import AxisStructure
from compressor.structure.axes.runs import trace_axes
from compressor.structure.axes.trace import OUTPUT
from compressor.structure.blocks import instead_of_channels
from compressor.structure.calling.compiled import why_not_followed
from compressor.structure.calling.shown import Shown
from compressor.structure.couplings import Coupled, Couplings
from compressor.structure.model_copies import sharing_copy
from compressor.structure.plan import Entry, Slices
from compressor.structure.preparing.preparation import why_unfolded
from compressor.structure.probe import ProbedStructure, constant_parameters, distinct_
from compressor.structure.tensor_ids import Sizes
from compressor.structure.trials import collector_paused, evaluating
from compressor.workload import batch_size_of


class StructureGraph(Protocol):
    """The groups of a model, the plan entries that narrow them, and trials of whether the model survives it.

    Trials are made on copies: the model itself stays as it is, and has to until the last of them.
    """

    @property
    def groups(self) -> tuple[Coupled, ...]:
        """Every group, locked ones with their reason."""

    @property
    def unreached(self) -> Mapping[str, str]:
        """The layers and tensors that no call reaches, each with why that is a danger."""

    @property
    def settled(self) -> bool:
        """Whether `settle` has nothing left to do."""

    @property
    def slices(self) -> Slices:
        """What parameters of the model became in the last trial, where that is known: it saves cutting them again."""

    def entries(self, gone: dict[Coupled, list[int]]) -> list[Entry]:
        """One plan entry for each group, to be applied in order."""

    def sizes_without(self, gone: dict[Coupled, list[int]]) -> Sizes:
        """What is left of every tensor."""

    def settle(self) -> None:
        """Locks what cannot be narrowed, with the reason, where that is found by narrowing everything; once."""

    def fault_without(self, gone: dict[Coupled, list[int]]) -> str | None:
        """Why these channels, by group, cannot go, or None: the narrowed model must run, and compute what the whole
        one computes with them at zero.
        """


@collector_paused()
@waiting("looking at the structure", at_once=False)
def trace_structure(model: nn.Module, inputs: Inputs | Shown, *, settled: bool = True) -> StructureGraph:
    """The structure of `model` as calls on `inputs` show it, a batch of at least 2 or more; the model stays as it is.

    Every group without `locked` was narrowed in a trial, all of them at once, and the narrowed model computed what the
    whole one computes with those weights at zero. Without `settled` that trial is left to the caller, who tries the cut
    that is wanted with `fault_without` and settles the structure only where it fails. Attention layers of torch and
    layers that compute their weights are locked until `prepare_` exchanged them. Where operators are unknown and
    nothing is left free, torch-pruning's graph is tried. Raises StageError where the model cannot be run.
    """
    shown = Shown.of(inputs)
    trial = sharing_copy(model, own=constant_parameters(model))
    trial.train()  # modules that cache weights in eval mode drop them on the way
    with evaluating(trial):
        distinct_(trial)
        try:
            trace, by_shapes = trace_axes(trial, shown)
        except Exception as error:
            raise StageError(
                f"the structure of {type(model).__name__} cannot be traced "
                f"({why_not_followed(error) or f'{type(error).__name__}: {error}'}); "
                f"{instead_of_channels(model, shown.example)}"
            ) from error
    for name, part in trial.named_modules():
        if isinstance(part, nn.MultiheadAttention):
            _lock_attention(trace.dims, name)
    computed = why_unfolded(trial, shown.example)
    for name, reason in computed.items():
        _lock_computed(trace.dims, name, reason)
    structure = AxisStructure(trial, trace)
    structure.keep_one_factor()
    # What runs without numbers does the same for every sample.
    samples = 1 if by_shapes else min(2, batch_size_of(shown.example))
    steps = [] if trace.trains_alike and not trace.training_paths else shown.steps()
    others = (*shown.others, *trace.more)
    probed = ProbedStructure(
        trial,
        structure,
        shown.example,
        samples=samples,
        others=others,
        paths=trace.paths,
        steps=steps,
        training_paths=trace.training_paths,
    )
    if settled or trace.unknown:
        probed.settle()
    # torch-pruning's graph knows one path alone, that of the example.
    beyond = computed or trace.unreached or trace.branches or others or steps
    if trace.unknown and not beyond and all(group.locked is not None for group in probed.groups):
        try:
            other = Couplings(trial, shown.example)
        except StageError:
            return probed
        other.settle()
        if any(not group.makes_output and not group.opaque and group.locked is None for group in other.groups):
            return other
    return probed


def can_lose_channels(model: nn.Module, inputs: Inputs | Shown) -> bool:
    """Whether a group of `model` is free to be narrowed."""
    try:
        return any(group.locked is None and not group.makes_output for group in trace_structure(model, inputs).groups)
    except StageError:
        return False


def _lock_attention(dims: dict[str, list[Axis]], name: str) -> None:
    prefix = f"{name}." if name else ""
    for key in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if prefix + key in dims:
            lock(dims[prefix + key][0], f"{name} is an nn.MultiheadAttention that prepare_ has not exchanged")


def _lock_computed(dims: dict[str, list[Axis]], name: str, reason: str) -> None:
    prefix = f"{name}." if name else ""
    for axis in (axis for key, axes in dims.items() if key.startswith(prefix) for axis in axes):
        lock(axis, reason, override=axis.root.reason != OUTPUT)
