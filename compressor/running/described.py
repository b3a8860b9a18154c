"""Values that a workload brings along, in words for refusals: types and shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

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
