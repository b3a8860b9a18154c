"""What layers read on calibration data, one column for every product with their rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from compressor.batches import Batch
from compressor.sparsity.layers import SparseWeight
from compressor.structure.trials import evaluating
from compressor.workload import call_model

# Elements of the patches that are made at once: 64 MiB.
_MAX_ELEMENTS = 1 << 24


def unwatched(weight: SparseWeight) -> str | None:
    """Why the inputs of `weight` cannot be watched, None where they can."""
    convolves = isinstance(weight.module, _ConvNd) and weight.inputs_dim == 1
    if weight.neurons and (convolves or not isinstance(weight.module, _ConvNd)):
        return None
    return f"what a {type(weight.module).__name__} multiplies its weights by cannot be watched"


def watch_inputs(
    model: nn.Module,
    weights: Sequence[SparseWeight],
    batches: Sequence[Batch],
    add: Callable[[SparseWeight, Tensor], None],
) -> None:
    """Calls `add(weight, columns)` for all that the layers of `weights` read while `model` runs on `batches`.

    `columns` are (groups, kernel positions * inputs, products), as `SparseWeight.arranged` has the weights; they come
    in parts, some samples at a time.
    """

    def reader(weight: SparseWeight) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = next((value for value in [*args, *kwargs.values()] if isinstance(value, Tensor)), None)
            if values is not None:
                for columns in input_columns(module, values.detach()):
                    add(weight, columns)

        return hook

    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        for weight in weights:
            handle = weight.module.register_forward_pre_hook(reader(weight), with_kwargs=True)
            hooks.callback(handle.remove)
        for inputs, _ in batches:
            call_model(model, inputs)


def input_columns(module: nn.Module, values: Tensor) -> Iterator[Tensor]:
    """What a linear layer or convolution multiplies each row by, (groups, kernel positions * inputs, products).

    `values` are its inputs; where those are images, some samples at a time.
    """
    if not isinstance(module, _ConvNd):
        yield values.reshape(-1, values.shape[-1]).T.unsqueeze(0)
        return
    rank, groups = len(module.kernel_size), module.groups
    if values.ndim == rank + 1:
        values = values.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    values = F.pad(values, module._reversed_padding_repeated_twice, mode=mode)  # noqa: SLF001 - as torch pads it, "same" too
    step = max(1, _MAX_ELEMENTS // max(1, values[0].numel() * torch.Size(module.kernel_size).numel()))
    for start in range(0, len(values), step):
        patches = values[start : start + step]
        for axis in range(rank):
            span = (module.kernel_size[axis] - 1) * module.dilation[axis] + 1
            patches = patches.unfold(2 + axis, span, module.stride[axis])
        for axis in range(rank):
            every = slice(None, None, module.dilation[axis])
            patches = patches[(slice(None),) * (2 + rank + axis) + (every,)]
        # (samples, channels, positions..., kernel...) -> (groups, kernel..., channels, samples, positions...)
        split = patches.reshape(len(patches), groups, -1, *patches.shape[2:])
        kernel = range(3 + rank, 3 + 2 * rank)
        moved = split.permute(1, *kernel, 2, 0, *range(3, 3 + rank))
        yield moved.reshape(groups, -1, split.shape[0] * split.shape[3 : 3 + rank].numel())
