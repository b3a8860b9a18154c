"""In which dimension of every input and output samples lie: found by running two batches, and both in one.

A recurrent state has (layers, batch, features), other files put time first, a sampling rate is one number for all. What
is declared only says where to look first: what counts is that two batches in one give what each gives alone.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.files.converting.batch import freed
from compressor.files.declarations import given_inputs
from compressor.outputs.layout import Layout, judged_name
from compressor.sessions import Feeds

Array = NDArray[Any]
Outputs = list[Array]
Run = Callable[[onnx.ModelProto], Callable[[Feeds], "Outputs | str"]]
Axes = dict[str, int | None]

# A batch that a file fixes is sought in these dimensions.
_FIRST = 2
# Assignments of dimensions to inputs that are tried.
_MOST_TRIED = 24
_USUAL_NAMES = {"batch", "batchsize", "n", "b", "bs", "bsz"}


def free_layout(
    model: onnx.ModelProto,
    feeds: Feeds,
    run: Run,
    difference: Callable[[Outputs, Outputs], str],
    *,
    rows: Collection[str] = (),
) -> tuple[onnx.ModelProto, Layout] | None:
    """(`model` for any batch, where samples lie), None where no dimension of its inputs can be the batch.

    `feeds` are a batch that the file takes, `run(model)` gives what computes outputs or says why not, `difference` says
    how outputs differ, "" where they do not. Samples of the inputs `rows` are known to come first.
    """
    alone = run(model)
    for axes in itertools.islice(_assignments(model, feeds, rows), _MOST_TRIED):
        sizes = {feeds[name].shape[axis] for name, axis in axes.items() if axis is not None}
        if len(sizes) != 1:
            continue
        single = {name: _one(values, axes[name]) if _is_free(model, axes) else values for name, values in feeds.items()}
        other = {name: values if axes[name] is None else np.flip(values).copy() for name, values in single.items()}
        first, second = alone(single), alone(other)
        if isinstance(first, str) or isinstance(second, str):
            continue
        free = model if _is_free(model, axes) else _freed(model, axes, sizes.pop())
        twice = {
            name: values if axes[name] is None else np.concatenate([values, other[name]], axis=axes[name] or 0)
            for name, values in single.items()
        }
        both = run(free)(twice)
        if isinstance(both, str):
            continue
        found = _axes_of_outputs(first, second, both, difference)
        names = [value.name for value in model.graph.output]
        judged = names.index(judged_name(names))
        if (
            found is not None
            and any(axis is not None for axis in found)
            and _has_rows(first[judged], found[judged], single, axes)
        ):
            given = dict(zip(names, found, strict=True))
            _declare_(free, given)
            return free, Layout(
                inputs={name: axis for name, axis in axes.items() if axis != 0},
                outputs={name: axis for name, axis in given.items() if axis != 0},
            )
    return None


def kept_layout(
    model: onnx.ModelProto,
    feeds: Feeds,
    outputs: Outputs,
    run: Run,
    difference: Callable[[Outputs, Outputs], str],
    *,
    asked: bool,
) -> Layout:
    """Where samples lie in a file whose batch stays as it is: first in every input and output, or in none.

    They lie first where every input and output has as many rows, and no row depends on another one; where the caller
    `asked` for the batch to stay, rows alone decide.
    """
    shapes = [values.shape for values in (*feeds.values(), *outputs)]
    heads = {shape[0] if shape else 0 for shape in shapes}
    if len(heads) != 1 or heads == {0}:
        return Layout(single=True)
    rows = heads.pop()
    free = not any(dims and dims[0].HasField("dim_value") for dims in map(_dims, given_inputs(model)))
    # Rows of a free number belong to whoever chose it; a lone one depends on no other.
    if asked or free or rows == 1:
        return Layout()
    changed = {name: np.concatenate([values[:1], np.flip(values)[1:]]) for name, values in feeds.items()}
    others = run(model)(changed)
    if isinstance(others, str) or difference([each[:1] for each in others], [each[:1] for each in outputs]):
        return Layout(single=True)
    return Layout()


def why_fixed(model: onnx.ModelProto, feeds: Feeds, run: Run, difference: Callable[[Outputs, Outputs], str]) -> str:
    """Why the batch cannot be the first dimension of all inputs, which it is in most files."""
    shapes = [value.type.tensor_type.shape.dim for value in given_inputs(model)]
    fixed = {dims[0].dim_value for dims in shapes if dims and dims[0].HasField("dim_value")}
    if len(fixed) > 1 or not all(map(len, shapes)):
        return "its inputs have different ones, or none"
    # Samples with other values behind them: outputs that mix samples would show.
    turned = {name: np.flip(values).copy() for name, values in feeds.items()}
    first, second = (run(model)(each) for each in (feeds, turned))
    if isinstance(first, str) or isinstance(second, str) or not all(output.ndim for output in (*first, *second)):
        return "its outputs have none, or not for all inputs"
    both = run(freed(model, *fixed))({name: np.concatenate([feeds[name], turned[name]]) for name in feeds})
    expected = [np.concatenate(pair) for pair in zip(first, second, strict=True)]
    return both if isinstance(both, str) else difference(both, expected)


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _assignments(model: onnx.ModelProto, feeds: Feeds, rows: Collection[str]) -> Iterator[Axes]:
    """Dimensions of the inputs that may be the batch, the likeliest first; None for an input that has none."""
    declared = {
        value.name: [
            dim.dim_param if not dim.HasField("dim_value") else dim.dim_value
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in given_inputs(model)
    }
    symbols = [each for dims in declared.values() for each in dims if isinstance(each, str) and each]
    heads = [dims[0] for dims in declared.values() if dims and isinstance(dims[0], str) and dims[0]]
    usual = [each for each in symbols if _is_usual(each)]
    symbol = next(iter([*usual, *heads]), None)
    tried: list[Axes] = []
    for size in _sizes(feeds):
        options = [
            [0] if name in rows else _options(feeds[name], dims, symbol, size) for name, dims in declared.items()
        ]
        places = [range(len(each)) for each in options]
        ranked = sorted(itertools.product(*places), key=lambda chosen: (sum(chosen), chosen)) if _few(places) else []
        for chosen in ranked:
            picked = (each[place] for each, place in zip(options, chosen, strict=True))
            axes: Axes = dict(zip(declared, picked, strict=True))
            if axes not in tried and _plausible(axes, declared):
                tried.append(axes)
                yield axes


def _sizes(feeds: Feeds) -> list[int]:
    """The sizes that a fixed batch may have: what most inputs have among their first dimensions comes first."""
    met = Counter(size for values in feeds.values() for size in set(values.shape[:_FIRST]))
    return [size for size, _ in met.most_common()] or [0]


def _options(values: Array, dims: Sequence[str | int], symbol: str | None, size: int) -> list[int | None]:
    """The dimensions of one input that may be its batch, the likeliest first, and None."""
    if values.ndim == 0:
        return [None]
    named = [axis for axis, each in enumerate(dims) if symbol is not None and each == symbol]
    others = [axis for axis, each in enumerate(dims) if isinstance(each, str) and axis not in named]
    fixed = [axis for axis, each in enumerate(dims) if not isinstance(each, str) and each == size and axis < _FIRST]
    if symbol is None:
        return [*fixed, *others, None]
    if named and _is_usual(symbol):
        # What is called the batch is one, or there is none.
        return [*named]
    # A batch of 1 may be fixed beside a length that is free, or in a state beside the batch that is.
    return [*named, *others, None, *(fixed if size == 1 else [])]


def _plausible(axes: Axes, declared: Mapping[str, Sequence[str | int]]) -> bool:
    """Whether some input has its batch first, unless it is called a batch, or what stands first is free or differs."""
    if all(axis is None for axis in axes.values()):
        return False
    if any(axis == 0 for axis in axes.values()):
        return True
    if any(axis is not None and _is_usual(declared[name][axis]) for name, axis in axes.items()):
        return True
    heads = {dims[0] for dims in declared.values() if dims}
    # What computes element by element would take any dimension for the batch.
    return len(heads) > 1 or any(isinstance(head, str) for head in heads)


def _is_usual(dim: str | int) -> bool:
    """Whether a dimension is called what a batch is called, by a name of one word or two."""
    return isinstance(dim, str) and re.sub(r"[\s_-]", "", dim.lower()) in _USUAL_NAMES


def rows_of_calls(model: onnx.ModelProto, sample: Mapping[str, Array] | Sequence[Array]) -> set[str]:
    """The inputs of which every row of `sample`, arrays by name or in order, is what a call takes, batch and all.

    Of an input (1, "N", 3), where (60, 50, 3) are sixty calls of fifty points, and (60, 1, 3) sixty points.
    """
    inputs = given_inputs(model)
    given = sample if isinstance(sample, Mapping) else dict(zip((value.name for value in inputs), sample, strict=False))
    found = set()
    for value in inputs:
        dims, shape = [*_dims(value)], given[value.name].shape if value.name in given else ()
        batch = next((place for place, dim in enumerate(dims) if place and _is_usual(dim.dim_param)), 0)
        if not batch or len(dims) != len(shape):
            continue
        turned = (*shape[1 : batch + 1], shape[0], *shape[batch + 1 :])
        if _wrong(shape, dims) == [0] and _wrong(turned, dims):
            found.add(value.name)
    return found


def _wrong(shape: Sequence[int], dims: Sequence[Any]) -> list[int]:
    """The places at which `shape` has another size than is declared."""
    return [place for place, dim in enumerate(dims) if dim.dim_value and dim.dim_value != shape[place]]


def _few(places: Sequence[range]) -> bool:
    total = 1
    for each in places:
        total *= len(each)
    return total <= 1 << 14


def _is_free(model: onnx.ModelProto, axes: Mapping[str, int | None]) -> bool:
    """Whether every dimension that is taken for the batch may have any size."""
    for value in given_inputs(model):
        axis, dims = axes[value.name], value.type.tensor_type.shape.dim
        if axis is not None and axis < len(dims) and dims[axis].HasField("dim_value") and dims[axis].dim_value > 0:
            return False
    return True


def _one(values: Array, axis: int | None) -> Array:
    """The first sample."""
    return values if axis is None else np.take(values, [0], axis=axis)


def _freed(model: onnx.ModelProto, axes: Axes, batch: int) -> onnx.ModelProto:
    free = freed(model, batch)
    kept = {value.name: value for value in given_inputs(model)}
    for value in free.graph.input:
        if value.name not in kept:
            continue
        dims, before = value.type.tensor_type.shape.dim, kept[value.name].type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            # A first dimension of the batch's size need not be the batch.
            dim.CopyFrom(before[axis])
            if axis == axes[value.name]:
                dim.dim_param = "batch"
    for value in free.graph.output:
        value.type.tensor_type.ClearField("shape")
    return free


def _declare_(model: onnx.ModelProto, outputs: Axes) -> None:
    """Declares the batch of outputs as free, where they say another."""
    for value in model.graph.output:
        dims, axis = value.type.tensor_type.shape.dim, outputs[value.name]
        if axis is not None and axis < len(dims) and dims[axis].HasField("dim_value"):
            dims[axis].dim_param = "batch"


def _axes_of_outputs(
    first: Outputs, second: Outputs, both: Outputs, difference: Callable[[Outputs, Outputs], str]
) -> list[int | None] | None:
    """The dimension of every output along which both batches lie behind each other, None for an output without."""
    found: list[int | None] = []
    for one, other, twice in zip(first, second, both, strict=True):
        axis = _joint(one.shape, other.shape, twice.shape)
        expected = one if axis is None else np.concatenate([one, other], axis=axis)
        if difference([twice], [expected]):
            return None
        found.append(axis)
    return found


def _has_rows(output: Array, axis: int | None, feeds: Feeds, axes: Axes) -> bool:
    """Whether an output has one row for every sample of `feeds`, and not several, as steps in rows of their own are.

    One that is the same for all, as the places of a detector's boxes are, has none and needs none.
    """
    counts = {feeds[name].shape[at] for name, at in axes.items() if at is not None}
    return axis is None or {output.shape[axis]} == counts


def _joint(first: Sequence[int], second: Sequence[int], both: Sequence[int]) -> int | None:
    if tuple(first) == tuple(both) or len(first) != len(both):
        return None
    for axis in range(len(both)):
        rest = [tuple(shape[:axis]) + tuple(shape[axis + 1 :]) for shape in (first, second, both)]
        if rest[0] == rest[1] == rest[2] and both[axis] == first[axis] + second[axis]:
            return axis
    return None
