"""What is ranked against what when a fraction of a network is to go."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from compressor.pruning.ranking.importance import aligned_width, comparable, kept_by_threshold

if TYPE_CHECKING:
    from compressor.structure.couplings import Coupled, Part


@dataclass(frozen=True, kw_only=True)
class Global:
    """Everything together: those that matter least go, wherever they are."""


@dataclass(frozen=True, kw_only=True)
class PerLayer:
    """Each layer by itself: the same fraction of every layer's channels goes."""


@dataclass(frozen=True, kw_only=True)
class PerGroup:
    """Each group of alike blocks by itself: the same fraction of every group goes."""


@dataclass(frozen=True, kw_only=True)
class Isomorphic:
    """Coupled layers of one topology together: the same fraction goes of the channels of every topology.

    Heads, feed-forward neurons, residual streams and the inside of blocks have scores of different scale, and are
    ranked among their like only. Fang et al. 2024, "Isomorphic Pruning for Vision Models", arXiv:2407.04616.
    """


def topology(group: "Coupled") -> Hashable:
    """What two groups share that are coupled alike: kind and roles of their parts, whatever the widths and names.

    A part's role is which of its tensors' dimensions the channels lie along, whether it makes or normalizes them, and
    how many indices belong to a channel.
    """
    return group.kind, frozenset(Counter(_role(part) for part in group.parts).items())


def kept_widths(
    scope: Global | PerLayer | Isomorphic,
    groups: "Sequence[Coupled]",
    scores: dict[str, Tensor],
    fraction: float,
    *,
    before: dict[str, int],
    align: "Callable[[Coupled], int]",
    across: Callable[[Tensor], Tensor] = comparable,
) -> dict[str, int]:
    """How many channels each of `groups` keeps, by name, when `fraction` of their first widths `before` is gone.

    `fraction` is in [0, 1) and counts what earlier steps removed; `scores` are (width,) by group name. Widths are
    rounded up to multiples of `align(group)` (>= 1) and never grow. `across` makes a group's scores comparable with
    those of other groups; PerLayer does not look at scores.
    """
    least = {group.name: align(group) for group in groups}
    if isinstance(scope, PerLayer):
        families = [[group] for group in groups]
    elif isinstance(scope, Isomorphic):
        alike: dict[Hashable, list[Coupled]] = {}
        for group in groups:
            alike.setdefault(topology(group), []).append(group)
        families = list(alike.values())
    else:
        families = [list(groups)] if groups else []
    widths = {}
    for family in families:
        due = round(fraction * sum(before[group.name] for group in family))
        due = max(0, due - sum(before[group.name] - group.width for group in family))
        kept = kept_by_threshold(
            [across(scores[group.name]) for group in family], due, [least[group.name] for group in family]
        )
        for group, width in zip(family, kept, strict=True):
            widths[group.name] = aligned_width(width, group.width, least[group.name])
    return widths


def _role(part: "Part") -> Hashable:
    sides = tuple((name.rpartition(".")[2], dim) for name, dim in part.tensors)
    return sides, part.makes, part.is_norm, len(part.indices) // max(1, len(set(part.channels)))
