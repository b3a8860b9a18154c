"""Milliseconds of every layer in the float and in the integer file, from ONNX Runtime's profile of both.

ONNX Runtime renames what it fuses. The name of the layer is read back from it, and a conversion counts with the layer
that needs it: the one behind a QuantizeLinear, the one ahead of a DequantizeLinear.
"""

import re
from collections.abc import Mapping, Sequence

import onnx

from compressor.batches import Inputs
from compressor.node_times import kernel_times
from compressor.quantization.audit import original_name

# What the fusion of integer kernels, the dynamic form and the placement append to a layer's or a tensor's name.
_FUSED = re.compile(r"(_token_\d+|_integer|_quant|_MatMulInteger\w*)+$")
_CONVERSION = re.compile(r"^(?P<tensor>.+)_(?P<kind>QuantizeLinear|DequantizeLinear)(_\w+)?$")


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


def slower_nodes(
    float_ms: Mapping[str, float], integer_ms: Mapping[str, float], nodes: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """{node: (float, integer milliseconds)} of `nodes` whose integer form takes longer, the greatest loss first."""
    found = {
        name: (float_ms[name], integer_ms[name])
        for name in nodes
        if name in float_ms and name in integer_ms and integer_ms[name] > float_ms[name]
    }
    return dict(sorted(found.items(), key=lambda item: item[1][0] - item[1][1]))


class _Owners:
    def __init__(self, graph: onnx.ModelProto) -> None:
        self.graph = graph
        self.names = {node.name for node in graph.graph.node}
        self.producers = {name: node.name for node in graph.graph.node for name in node.output}
        self.readers = {name: node.name for node in reversed(graph.graph.node) for name in node.input}

    def of(self, kernel: str) -> str | None:
        plain = _FUSED.sub("", kernel)
        if kernel not in self.names and plain in self.names:
            return plain
        conversion = _CONVERSION.match(kernel)
        if conversion is not None:
            sides = (self.readers, self.producers)
            first, second = sides if conversion["kind"] == "QuantizeLinear" else sides[::-1]
            tensor = conversion["tensor"]
            layer = first.get(tensor) or second.get(tensor)
            return None if layer is None else original_name(layer, self.graph)
        layer = original_name(kernel, self.graph)
        return layer if layer in self.names else None
