"""Workloads that train, calibrate and are judged on the same few batches."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.metrics import Metric
from compressor.workload import Workload


def same_data(
    model: nn.Module,
    data: Iterable[Any],
    example: Any,
    *,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    metric: Metric | None = None,
) -> Workload:
    """`model` on `data`, batches of (inputs, targets), for everything; `example` is a batch of inputs."""
    return Workload(
        name="small",
        model=model,
        example_inputs=example,
        train=data,
        calibration=data,
        validation=data,
        test=data,
        loss=loss,
        metric=metric or Metric.accuracy(),
    )


def three_classes(model: nn.Module, width: int) -> Workload:
    """`model` on two batches of six rows of `width` numbers, of three classes."""
    data = [(torch.randn(6, width), torch.arange(6) % 3) for _ in range(2)]
    return same_data(model, data, data[0][0][:2])
