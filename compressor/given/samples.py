"""One set of samples as people have it, as a pair (inputs, targets) or a dataset; anything else is refused by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from compressor.batches import as_tensors, map_targets, split_batch
from compressor.errors import WorkloadError
from compressor.given.numbers import plain
from compressor.given.table_rows import TableRows, is_table

_INTEGERS = {torch.int8, torch.int16, torch.int32}


def samples_of(name: str, data: Any) -> Any:
    """The set called `name` as `Batches` takes it: a pair of tensors, or a dataset of samples that can be collated.

    Lists of numbers and tables with `to_numpy` become arrays; truth values and labels in 8 to 32 bits become int64,
    in which losses take them. Raises WorkloadError for anything else, with the way out.
    """
    if isinstance(data, TensorDataset):
        return as_tensors(data)
    if isinstance(data, Mapping):
        keys = list(data)
        parts = ", ".join(f"data[{key!r}]" for key in keys[:2]) if len(keys) > 1 else "inputs, targets"
        raise WorkloadError(
            f"{name} must be a pair (inputs, targets) or a dataset, got a {type(data).__name__} of "
            f"{', '.join(map(repr, keys[:5])) or 'nothing'}; write {name}=({parts})"
        )
    if isinstance(data, str | bytes):
        raise WorkloadError(
            f"{name} must be a pair (inputs, targets) or a dataset, got the text {data!r}; read the file first"
        )
    if isinstance(data, Tensor | np.ndarray) or _has_numpy(data):
        raise WorkloadError(
            f"{name} must be a pair (inputs, targets), got a {type(data).__name__} alone; write {name}=(inputs, "
            "targets), or, where there are no targets, workload_of_inputs of compressor.workloads.unlabelled"
        )
    if isinstance(data, tuple):
        return _pair(name, data)
    if isinstance(data, list) and len(data) == 2 and all(map(_is_array, data)) and len(data[0]) == len(data[1]):
        raise WorkloadError(f"{name} must be a pair (inputs, targets), got a list of two; write a tuple: {name}=(x, y)")
    if is_table(data):
        return TableRows(data, name)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _checked_dataset(name, data)
    return as_tensors(data)


def check_function(value: Any, name: str, takes: str) -> None:
    """`value` is None or can be called. Raises WorkloadError, which says what it `takes`."""
    if isinstance(value, type) and not inspect.isfunction(value):
        raise WorkloadError(f"{name} must be {takes}, got the class {value.__name__}; make an object of it")
    if value is not None and not callable(value):
        raise WorkloadError(f"{name} must be {takes}, got {type(value).__name__} {value!r}; give the function itself")


def _pair(name: str, data: tuple[Any, ...]) -> Any:
    if len(data) != 2:
        way_out = (
            f"several inputs share a tuple: {name}=((first, second), targets)"
            if len(data) > 2
            else "targets are missing"
        )
        raise WorkloadError(f"{name} must be a pair (inputs, targets), got a tuple of {len(data)}; {way_out}")
    data = _stacked(data[0], data[1]), data[1]
    inputs, targets = (
        _array(value, f"the {part} of {name}") for value, part in zip(data, ("inputs", "targets"), strict=True)
    )
    inputs, targets = as_tensors((inputs, targets))
    return inputs, map_targets(targets, _as_labels)


def _stacked(inputs: Any, targets: Any) -> Any:
    """A list with one array for each target as one array; anything else, several inputs for instance, as it is."""
    if not (isinstance(inputs, list) and inputs and all(map(_is_array, inputs)) and hasattr(targets, "__len__")):
        return inputs
    if len(inputs) != len(targets) or all(len(each) == len(targets) for each in inputs):
        return inputs
    if len({tuple(each.shape) for each in inputs}) > 1:
        return [each.tolist() for each in inputs]  # which is refused as rows of several lengths
    return torch.stack([torch.as_tensor(each) for each in inputs])


def _as_labels(targets: Tensor) -> Tensor:
    truths = targets.dtype == torch.bool and targets.ndim == 1
    return targets.long() if truths or targets.dtype in _INTEGERS else targets


def _array(value: Any, says: str) -> Any:
    """`value` with arrays of numbers in it, several in a tuple or dict. Raises WorkloadError for other things."""
    if isinstance(value, Mapping):
        return {key: _array(item, f"{says} {key!r}") for key, item in value.items()}
    if isinstance(value, tuple) or (isinstance(value, list) and value and _is_array(value[0])):
        return tuple(_array(item, says) for item in value)
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise WorkloadError(f"{says} must be dense, got {value.layout}; convert them with to_dense()")
        value = plain(value)
    else:
        value = value.to_numpy() if _has_numpy(value) else value
        try:
            value = np.asarray(value)
        except ValueError as error:  # rows of several lengths
            raise WorkloadError(f"{says} must have rows of one length, got {error}; pad them") from error
        _check_numbers(value, says)
    if value.ndim == 0:
        raise WorkloadError(f"{says} must have one row for each sample, got a single {value.dtype}; give all samples")
    return value


def _check_numbers(value: np.ndarray[Any, Any], says: str) -> None:
    if value.dtype.kind in "biufc":
        return
    if value.dtype.kind in "US":
        raise WorkloadError(
            f"{says} must be numbers, got texts such as {str(value.flat[0])!r}; number the classes: "
            "names, numbers = numpy.unique(labels, return_inverse=True)"
        )
    found = type(value.flat[0]).__name__ if value.size else "nothing"
    raise WorkloadError(
        f"{says} must be numbers, got an array of {value.dtype} that holds {found}; fill gaps, encode what is no "
        "number, and make numpy.asarray(values, dtype=numpy.float32) of it"
    )


def _checked_dataset(name: str, data: Any) -> Any:
    if not len(data):
        return data  # which is refused as empty
    state = torch.get_rng_state()
    first = None
    try:
        first = data[0]
        found = split_batch(default_collate([first]))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise WorkloadError(
            f"a sample of {name} must be (input, target), or a dict with labels, of tensors, arrays or numbers; the "
            f"first of this {type(data).__name__} is a {type(first).__name__} ({type(error).__name__}: {error}); "
            "convert it in the dataset"
        ) from error
    finally:
        torch.set_rng_state(state)
    texts = [part for part in _leaves(found) if isinstance(part, str)]
    if texts:
        raise WorkloadError(
            f"a sample of {name} must be of tensors, arrays or numbers, and holds the text {texts[0]!r}; number the "
            "classes in the dataset"
        )
    return data


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _has_numpy(value: Any) -> bool:
    to_numpy: Callable[[], Any] | None = getattr(value, "to_numpy", None)
    return callable(to_numpy) and not isinstance(value, type)
