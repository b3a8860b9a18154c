"""What a criterion is, and how it is asked for the scores of channels; other packages may bring their own.

`criteria.py` holds those that come with the package, `importance.py` the arithmetic of each, with its paper.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from compressor.errors import ContractError
from compressor.pruning.ranking.importance import comparable, coupled_importance
from compressor.stage import stage_name
from compressor.structure.couplings import Coupled, Part
from compressor.workload import Workload

# A tensor by name, and the dimension of it that the channels lie along.
Side = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a criterion judges: the channels of the `groups`, at least one, of a model.

    The channels of a group stay or go together; its `parts` name the tensors that they lie in, as `tensors_of` does,
    with the dimension. `model` is in eval mode, and has to end as it was: weights, gradients, hooks. Of `workload`,
    `train` and `calibration` may be read, `test` never. `seed` decides every random choice, and `progress` is whether
    long work shows a bar.
    """

    model: nn.Module
    groups: tuple[Coupled, ...]
    workload: Workload
    seed: int = 0
    progress: bool = False


@runtime_checkable
class Criterion(Protocol):
    """A frozen keyword-only dataclass that says how much each channel matters; its fields are what can be set of it.

    Two attributes of the class may say more: `unranked: ClassVar[str]`, the reason that the report gives for a group
    without scores, and `compares_groups: ClassVar[bool]`, whether the scores of different groups compare as they are;
    otherwise each group's are taken over their mean.
    """

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """The scores of each group's channels by the group's name, (width,): larger is more important.

        A group that there is nothing to judge by is left out; stages leave it alone. Numbers may be on any device and
        of any floating type.
        """


class Groups(Protocol):
    """Anything that knows which channels of a model hang together."""

    @property
    def groups(self) -> tuple[Coupled, ...]: ...


def check_criterion(criterion: Any) -> None:
    """`criterion` can be asked for scores and written into reports. Raises ValueError."""
    kind = criterion if isinstance(criterion, type) else type(criterion)
    if not is_dataclass(criterion) or isinstance(criterion, type) or not isinstance(criterion, Criterion):
        raise ValueError(
            f"criterion is an instance of a frozen dataclass with a method `scores`, such as Taylor(); got "
            f"{'the class ' if kind is criterion else ''}{kind.__name__}; docs/adding_a_stage.md has an example"
        )


def channel_scores(
    criterion: Criterion, model: nn.Module, graph: Groups, workload: Workload, seed: int, *, progress: bool = False
) -> dict[str, Tensor]:
    """The scores of each group's channels by group name, (width,) in float64, larger is more important.

    `model` is in eval mode, and ends as it was. A group that the criterion has nothing to judge by has scores that are
    not numbers, all of them: it is to be left alone, for the reason that `unranked` gives. Raises ContractError where
    the criterion gives something else than one number for each channel.
    """
    if not graph.groups:
        return {}
    case = Case(model=model, groups=graph.groups, workload=workload, seed=seed, progress=progress)
    given = criterion.scores(case)
    return {group.name: _whole(criterion, group, given.get(group.name)) for group in graph.groups}


def unranked(criterion: Criterion) -> str:
    """Why a group whose scores are not numbers is left alone, as a reason to lock it."""
    return getattr(criterion, "unranked", f"{stage_name(type(criterion))} gives it no scores")


def across_groups(criterion: Criterion) -> Callable[[Tensor], Tensor]:
    """What makes a group's scores comparable with another's: where they are not already, they go over their mean."""
    return _as_they_are if getattr(criterion, "compares_groups", False) else comparable


def mean_over_layers(groups: Sequence[Coupled], judge: Callable[[Coupled], list[Tensor]]) -> dict[str, Tensor]:
    """The mean of what `judge` gives for a group, the scores of each of its layers, (width,) by group name.

    A group for which it gives no layer at all is left out.
    """
    return {group.name: coupled_importance(layers) for group in groups if (layers := judge(group))}


def makers(group: Coupled, weights: Mapping[str, Tensor]) -> list[tuple[Part, list[Side]]]:
    """The parts that make the group's channels, with their weight matrices; where none does (an embedding), all."""
    parts = [part for part in group.parts if part.makes] or list(group.parts)
    found = [(part, [(name, dim) for name, dim in part.tensors if weights[name].ndim > 1]) for part in parts]
    return [(part, sides) for part, sides in found if sides]


def by_makers(group: Coupled, weights: Mapping[str, Tensor], score: Callable[[str, int], Tensor]) -> list[Tensor]:
    """The scores, (width,), of each layer that makes the group's channels.

    `score` gives a number for each index of a tensor, by its name and the dimension of the channels; those that belong
    to one channel (the gates of an LSTM's unit, the features of a head) are added up.
    """
    return [_sum(part, sides, score, group.width) for part, sides in makers(group, weights)]


def by_everything(group: Coupled, known: Mapping[str, Tensor], score: Callable[[str, int], Tensor]) -> list[Tensor]:
    """The same for everything that goes with a channel: what makes it, normalizes it and reads it, if it is `known`."""
    found = [(part, [(name, dim) for name, dim in part.tensors if name in known]) for part in group.parts]
    return [_sum(part, sides, score, group.width) for part, sides in found if sides]


def _sum(part: Part, sides: list[Side], score: Callable[[str, int], Tensor], width: int) -> Tensor:
    return torch.stack([part.fold(score(name, dim), width) for name, dim in sides]).sum(dim=0)


def _whole(criterion: Criterion, group: Coupled, scores: Any) -> Tensor:
    if scores is None:
        return torch.full((group.width,), torch.nan, dtype=torch.float64)
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (group.width,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
        raise ContractError(
            f"{stage_name(type(criterion))} has to give {group.name} a tensor of shape ({group.width},), one score for "
            f"each channel, and gave {got}"
        )
    return scores.detach().cpu().double()


def _as_they_are(scores: Tensor) -> Tensor:
    return scores
