"""By how much the loss grows when parts of a network are taken away for a moment."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from compressor.batches import Batch, Inputs, Targets
from compressor.pruning.choice.recalling import Recalled
from compressor.structure.blocks import Block, skipped
from compressor.structure.couplings import Coupled
from compressor.structure.tensor_ids import tensors_of
from compressor.training.passes.threads import Threads
from compressor.workload import Loss, batch_size_of, predict


def loss_increases(
    model: nn.Module,
    pool: dict[str, Block],
    data: list[Batch],
    loss: Loss,
    *,
    threads: Threads | None = None,
    step: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """By how much the mean loss of `model` over `data` grows without each block of `pool`.

    Of the blocks that ran ahead of the one that is left out, the outputs are taken as they were. `threads` chooses how
    many threads compute a loss, by default torch's own number. `step` is called behind every one of the
    `len(pool) * len(data)` losses.
    """
    before, count, recalls = 0.0, 0, True
    threads = threads or Threads(fixed=True)
    without = dict.fromkeys(pool, 0.0)
    with batch_statistics(model), torch.no_grad():
        for inputs, targets in data:
            size = batch_size_of(inputs)

            def loss_now(inputs: Inputs = inputs, targets: Targets = targets, size: int = size) -> float:
                return float(loss(predict(model, inputs), targets)) * size

            recalled = Recalled(model, (name for name, block in pool.items() if not block.is_recurrent))
            with recalled.recording():
                whole = loss_now()
            if not count:
                # What blocks share besides their outputs shows here: all of them together are worth the same.
                with recalled.replaying(before=None):
                    recalls = loss_now() == whole
            before, count = before + whole, count + size
            order = {name: place for place, name in enumerate(dict.fromkeys([*recalled.last_first, *pool]), start=1)}
            # The further ahead a block runs, the more follows that is computed.
            for name in threads.over(order, lambda name, order=order, size=size: size * order[name]):  # type: ignore[misc]
                ahead = recalled.replaying(before=name) if recalls else nullcontext()
                with ahead, skipped(model, {name: pool[name]}):
                    without[name] += loss_now()
                step()
    return {name: total / count - before / count for name, total in without.items()}


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
