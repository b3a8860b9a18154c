"""The quantized graph as a small file, without what only people read, and the kernels that ONNX Runtime makes of it."""

import hashlib
import tempfile
from collections import Counter
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from compressor.files.graphs import all_nodes, copy_of, inner_graphs, names_captured, names_read, output_names
from compressor.files.operators import Fact, facts_of
from compressor.runtime import load_session, session_options

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def optimized_nodes(onnx_bytes: bytes, *, signed_activations: bool = False) -> list[onnx.NodeProto]:
    """The nodes that ONNX Runtime runs for the file on this machine, after all of its fusions.

    `signed_activations` fuses int8 activations as on Arm, where this machine would leave them in float.
    Raises ValueError for a file that ONNX Runtime cannot load.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options = session_options()
        options.optimized_model_filepath = str(path)
        if signed_activations:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        # The file is looked at, not shipped: that it fits this machine's CPU alone is the point.
        load_session(onnx_bytes, options)
        return list(all_nodes(onnx.load(str(path)).graph))


def kernels(onnx_bytes: bytes, *, signed_activations: bool = False) -> Counter[str]:
    """How many nodes of each operator ONNX Runtime runs for the file; `signed_activations` as in `optimized_nodes`."""
    return Counter(node.op_type for node in optimized_nodes(onnx_bytes, signed_activations=signed_activations))


def compact_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation in a smaller file: identical constants merged, short names, no notes, no shapes inside.

    Inputs, outputs and the names of nodes other than QuantizeLinear and DequantizeLinear stay.
    """
    compact = copy_of(model)
    graph = compact.graph
    _merge_constants(graph)
    _drop_notes(compact)
    _shorten_names(graph)
    return compact


def serialize(model: onnx.ModelProto) -> bytes:
    """The file's bytes, the same for the same graph."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _merge_constants(graph: onnx.GraphProto) -> None:
    first: dict[tuple[int, tuple[int, ...], str], str] = {}
    renamed: dict[str, str] = {}
    outputs = output_names(graph)
    used = {name for node in graph.node for name in names_read(node)} | outputs
    # What a loop or branch reads keeps its name.
    inside = {name for node in graph.node for name in names_captured(node)}
    kept = []
    for tensor in graph.initializer:
        if tensor.name not in used:
            continue
        digest = hashlib.sha256(numpy_helper.to_array(tensor).tobytes()).hexdigest()
        key = (tensor.data_type, tuple(tensor.dims), digest)
        if key in first and tensor.name not in outputs | inside:
            renamed[tensor.name] = first[key]
            continue
        first.setdefault(key, tensor.name)
        # Typed fields store int8 as varints, ten bytes for a negative number; raw data takes one.
        kept.append(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)


def _drop_notes(model: onnx.ModelProto) -> None:
    model.doc_string = ""
    model.producer_name, model.producer_version = "compressor", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string, graph.name = "", "g"
    del graph.value_info[:]
    del graph.metadata_props[:]
    del graph.quantization_annotation[:]
    used = {node.domain for node in all_nodes(graph)} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    versions = {entry.domain: entry.version for entry in kept}
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        if Fact.CONVERTS in facts_of(node.op_type):
            node.name = ""
        _drop_defaults(node, versions.get(node.domain, 1))
    for value in [*graph.input, *graph.output]:
        value.doc_string = ""
        del value.metadata_props[:]


def _drop_defaults(node: onnx.NodeProto, version: int) -> None:
    if not onnx.defs.has(node.op_type, version, node.domain):
        return
    known = onnx.defs.get_schema(node.op_type, version, node.domain).attributes
    for attribute in list(node.attribute):
        default = known[attribute.name].default_value if attribute.name in known else None
        # An attribute without a default has a default_value of type UNDEFINED.
        if (
            default is not None
            and default.type == attribute.type
            and helper.get_attribute_value(default) == helper.get_attribute_value(attribute)
        ):
            node.attribute.remove(attribute)


def _shorten_names(graph: onnx.GraphProto) -> None:
    if any(map(inner_graphs, graph.node)):
        # A subgraph sees the names around it: renaming would have to follow it inside, for a few bytes.
        return
    kept = {value.name for value in [*graph.input, *graph.output]}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        if not name or name in kept:
            return name
        if name not in names:
            number = len(names)
            while (candidate := _base36(number)) in kept or candidate in names.values():
                number += 1
            names[name] = candidate
        return names[name]

    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]


def _base36(number: int) -> str:
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
        if number == 0:
            return text
