"""Inputs as a file takes them, brought into rows: a sample in every row of every input, wherever the file has them."""

from typing import Any

from torch import nn

from compressor.batches import judged_target


def in_rows(model: nn.Module, samples: Any) -> Any:
    """The pair `samples` (inputs, targets) with inputs in rows, where `model` is a file that has them elsewhere.

    A recurrent state may come as the file takes it, (layers, samples, features), or as (samples, layers, features); a
    number that is one for all samples is repeated. What is no such pair, and inputs of other models, stay as they are.
    """
    turned = getattr(model, "in_rows", None)
    if turned is None or not (isinstance(samples, tuple) and len(samples) == 2):
        return samples
    inputs, targets = samples
    return turned(inputs, len(judged_target(targets))), targets
