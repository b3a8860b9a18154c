"""The criteria that come with the package, by which channels, neurons, heads and recurrent units are judged.

The arithmetic of each, with its paper, is in `importance.py`. A layer's slices that belong to one unit (the
four gates of an LSTM's, the features of a head) are judged together, and where a group couples several layers, its
score is the mean over them.
"""

import zlib
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.checks import check_count
from compressor.plugins import CRITERIA, by_name
from compressor.pruning.ranking.channel_activations import mean_activations
from compressor.pruning.ranking.criterion import Case, Side, by_everything, by_makers, makers, mean_over_layers
from compressor.pruning.ranking.gradients import empirical_fisher, loss_gradients
from compressor.pruning.ranking.importance import (
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
from compressor.training.passes.threads import ranking
from compressor.workload import first_batches


@dataclass(frozen=True, kw_only=True)
class L1:
    """The sum of the absolute weights that make a channel (Li et al. 2017)."""

    unranked: ClassVar[str] = "it has no weights to rank it by"

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights = tensors_of(case.model)
        return mean_over_layers(
            case.groups,
            lambda group: by_makers(group, weights, lambda name, dim: norm_importance(weights[name], dim, 1)),
        )


@dataclass(frozen=True, kw_only=True)
class L2:
    """The Euclidean norm of the weights that make a channel."""

    unranked: ClassVar[str] = "it has no weights to rank it by"

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights = tensors_of(case.model)
        return mean_over_layers(case.groups, lambda group: [squares.sqrt() for squares in _squares(group, weights)])


@dataclass(frozen=True, kw_only=True)
class FPGM:
    """The distance of a channel's weights to those of the layer's other channels (He et al. 2019)."""

    unranked: ClassVar[str] = "it has no weights to rank it by"

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights = tensors_of(case.model)
        return mean_over_layers(
            case.groups,
            lambda group: [
                geometric_median_importance(_vectors(part, sides, weights, group.width))
                for part, sides in makers(group, weights)
            ],
        )


@dataclass(frozen=True, kw_only=True)
class LAMP:
    """A channel's squared norm over that of all larger ones, which compares across layers (Lee et al. 2021)."""

    unranked: ClassVar[str] = "it has no weights to rank it by"
    compares_groups: ClassVar[bool] = True

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights = tensors_of(case.model)
        return mean_over_layers(
            case.groups,
            lambda group: [lamp_importance(coupled_importance(found)) for found in [_squares(group, weights)] if found],
        )


@dataclass(frozen=True, kw_only=True)
class BatchNormScale:
    """The scale that batch normalization gives a channel (Liu et al. 2017); layers without one are left alone."""

    unranked: ClassVar[str] = "it has no batch normalization whose scale could rank it"

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights = tensors_of(case.model)
        return mean_over_layers(
            case.groups,
            lambda group: [
                part.fold(scale_importance(weights[name]), group.width)
                for part in group.parts
                if part.is_norm
                for name, _ in part.tensors
                if name.rpartition(".")[2] == "weight"
            ],
        )


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """What the loss would change by, to first order, measured on `batches` training batches (Molchanov et al. 2019)."""

    unranked: ClassVar[str] = "the loss has no gradient for its weights"
    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the training batches that gradients come from")

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights, slopes = tensors_of(case.model), loss_gradients(case.model, case.workload, self.batches, case.seed)
        return mean_over_layers(
            case.groups,
            lambda group: by_everything(
                group, slopes, lambda name, dim: taylor_importance(weights[name], slopes[name], dim)
            ),
        )


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

    unranked: ClassVar[str] = "the loss has no gradient for its weights"
    samples: int = 128
    micro_batch: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.micro_batch <= self.samples:
            raise ValueError(
                "samples counts the training samples that squared gradients come from and micro_batch those taken "
                f"together, 1 <= micro_batch <= samples; got samples={self.samples}, micro_batch={self.micro_batch}"
            )

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        weights = tensors_of(case.model)
        fisher = empirical_fisher(
            case.model, case.workload, self.samples, self.micro_batch, case.seed, progress=case.progress
        )
        return mean_over_layers(
            case.groups,
            lambda group: by_everything(
                group, fisher, lambda name, dim: hessian_importance(weights[name], fisher[name], dim)
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Activation:
    """How strongly a channel fires: its mean absolute value over `batches` calibration batches.

    Looked at where the next layers read it, behind norm and activation function. The magnitude in place of the share of
    zeros that Hu et al. 2016, "Network Trimming", arXiv:1607.03250, eq. 1, count, so that it works without ReLU.
    """

    unranked: ClassVar[str] = "no layer that reads or makes it can be watched for activations"
    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the calibration batches that activations come from")

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        data = first_batches(case.workload.calibration, self.batches)
        with ranking() as threads:
            fired = mean_activations(case.model, case.groups, threads.timed(data), progress=case.progress)
        return mean_over_layers(case.groups, lambda group: fired[group.name])


@dataclass(frozen=True, kw_only=True)
class Random:
    """Chance, by the run's seed: the control that a criterion has to beat."""

    def scores(self, case: Case) -> dict[str, Tensor]:
        """The scores of each group's channels, (width,) by its name."""
        return mean_over_layers(case.groups, lambda group: [_chance(group, case.seed)])


BUILT_IN: tuple[type[Any], ...] = (L1, L2, FPGM, LAMP, BatchNormScale, Taylor, Hessian, Activation, Random)


def criteria() -> dict[str, type[Any]]:
    """Every criterion class by its recipe name: the built-in ones, then those of installed entry points.

    A package adds its own with `[project.entry-points."compressor.criteria"]`. What of them cannot be used is left out
    with a PluginWarning.
    """
    return by_name(
        BUILT_IN,
        CRITERIA,
        "a dataclass with a method `scores`",
        lambda kind: callable(getattr(kind, "scores", None)),
    )


def _squares(group: Coupled, weights: dict[str, Tensor]) -> list[Tensor]:
    return by_makers(group, weights, lambda name, dim: squared_norms(weights[name], dim))


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
