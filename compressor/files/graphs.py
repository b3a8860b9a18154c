"""How ONNX graphs are read: who makes and reads each tensor, inside branches and loops too, and what is known of it.

Optional inputs and outputs that are left out have the empty name in ONNX; here they are neither read nor made.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are a package of their own
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

# The newest that both exporters of torch write; ONNX Runtime has a CPU kernel for every operator of it (opset 21 adds
# only 4-bit types, and 23 made it refuse QuantizeLinear: microsoft/onnxruntime#25932).
OPSET = 20
# Of ONNX Runtime's own operators.
RUNTIME_DOMAIN = "com.microsoft"
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def parse(onnx_bytes: bytes) -> ModelProto:
    """The model in the bytes of an ONNX file. Raises ValueError where there is none."""
    try:
        model = onnx.load_from_string(onnx_bytes)
    except DecodeError as error:
        raise ValueError(f"{len(onnx_bytes)} bytes are no ONNX model ({error}); export it again") from error
    if not model.graph.node and not model.graph.output:
        raise ValueError(f"the ONNX model of {len(onnx_bytes)} bytes has no graph; export it again")
    return model


def copy_of(model: ModelProto) -> ModelProto:
    """A copy that can be changed."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def same_structure(one: bytes, other: bytes) -> bool:
    """Whether two ONNX files differ in the values of their weights alone: nodes, names, shapes and types are equal.

    Weights inside of branches and loops count as part of the structure.
    """
    return one == other or _without_values(one) == _without_values(other)


def _without_values(onnx_bytes: bytes) -> bytes:
    model = parse(onnx_bytes)
    for tensor in model.graph.initializer:
        bare = TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        tensor.CopyFrom(bare)
    return bytes(model.SerializeToString(deterministic=True))


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators in the file. Raises ValueError where it names none."""
    found = next((int(item.version) for item in model.opset_import if item.domain in {"", "ai.onnx"}), None)
    if found is None:
        domains = sorted(item.domain for item in model.opset_import)
        raise ValueError(f"the ONNX model names no version of ONNX's own operators, only of {domains}; export it again")
    return found


def inner_graphs(node: NodeProto) -> list[GraphProto]:
    """The bodies of a node that branches or loops (If, Loop, Scan), without the graphs inside of these."""
    # Of all attributes the type is read alone: every node of every graph is asked, again and again.
    return [graph for entry in node.attribute if entry.type in _GRAPHS for graph in _graphs_of(entry)]


def _graphs_of(entry: onnx.AttributeProto) -> Iterable[GraphProto]:
    return [entry.g] if entry.type == onnx.AttributeProto.GRAPH else entry.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` itself, then the graphs inside of it, at whatever depth."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of `graph`, each followed by those of the graphs inside of it."""
    for node in graph.node:
        yield node
        for inner in inner_graphs(node):
            yield from all_nodes(inner)


def names_captured(node: NodeProto) -> list[str]:
    """The tensors from outside that the graphs inside of `node` read, each as often as it is read."""
    found: list[str] = []
    for graph in inner_graphs(node):
        own = {value.name for value in graph.input} | initializers(graph).keys() | producers(graph.node).keys()
        own |= {tensor.values.name for tensor in graph.sparse_initializer}
        read = [name for inner in graph.node for name in names_read(inner)]
        found += [name for name in (*read, *(value.name for value in graph.output)) if name not in own]
    return found


def names_read(node: NodeProto) -> list[str]:
    """The tensors that `node` reads, its inputs first, then what the graphs inside of it read from outside."""
    return [*filter(None, node.input), *(names_captured(node) if node.attribute else ())]


def readers(nodes: Iterable[NodeProto]) -> dict[str, list[NodeProto]]:
    """{tensor: those of `nodes` that read it}; a node is named as often as it reads; [] for what none reads."""
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in names_read(node):
            found[name].append(node)
    return found


def producers(nodes: Iterable[NodeProto]) -> dict[str, NodeProto]:
    """{tensor: the one of `nodes` that makes it}."""
    return {name: node for node in nodes for name in node.output if name}


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """{name: constant} of those that the graph stores, without those of its Constant nodes."""
    return {tensor.name: tensor for tensor in graph.initializer}


def output_names(graph: GraphProto) -> set[str]:
    """The tensors that the graph gives out, which may have readers inside as well."""
    return {value.name for value in graph.output}


def attributes(node: NodeProto) -> dict[str, Any]:
    """{attribute: its value}: numbers, bytes for texts, lists, tensors or graphs; those that are set alone."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """The value of one attribute, `default` where it is not set."""
    return next((helper.get_attribute_value(entry) for entry in node.attribute if entry.name == name), default)


def shapes(model: ModelProto) -> dict[str, tuple[int | None, ...]]:
    """{tensor of the main graph: its sizes}, None for those that may vary; tensors of unknown rank are left out.

    As ONNX's inference finds them for inputs, outputs and everything between.
    """
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: tuple(
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        )
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape")
    }


def ranks(model: ModelProto) -> dict[str, int]:
    """{tensor of the main graph: the number of its dimensions}, where it is known."""
    return {name: len(sizes) for name, sizes in shapes(model).items()}


def rename_tensors_(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Gives the tensors that are keys of `names` other names, inside branches and loops too."""
    for each in all_graphs(graph):
        for value in (*each.input, *each.output, *each.initializer, *each.value_info):
            value.name = names.get(value.name, value.name)
        for sparse in each.sparse_initializer:
            sparse.values.name = names.get(sparse.values.name, sparse.values.name)
        for node in each.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def set_apart_(graph: GraphProto, names: Mapping[str, str], between: Callable[[str, str], NodeProto]) -> None:
    """Gives inputs and outputs of `graph` other names inside; `between(source, target)` leads from one to the other."""
    inputs = [value.name for value in graph.input if value.name in names]
    outputs = [value.name for value in graph.output if value.name in names and value.name not in inputs]
    if not names:
        return
    known = {value.name: value for value in (*graph.input, *graph.output)}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in inner_graphs(node):
            rename_tensors_(inner, names)
    for name in (*inputs, *outputs):
        inside = onnx.ValueInfoProto()
        inside.CopyFrom(known[name])
        inside.name = names[name]
        graph.value_info.append(inside)
    before, behind = [between(name, names[name]) for name in inputs], [between(names[name], name) for name in outputs]
    replace_nodes_(graph, [*before, *graph.node, *behind])


def replace_nodes_(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives `graph` other nodes, in this order; they may be its own."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def drop_unused_initializers_(graph: GraphProto) -> None:
    """Removes the constants that no node reads, none inside of a branch or loop either, and that are no output."""
    used = {name for node in graph.node for name in names_read(node)} | output_names(graph)
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    if len(kept) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept)
