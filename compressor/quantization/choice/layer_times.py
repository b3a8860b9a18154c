"""Milliseconds of every layer in the float and in the integer file, from ONNX Runtime's profile of both.

ONNX Runtime renames what it fuses. The name of the layer is read back from it, and a conversion counts with the layer
that needs it: the one behind a QuantizeLinear, the one ahead of a DequantizeLinear.
"""

import re
from collections.abc import Collection, Iterable, Mapping

import onnx

from compressor.batches import Inputs
from compressor.files.graphs import initializers
from compressor.measuring.node_times import kernel_times
from compressor.quantization.file.audit import OriginalNames
from compressor.quantization.placement.names import converted_by

# What the fusion of integer kernels, the dynamic form and the placement append to a layer's or a tensor's name.
_FUSED = re.compile(r"(_token_\d+|_integer|_quant|_MatMulInteger\w*)+$")


def layer_ms(onnx_bytes: bytes, graph: onnx.ModelProto, inputs: Inputs, *, threads: int) -> dict[str, float]:
    """{node of the float `graph`: milliseconds per call in the file}, of what can be told; conversions included."""
    owners = _Owners(graph)
    found: dict[str, float] = {}
    for kernel, ms in kernel_times(onnx_bytes, inputs, threads=threads).items():
        layer = owners.of(kernel)
        if layer is not None:
            found[layer] = found.get(layer, 0.0) + ms
    return found


def layer_of(kernel: str, graph: onnx.ModelProto) -> str | None:
    """The node of `graph` that a kernel of ONNX Runtime's works for; None where its name does not tell."""
    return _Owners(graph).of(kernel)


def slower_groups(
    float_ms: Mapping[str, float], integer_ms: Mapping[str, float], groups: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], tuple[float, float]]:
    """{group: (float, integer milliseconds)} of `groups` of nodes whose integer form takes longer altogether.

    The greatest loss comes first. Groups with a node of unknown time are left out.
    """
    known = float_ms.keys() & integer_ms.keys()
    sums = {
        names: (sum(float_ms[name] for name in names), sum(integer_ms[name] for name in names))
        for names in groups
        if known.issuperset(names)
    }
    slower = {names: times for names, times in sums.items() if times[1] > times[0]}
    return dict(sorted(slower.items(), key=lambda item: item[1][0] - item[1][1]))


def islands(graph: onnx.ModelProto, static: Collection[str], layers: Collection[str]) -> list[tuple[str, ...]]:
    """The `layers` of every connected part of `graph` that works on integers, `static` being all nodes that do.

    Within an island nothing is converted: of its layers those at the border pay for all.
    """
    constants = initializers(graph.graph)
    parts: list[tuple[set[str], set[str]]] = []
    for node in graph.graph.node:
        if node.name not in static:
            continue
        tensors = {name for name in (*node.input, *node.output) if name and name not in constants}
        touched = [part for part in parts if not tensors.isdisjoint(part[0])]
        rest = [part for part in parts if tensors.isdisjoint(part[0])]
        joined = tensors.union(*(part[0] for part in touched)), {node.name}.union(*(part[1] for part in touched))
        parts = [*rest, joined]
    order = [node.name for node in graph.graph.node if node.name in layers]
    found = [tuple(name for name in order if name in names) for _, names in parts]
    return [names for names in found if names]


class _Owners:
    def __init__(self, graph: onnx.ModelProto) -> None:
        self.original = OriginalNames(graph)
        self.names = {node.name for node in graph.graph.node}
        self.producers = {name: node.name for node in graph.graph.node for name in node.output}
        self.readers = {name: node.name for node in reversed(graph.graph.node) for name in node.input}

    def of(self, kernel: str) -> str | None:
        plain = _FUSED.sub("", kernel)
        if kernel not in self.names and plain in self.names:
            return plain
        conversion = converted_by(kernel)
        if conversion is not None:
            tensor, operator = conversion
            sides = (self.readers, self.producers)
            first, second = sides if operator == "QuantizeLinear" else sides[::-1]
            layer = first.get(tensor) or second.get(tensor)
            return None if layer is None else self.original.of(layer)
        layer = self.original.of(kernel)
        return layer if layer in self.names else None
