"""A file's own names out of the way of those that quantization makes up: `w_scale` may be there beside `w`.

Every name that is made up is that of a tensor or node and one of the endings of `_ENDINGS`, with more behind it at
times. What a file has called so gets another name; inputs and outputs of the file keep theirs, and what they would
collide with is renamed instead.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import count

import onnx
from onnx import helper

from compressor.files.graphs import all_graphs, all_nodes, rename_tensors_, set_apart_

_ENDINGS = (
    r"scales?|zero_point|zeros?|quantized?|blocks|bias|DequantizeLinear|QuantizeLinear|dynamic|beta|cast|integers?|"
    r"product|projected|rows|scaled|wide|by_channel|in_steps|gate|gates|pad|pads|shift|batch|direction|first\d*|hidden|shape|axis\d+|"
    r"apart|flat|candidates|sizes|states|last|plain|phases|cut|interleave|whole|half|from|to|of|centred|exact|moved|"
    r"float|smooth|smoothing|kept|nearest|steps|low|high|piece\d*|reshape\d*|split|stored|halves|copy\d*|twin\d*|\d+"
)
_MADE_UP = re.compile(rf"[_/](?:{_ENDINGS})(?:[_/].*)?")


def make_names_distinct_(model: onnx.ModelProto) -> None:
    """Renames tensors of `model`, inside branches and loops too, until none has a name that could be made up."""
    graph = model.graph
    fixed = {value.name for value in (*graph.input, *graph.output)}
    tensors = set(_tensors(graph))
    bases = tensors | {node.name for node in all_nodes(graph)}
    inside: set[str] = set()
    apart: set[str] = set()
    nodes: set[str] = set()
    for name in tensors:
        for base in _bases(name, bases):
            if name not in fixed:
                inside.add(name)
            elif base in fixed:
                apart.add(base)
            elif base in tensors:
                inside.add(base)
            else:
                nodes.add(base)
    fresh = _fresh_names(bases)
    rename_tensors_(graph, {name: next(fresh) + name for name in sorted(inside)})
    set_apart_(graph, {name: next(fresh) + name for name in sorted(apart)}, _same)
    renamed = {name: next(fresh) + name for name in sorted(nodes)}
    for node in all_nodes(graph):
        node.name = renamed.get(node.name, node.name)


def _same(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [source], [target], f"{target}/same")


def name_nodes_apart_(placed: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Gives nodes of `placed` that a placement made other names where nodes of `original` are called so already."""
    kinds = {node.name: node.op_type for node in original.graph.node}
    taken = {*kinds, *(node.name for node in placed.graph.node)}
    used: set[str] = set()
    for node in placed.graph.node:
        if node.name in used or kinds.get(node.name, node.op_type) != node.op_type:
            numbered = (f"{node.name}_{number}" for number in count(1))
            node.name = next(name for name in numbered if name not in taken)
            taken.add(node.name)
        used.add(node.name)


def _bases(name: str, known: set[str]) -> Iterator[str]:
    """Those of `known` from which `name` could be made up."""
    for found in re.finditer(r"[_/]", name):
        base = name[: found.start()]
        if base in known and _MADE_UP.fullmatch(name, found.start()):
            yield base


def _fresh_names(taken: Iterable[str]) -> Iterator[str]:
    """Beginnings that no name has: what is made up for one name begins like no other, then."""
    begun = {found[0] for name in taken if (found := re.match(r"own\d+\.", name))}
    return (start for number in count(1) if (start := f"own{number}.") not in begun)


def _tensors(graph: onnx.GraphProto) -> Iterator[str]:
    for each in all_graphs(graph):
        yield from (value.name for value in (*each.input, *each.output, *each.initializer))
        yield from (sparse.values.name for sparse in each.sparse_initializer)
        yield from (name for node in each.node for name in node.output if name)
