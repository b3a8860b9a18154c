"""What ONNX Runtime runs on integers, what it does not, and why: seen in the graph that it makes on this machine."""

import platform
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from compressor.quantization.file.compact_graph import FLOAT_KERNELS, INTEGER_KERNELS, optimized_nodes
from compressor.quantization.placement.policy import FOLLOWERS, HEAVY, Placement
from compressor.stage import StageError

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# Operators of the optimized graph on 8-bit tensors that multiply no weights.
_INTEGER_FOLLOWERS = frozenset(
    {
        *("QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool"),
        *("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere"),
    }
)


def coverage(
    plain: bytes,
    graph: onnx.ModelProto,
    placement: Placement,
    *,
    activation_bits: int = 8,
    signed_activations: bool = False,
) -> dict[str, Any]:
    """What of the integer file `plain` ONNX Runtime runs on integers, under the names of the float `graph`.

    `quantized` counts the operators with weights that run on integers or stored ones, `integer_kernels` and
    `integer_followers` the kernels by operator. `left_in_float` lists the operators with weights that compute floats,
    or look them up, `float_islands` those without weights that floats are made for and turned back behind, each with
    its reason; `conversions` counts the QuantizeLinear and DequantizeLinear that run. `signed_activations` on a machine
    that is no Arm adds `kernels_seen_on`: what is told is what ONNX Runtime fuses here when it lets int8 activations
    through as on Arm, and nothing has run there. Raises StageError where nothing is gained.
    """
    elsewhere = _seen_on() if signed_activations else None
    nodes = optimized_nodes(plain, signed_activations=signed_activations)
    integer = Counter(node.op_type for node in nodes if node.op_type in INTEGER_KERNELS)
    stored = len(placement.weight_only) + len(placement.float16)
    left = []
    for node in nodes:
        if node.op_type in FLOAT_KERNELS:
            name = original_name(node.name, graph)
            reason = placement.left.get(name) or _unfused(name, placement, activation_bits)
            left.append({"node": name, "op": node.op_type, "reason": reason})
    left += _float_tables(graph, placement)
    # 16-bit activations show an accuracy; nobody expects them to be fast.
    if not integer and not stored and activation_bits == 8:
        seen = f", seen on {elsewhere}" if elsewhere else ""
        raise StageError(
            f"ONNX Runtime runs none of {len(placement.static) + len(placement.dynamic)} prepared nodes on "
            f"integers{seen}; leave this stage out for this model"
        )
    return {
        "quantized": sum(integer.values()) + stored - integer["MatMulNBits"],
        "integer_kernels": dict(sorted(integer.items())),
        "integer_followers": dict(
            sorted(Counter(node.op_type for node in nodes if node.op_type in _INTEGER_FOLLOWERS).items())
        ),
        "left_in_float": left,
        "float_islands": _islands(nodes, graph),
        "conversions": sum(node.op_type in _CONVERSIONS for node in nodes),
        **({"kernels_seen_on": elsewhere} if elsewhere else {}),
    }


def _seen_on() -> str | None:
    """In words, where kernels for signed activations were seen; None on an Arm machine, whose kernels they are."""
    machine = platform.machine()
    if machine.lower() in {"arm64", "aarch64"}:
        return None
    return f"{machine}, which let int8 activations through as ONNX Runtime does on Arm; the file has not run on Arm"


def _float_tables(graph: onnx.ModelProto, placement: Placement) -> list[dict[str, str]]:
    """Embeddings whose tables stay as they are; a lookup computes nothing, so that no kernel's name tells."""
    stored = {*placement.weight_only, *placement.float16}
    return [
        {"node": node.name, "op": node.op_type, "reason": placement.left[node.name]}
        for node in graph.graph.node
        if node.op_type == "Gather" and node.name in placement.left and node.name not in stored
    ]


def _unfused(name: str, placement: Placement, activation_bits: int) -> str:
    if name in placement.static and activation_bits == 16:
        return "ONNX Runtime has no integer kernels for 16-bit activations: it rounds to them and computes floats"
    return "ONNX Runtime did not fuse it into an int8 kernel"


def _islands(nodes: Sequence[onnx.NodeProto], graph: onnx.ModelProto) -> list[dict[str, str]]:
    """Operators without weights between a DequantizeLinear and a QuantizeLinear, in the order of the graph."""
    producers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    found = []
    for node in nodes:
        if node.op_type in _CONVERSIONS | FLOAT_KERNELS | INTEGER_KERNELS:
            continue
        sources = [producers[name].op_type for name in node.input if name in producers]
        after = [reader.op_type for name in node.output for reader in readers[name]]
        if "DequantizeLinear" in sources and "QuantizeLinear" in after:
            name = original_name(node.name, graph, weighted=False)
            found.append({"node": name, "op": node.op_type, "reason": _why_island(node, producers)})
    return found


def _why_island(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> str:
    if node.op_type not in FOLLOWERS:
        return f"ONNX Runtime has no 8-bit kernel for {node.op_type}"
    if node.op_type in {"Relu", "Clip"}:
        return "its bounds are not where the integers of its output end, so that saturation cannot stand for it"
    floats = [
        producers[name] for name in node.input if name in producers and producers[name].op_type not in _CONVERSIONS
    ]
    if floats:
        return f"its input from {floats[0].name or floats[0].op_type} ({floats[0].op_type}) is float"
    return "ONNX Runtime did not fuse it"


def original_name(fused: str, graph: onnx.ModelProto, *, weighted: bool = True) -> str:
    """The name in `graph` of what ONNX Runtime calls `fused`, an operator with weights or not."""
    # It names a fused node after its activation, a convolution in another layout after its output, and adds suffixes.
    producers = {output: node for node in graph.graph.node for output in node.output}
    for node in sorted(graph.graph.node, key=lambda node: -len(node.name)):
        if fused in {node.name, f"{node.output[0]}_nchwc"} or fused.startswith(f"{node.name}/"):
            if node.op_type in HEAVY or not weighted:
                return str(node.name)
            source = producers.get(node.input[0]) if node.input else None
            return str(source.name) if source is not None else fused
    return fused
