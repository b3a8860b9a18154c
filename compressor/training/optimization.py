"""Which optimizer trains a model, and at which rate in which batch.

The rate follows one cycle (Smith & Topin 2017, arXiv:1708.07120) and then stays low for a tail: after pruning, accuracy
returns in the last epochs at a low rate. The schedule moves the rate alone; momentum stays constant.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from compressor.checks import check_count, check_fraction, check_positive

WARM_UP = 0.3  # fraction of the cycle in which the rate rises, the default of torch's OneCycleLR
START = 1 / 25  # rate at the start, as a fraction of the peak (the same source)
LOW = 1 / 100  # rate at the end of the cycle and in the tail, as a fraction of the peak
MOMENTUM = 0.9
# Rates that suit AdamW are some fifty times smaller than those that suit SGD. A recipe names no model, so its one
# number is SGD's, and is scaled here.
ADAMW_RATE = 1 / 50

_ADAPTIVE_LAYERS = (nn.RNNBase, nn.RNNCellBase, nn.LayerNorm)
_NORM_LAYERS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """The rate of every batch: `epochs` of `batches` in one cycle up to `peak`, then constantly a hundredth of it."""

    epochs: int
    batches: int
    peak: float

    def rate(self, epoch: int, batch: int) -> float:
        """The rate of one batch; both numbers count from 0."""
        if epoch >= self.epochs:
            return self.peak * LOW
        last = max(1, self.epochs * self.batches - 1)
        return self.peak * one_cycle(min(1.0, (epoch * self.batches + batch) / last))

    def length(self, tail_epochs: int) -> float:
        """The sum of the rates of all batches, those of `tail_epochs` after the cycle included."""
        epochs = self.epochs + tail_epochs
        return sum(self.rate(epoch, batch) for epoch in range(epochs) for batch in range(self.batches))


def one_cycle(progress: float) -> float:
    """The rate as a fraction of its peak, at `progress` in [0, 1]: up in a line, down in a cosine."""
    if progress < WARM_UP:
        return START + (1 - START) * progress / WARM_UP
    return LOW + (1 - LOW) * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2


def check_schedule(*, epochs: int, learning_rate: float, tail_epochs: int, weight_decay: float) -> None:
    """Raises ValueError unless the four describe a training."""
    check_count(epochs, "epochs counts the passes over the training data")
    check_count(tail_epochs, "tail_epochs counts the low-rate epochs after the cycle", least=0)
    check_positive(learning_rate, "learning_rate is the peak of the cycle")
    check_fraction(weight_decay, "weight_decay is a factor", way_out="it is usually below 0.01")


def is_adaptive(model: nn.Module) -> bool:
    """Whether AdamW trains `model`: recurrent or LayerNorm layers are present, or neither convolution nor BatchNorm."""
    modules = list(model.modules())
    if any(isinstance(module, _ADAPTIVE_LAYERS) for module in modules):
        return True
    return not any(isinstance(module, _ConvNd | _BatchNorm) for module in modules)


def peak_rate(model: nn.Module, learning_rate: float) -> float:
    """The peak for the optimizer that trains `model`: `learning_rate` for SGD, a fiftieth of it for AdamW."""
    return learning_rate * (ADAMW_RATE if is_adaptive(model) else 1.0)


def optimizer_for(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over what is not frozen; biases and norms do not decay."""
    # Decay shrinks what the next normalisation rescales; biases and norms have nothing to make up for it.
    exempt = {id(own) for module in model.modules() if isinstance(module, _NORM_LAYERS) for own in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [own for own in trained if own.ndim > 1 and id(own) not in exempt], "weight_decay": weight_decay},
        {"params": [own for own in trained if own.ndim <= 1 or id(own) in exempt], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # One kernel for all parameters: the update of a small network otherwise takes several milliseconds a batch.
    fused = all(parameter.device.type in {"cpu", "cuda"} and parameter.is_floating_point() for parameter in trained)
    if is_adaptive(model):
        return torch.optim.AdamW(groups, fused=fused)
    return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True, fused=fused)
