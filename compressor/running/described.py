"""Values that a workload brings along, in words for refusals: types and shapes, and what would fit."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from compressor.batches import Inputs
from compressor.workload import input_tensors

_NAMES_SHOWN = 5


def described(value: Any) -> str:
    """The type and shape of a tensor, of tensors in a tuple, list or dict; of anything else its type."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {described(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(described(item) for item in value) + ")"
    return type(value).__name__


def listed(names: Sequence[str]) -> str:
    """The first five of `names`, and how many more there are."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def inputs_that_fit(model: nn.Module, inputs: Inputs, error: BaseException) -> str:
    """What to do about `inputs` that `model` answered with `error`, as a sentence without its full stop."""
    if isinstance(inputs, Mapping):
        if isinstance(error, TypeError):
            takes = ", ".join(_arguments(model)) or "nothing"
            return (
                f"A dict batch gives the arguments of forward by name, and it takes {takes}: rename the keys, or give "
                "batches (inputs, targets)"
            )
        return "Give inputs of the shape, dtype and device that it was trained with"
    leaf = input_tensors(inputs)[0]
    floats = any(parameter.is_floating_point() for parameter in model.parameters())
    if floats and not leaf.is_floating_point() and "type" in str(error):
        scaled = ", x.float() / 255 for images that it saw in [0, 1]" if leaf.ndim > 2 else ""
        return f"It computes with floating-point numbers: convert the inputs as in its training, x.float(){scaled}"
    if leaf.is_floating_point() and leaf.dtype.itemsize < 4 and "type" in str(error):
        return "It computes in float32: convert the inputs, x.float()"
    first = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    if first is not None and leaf.ndim == 4 and leaf.shape[-1] == first.in_channels != leaf.shape[1]:
        return "The channels seem to come last, and torch has them first: x.permute(0, 3, 1, 2)"
    if first is not None and leaf.ndim == 3:
        return "Images are (batch, channels, height, width): x.unsqueeze(1) adds the one channel of gray ones"
    return "Give inputs of the shape, dtype and device that it was trained with"


def _arguments(model: nn.Module) -> list[str]:
    try:
        return list(inspect.signature(model.forward).parameters)
    except (TypeError, ValueError):  # built into C
        return []
