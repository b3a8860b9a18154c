"""Numbers as models take them: arrays become tensors, float64 becomes float32, and all of it lies in main memory."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.given.notices import WorkloadWarning

# What models are kept short in; the file and everything here compute in float32.
HALVES = (torch.float16, torch.bfloat16)


def as_usual(value: Any, *, halves: bool = False) -> Any:
    """`value` with every array and number in it as a tensor, float64 as float32, with `halves` shorter ones too,
    tensors of a GPU on the CPU, of another package's kind as plain ones.

    Mappings become dicts, lists stay lists and tuples tuples, named ones too; everything else is left as it is.
    """
    if isinstance(value, Mapping):
        return {key: as_usual(item, halves=halves) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [as_usual(item, halves=halves) for item in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float32)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        # Texts and objects are refused later, by name.
        value = (
            torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape)) if array.dtype.kind in "biuf" else value
        )
    if isinstance(value, Tensor):
        return plain(value).to("cpu", torch.float32 if value.dtype in _others(halves=halves) else value.dtype)
    return value


def _others(*, halves: bool) -> set[torch.dtype]:
    return {torch.float64, *HALVES} if halves else {torch.float64}


def plain(value: Tensor) -> Tensor:
    """`value`, of a dataset's own kind of tensors the plain one behind it: what traces and exports knows no other."""
    return value if type(value) in {Tensor, torch.nn.Parameter} else value.as_subclass(Tensor)


def is_usual(value: Any, *, halves: bool = False) -> bool:
    """Whether `as_usual` would give `value` itself, which many loaders' batches are."""
    if isinstance(value, Mapping):
        return all(is_usual(item, halves=halves) for item in value.values())
    if isinstance(value, tuple | list):
        return all(is_usual(item, halves=halves) for item in value)
    if isinstance(value, Tensor):
        return value.dtype not in _others(halves=halves) and value.device.type == "cpu" and plain(value) is value
    return not isinstance(value, float | np.ndarray | np.generic)


def holds_float64(value: Any) -> bool:
    """Whether a tensor or array in `value` is of type float64."""
    if isinstance(value, Mapping):
        return any(map(holds_float64, value.values()))
    if isinstance(value, tuple | list):
        return any(map(holds_float64, value))
    return isinstance(value, Tensor | np.ndarray | np.generic) and str(value.dtype).endswith("float64")


def tell_of_float64(names: list[str]) -> None:
    """One notice for all sets that hold float64, none where no set does."""
    if names:
        told = ", ".join([*names[:-2], " and ".join(names[-2:])])
        warnings.warn(
            f"{told} hold{'s' if len(names) == 1 else ''} float64 numbers, which are converted to float32: models and "
            "ONNX Runtime compute in that",
            WorkloadWarning,
            stacklevel=4,
        )
