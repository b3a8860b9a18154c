"""ONNX files from elsewhere, made ready to be quantized and measured like a model of torch.

Files in the wild fix the batch, list their weights as inputs and use old opsets. Each of these is changed, and what was
changed has to give the outputs of the file as it was.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter

from compressor.batches import Inputs
from compressor.errors import OnnxFileError
from compressor.files.export import MAX_BYTES, OPSET
from compressor.files.graphs import copy_of, initializers, opset_of
from compressor.runtime import Feeds, OnnxModule, feeds_of, load_session, open_session, session_options
from compressor.texts import first_said

# The first opset whose DequantizeLinear has scales for every channel, and the last whose QuantizeLinear ONNX Runtime
# fuses: a file between them that cannot be converted is taken as it is.
_OPSETS = (13, 22)
# Outputs may differ by this share of their largest value: other opsets may fuse in another order.
_TOLERANCE = 1e-4
# Samples of an example that are compared where the batch is free.
_MOST_SAMPLES = 16
# What free dimensions other than the batch are in made-up inputs.
_FREE_LENGTH = 8


def read_onnx(path: str | Path, *, example: Inputs | None = None) -> OnnxModule:
    """The ONNX file at `path` as a model for `Workload.from_datasets`, to be quantized and measured.

    A fixed batch becomes free, weights that are listed as inputs become constants, and the opset the one that is
    written here; the outputs are compared with those of the file as it was, on the first of `example` (inputs, a
    sample in every row) or on made-up ones. Weights in files of their own are read, too. Raises
    FileNotFoundError, and OnnxFileError for what is no ONNX file, is too large, or could not be changed so that it
    computes the same.
    """
    original = _loaded(Path(path))
    feeds = _feeds(original, example)
    expected = _outputs(original, feeds)
    if isinstance(expected, str):
        source = "example" if example is not None else "made-up inputs"
        raise OnnxFileError(
            f"{path} cannot be run on {source}: {expected}. Pass example=, a batch of inputs that the file takes"
        )
    model = _converted(_with_constants(original), path)
    problem = _difference(model, feeds, expected)
    if problem:
        raise OnnxFileError(f"{path} computes something else in opset {OPSET}: {problem}; export it with that opset")
    return OnnxModule(_with_free_batch(model, feeds, path).SerializeToString(deterministic=True))


def input_kinds(path: str | Path) -> dict[str, np.dtype[Any]]:
    """{input: the type of its values} of the ONNX file at `path`. Raises as `read_onnx` does."""
    return {
        value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in _given_inputs(_loaded(Path(path)))
    }


def _loaded(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # protobuf and onnx raise errors of their own
        raise OnnxFileError(f"{path} is no ONNX file, or is damaged: {first_said(error)}") from error
    if not model.graph.node:
        raise OnnxFileError(f"{path} is no ONNX file: it has no graph")
    if model.ByteSize() > MAX_BYTES:
        raise OnnxFileError(
            f"{path} has {model.ByteSize() / 1e9:.1f} GB, and at most {MAX_BYTES / 1e9:.1f} GB fit one file"
        )
    return model


def _given_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of the graph that no weight stands for."""
    constants = initializers(model.graph)
    return [value for value in model.graph.input if value.name not in constants]


def _batches(model: onnx.ModelProto) -> list[tuple[str, Any]]:
    """(name, first dimension, as a list that may be empty) of every input."""
    return [(value.name, value.type.tensor_type.shape.dim[:1]) for value in _given_inputs(model)]


def _with_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the inputs that are weights: only constants are folded, fused and quantized."""
    model, inputs = copy_of(model), _given_inputs(model)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    # Weights that are no inputs came with the fourth version of the format.
    model.ir_version = max(model.ir_version, 4)
    return model


def _converted(model: onnx.ModelProto, path: str | Path) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # onnx raises whatever its C++ side threw
        if _OPSETS[0] <= opset <= _OPSETS[1]:
            return model
        raise OnnxFileError(
            f"{path} has opset {opset}, and could not be converted to {OPSET}: {first_said(error)}. Integers need one "
            f"from {_OPSETS[0]} to {_OPSETS[1]}; export it again"
        ) from error


def _with_free_batch(model: onnx.ModelProto, feeds: Feeds, path: str | Path) -> onnx.ModelProto:
    """`model` for any batch, as it is where it takes one. Raises ValueError where it computes one alone."""
    first = [dim for _, dim in _batches(model)]
    fixed = {dim[0].dim_value for dim in first if dim and dim[0].HasField("dim_value")}
    if not fixed:
        return model
    sizes = ", ".join(map(str, sorted(fixed)))
    # Samples with other values behind them: outputs that mix samples would show.
    turned = {name: np.flip(values).copy() for name, values in feeds.items()}
    parts = [_outputs(model, each) for each in (feeds, turned)]
    if len(fixed) > 1 or not all(map(len, first)):
        problem = "its inputs have different ones, or none"
    elif any(isinstance(part, str) or not all(output.ndim for output in part) for part in parts):
        problem = "its outputs have none, or not for all inputs"
    else:
        twice = {name: np.concatenate([values, turned[name]]) for name, values in feeds.items()}
        expected = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
        freed = _freed(model, *fixed)
        problem = _difference(freed, twice, expected)
        if not problem:
            return freed
    raise OnnxFileError(
        f"{path} is for batches of {sizes} alone, and the batch could not be made free: {problem}. Export it with a "
        "free batch: dynamic_shapes (or dynamic_axes) of torch.onnx.export"
    )


def _freed(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """`model` with a free batch, which Reshape infers where its target begins with `batch`, or copies."""
    free = copy_of(model)
    del free.graph.value_info[:]
    for value in [*free.graph.input, *free.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == batch:
            dims[0].dim_param = "batch"
    for holder in _reshape_targets(free.graph):
        target = numpy_helper.to_array(holder).copy()
        if target.ndim == 1 and target.size and target[0] == batch:
            # One dimension may be inferred; 0 copies the input's.
            target[0] = 0 if -1 in target else -1
            holder.CopyFrom(numpy_helper.from_array(target, holder.name))
    return free


def _reshape_targets(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    wanted = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    yield from (tensor for tensor in graph.initializer if tensor.name in wanted)
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in wanted:
            yield from (entry.t for entry in node.attribute if entry.name == "value")


def _feeds(model: onnx.ModelProto, example: Inputs | None) -> Feeds:
    """What the file is run on: `example`, or made-up values of the shapes that it declares."""
    if example is not None:
        given = feeds_of(open_session(_with_constants(model).SerializeToString()), example)
        return {
            name: given[name][: dim[0].dim_value or _MOST_SAMPLES] if dim else given[name]
            for name, dim in _batches(model)
        }
    generator = np.random.default_rng(0)
    sizes: dict[str, int] = {}
    feeds: Feeds = {}
    for value in _given_inputs(model):
        shape = []
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            free = sizes.setdefault(dim.dim_param or f"{value.name} {axis}", 2 if axis == 0 else _FREE_LENGTH)
            shape.append(dim.dim_value if dim.HasField("dim_value") else free)
        kind = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        drawn = generator.normal(size=shape) if kind.kind == "f" else generator.integers(0, 2, shape)
        feeds[value.name] = drawn.astype(kind)
    return feeds


def _outputs(model: onnx.ModelProto, feeds: Feeds) -> list[NDArray[Any]] | str:
    """The outputs for `feeds`, or the first line of the error."""
    options = session_options()
    options.log_severity_level = 4  # what fails here is tried in another way, or raised
    try:
        session = load_session(_with_constants(model).SerializeToString(), options)
        return [np.asarray(output) for output in session.run(None, feeds)]
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class below Exception
        return first_said(error)


def _difference(model: onnx.ModelProto, feeds: Feeds, expected: list[NDArray[Any]]) -> str:
    """How the outputs of `model` differ from the `expected` ones, "" where they do not."""
    found = _outputs(model, feeds)
    if isinstance(found, str):
        return found
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.shape != theirs.shape:
            return f"output {index} has shape {ours.shape} instead of {theirs.shape}"
        if ours.dtype.kind != "f":
            if not np.array_equal(ours, theirs):
                return f"output {index} has other values"
            continue
        largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
        if not np.allclose(ours, theirs, rtol=0.0, atol=_TOLERANCE * max(largest, 1e-6), equal_nan=True):
            return f"output {index} differs by {np.nanmax(np.abs(ours - theirs)):.3g} of {largest:.3g}"
    return ""
