"""What a file is run on when it is read: samples of an example as it takes them, or values that are made up."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from compressor.errors import OnnxFileError
from compressor.files.carrying import noted_layout
from compressor.files.declarations import given_inputs
from compressor.sessions import Feeds, by_input, by_order

# Inputs by name or in the file's order, a sample in every row.
Sample = Mapping[str, NDArray[Any]] | Sequence[NDArray[Any]]
# Samples of an example that are compared where the batch is free.
MOST_SAMPLES = 16
_MADE_UP = 2
# What free dimensions other than the batch are in made-up inputs: halved five times and joined again, sizes must agree.
_FREE_LENGTHS = (8, 32, 64, 256, 512, 640)
# What is tried before them: pixels, the width of a line of text (PaddleOCR's) or frames of a spectrogram, a second of
# sound, words of a text or steps of features.
_PICTURE, _LINE, _SOUND, _TEXT = 224, 320, 16000, 128
# Heights that readers of lines are made for, PaddleOCR's since its third version and those before.
_LINE_HEIGHTS = (48, 32)
_SHORTENS = {"Conv", "STFT", "DFT"}
_CHANNELS = (1, 3, 4)
# Where Ultralytics' exporters write the height and width that a network was trained for: "[640, 640]".
_TRAINED_FOR = "imgsz"
_MOST_PIXELS = 2048
# What one whole number for all samples may be besides 0, 1 and a length: a sampling rate.
_RATE = 16000
_MOST_MADE_UP_BYTES = 256 << 20
# Dimensions up to which it is looked for an order that fits.
_MOST_TURNED = 5


def cast_to(sample: Sample, dtypes: Mapping[str, str]) -> Sample:
    """`sample` in the types of the inputs, as far as it has them; what lacks is for the caller to say."""
    if not isinstance(sample, Mapping):
        return sample
    named = {name: "inputs" if len(dtypes) == 1 and name not in sample else name for name in dtypes}
    return {name: sample[given].astype(dtypes[name]) for name, given in named.items() if given in sample}


def example_feeds(model: onnx.ModelProto, sample: Sample, streams: Mapping[str, str]) -> Feeds:
    """The first samples of `sample` as `model` takes them; of a stream the first step, from zeros.

    Raises OnnxFileError where inputs are missing.
    """
    declared = {value.name: value.type.tensor_type.shape.dim for value in given_inputs(model)}
    names = [name for name in declared if name not in streams.values()]
    given = dict(sample) if isinstance(sample, Mapping) else by_order(_fitting(names, declared, sample), sample)
    try:
        values = by_input(names, given)
    except ValueError as error:
        raise OnnxFileError(str(error)) from error
    # A stream has a dimension more than its steps, and so have rows of samples of a file without a batch.
    more = [name for name in names if values[name].ndim > len(declared[name])]
    for name in more:
        values[name] = np.asarray(values[name][:, 0] if streams and values[name].ndim > 1 else values[name][0])
    if not more:
        values = _from_rows(declared, values)
    sizes = _sizes(declared, values)
    values |= {name: given[name] if name in given else _zeros(model, name, sizes) for name in streams.values()}
    # One sample is whole, whatever is free in it.
    whole = () if streams else more
    batches = {
        (dims[0].dim_param, len(values[name]))
        for name, dims in declared.items()
        if len(dims) and dims[0].dim_param and values[name].ndim
    }
    return {
        name: values[name].copy() if name in whole else _first(values[name], dims, batches)
        for name, dims in declared.items()
    }


def misfit(model: onnx.ModelProto, feeds: Feeds) -> str:
    """Which input takes another shape than its values in `feeds` have, and what would fit; "" where all of them fit."""
    for value in given_inputs(model):
        dims, shape = _dims(value), feeds[value.name].shape
        if not value.type.tensor_type.HasField("shape") or (len(shape) == len(dims) and _fits(shape, dims)):
            continue
        wanted = ", ".join(str(dim.dim_value or dim.dim_param or "any") for dim in dims)
        orders = itertools.permutations(range(1, len(shape))) if len(shape) == len(dims) <= _MOST_TURNED else ()
        fitting = (axes for axes in orders if _fits([shape[at] for at in (0, *axes)], dims))
        found = next(fitting, None)
        way_out = f"; transposed by {(0, *found)} they fit" if found else ""
        return f"the input {value.name!r} takes ({wanted}), and its values have the shape {shape}{way_out}"
    return ""


def _from_rows(declared: Mapping[str, Any], values: Feeds) -> Feeds:
    """`values` as the file has them, where they have samples in rows: nothing else fits the sizes that are declared."""
    if len({len(array) for array in values.values() if array.ndim}) != 1:
        return values
    batches = {
        dims[axis].dim_param
        for name, array in values.items()
        for dims in [declared[name]]
        if array.ndim == len(dims) and not _fits(array.shape, dims)
        for axis in range(1, array.ndim)
        if dims[axis].dim_param and _fits(np.moveaxis(array, 0, axis).shape, dims)
    }
    turned = {}
    for name, array in values.items():
        axis = next((at for at, dim in enumerate(declared[name]) if dim.dim_param in batches), 0)
        turned[name] = np.moveaxis(array, 0, axis) if axis < array.ndim else array
    return turned


def _fits(shape: Sequence[int], dims: Any) -> bool:
    return all(not dim.dim_value or dim.dim_value == size for size, dim in zip(shape, dims, strict=True))


def _fitting(names: Sequence[str], declared: Mapping[str, Any], sample: Sequence[Any]) -> list[str]:
    return list(names if len(sample) <= len(names) else declared)


def _sizes(declared: Mapping[str, Any], values: Feeds) -> dict[str, int]:
    """{name of a dimension: its size} in `values`; "" for the batch, as far as it is run."""
    known: dict[str, int] = {}
    for name, array in values.items():
        if array.ndim and declared[name]:
            known.setdefault("", min(len(array), declared[name][0].dim_value or MOST_SAMPLES))
        if array.ndim == len(declared[name]):
            for dim, size in zip(declared[name], array.shape, strict=True):
                if dim.dim_param:
                    known.setdefault(dim.dim_param, size)
    return known


def _zeros(model: onnx.ModelProto, name: str, sizes: Mapping[str, int]) -> NDArray[Any]:
    (value,) = (each for each in given_inputs(model) if each.name == name)
    kind = value.type.tensor_type
    shape = [
        dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, sizes.get("", 1))
        for dim in kind.shape.dim
    ]
    return np.zeros(shape, dtype=helper.tensor_dtype_to_np_dtype(kind.elem_type))


def _first(values: NDArray[Any], dims: Any, batches: set[tuple[str, int]]) -> NDArray[Any]:
    """As many samples as are compared; `batches` are names and sizes of first dimensions, wherever they stand."""
    if len(dims) == values.ndim:
        # Of what a file fixes, it takes no more; what lacks some is refused with the shape that it has.
        enough = all(size >= each.dim_value for each, size in zip(dims, values.shape, strict=True))
        ends = [
            (enough and each.dim_value) or (MOST_SAMPLES if (each.dim_param, size) in batches else None)
            for each, size in zip(dims, values.shape, strict=True)
        ]
        if dims and not dims[0].HasField("dim_value"):
            ends[0] = MOST_SAMPLES
        values = values[tuple(map(slice, ends))]
    return np.ascontiguousarray(values).reshape(values.shape)


def made_up(model: onnx.ModelProto, path: Path, *, skipped: int = 0) -> Iterator[Feeds]:
    """Values of the shapes that the file declares, in several lengths: a file need not run on the first.

    Whole numbers are 0 and 1, then 1 alone, then what the length is. Those `skipped` are left out, known not to run.
    Raises OnnxFileError for shapes that are too large.
    """
    for values in itertools.islice(_values(given_inputs(model), _usual_sizes(model)), skipped, None):
        yield values.of(model, path)


def count_of_usual(model: onnx.ModelProto) -> int:
    """How many of the `made_up` come first and have sizes that people use; what follows takes less."""
    usual = _usual_sizes(model)
    first = itertools.takewhile(lambda each: each.sizes in usual, _values(given_inputs(model), usual))
    return sum(1 for _ in first)


@dataclass(frozen=True, kw_only=True)
class _MadeUp:
    """What free dimensions, whole numbers from `numbers` and a `lone` one for all samples are in made-up inputs.

    `sizes` are that of free dimensions, and of a picture's height where it has another one. With `signals` a lone free
    dimension of floats is the length of a signal, not a batch, which has `samples`.
    """

    sizes: tuple[int, int | None]
    samples: int = _MADE_UP
    numbers: tuple[int, int] = (0, 2)
    lone: int | None = None
    signals: bool = False

    def of(self, model: onnx.ModelProto, path: Path) -> Feeds:
        generator = np.random.default_rng(0)
        layout = noted_layout(model)
        inputs = given_inputs(model)
        heads = [_dims(value)[0] for value in inputs if _dims(value)]
        unnamed = any(not head.HasField("dim_value") and not head.dim_param for head in heads)
        sizes: dict[str, int] = {}
        feeds: Feeds = {}
        for value in inputs:
            # One sample a call: its batch of 1 comes first where the file calls it free.
            alone = layout.single and self.samples == 1
            dims, batch = _dims(value), 0 if alone else layout.axis_of(value.name)
            if self.signals and _is_signal(value):
                batch = None
            # A state (layers, ?, units) beside an input (?, ...) has its batch there.
            state = unnamed and bool(dims) and dims[0].HasField("dim_value")
            shape = []
            length, height = self.sizes
            sides = _free_sides(value) if height else {}
            for axis, dim in enumerate(dims):
                size = self.samples if axis == batch or (state and not dim.dim_param) else length
                size = height if height and sides.get(axis) == 2 else size
                free = sizes.setdefault(dim.dim_param or f"{value.name} {axis}", size)
                shape.append(dim.dim_value if dim.HasField("dim_value") else free)
            kind = _kind(value)
            needed = math.prod(shape) * max(kind.itemsize, 8)
            if needed > _MOST_MADE_UP_BYTES:
                raise OnnxFileError(
                    f"the input {value.name!r} of {path} has the shape {str(tuple(shape))[:80]}, and {needed:,} bytes "
                    "of values are not made up; pass example=, a batch of inputs that the file takes"
                )
            drawn: Any = generator.integers(*self.numbers, size=shape)
            if kind.kind == "f":
                drawn = generator.normal(size=shape)
            elif self.lone is not None and not dims:
                drawn = self.lone
            feeds[value.name] = np.asarray(drawn).astype(kind)
        return feeds


def _values(inputs: Sequence[onnx.ValueInfoProto], usual: Sequence[tuple[int, int | None]]) -> Iterator[_MadeUp]:
    free = any(not dim.HasField("dim_value") for value in inputs for dim in _dims(value))
    whole = [value for value in inputs if _kind(value).kind in "iu"]
    every = tuple(dict.fromkeys([*usual, *((length, None) for length in _FREE_LENGTHS)]))
    for sizes in every if free else every[:1]:
        yield _MadeUp(sizes=sizes)
        if any(map(_is_signal, inputs)):
            yield _MadeUp(sizes=sizes, signals=True)
        if whole:
            yield _MadeUp(sizes=sizes, numbers=(1, 2))
            yield _MadeUp(sizes=sizes, numbers=(sizes[0], sizes[0] + 1))
        if any(not _dims(value) for value in whole):
            yield _MadeUp(sizes=sizes, lone=1)
            yield _MadeUp(sizes=sizes, lone=_RATE)
    if free and any(dim.dim_value == 1 for value in inputs for dim in _dims(value)[:2]):
        # A batch that is free in one input and that of a state beside it is not: (batch, steps), (layers, 1, units).
        yield from (_MadeUp(sizes=sizes, samples=1) for sizes in every)


def _usual_sizes(model: onnx.ModelProto) -> list[tuple[int, int | None]]:
    """What free sizes are tried first, and heights besides; times at 8 pixels or samples are of no use."""
    inputs = given_inputs(model)
    if any(map(_is_picture, inputs)):
        trained_for = _trained_for(model)
        squares = [trained_for, _PICTURE] if trained_for else [_PICTURE]
        return [*((side, None) for side in squares), *((_LINE, height) for height in _LINE_HEIGHTS)]
    return [(length, None) for length in _usual_lengths(model, inputs)]


def _usual_lengths(model: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]) -> list[int]:
    """The lengths of what is no picture; [] where nothing is known."""
    if any(map(_is_text, inputs)):
        return [_TEXT]
    if any(map(_is_line, inputs)):
        return [_LINE]
    # Attention over as many samples would not fit into memory: what takes sound makes fewer steps of it first.
    shortens = any(node.op_type in _SHORTENS for node in model.graph.node)
    if shortens and any(map(_is_sound, inputs)):
        return [_SOUND]
    return [_TEXT] if any(map(_has_steps, inputs)) else []


def _is_picture(value: onnx.ValueInfoProto) -> bool:
    """Whether it has channels, before height and width or behind them, and leaves both of these free."""
    return 2 in _free_sides(value).values()


def _is_line(value: onnx.ValueInfoProto) -> bool:
    """Whether it has channels and leaves height or width free alone, as lines of text and spectrograms do."""
    return 1 in _free_sides(value).values()


def _free_sides(value: onnx.ValueInfoProto) -> dict[int, int]:
    """By the dimension of the height, with channels before it and behind the width, how many of the two are free."""
    dims = _dims(value)
    if len(dims) != 4:
        return {}
    return {
        height: sum(not dims[axis].HasField("dim_value") for axis in (height, height + 1))
        for channels, height in ((1, 2), (3, 1))
        if dims[channels].dim_value in _CHANNELS
    }


def _has_steps(value: onnx.ValueInfoProto) -> bool:
    """Whether it is rows of float features at steps whose number alone is free, before the features or behind them."""
    dims = _dims(value)
    if _kind(value).kind != "f" or len(dims) != 3:
        return False
    free = [dim for dim in dims[1:] if not dim.HasField("dim_value")]
    return len(free) == 1 and not any(dim.dim_value == 1 for dim in dims[1:])


def _is_sound(value: onnx.ValueInfoProto) -> bool:
    """Whether it is rows of floats whose length is free, behind one channel or none."""
    dims = _dims(value)
    if _kind(value).kind != "f" or len(dims) not in (2, 3) or dims[-1].HasField("dim_value"):
        return False
    return len(dims) == 2 or dims[1].dim_value == 1


def _is_text(value: onnx.ValueInfoProto) -> bool:
    """Whether it is rows of whole numbers whose length is free."""
    dims = _dims(value)
    return _kind(value).kind in "iu" and len(dims) == 2 and not dims[1].HasField("dim_value")


def _trained_for(model: onnx.ModelProto) -> int | None:
    """The larger of the height and width that the file says it was trained for, None where it says nothing."""
    told = next((entry.value for entry in model.metadata_props if entry.key == _TRAINED_FOR), "")
    sizes = [int(size) for size in re.findall(r"\d{1,6}", told[:40])]
    return max(sizes) if sizes and 0 < max(sizes) <= _MOST_PIXELS else None


def _is_signal(value: onnx.ValueInfoProto) -> bool:
    """Whether an input may be one signal of any length instead of lone numbers of any number of samples."""
    dims = _dims(value)
    return len(dims) == 1 and not dims[0].HasField("dim_value") and _kind(value).kind == "f"


def _dims(value: onnx.ValueInfoProto) -> Any:
    return value.type.tensor_type.shape.dim


def _kind(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
