"""A batch that a file fixes, made free: in what it declares, and in the constants that hold it."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import attribute, copy_of, initializers, replace_nodes_

_SHAPE = "free_batch"


def freed(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """`model` for any batch instead of `batch`, as far as its constants show where it is.

    Inputs and outputs that begin with it are freed, Reshape infers it or copies it, and where Resize and Expand are
    given it they are given that of the first input. A constant of one sample that a Concat joins along another axis is
    repeated. Whether that is all is for whoever asks to find out.
    """
    free = copy_of(model)
    graph = free.graph
    del graph.value_info[:]
    for value in [*graph.input, *graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == batch:
            dims[0].dim_param = "batch"
    for holder in _reshape_targets(graph):
        target = numpy_helper.to_array(holder).copy()
        if target.ndim == 1 and target.size and target[0] == batch:
            # One dimension may be inferred; 0 copies the input's.
            target[0] = 0 if -1 in target else -1
            holder.CopyFrom(numpy_helper.from_array(target, holder.name))
    _follow_sizes_(graph, batch)
    return free


def batched_elsewhere(inputs: Iterable[onnx.ValueInfoProto]) -> set[str]:
    """Those of `inputs` whose first dimension is fixed and that share a free one: states (layers, batch, units)."""
    dims = {value.name: list(value.type.tensor_type.shape.dim) for value in inputs}
    free = {name: {dim.dim_param for dim in sizes if dim.dim_param} for name, sizes in dims.items()}
    shared = Counter(name for names in free.values() for name in names)
    fixed = {name for name, sizes in dims.items() if sizes and sizes[0].HasField("dim_value")}
    return {name for name in fixed if any(shared[other] > 1 for other in free[name])}


def _reshape_targets(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    wanted = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    yield from (tensor for tensor in graph.initializer if tensor.name in wanted)
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in wanted:
            yield from (entry.t for entry in node.attribute if entry.name == "value")


class _Sizes:
    """Nodes that give shapes with the batch of the first input in front of sizes that stay."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph, self.count = graph, 0
        stored = initializers(graph)
        given = (value for value in graph.input if value.name not in stored)
        source = next(value.name for value in given if value.type.tensor_type.shape.dim)
        self.batch = self.name()
        self.nodes = [helper.make_node("Shape", [source], [self.batch], self.batch, start=0, end=1)]

    def name(self) -> str:
        taken = {output for node in self.graph.node for output in node.output} | {*initializers(self.graph)}
        while True:
            self.count += 1
            if (name := f"{_SHAPE}_{self.count}") not in taken:
                return name

    def behind_batch(self, sizes: list[int]) -> str:
        """The name of the shape (batch, *sizes)."""
        rest, shape = self.name(), self.name()
        self.graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), rest))
        self.nodes.append(helper.make_node("Concat", [self.batch, rest], [shape], shape, axis=0))
        return shape

    def repeated(self, constant: str, rank: int) -> str:
        """The name of `constant` once for every sample."""
        expanded = self.name()
        self.nodes.append(
            helper.make_node("Expand", [constant, self.behind_batch([1] * (rank - 1))], [expanded], expanded)
        )
        return expanded


def _follow_sizes_(graph: onnx.GraphProto, batch: int) -> None:
    constants = {name: numpy_helper.to_array(tensor) for name, tensor in initializers(graph).items()}
    constants |= {
        node.output[0]: numpy_helper.to_array(attribute(node, "value", None))
        for node in graph.node
        if node.op_type == "Constant" and attribute(node, "value", None) is not None
    }
    sizes = _Sizes(graph)
    for node in graph.node:
        position = {"Resize": 3, "Expand": 1}.get(node.op_type)
        if position is not None and len(node.input) > position:
            wanted = constants.get(node.input[position])
            if wanted is not None and wanted.ndim == 1 and wanted.size > 1 and wanted[0] == batch:
                node.input[position] = sizes.behind_batch([int(size) for size in wanted[1:]])
        elif node.op_type == "Concat" and attribute(node, "axis", 0) != 0:
            held = [constants.get(name) for name in node.input]
            if all(value is not None for value in held):
                continue
            for place, value in enumerate(held):
                if value is not None and value.ndim > 1 and value.shape[0] == batch == 1:
                    node.input[place] = sizes.repeated(node.input[place], value.ndim)
    if len(sizes.nodes) > 1:
        # Constants may be nodes: what reads them comes behind them.
        stored = [node for node in graph.node if node.op_type == "Constant"]
        rest = [node for node in graph.node if node.op_type != "Constant"]
        replace_nodes_(graph, [*stored, *sizes.nodes, *rest])
