"""Gradients of embeddings as dense tensors: fused optimizers, AdamW, clipping and ranking take no others."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def dense_gradients(model: nn.Module) -> Iterator[None]:
    """A stretch in which every gradient that a backward pass leaves in `model` is dense, as wide layers' are.

    `nn.Embedding(sparse=True)` gives others, which spares work where few of many rows are met.
    """
    handles = [
        parameter.register_post_accumulate_grad_hook(_dense_)  # type: ignore[no-untyped-call] # torch leaves it untyped
        for parameter in model.parameters()
        # Only what is looked up in gives sparse gradients.
        if parameter.ndim == 2 and parameter.is_leaf and parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dense_(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
