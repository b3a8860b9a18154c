"""How every placement writes a graph anew: the nodes and constants that it adds, and what becomes of the old ones."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from compressor.files.graphs import (
    RUNTIME_DOMAIN,
    all_nodes,
    copy_of,
    drop_unused_initializers_,
    initializers,
    replace_nodes_,
)
from compressor.quantization.grids.weights import WeightGrid


@dataclass(kw_only=True)
class Written:
    """Nodes and initializers of a graph in the making."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def add(self, kind: str, inputs: list[str], *outputs: str, name: str = "", **attributes: Any) -> str:
        """The first output of a new node, which is named after it unless it gets a `name`."""
        self.nodes.append(helper.make_node(kind, inputs, outputs, name or outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """The name of a new initializer."""
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def extend(self, nodes: Iterable[onnx.NodeProto], constants: Iterable[TensorProto]) -> None:
        """Adds what was written elsewhere."""
        self.nodes.extend(nodes)
        self.initializers.extend(constants)


@dataclass(kw_only=True)
class Rewriting:
    """A copy of `model` on its way to integers: its nodes are read in order, and `written` is what takes their place.

    `ahead` of it stands what unpacks constants. `weights` are the grids by initializer, `constants` the initializers
    that the graph came with.
    """

    model: onnx.ModelProto
    weights: Mapping[str, WeightGrid]
    written: Written = field(default_factory=Written)
    ahead: Written = field(default_factory=Written)

    def __post_init__(self) -> None:
        self.model = copy_of(self.model)
        self.constants = initializers(self.model.graph)

    def finished(self) -> onnx.ModelProto:
        """The model with the nodes written, the constants that they read, and ONNX Runtime's own domain where used."""
        graph = self.model.graph
        # Layers that share a weight, inside of a loop and outside, store one.
        new = {tensor.name: tensor for tensor in (*self.written.initializers, *self.ahead.initializers)}
        graph.initializer.extend(tensor for name, tensor in new.items() if name not in self.constants)
        replace_nodes_(graph, [*self.ahead.nodes, *self.written.nodes])
        drop_unused_initializers_(graph)
        missing = all(entry.domain != RUNTIME_DOMAIN for entry in self.model.opset_import)
        if missing and any(node.domain == RUNTIME_DOMAIN for node in all_nodes(graph)):
            self.model.opset_import.append(helper.make_opsetid(RUNTIME_DOMAIN, 1))
        return self.model
