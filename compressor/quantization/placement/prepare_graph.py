"""An exported ONNX graph made ready for quantization: constants folded, shapes inferred, every node named."""

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from compressor.errors import StageError
from compressor.files.graphs import attribute, initializers, parse, producers, replace_nodes_
from compressor.files.operators import operator_of
from compressor.quantization.placement.distinct_names import make_names_distinct_
from compressor.quantization.placement.inner_layers import hoist_constants_, name_inner_nodes_

# What ONNX Runtime calls a node that it made of several, behind the name of one of them, which may have none.
_FUSION = re.compile(r"(/\w*Fusion/?\w*|MatMulBnFusion_Gemm\w*)+$")


def clean_graph(onnx_bytes: bytes) -> onnx.ModelProto:
    """The graph with constants folded, BatchNorm merged, shapes inferred, every node named, no initializer shared.

    A weight that two nodes share is quantized twice by ONNX Runtime, and the model is then silently wrong; identical
    integers are merged again by `compact_graph`.
    """
    with tempfile.TemporaryDirectory() as folder, quiet_logging():
        source, cleaned = Path(folder) / "model.onnx", Path(folder) / "clean.onnx"
        source.write_bytes(onnx_bytes)
        try:
            quant_pre_process(str(source), str(cleaned), skip_symbolic_shape=True)
        except Exception as error:  # onnx and ONNX Runtime raise whatever their C++ side threw
            raise StageError(
                f"ONNX Runtime could not prepare the exported graph for quantization: {error}; check that the model "
                "exports and runs without this stage"
            ) from error
        model = onnx.load(str(cleaned))
    # ONNX Runtime notes in it that it was here; what is carried on is what the file said before.
    before = parse(onnx_bytes)
    del model.metadata_props[:]
    model.metadata_props.extend(before.metadata_props)
    _name_as_before_(model, before)
    _name_nodes(model)
    _add_what_is_computed_(model)
    hoist_constants_(model)
    name_inner_nodes_(model)
    make_names_distinct_(model)
    _unshare_initializers(model)
    _write_bounds_as_numbers_(model)
    return model


@contextmanager
def quiet_logging() -> Iterator[None]:
    """ONNX Runtime's quantizers advise on the root logger; what matters of it is checked and reported here."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


def _name_as_before_(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Nodes that ONNX Runtime made of several get the name of that with the weights in the graph `before`, or none."""
    known = {node.name for node in before.graph.node}
    taken = {node.name for node in model.graph.node}
    made = producers(before.graph.node)
    for node in model.graph.node:
        if node.name in known or not _FUSION.search(node.name):
            continue
        name = _FUSION.sub("", node.name)
        if name not in known:
            name = _heavy_behind(node.output[0], made)
        node.name = "" if name in taken else name
        taken.add(name)


def _heavy_behind(tensor: str, made: dict[str, onnx.NodeProto]) -> str:
    """The name of the first node with weights on the way back from `tensor` by first inputs, "" where there is none."""
    while tensor in made:
        node = made[tensor]
        if operator_of(node.op_type).heavy:
            return str(node.name)
        tensor = node.input[0] if node.input else ""
    return ""


def _name_nodes(model: onnx.ModelProto) -> None:
    taken = {node.name for node in model.graph.node}
    seen: Counter[str] = Counter()
    for index, node in enumerate(model.graph.node):
        name = node.name or f"{node.op_type.lower()}_{index}"
        if seen[name] or not node.name:
            numbered = (f"{name}_{number}" for number in count(seen[name] or 1))
            node.name = next(new for new in (name, *islice(numbered, len(taken) + 1)) if new not in taken)
        seen[name] += 1
        taken.add(node.name)


def _add_what_is_computed_(model: onnx.ModelProto) -> None:
    """Takes sums with what is computed out of the Gemms that ONNX Runtime put them into, as a residual's.

    Its kernels on integers take constant biases alone, and with any other one multiply floats.
    """
    graph = model.graph
    constants = initializers(graph)
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    taken = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        written.append(node)
        added = node.input[2] if node.op_type == "Gemm" and len(node.input) > 2 else ""
        if not added or added in constants or attribute(node, "beta", 1.0) != 1.0 or node.output[0] not in known:
            continue
        product = next(name for number in count() if (name := f"{node.output[0]}_product{number}") not in taken)
        named = next(name for number in count() if (name := f"{node.name}_sum{number}") not in taken)
        taken |= {product, named}
        value = graph.value_info.add()
        value.CopyFrom(known[node.output[0]])
        value.name = product
        written.append(helper.make_node("Add", [product, added], [node.output[0]], named))
        del node.input[2:]
        node.output[0] = product
    replace_nodes_(graph, written)


def _unshare_initializers(model: onnx.ModelProto) -> None:
    constants = initializers(model.graph)
    uses: Counter[str] = Counter()
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            tensor = constants.get(name)
            if tensor is None or tensor.data_type != TensorProto.FLOAT:
                continue
            if uses[name]:
                copy = onnx.TensorProto()
                copy.CopyFrom(tensor)
                copy.name = f"{name}_copy{uses[name]}"
                model.graph.initializer.append(copy)
                node.input[position] = copy.name
            uses[name] += 1


def _write_bounds_as_numbers_(model: onnx.ModelProto) -> None:
    """Arrays of one as bounds of Clip become numbers: ONNX Runtime takes arrays where it fuses the node, else not.

    Asking for the tensor in front of it, as calibration does, keeps it from being fused.
    """
    constants = initializers(model.graph)
    for node in model.graph.node:
        for name in node.input[1:] if node.op_type == "Clip" else ():
            tensor = constants.get(name)
            # Other types may be shared with nodes that need the shape.
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and all(size == 1 for size in tensor.dims):
                del tensor.dims[:]
