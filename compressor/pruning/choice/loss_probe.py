"""By how much the loss grows when parts of a network are taken away for a moment."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compressor.batches import Batch
from compressor.structure.blocks import Block, skipped
from compressor.structure.couplings import Coupled
from compressor.structure.tensor_ids import tensors_of
from compressor.workload import Loss, batch_size_of, predict


def loss_increases(model: nn.Module, pool: dict[str, Block], data: list[Batch], loss: Loss) -> dict[str, float]:
    """By how much the mean loss of `model` over `data` grows without each block of `pool`."""
    with batch_statistics(model):
        before = loss_of(model, data, loss)
        increases = {}
        for name, block in pool.items():
            with skipped(model, {name: block}):
                increases[name] = loss_of(model, data, loss) - before
    return increases


def loss_of(model: nn.Module, data: list[Batch], loss: Loss) -> float:
    """The mean loss of `model`, as it stands, over the samples of `data`."""
    total, count = 0.0, 0
    with torch.no_grad():
        for inputs, targets in data:
            total += float(loss(predict(model, inputs), targets)) * batch_size_of(inputs)
            count += batch_size_of(inputs)
    return total / count


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalization by the batch at hand, with the running statistics untouched."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - torch has no public name for them all
    kept = [(norm, norm.running_mean, norm.running_var) for norm in norms]
    for norm in norms:
        norm.running_mean = norm.running_var = None
    try:
        yield
    finally:
        for norm, mean, variance in kept:
            norm.running_mean, norm.running_var = mean, variance


@contextmanager
def masked(model: nn.Module, gone: Mapping[Coupled, list[int]]) -> Iterator[None]:
    """`model` with the channels of `gone` at zero, in the weights that make and take them, and whole again afterwards.

    Running statistics are left alone: this goes with `batch_statistics`, or with models that have none.
    """
    tensors = tensors_of(model)
    rows: list[tuple[Tensor, int, Tensor]] = []
    for group, channels in gone.items():
        lost = torch.zeros(group.width, dtype=torch.bool)
        lost[list(channels)] = True
        for part in group.parts:
            indices = torch.tensor(part.indices)[lost[torch.tensor(part.channels)]]
            rows += [(tensors[name], dim, indices.to(tensors[name].device)) for name, dim in part.tensors]
    whole = {id(tensor): (tensor, tensor.detach().clone()) for tensor, _, _ in rows}
    try:
        with torch.no_grad():
            for tensor, dim, indices in rows:
                tensor.index_fill_(dim, indices, 0)
        yield
    finally:
        with torch.no_grad():
            for tensor, value in whole.values():
                tensor.copy_(value)
