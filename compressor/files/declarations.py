"""What an ONNX file declares, held against what it holds, before anything is made of it.

A few bytes can declare shapes of exabytes, tensors whose bytes are missing, or weights in files anywhere on the disk.
"""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, shape_inference

from compressor.errors import OnnxFileError
from compressor.files.graphs import all_graphs, all_nodes, initializers
from compressor.files.limits import MAX_BYTES, Limits, regular_size

# By name, as older versions of ONNX lack some: several of these share a byte.
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_BITS = {number: _PACKED[name] for name, number in TensorProto.DataType.items() if name in _PACKED}
# Of these ONNX Runtime takes and gives arrays of numpy.
_ARRAYS = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL,
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip
# How they are packed is not settled; ONNX Runtime has no operator for them.
_UNSETTLED = {number for name, number in TensorProto.DataType.items() if name.startswith("FLOAT6")}
# Values that are stored as numbers of another field have as many of those; complex ones have two.
_PAIRS = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
# Shapes are inferred on a copy; a larger file is held by the memory that it may take.
_MOST_INFERRED_BYTES = 64 << 20


def check_declarations(model: ModelProto, path: Path, limits: Limits) -> int:
    """The bytes that `model`, read from `path`, has in files of their own; what it declares is what it holds.

    Raises OnnxFileError, naming the tensor, for values of unknown types, shapes that do not fit the bytes, weights
    outside the folder of the file, and tensors of the graph larger than `limits` allow.
    """
    for value in given_inputs(model):
        dtype_of(value, path)
    outside = 0
    for tensor in _tensors(model):
        outside += _check_tensor(tensor, path)
    if outside + model.ByteSize() > MAX_BYTES:
        raise OnnxFileError(
            f"{path} has {(outside + model.ByteSize()) / 1e9:.1f} GB with its weights, and at most "
            f"{MAX_BYTES / 1e9:.1f} GB fit one file"
        )
    _check_sizes(model, path, limits.memory_for(model.ByteSize() + outside), limits)
    return outside


def given_inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs of the graph that no weight stands for."""
    constants = initializers(model.graph)
    return [value for value in model.graph.input if value.name not in constants]


def without_rank(model: ModelProto) -> list[str]:
    """The names of inputs of which the file does not say how many dimensions they have."""
    return [value.name for value in given_inputs(model) if not value.type.tensor_type.HasField("shape")]


def check_outputs(model: ModelProto, path: Path) -> None:
    """Raises OnnxFileError for outputs that are no tensors of numbers: nothing can be compared with them."""
    for value in model.graph.output:
        which = value.type.WhichOneof("value")
        if which not in {None, "tensor_type"}:
            told = str(which).replace("_type", "")
            raise OnnxFileError(
                f"the output {value.name!r} of {path} is a {told}, and only tensors of numbers can be compared and "
                "scored; export the file without what makes it (zipmap=False of skl2onnx)"
            )
        if value.type.tensor_type.elem_type == TensorProto.STRING:
            raise OnnxFileError(
                f"the output {value.name!r} of {path} holds strings, and only numbers can be compared and scored; cut "
                "the file before it, at the numbers that choose them"
            )
        kind = value.type.tensor_type.elem_type
        if kind and kind not in _ARRAYS:
            raise OnnxFileError(
                f"the output {value.name!r} of {path} holds {_told(kind)}, of which ONNX Runtime makes no array of "
                "numbers in Python, so that it cannot be compared and scored; end the file with a Cast to float"
            )


def dtype_of(value: onnx.ValueInfoProto, path: Path) -> str:
    """The name of the numpy type of an input's values. Raises OnnxFileError for what is no tensor of a known type."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        told = (kind or "value without a type").replace("_type", "")
        raise OnnxFileError(f"the input {value.name!r} of {path} is a {told}, and only tensors can be fed")
    if value.type.tensor_type.elem_type == TensorProto.STRING:
        raise OnnxFileError(
            f"the input {value.name!r} of {path} holds strings, and only numbers can be fed; cut the file behind what "
            "makes numbers of them"
        )
    name = _dtype_name(value.type.tensor_type.elem_type, f"the input {value.name!r} of {path}")
    if value.type.tensor_type.elem_type not in _ARRAYS:
        raise OnnxFileError(
            f"the input {value.name!r} of {path} holds {_told(value.type.tensor_type.elem_type)}, which ONNX Runtime "
            "takes as no array of numbers in Python; begin the file with a Cast from float"
        )
    return name


def _told(number: int) -> str:
    return str(TensorProto.DataType.Name(number)).lower()


def _dtype_name(number: int, what: str) -> str:
    try:
        return str(helper.tensor_dtype_to_np_dtype(number).name)
    except (KeyError, ValueError, TypeError) as error:
        raise OnnxFileError(
            f"{what} has values of type number {number}, which ONNX {onnx.__version__} does not know; the file is "
            "damaged or of a later version"
        ) from error


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every constant of the model, inside branches, loops and functions too."""
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    nodes = [*all_nodes(model.graph)]
    for function in model.functions:
        nodes += all_nodes(GraphProto(node=function.node))
    for node in nodes:
        for entry in node.attribute:
            yield from (entry.t, *entry.tensors) if entry.type == onnx.AttributeProto.TENSOR else entry.tensors
            for sparse in (entry.sparse_tensor, *entry.sparse_tensors):
                if sparse.ByteSize():
                    yield from (sparse.values, sparse.indices)


def _check_tensor(tensor: TensorProto, path: Path) -> int:
    """The bytes that the tensor has outside of the file."""
    what = f"the constant {tensor.name!r} of {path}"
    name = _dtype_name(tensor.data_type, what)
    if any(size < 0 for size in tensor.dims):
        raise OnnxFileError(f"{what} has the shape {_shape(tensor.dims)}; the file is damaged, export it again")
    count = math.prod(map(int, tensor.dims))
    wanted = -(-count * _bits(tensor.data_type) // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        _check_outside(tensor, wanted, path, what)
        return wanted
    if tensor.HasField("raw_data"):
        held, unit = len(tensor.raw_data), "bytes"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        held, unit = len(getattr(tensor, field)), "values"
        wanted = 2 * count if tensor.data_type in _PAIRS else count
        if tensor.data_type in _BITS:
            wanted = -(-count * _BITS[tensor.data_type] // 8)
    if held != wanted and tensor.data_type not in _UNSETTLED:
        raise OnnxFileError(
            f"{what} holds {held:,} {unit}, and its shape {_shape(tensor.dims)} of {name} takes {wanted:,}; the file "
            "is damaged, export it again"
        )
    return 0


def _check_outside(tensor: TensorProto, wanted: int, path: Path, what: str) -> None:
    """The tensor's bytes lie in a regular file in the folder of `path`."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    pure = PurePosixPath(location)
    folder = path.parent.resolve()
    if not location or pure.is_absolute() or PureWindowsPath(location).drive or ".." in pure.parts or "\\" in location:
        raise OnnxFileError(f"{what} lies in {location!r}, and weights are read from the folder of the file alone")
    place = folder / pure
    try:
        if place.resolve() != place or not place.is_relative_to(folder):
            raise OnnxFileError(f"{what} lies in {location!r}, which is a link; put the file itself beside {path.name}")
        size = regular_size(place)
        if place.stat().st_nlink > 1:
            raise OnnxFileError(
                f"{what} lies in {location!r}, which is a second name of another file; copy it beside {path.name}"
            )
    except FileNotFoundError as error:
        raise OnnxFileError(f"{what} lies in {location!r}, which is not in the folder of the file") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OnnxFileError):
            raise
        raise OnnxFileError(f"{what} lies in {location!r}, which cannot be read: {error}") from error
    try:
        offset = int(facts.get("offset") or 0)
        length = int(facts.get("length") or size - offset)
    except ValueError as error:
        raise OnnxFileError(f"{what} has the place {facts} in {location!r}, which are no numbers") from error
    if offset < 0 or length != wanted or offset + length > size:
        raise OnnxFileError(
            f"{what} takes {wanted:,} bytes, and {length:,} from byte {offset:,} of {location!r} are given, which has "
            f"{size:,}; the files do not belong together, export them again"
        )


def _check_sizes(model: ModelProto, path: Path, most: int, limits: Limits) -> None:
    """No tensor whose shape is known from the start has more than `most` bytes."""
    for value in model.graph.input:
        _check_size(value, most, path, limits, "its input")
    if model.ByteSize() > _MOST_INFERRED_BYTES:
        return
    try:
        graph = shape_inference.infer_shapes(model).graph
    except Exception:  # noqa: BLE001  # what is wrong with the graph, ONNX Runtime says in better words
        return
    for value in (*graph.value_info, *graph.output):
        _check_size(value, most, path, limits, "the tensor")


def _check_size(value: onnx.ValueInfoProto, most: int, path: Path, limits: Limits, what: str) -> None:
    if not value.type.HasField("tensor_type"):
        return
    sizes = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in value.type.tensor_type.shape.dim]
    if any(size < 0 for size in sizes):
        raise OnnxFileError(f"{what} {value.name!r} of {path} has the shape {_shape(sizes)}; the file is damaged")
    size_bytes = math.prod(sizes) * _bits(value.type.tensor_type.elem_type) // 8
    if size_bytes > most:
        raise OnnxFileError(
            f"{path} {limits.too_large}: {what} {value.name!r} of shape {_shape(sizes)} alone has {size_bytes:,} bytes"
        )


def _bits(data_type: int) -> int:
    if data_type in _BITS:
        return _BITS[data_type]
    try:
        return 8 * int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)
    except (KeyError, ValueError, TypeError):  # of a tensor inside the graph: ONNX Runtime refuses it
        return 8


def _shape(sizes: Iterable[int]) -> str:
    text = str(tuple(sizes))
    return text if len(text) <= 80 else text[:77] + "..."
