"""Functions of a file's own written out, its opset made the one that is written here, and what draws numbers."""

from collections.abc import Iterator

import onnx
from onnx import helper, shape_inference, version_converter
from onnx.inliner import inline_local_functions, inline_selected_functions

from compressor.files.graphs import OPSET, all_nodes, copy_of, opset_of

# The last opset in which Resize and Upsample count pixels from their corners and round down, and cannot say so.
_CORNERS = 10
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}


def draws(model: onnx.ModelProto) -> list[str]:
    """The kinds of operators in `model` that draw random numbers, sorted."""
    nodes = [*all_nodes(model.graph), *(node for function in model.functions for node in function.node)]
    return sorted({node.op_type for node in nodes} & _RANDOM)


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the functions that it defines written out where they are called: their layers are seen, then."""
    if not model.functions:
        return model
    whole = copy_of(model)
    for function in whole.functions:
        for item in function.opset_import:
            # Of another opset than the graph that calls it: whether it computes the same so, the caller finds out.
            if item.domain in {"", "ai.onnx"}:
                item.version = opset_of(model)
    inlined = inline_local_functions(whole)
    domains = {node.domain for node in all_nodes(inlined.graph)} | {""}
    kept = [item for item in inlined.opset_import if item.domain in domains]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept)
    return inlined


def in_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` in the opset that is written here. Raises whatever ONNX's converter does where it cannot."""
    opset = opset_of(model)
    if opset == OPSET:
        return model
    converted = version_converter.convert_version(_without_later(model), OPSET)
    _leave_unnamed_(converted, model)
    if opset <= _CORNERS:
        for node in all_nodes(converted.graph):
            if node.op_type == "Resize":
                _count_from_corners_(node)
    return converted


def _leave_unnamed_(converted: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Sizes that have no name in `model` have none in `converted` either: inference makes some up, unk__0 and so on."""
    named = {dim.dim_param for dim in _sizes(model)}
    for dim in _sizes(converted):
        if dim.dim_param.startswith("unk__") and dim.dim_param not in named:
            dim.Clear()


def _sizes(model: onnx.ModelProto) -> Iterator[onnx.TensorShapeProto.Dimension]:
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield from value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ()


def _without_later(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with operators that came after the opset that is written here as their own definitions have them."""
    opset = opset_of(model)
    named = {node.op_type for node in all_nodes(model.graph) if node.domain in {"", "ai.onnx"}}
    later = [("", name) for name in sorted(named) if onnx.defs.has(name, opset) and not onnx.defs.has(name, OPSET)]
    if not later:
        return model
    # Definitions depend on types, which the inliner takes from what is declared alone.
    typed = shape_inference.infer_shapes(model)
    typed.graph.value_info.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims) for tensor in model.graph.initializer
    )
    written = inline_selected_functions(typed, later, inline_schema_functions=True)
    del written.graph.value_info[:]
    return written


def _count_from_corners_(node: onnx.NodeProto) -> None:
    kept = [entry for entry in node.attribute if entry.name == "mode"]
    del node.attribute[:]
    node.attribute.extend(kept)
    for name, value in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
        node.attribute.append(helper.make_attribute(name, value))
