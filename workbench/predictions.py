"""What a file says to a whole set of samples, in one tensor."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from compressor.runtime import predict_batches


def predict_all(onnx_bytes: bytes, data: Iterable[Any], *, threads: int = 1) -> tuple[Tensor, Tensor]:
    """(outputs, targets) over all of `data`, each concatenated along the first dimension."""
    batches = list(predict_batches(onnx_bytes, data, threads=threads))
    if not batches:
        raise ValueError("data has no batches; if it is a generator, pass something that can be iterated again")
    return torch.cat([output for output, _ in batches]), torch.cat([targets for _, targets in batches])
