"""Whether two models are the same."""

import torch
from torch import nn

from compressor.training.snapshots import capture


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    """Whether every parameter and buffer has the same name and the same bits in both."""
    ours, theirs = capture(left), capture(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
