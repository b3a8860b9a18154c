"""Batch normalization over the parts of a batch that the members of a team compute: by the statistics of the whole.

Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1, with both sums taken over all members, in the backward pass too.
torch's own SyncBatchNorm does this on GPUs alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.training.distributed.team import Team


@contextmanager
def normalized_together(model: nn.Module, team: Team) -> Iterator[None]:
    """Within it, normalizations of `model` in training mode take the statistics over all members' parts."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    before = [norm.__dict__.get("forward") for norm in norms]
    for norm in norms:
        norm.forward = partial(_together, norm, type(norm).forward, team)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            if own is None:
                del norm.forward
            else:
                norm.forward = own  # type: ignore[method-assign]


def _together(norm: _BatchNorm, alone: Any, team: Team, inputs: Tensor) -> Tensor:
    if not norm.training:
        return alone(norm, inputs)  # type: ignore[no-any-return]
    norm._check_input_dim(inputs)  # type: ignore[no-untyped-call]  # noqa: SLF001 - what its own forward begins with
    given = inputs.float() if inputs.dtype in {torch.float16, torch.bfloat16} else inputs
    axes = [axis for axis in range(given.ndim) if axis != 1]
    shape = [1, -1, *[1] * (given.ndim - 2)]
    (count,) = team.sums(given.numel() / given.shape[1])
    mean = _summed(given.sum(axes), team) / count
    centred = given - mean.reshape(shape)
    squares = _summed((centred * centred).sum(axes), team)
    found = centred * torch.rsqrt(squares / count + norm.eps).reshape(shape)
    if norm.affine:
        found = found * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    _remember_(norm, mean.detach(), squares.detach(), count)
    return found.to(inputs.dtype)


def _remember_(norm: _BatchNorm, mean: Tensor, squares: Tensor, count: float) -> None:
    if norm.running_mean is None or norm.running_var is None:
        return
    assert norm.num_batches_tracked is not None  # it goes with the others
    norm.num_batches_tracked.add_(1)
    part = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), part)
    norm.running_var.lerp_((squares / max(1.0, count - 1)).to(norm.running_var.dtype), part)


class _Sum(torch.autograd.Function):
    """The sum over all members, whose gradient is the sum of what all members lose by it."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, team: Team) -> Tensor:
        context.team = team
        return team.sum_(tensor.clone())

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return context.team.sum_(gradients[0].clone()), None


def _summed(tensor: Tensor, team: Team) -> Tensor:
    found: Tensor = _Sum.apply(tensor, team)  # type: ignore[no-untyped-call] # torch does not annotate it
    return found
