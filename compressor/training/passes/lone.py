"""Batches of one sample under batch normalization: what has one value a channel cannot be normalised in training mode.

Maps have more, and train: the variance of a channel needs two values, wherever they come from (Ioffe & Szegedy 2015,
arXiv:1502.03167, sec. 3.2).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.batches import Inputs
from compressor.workload import batch_size_of

Result = TypeVar("Result")

SKIPPED = "batches of one sample are left out: BatchNorm meets one value a channel there, and has no variance"


class _OneValueError(Exception):
    """A batch normalization in training mode was given one value a channel."""


def unless_lone(model: nn.Module, inputs: Inputs, call: Callable[[], Result]) -> Result | None:
    """What `call`, which runs `model` on `inputs`, gives; None where a batch of one cannot be normalised.

    The statistics that it left in other normalizations on its way are put back.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    if not norms or batch_size_of(inputs) > 1:
        return call()
    before = [(buffer, buffer.detach().clone()) for norm in norms for buffer in norm.buffers()]
    try:
        with _watched(norms):
            return call()
    except _OneValueError:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        return None


@contextmanager
def _watched(norms: list[_BatchNorm]) -> Iterator[None]:
    handles = [norm.register_forward_pre_hook(_look) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(_norm: nn.Module, arguments: tuple[Any, ...]) -> None:
    given = arguments[0] if arguments else None
    if isinstance(given, Tensor) and given.ndim > 1 and given.numel() == given.shape[1]:
        raise _OneValueError
