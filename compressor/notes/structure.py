"""What is told of the structure: which channels and blocks went, which were left alone, and by which scores."""

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.notes.note import Note


@dataclass(frozen=True, kw_only=True)
class Group:
    """The channels of one group of layers, named after its first layer, before and after pruning."""

    layer: str = "?"
    before: int
    after: int

    @property
    def fraction_removed(self) -> float:
        """The part of its channels that went."""
        return (self.before - self.after) / self.before


@dataclass(frozen=True, kw_only=True)
class Groups(Note):
    """The groups whose channels were looked at; widths are multiples of `align` where that is told."""

    align: int | None = None
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class LockedLayer:
    """A layer that was left alone, and why."""

    layer: str = "?"
    reason: str


@dataclass(frozen=True, kw_only=True)
class LockedLayers(Note):
    """The layers, groups and blocks that were left alone."""

    locked: tuple[LockedLayer, ...]

    @classmethod
    def of(cls, reasons: Mapping[str, str]) -> "LockedLayers":
        """The note of {name: reason}."""
        return cls(locked=tuple(LockedLayer(layer=name, reason=reason) for name, reason in reasons.items()))


@dataclass(frozen=True, kw_only=True)
class UnreachedLayer:
    """A layer or tensor that no input of the workload reaches, and why that is a danger, with its line."""

    layer: str = "?"
    danger: str


@dataclass(frozen=True, kw_only=True)
class UnreachedLayers(Note):
    """The layers and tensors that no input reaches: what they could read or make was left alone."""

    unreached_layers: tuple[UnreachedLayer, ...]

    @classmethod
    def of(cls, dangers: Mapping[str, str]) -> "UnreachedLayers":
        """The note of {name: danger}."""
        return cls(unreached_layers=tuple(UnreachedLayer(layer=name, danger=why) for name, why in dangers.items()))


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block that could go: its score (None where it has none) and whether it stayed."""

    block: str = "?"
    group: str | None
    score: float | None
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Blocks(Note):
    """The blocks that could go, and the names of those that did, the first first."""

    blocks: tuple[Block, ...]
    dropped_in_order: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ChannelsRemoved(Note):
    """The part of all channels of groups that were not locked that went."""

    channel_fraction_removed: float


@dataclass(frozen=True, kw_only=True)
class Round:
    """One choice of several: the limit, what it was predicted to cost, and its loss."""

    limit: float
    predicted: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Rounds(Note):
    """The choices on the way to the last limit."""

    rounds: tuple[Round, ...]


@dataclass(frozen=True, kw_only=True)
class FoldedConstants(Note):
    """The layers that took over what removed channels still gave, and the largest change of an output by that."""

    constants_folded_into: tuple[str, ...]
    largest_output_change: float


@dataclass(frozen=True, kw_only=True)
class UnitScores:
    """What the units of one group were worth to a criterion, those that stayed and those that went.

    A unit is a channel, a head, a neuron or a recurrent unit; `layers` make it.
    """

    group: str = "?"
    criterion: str
    layers: tuple[str, ...]
    kept_scores: tuple[float, ...]
    removed_scores: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Scores(Note):
    """The scores of every decision on a group, in the order in which they were made."""

    scores: tuple[UnitScores, ...]


@dataclass(frozen=True, kw_only=True)
class FormEfficiency:
    """The latency efficiency of one form, as it was predicted and as it was measured."""

    predicted: float
    measured: float


@dataclass(frozen=True, kw_only=True)
class BuiltChoice:
    """A choice for a target that was built and measured, in `unit`, beside what the reference and the model had.

    Where milliseconds are to fall in step, `efficiency` is what was asked under "asked", and what came by form.
    """

    target: str
    unit: str
    reference: float
    start: float
    limit: float
    predicted: float
    measured: float
    measured_low: float
    measured_high: float
    fraction_of_reference: float
    efficiency: Mapping[str, float | FormEfficiency] | None = None


@dataclass(frozen=True, kw_only=True)
class TakenChoice(Note):
    """The choice that was taken for a target."""

    target: BuiltChoice


@dataclass(frozen=True, kw_only=True)
class FirstChoice(Note):
    """The choice that was given up for a second one."""

    first_choice: BuiltChoice


@dataclass(frozen=True, kw_only=True)
class SecondChoice(Note):
    """The second choice that was not taken, or why there is none."""

    second_choice: BuiltChoice | str


@dataclass(frozen=True, kw_only=True)
class FoldedWeight:
    """A weight that a layer computed from others, `by` that parametrization, and that is a plain parameter now."""

    layer: str = "?"
    tensor: str = "?"
    by: str


@dataclass(frozen=True, kw_only=True)
class FoldedWeights(Note):
    """The computed weights that became plain, so that their channels could go; training goes on without their norm."""

    parametrizations_folded: tuple[FoldedWeight, ...]


@dataclass(frozen=True, kw_only=True)
class FactorizedLayer:
    """A layer that became a chain of thinner ones, `by` "svd", "spatial", "tucker" or "cp".

    `ranks` stand beside the `full_ranks` at which nothing is lost; `error` is the part of its squared outputs that the
    chain loses; the weights of the layer were `before` and are `after` in number.
    """

    layer: str = "?"
    by: str
    ranks: tuple[int, ...]
    full_ranks: tuple[int, ...]
    error: float
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class FactorizedLayers(Note):
    """The layers that became chains of thinner ones."""

    factorized: tuple[FactorizedLayer, ...]
