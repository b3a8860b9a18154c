"""By what coupled channels, neurons, heads and recurrent units are judged: value objects, and the scores they give.

The arithmetic of each, with its paper, is in `importance.py`. A layer's slices that belong to one unit (the
four gates of an LSTM's, the features of a head) are judged together, and where a group couples several layers, its
score is the mean over them.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from compressor.checks import check_count
from compressor.pruning.ranking.channel_activations import mean_activations
from compressor.pruning.ranking.gradients import empirical_fisher, loss_gradients
from compressor.pruning.ranking.importance import (
    comparable,
    coupled_importance,
    geometric_median_importance,
    hessian_importance,
    lamp_importance,
    norm_importance,
    scale_importance,
    squared_norms,
    taylor_importance,
)
from compressor.structure.couplings import Coupled, Part
from compressor.structure.tensor_ids import tensors_of
from compressor.workload import Workload, first_batches


@dataclass(frozen=True, kw_only=True)
class L1:
    """The sum of the absolute weights that make a channel (Li et al. 2017)."""


@dataclass(frozen=True, kw_only=True)
class L2:
    """The Euclidean norm of the weights that make a channel."""


@dataclass(frozen=True, kw_only=True)
class FPGM:
    """The distance of a channel's weights to those of the layer's other channels (He et al. 2019)."""


@dataclass(frozen=True, kw_only=True)
class LAMP:
    """A channel's squared norm over that of all larger ones, which compares across layers (Lee et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class BatchNormScale:
    """The scale that batch normalization gives a channel (Liu et al. 2017); layers without one are left alone."""


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """What the loss would change by, to first order, measured on `batches` training batches (Molchanov et al. 2019)."""

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the training batches that gradients come from")


@dataclass(frozen=True, kw_only=True)
class Hessian:
    """What the loss would grow by, to second order, at a minimum (LeCun et al. 1989; C-OBD in Wang et al. 2019).

    The Hessian's diagonal is taken to be the empirical Fisher information's: the mean, over `samples` training samples
    with their own targets, of the squared gradient of a sample's loss. With a `micro_batch` above 1, samples are taken
    together, and the squared gradients of their summed losses are divided by `samples`: faster by that factor, and the
    same in expectation where the mean gradient is zero, as it is at a minimum. Where a network fits its training data,
    the few samples that it does not fit carry nearly all of the squares, and the ranking changes with whether they are
    among `samples`: take more.
    """

    samples: int = 128
    micro_batch: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.micro_batch <= self.samples:
            raise ValueError(
                "samples counts the training samples that squared gradients come from and micro_batch those taken "
                f"together, 1 <= micro_batch <= samples; got samples={self.samples}, micro_batch={self.micro_batch}"
            )


@dataclass(frozen=True, kw_only=True)
class Activation:
    """How strongly a channel fires: its mean absolute value over `batches` calibration batches.

    Looked at where the next layers read it, behind norm and activation function. The magnitude in place of the share of
    zeros that Hu et al. 2016, "Network Trimming", arXiv:1607.03250, eq. 1, count, so that it works without ReLU.
    """

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the calibration batches that activations come from")


@dataclass(frozen=True, kw_only=True)
class Random:
    """Chance, by the run's seed: the control that a criterion has to beat."""


Criterion = L1 | L2 | FPGM | LAMP | BatchNormScale | Taylor | Hessian | Activation | Random
Judge = Callable[[Coupled], list[Tensor]]
Side = tuple[str, int]


class Groups(Protocol):
    """Anything that knows which channels of a model hang together."""

    @property
    def groups(self) -> tuple[Coupled, ...]: ...


def channel_scores(
    criterion: Criterion, model: nn.Module, graph: Groups, workload: Workload, seed: int, *, progress: bool = False
) -> dict[str, Tensor]:
    """The scores of each group's channels by group name, (width,) in float64, larger is more important.

    `model` is in eval mode, and ends as it was. A group that the criterion has nothing to judge by has scores that are
    not numbers, all of them: it is to be left alone, for the reason that `unranked` gives. Taylor and Hessian read
    `workload.train`, shuffled by `seed`; Activation reads `workload.calibration`.
    """
    judge = _judge(criterion, model, graph, workload, seed, progress=progress)
    return {
        group.name: coupled_importance(layers)
        if (layers := judge(group))
        else torch.full((group.width,), torch.nan, dtype=torch.float64)
        for group in graph.groups
    }


def unranked(criterion: Criterion) -> str:
    """Why a group whose scores are not numbers is left alone, as a reason to lock it."""
    match criterion:
        case BatchNormScale():
            return "it has no batch normalization whose scale could rank it"
        case Taylor() | Hessian():
            return "the loss has no gradient for its weights"
        case Activation():
            return "no layer that reads or makes it can be watched for activations"
        case _:
            return "it has no weights to rank it by"


def across_groups(criterion: Criterion) -> Callable[[Tensor], Tensor]:
    """What makes a group's scores comparable with another's: LAMP's are already, others are taken over their mean."""
    return _as_they_are if isinstance(criterion, LAMP) else comparable


def _judge(
    criterion: Criterion, model: nn.Module, graph: Groups, workload: Workload, seed: int, *, progress: bool
) -> Judge:
    """The function that gives the scores of each of a group's layers, (width,) each."""
    weights = tensors_of(model)
    match criterion:
        case L1():
            return lambda group: _made(group, weights, lambda name, dim: norm_importance(weights[name], dim, 1))
        case L2():
            return lambda group: [values.sqrt() for values in _squares(group, weights)]
        case LAMP():
            return lambda group: [
                lamp_importance(coupled_importance(found)) for found in [_squares(group, weights)] if found
            ]
        case FPGM():
            return lambda group: [
                geometric_median_importance(_vectors(part, sides, weights, group.width))
                for part, sides in _makers(group, weights)
            ]
        case BatchNormScale():
            return lambda group: [
                part.fold(scale_importance(weights[name]), group.width)
                for part in group.parts
                if part.is_norm
                for name, _ in part.tensors
                if name.rpartition(".")[2] == "weight"
            ]
        case Random():
            return lambda group: [_chance(group, seed)]
        case Taylor() if graph.groups:
            slopes = loss_gradients(model, workload, criterion.batches, seed)
            return lambda group: _all(
                group, slopes, lambda name, dim: taylor_importance(weights[name], slopes[name], dim)
            )
        case Hessian() if graph.groups:
            fisher = empirical_fisher(
                model, workload, criterion.samples, criterion.micro_batch, seed, progress=progress
            )
            return lambda group: _all(
                group, fisher, lambda name, dim: hessian_importance(weights[name], fisher[name], dim)
            )
        case Activation() if graph.groups:
            data = first_batches(workload.calibration, criterion.batches)
            fired = mean_activations(model, graph.groups, data, progress=progress)
            return lambda group: fired[group.name]
        case _:
            return lambda _: []


def _makers(group: Coupled, weights: dict[str, Tensor]) -> list[tuple[Part, list[Side]]]:
    """The parts that make the group's channels, with their weight matrices; where none does (an embedding), all."""
    parts = [part for part in group.parts if part.makes] or list(group.parts)
    found = [(part, [(name, dim) for name, dim in part.tensors if weights[name].ndim > 1]) for part in parts]
    return [(part, sides) for part, sides in found if sides]


def _made(group: Coupled, weights: dict[str, Tensor], score: Callable[[str, int], Tensor]) -> list[Tensor]:
    return [_sum(part, sides, score, group.width) for part, sides in _makers(group, weights)]


def _squares(group: Coupled, weights: dict[str, Tensor]) -> list[Tensor]:
    return _made(group, weights, lambda name, dim: squared_norms(weights[name], dim))


def _all(group: Coupled, known: dict[str, Tensor], score: Callable[[str, int], Tensor]) -> list[Tensor]:
    """The scores by layer of everything that goes with a channel: what makes it, normalizes it and reads it."""
    found = [(part, [(name, dim) for name, dim in part.tensors if name in known]) for part in group.parts]
    return [_sum(part, sides, score, group.width) for part, sides in found if sides]


def _sum(part: Part, sides: list[Side], score: Callable[[str, int], Tensor], width: int) -> Tensor:
    return torch.stack([part.fold(score(name, dim), width) for name, dim in sides]).sum(dim=0)


def _vectors(part: Part, sides: list[Side], weights: dict[str, Tensor], width: int) -> Tensor:
    """All weights of each channel in a row, (width, n); a channel with fewer slices than another ends with zeros."""
    channels, order = torch.tensor(part.channels).sort(stable=True)
    indices = torch.tensor(part.indices)[order]
    counts = torch.bincount(channels, minlength=width)
    slots = torch.arange(len(channels)) - (counts.cumsum(0) - counts)[channels]
    rows = []
    for name, dim in sides:
        slices = weights[name].detach().cpu().double().movedim(dim, 0).flatten(1)
        table = torch.zeros(width, int(counts.max()), slices.shape[1], dtype=torch.float64)
        table[channels, slots] = slices[indices]
        rows.append(table.flatten(1))
    return torch.cat(rows, dim=1)


def _chance(group: Coupled, seed: int) -> Tensor:
    # By name, so that a group's scores do not depend on which other groups there are.
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(group.name.encode()))
    return torch.rand(group.width, generator=generator, dtype=torch.float64)


def _as_they_are(scores: Tensor) -> Tensor:
    return scores
