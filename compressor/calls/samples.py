"""Samples in rows, and where a file has them: what goes into a session is turned, and what comes out is turned back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.batches import Inputs
from compressor.errors import WorkloadError, first_said
from compressor.outputs.layout import Layout, judged_name
from compressor.sessions import Feeds, by_input, by_order

Array = NDArray[Any]

# ONNX Runtime's names of the types that numpy has.
TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}


def layout_of(session: ort.InferenceSession) -> Layout:
    """The layout that the session's file notes in its metadata."""
    return Layout.of_metadata(session.get_modelmeta().custom_metadata_map)


def judged_output(session: ort.InferenceSession) -> str:
    """The name of the output that metrics read."""
    return judged_name([node.name for node in session.get_outputs()], layout_of(session))


def fixed_batch(session: ort.InferenceSession) -> int:
    """How many samples the file takes at once, 0 where it takes any number; 1 for a file without a batch."""
    layout = layout_of(session)
    if layout.single:
        return 1
    for node in session.get_inputs():
        axis = layout.axis_of(node.name)
        if axis is not None and len(node.shape) > axis:
            return node.shape[axis] if isinstance(node.shape[axis], int) else 0
    return 0


def by_name(session: ort.InferenceSession, inputs: Any) -> dict[str, Any]:
    """`inputs`, by name or in the file's order, by name; first states of a stream may be left out."""
    if isinstance(inputs, Mapping):
        return dict(inputs)
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    names = [node.name for node in session.get_inputs()]
    states = set(layout_of(session).streams.values())
    others = [name for name in names if name not in states]
    return by_order(others if len(given) <= len(others) else names, given)


def samples_of(session: ort.InferenceSession, inputs: Inputs) -> Feeds:
    """`inputs` as arrays by the names of the session's inputs, laid out as they are.

    Raises ValueError where the graph has an input that `inputs` lacks; first states of a stream may lack.
    """
    given = by_name(session, inputs)
    states = set(layout_of(session).streams.values())
    names = [node.name for node in session.get_inputs() if node.name in given or node.name not in states]
    types = {node.name: TYPES.get(node.type) for node in session.get_inputs()}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in by_input(names, given).items()}
    return {
        # A lone number would become a row of one.
        name: np.ascontiguousarray(array, dtype=types[name] if array.dtype.kind == "f" else None).reshape(array.shape)
        for name, array in arrays.items()
    }


def why_not_run(session: ort.InferenceSession, feeds: Feeds, error: Exception) -> str:
    """Why the file does not run on `feeds`: the first input that does not fit what it declares, or what it raised."""
    for node in session.get_inputs():
        if node.name not in feeds:
            continue
        values, kind = feeds[node.name], TYPES.get(node.type)
        given = f"got {values.shape} of {values.dtype}"
        if kind is not None and values.dtype != kind:
            return f"the file takes {node.name!r} in {np.dtype(kind)}, {given}"
        sizes = [size if isinstance(size, int) else None for size in node.shape]
        # What is declared without dimensions may have any.
        if sizes and (len(sizes) != values.ndim or not _fits(values.shape, sizes)):
            named = ", ".join(str(size or "any") for size in node.shape)
            return f"the file takes {node.name!r} of shape ({named}), {given}"
    told = ", ".join(f"{name} {values.shape}" for name, values in feeds.items())
    return f"the file does not run on {told}: {first_said(error)}"


def laid_out(layout: Layout, samples: Feeds) -> Feeds:
    """The `samples` of every input, first in each, in the dimensions in which a file has them.

    An input without a batch is given once. Raises WorkloadError where it would have several values.
    """
    if not layout.inputs and not layout.single:
        return samples
    return {name: _turned(name, values, layout.axis_of(name)) for name, values in samples.items()}


def _turned(name: str, values: Array, axis: int | None) -> Array:
    if axis is not None:
        return np.ascontiguousarray(np.moveaxis(values, 0, axis))
    if len(values) and not (values == values[:1]).all():
        raise WorkloadError(
            f"the input {name!r} is one for all samples of a call, and differs between those of a batch; give batches "
            "in which it is the same"
        )
    return np.ascontiguousarray(values[0]).reshape(values.shape[1:])


def filled(samples: Feeds, size: int) -> Feeds:
    """`samples` of a file that takes `size` at once, the last one over again where there are fewer; 0 leaves them."""
    count = next((len(values) for values in samples.values() if values.ndim), size)
    if not size or not 0 < count < size:
        return samples
    places = [min(place, count - 1) for place in range(size)]
    return {
        name: values[places] if values.ndim and len(values) == count else values for name, values in samples.items()
    }


def samples_first(values: Array, axis: int | None) -> Array:
    """An output whose samples lie in dimension `axis` of it, samples first; as it is where they lie in none."""
    return np.ascontiguousarray(np.moveaxis(values, axis, 0)) if axis else values


def as_tensor(values: Array) -> Tensor:
    """What ONNX Runtime gave as a tensor of the same memory."""
    # It calls 64 bits without a sign by C's other name for them, which torch does not know.
    return torch.from_numpy(values.view(np.uint64) if values.dtype == np.uint64 else values)


def in_rows(session: ort.InferenceSession, inputs: Any, count: int | None = None) -> Any:
    """`inputs` of `count` samples as the file takes them, or with samples first: a sample in every row of each.

    An input that is one for all samples of a call is repeated, and one of a file without a batch is a sample itself.
    Without a `count` it is that of the file's layout.
    """
    layout = layout_of(session)
    if not layout.inputs and not layout.single:
        return inputs
    values = {name: torch.as_tensor(value) for name, value in by_name(session, inputs).items()}
    shapes: dict[str, Sequence[Any]] = {
        node.name: [size if isinstance(size, int) else None for size in node.shape] for node in session.get_inputs()
    }
    if count is None:
        count = _count(layout, values, shapes)
    return {
        name: _in_rows(value, layout.axis_of(name), shapes.get(name, value.shape), count)
        for name, value in values.items()
    }


def _count(layout: Layout, values: Mapping[str, Tensor], shapes: Mapping[str, Sequence[Any]]) -> int:
    axes = {name: layout.axis_of(name) for name in values}
    batched = {name: axis for name, axis in axes.items() if axis is not None and values[name].ndim > axis}
    for name in batched:
        if values[name].ndim > len(shapes.get(name, ())):
            return values[name].shape[0]
    heads = {len(values[name]) for name in batched}
    # Samples in rows fit a file that has them elsewhere by chance, and hardly in every input.
    if len(heads) == 1 and not all(_fits(values[name].shape, shapes.get(name, ())) for name in batched):
        return heads.pop()
    for name, axis in batched.items():
        return values[name].shape[axis]
    rows = {name: value for name, value in values.items() if value.ndim > len(shapes.get(name, ()))}
    lone = {name: value for name, value in values.items() if value.ndim and shapes.get(name, [1])[:1] in ([1], [None])}
    return next((len(value) for value in (*rows.values(), *lone.values())), 1)


def _fits(shape: Sequence[int], declared: Sequence[Any]) -> bool:
    return all(size in (None, own) for own, size in zip(shape, declared, strict=False))


def _in_rows(value: Tensor, axis: int | None, shape: Sequence[Any], count: int) -> Tensor:
    rank = len(shape)
    if axis is None:
        # One for all samples, or one for each already.
        if value.ndim > rank and len(value) == count:
            return value
        # Rows of what a file calls a batch, which it takes one at a time.
        if value.ndim == rank > 0 and shape[0] in (1, None) and len(value) == count:
            return value.unsqueeze(1)
        return value.expand(count, *value.shape)
    moved = axis and axis < value.ndim <= rank and value.shape[axis] == count
    return value.movedim(axis, 0) if moved else value
