"""What a file says of itself, carried over to files that are made of it: metadata, names, their order and types.

Programs read labels, character sets and strides from a file's metadata before its first run, and feed it by the names,
the order and the types of its inputs.
"""

from collections.abc import Sequence

import onnx

from compressor.errors import StageError
from compressor.files.graphs import parse
from compressor.outputs.layout import LAYOUT_KEY, Layout

# What this package writes into a file's metadata begins so; all else belongs to whoever made the file.
OURS = "compressor."
# What was done to a file when it was read.
_READING_KEY = f"{OURS}read"


def carried_over(onnx_bytes: bytes, source: bytes) -> bytes:
    """The file `onnx_bytes`, made of `source`, with what `source` says of itself.

    That is its metadata, description, domain, version and the name of its graph, and what it declares of its inputs and
    outputs. Of metadata under the prefix `compressor.` (OURS) the made file's stay, and the layout comes along: what
    else was true of the source need not be true of it. Raises StageError where inputs or outputs have other names,
    another order or other types.
    """
    made, before = parse(onnx_bytes), parse(source)
    ours = [entry for entry in made.metadata_props if entry.key.startswith(OURS) and entry.key != LAYOUT_KEY]
    theirs = [entry for entry in before.metadata_props if not entry.key.startswith(OURS) or entry.key == LAYOUT_KEY]
    del made.metadata_props[:]
    made.metadata_props.extend([*theirs, *ours])
    for entry in ("doc_string", "domain", "model_version"):
        # What was never said is told apart from an empty text or a zero.
        made.ClearField(entry)
        if before.HasField(entry):
            setattr(made, entry, getattr(before, entry))
    made.graph.name, made.graph.doc_string = before.graph.name, before.graph.doc_string
    for side in ("input", "output"):
        wanted, found = (_declared(graph, side) for graph in (before.graph, made.graph))
        _check_same(side, found, wanted)
        held = getattr(made.graph, side)
        del held[:]
        held.extend(wanted)
    data: bytes = made.SerializeToString(deterministic=True)
    return data


def note_layout_(model: onnx.ModelProto, layout: Layout) -> None:
    """Notes the `layout` in the metadata of `model`, nothing where samples come first and the usual output counts."""
    kept = [entry for entry in model.metadata_props if entry.key != LAYOUT_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if layout != Layout():
        entry = model.metadata_props.add()
        entry.key, entry.value = LAYOUT_KEY, layout.noted()


def note_reading_(model: onnx.ModelProto, notices: Sequence[str]) -> None:
    """Notes in the metadata of `model` what was done to it when it was read."""
    if notices:
        entry = model.metadata_props.add()
        entry.key, entry.value = _READING_KEY, "; ".join(notices)


def reading_notes(model: onnx.ModelProto) -> tuple[str, ...]:
    """What was noted when the file was read, or nothing."""
    return tuple(entry.value for entry in model.metadata_props if entry.key == _READING_KEY)


def noted_layout(model: onnx.ModelProto) -> Layout:
    """The layout that the metadata of `model` note."""
    return Layout.of_metadata({entry.key: entry.value for entry in model.metadata_props})


def _declared(graph: onnx.GraphProto, side: str) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in graph.initializer} if side == "input" else set()
    return [value for value in getattr(graph, side) if value.name not in stored]


def _check_same(side: str, found: Sequence[onnx.ValueInfoProto], wanted: Sequence[onnx.ValueInfoProto]) -> None:
    ours, theirs = ([(value.name, value.type.tensor_type.elem_type) for value in values] for values in (found, wanted))
    if ours != theirs:
        told = [", ".join(f"{name} ({_type(kind)})" for name, kind in each) for each in (theirs, ours)]
        raise StageError(
            f"the file must keep its {side}s, {told[0]}, and would have {told[1]}: programs that run it would fail; "
            "leave this stage out for this file"
        )


def _type(kind: int) -> str:
    return str(onnx.TensorProto.DataType.Name(kind)).lower()


def fixed_batch(model: onnx.ModelProto) -> int:
    """The one number of samples that the file takes at once, 0 where it takes any; 1 for a file without a batch."""
    layout = noted_layout(model)
    if layout.single:
        return 1
    for value in model.graph.input:
        dimensions, axis = value.type.tensor_type.shape.dim, layout.axis_of(value.name)
        if axis is not None and len(dimensions) > axis:
            return int(dimensions[axis].dim_value)
    return 0
