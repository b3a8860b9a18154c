"""Gradients of a workload's loss by parameter, for ranking: their sum, and the mean of their squares."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import ParamSpec

import torch
from torch import Tensor, nn

from compressor.batches import Batch, map_tensors, target_rows
from compressor.progress.bars import progress_bar
from compressor.structure.calling.draws import seeded
from compressor.training.optimizers.dense_gradients import dense_gradients
from compressor.training.passes.threads import ranking
from compressor.workload import Workload, batch_size_of, batches_of, first_batches, predict

_Parameters = ParamSpec("_Parameters")
_Gradients = dict[str, Tensor]


def _in_place_too(compute: Callable[_Parameters, _Gradients]) -> Callable[_Parameters, _Gradients]:
    """`compute`, also for a model that writes into tensors which its backward pass needs.

    In inference, which the model is ranked for, that is fine: autograd then keeps copies of them, which takes longer.
    """

    @wraps(compute)
    def computed(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Gradients:
        try:
            return compute(*args, **kwargs)
        except RuntimeError as error:
            if "inplace operation" not in str(error):
                raise
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            return compute(*args, **kwargs)

    return computed


@_in_place_too
def loss_gradients(model: nn.Module, workload: Workload, batches: int, seed: int) -> dict[str, Tensor]:
    """The gradient of the loss by parameter name, summed over the first `batches` training batches of `seed`.

    Frozen parameters have one, too. The model's own gradients end empty, its flags as they were.
    """
    with _differentiable(model, seed), ranking() as threads:
        for inputs, targets in threads.timed(first_batches(workload.train, batches)):
            torch.autograd.backward(workload.loss(predict(model, inputs), targets))
        tied = model.named_parameters(remove_duplicate=False)
        return {name: parameter.grad.clone() for name, parameter in tied if parameter.grad is not None}


@_in_place_too
def empirical_fisher(
    model: nn.Module, workload: Workload, samples: int, micro_batch: int, seed: int, *, progress: bool = False
) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information by parameter name, each of its parameter's shape, >= 0.

    The sum of the squared gradients of every micro-batch's summed loss over the number of samples: the first `samples`
    training samples of `seed`, `micro_batch` of them at a time. The workload's loss must be a mean over samples. The
    model's own gradients end empty, its flags as they were.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    bars = progress_bar(total=samples, desc="gradients", shown=progress)
    with _differentiable(model, seed), ranking() as threads, bars as bar:
        for inputs, targets in threads.over(_micro_batches(workload, samples, micro_batch), _size):
            size = batch_size_of(inputs)
            torch.autograd.backward(workload.loss(predict(model, inputs), targets) * size)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    square = parameter.grad.square()
                    sums[name] = sums[name].add_(square) if name in sums else square
            model.zero_grad(set_to_none=True)
            count += size
            bar.update(size)
    first = {id(parameter): name for name, parameter in reversed(list(model.named_parameters()))}
    tied = model.named_parameters(remove_duplicate=False)
    return {name: sums[key] / count for name, parameter in tied if (key := first[id(parameter)]) in sums}


def _micro_batches(workload: Workload, samples: int, size: int) -> Iterator[Batch]:
    left = samples
    for inputs, targets in batches_of(workload.train):
        for start in range(0, min(batch_size_of(inputs), left), size):
            end = min(start + size, start + left, batch_size_of(inputs))
            taken = slice(start, end)
            rows = target_rows(targets, taken, batch_size_of(inputs))
            yield map_tensors(inputs, partial(_slice, which=taken)), rows
            left -= end - start
            if left == 0:
                return


def _size(batch: Batch) -> int:
    return batch_size_of(batch[0])


def _slice(tensor: Tensor, which: slice) -> Tensor:
    return tensor[which]


@contextmanager
def _differentiable(model: nn.Module, seed: int) -> Iterator[None]:
    """Every parameter with a gradient, and randomness from `seed`; flags and random state are as before afterwards."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    # The recurrent kernels of cuDNN have no backward pass in eval mode.
    with seeded(seed), torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
        try:
            for parameter in model.parameters():
                parameter.requires_grad_(parameter.is_floating_point())
            with dense_gradients(model):
                yield
        finally:
            model.zero_grad(set_to_none=True)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
