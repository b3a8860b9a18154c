"""Penalties that drive weights or whole channels to zero, and what each takes off after a step of the optimizer.

A penalty's subgradient makes weights small and leaves none at zero; its proximal operator, applied after the step,
gives exact zeros: Parikh & Boyd 2014, "Proximal Algorithms", sec. 4.2.

What a strength does depends on how many steps there are. Without one, a penalty fits the training: over all of its
steps together it takes what brings about a quarter of the channels, or some two fifths of the weights, to zero where
the loss does not hold against it. Channels that are small already are penalised more, as in the adaptive lasso (Zou
2006, "The Adaptive Lasso and Its Oracle Properties") and in Fang et al. 2023, arXiv:2301.12900, eq. 5: in a short
training the loss alone does not tell them apart, and a penalty that is the same for all takes all of them down.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.checks import check_positive
from compressor.errors import StageError
from compressor.notes.training import ZeroChannels, ZeroCount, ZeroWeights
from compressor.pruning.channel_slices import ChannelSlices, penalised_groups, penalised_weights
from compressor.pruning.constant_channels import read_inputs
from compressor.structure.calling.shown import Shown
from compressor.structure.trials import evaluating

# The share of the median weight's size that a fitting penalty takes off every weight over the training.
_SHARE = 0.8
# What it takes off the smallest channel of a group over the training, in units of the channel's own size, and how many
# times that halves up to the largest: a channel at the first quarter loses just its size, the median one a quarter.
_FASTEST, _HALVINGS = 4.0, 8.0


@dataclass(frozen=True, kw_only=True)
class Shrinkage:
    """A penalty at work on one model.

    `step_(length)` changes the weights in place as the penalty does in a step of `length`, the rate times what momentum
    makes of it. `zeros` counts the weights, or the channels, that are exactly zero.
    """

    step_: Callable[[float], None]
    zeros: Callable[[], ZeroWeights | ZeroChannels]


@dataclass(frozen=True, kw_only=True)
class L1Penalty:
    """`strength` (> 0) times the sum of absolute weights: single weights become exactly zero. None fits the training.

    Tibshirani 1996, "Regression Shrinkage and Selection via the Lasso"; the step is that of ISTA, Daubechies et al.
    2004. Single zeros make the file compress better, and make nothing faster.
    """

    strength: float | None = None

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def on(self, model: nn.Module, _inputs: Inputs | Shown, *, layers: tuple[str, ...], length: float) -> Shrinkage:
        weights = penalised_weights(model, layers)
        strength = self.strength or _fitting((weight.detach().abs() for weight in weights.values()), length)

        def step_(length: float) -> None:
            for weight in weights.values():
                weight.copy_(soft_threshold(weight, strength * length))

        return Shrinkage(step_=step_, zeros=lambda: _zero_weights(weights, strength))


@dataclass(frozen=True, kw_only=True)
class L2Penalty:
    """Half of `strength` (> 0) times the sum of squared weights: everything shrinks, and nothing becomes exactly zero.

    None fits the training. Hoerl & Kennard 1970, "Ridge Regression". What does not matter to the loss decays by the
    same factor in every step, for a threshold or a pruning stage to take out.
    """

    strength: float | None = None

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def on(self, model: nn.Module, _inputs: Inputs | Shown, *, layers: tuple[str, ...], length: float) -> Shrinkage:
        weights = penalised_weights(model, layers)
        # A factor in every step takes a share off weights of any size.
        strength = self.strength or -math.log1p(-_SHARE) / length

        def step_(length: float) -> None:
            for weight in weights.values():
                weight.mul_(1 / (1 + strength * length))

        return Shrinkage(step_=step_, zeros=lambda: _zero_weights(weights, strength))


@dataclass(frozen=True, kw_only=True)
class GroupLasso:
    """`strength` (> 0) times the sum over channels of sqrt(n) times their norm: whole channels become exactly zero.

    None fits the training. A channel is the n values that decide how large it is, in all layers that are coupled to it:
    the scale and the shift where a layer is batch normalized (its weights could shrink for nothing), the weights and
    biases of other layers.
    Yuan & Lin 2006, "Model Selection and Estimation in Regression with Grouped Variables", eq. 2.1; for networks Wen et
    al. 2016, arXiv:1608.03665, with coupled layers as in Fang et al. 2023, arXiv:2301.12900.
    """

    strength: float | None = None

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def on(self, model: nn.Module, inputs: Inputs | Shown, *, layers: tuple[str, ...], length: float) -> Shrinkage:
        groups = penalised_groups(model, inputs, layers)
        with evaluating(model):
            norm_after = read_inputs(model, Shown.of(inputs).example).norm_after
        slices = {group.name: ChannelSlices.deciding(model, group, norm_after) for group in groups}
        rates = {name: _rate(channels, self.strength, length) for name, channels in slices.items()}

        def step_(length: float) -> None:
            for name, channels in slices.items():
                channels.scale_(group_factors(channels.norms(), rates[name] * length))

        return Shrinkage(step_=step_, zeros=lambda: _zero_channels(slices))


@dataclass(frozen=True, kw_only=True)
class SlimmingPenalty:
    """`strength` (> 0) times the sum of the absolute scales of batch normalization: network slimming.

    None fits the training. Liu et al. 2017, arXiv:1708.06519, eq. 1. Where several normalizations share their channels,
    the norm of a channel's scales takes the place of the absolute value (group lasso), so that they become zero
    together. The shift of a channel whose scale is zero is shrunk as well: it is a constant by then, which may be in
    the way of its removal.
    """

    strength: float | None = None

    def __post_init__(self) -> None:
        _check_strength(self.strength)

    def on(self, model: nn.Module, inputs: Inputs | Shown, *, layers: tuple[str, ...], length: float) -> Shrinkage:
        groups = penalised_groups(model, inputs, layers)
        scales, shifts = dict[str, ChannelSlices](), dict[str, ChannelSlices]()
        for group in groups:
            if (scale := ChannelSlices.scales(model, group)) is not None:
                scales[group.name] = scale
                if (shift := ChannelSlices.shifts(model, group)) is not None:
                    shifts[group.name] = shift
        if not scales:
            raise StageError(
                f"slimming shrinks the scales of batch normalization, and no group of {type(model).__name__} that may "
                "lose channels has one; use group_lasso instead"
            )

        rates = {name: _rate(scale, self.strength, length) for name, scale in scales.items()}
        # Shifts follow when the scale is zero, in what is left of the training.
        shift_rates = {
            name: _rate(shift, self.strength, length) if self.strength else shift.norms() * _FASTEST / length
            for name, shift in shifts.items()
        }

        def step_(length: float) -> None:
            for name, scale in scales.items():
                scale.scale_(group_factors(scale.norms(), rates[name] * length))
                if name in shifts:
                    shrunk = group_factors(shifts[name].norms(), shift_rates[name] * length)
                    shifts[name].scale_(torch.where(scale.norms() > 0, torch.ones_like(shrunk), shrunk))

        return Shrinkage(step_=step_, zeros=lambda: _zero_channels(scales))


def soft_threshold(values: Tensor, amount: float) -> Tensor:
    """`values` moved towards zero by `amount` (>= 0), and zero where they were nearer: the proximal operator of |w|."""
    return values.sign() * (values.abs() - amount).clamp(min=0)


def group_factors(norms: Tensor, amount: float | Tensor) -> Tensor:
    """What each group of weights is multiplied by so that its norm falls by `amount` (>= 0), down to zero.

    `norms` is (groups,), and so is the result, in [0, 1]; `amount` is one for all or (groups,). The proximal operator
    of the Euclidean norm: Parikh & Boyd 2014, sec. 6.5.1 (block soft thresholding).
    """
    return torch.where(norms > amount, 1 - amount / norms.clamp(min=torch.finfo(norms.dtype).tiny), 0.0)


def _check_strength(strength: float | None) -> None:
    if strength is not None:
        says = "strength is what the penalty is multiplied by"
        check_positive(strength, says, way_out="leave it out to fit the training")


def _fitting(sizes: Iterable[Tensor], length: float) -> float:
    """The strength that takes `_SHARE` of the median of `sizes` off in steps of `length` together."""
    median = float(torch.cat([size.double().flatten().cpu() for size in sizes]).median())
    return _SHARE * max(median, torch.finfo(torch.float32).tiny) / length


def fitting_rates(norms: Tensor, length: float) -> Tensor:
    """How much of each channel of a group goes per unit of step length, in a training of `length` in all.

    By rank: where no loss holds against it, the smallest quarter of the channels is zero in the end, the smallest one
    after a quarter of the training, and the largest ones keep nearly all. `norms` is (channels,), and so is the result.
    """
    ranks = norms.argsort(stable=True).argsort() / max(1, len(norms) - 1)
    return norms * _FASTEST * 0.5 ** (_HALVINGS * ranks) / length


def _rate(channels: ChannelSlices, strength: float | None, length: float) -> float | Tensor:
    if strength is None:
        return fitting_rates(channels.norms(), length)
    return strength * math.sqrt(channels.count)


def _zero_weights(weights: dict[str, nn.Parameter], strength: float) -> ZeroWeights:
    counts = tuple(
        ZeroCount(layer=name.removesuffix(".weight"), zero=int((weight == 0).sum()), of=weight.numel())
        for name, weight in weights.items()
    )
    return ZeroWeights(zero_weights_fraction=_fraction(counts), penalty_strength=strength, zero_weights=counts)


def _zero_channels(slices: dict[str, ChannelSlices]) -> ZeroChannels:
    counts = tuple(
        ZeroCount(layer=name, zero=int((channels.norms() == 0).sum()), of=channels.width)
        for name, channels in slices.items()
    )
    return ZeroChannels(zero_channels_fraction=_fraction(counts), zero_channels=counts)


def _fraction(counts: tuple[ZeroCount, ...]) -> float:
    return sum(item.zero for item in counts) / sum(item.of for item in counts)
