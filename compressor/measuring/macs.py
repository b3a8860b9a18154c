"""The multiply-accumulates of one run of an ONNX file, from the shapes its operators really met."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort

from compressor.batches import Inputs
from compressor.files.graphs import attribute, inner_graphs, parse
from compressor.runtime import OnnxModule, feeds_of, load_session, session_options
from compressor.workload import resize_batch

Shape = list[int]


def count_macs(onnx_bytes: bytes, inputs: Inputs) -> int:
    """The multiply-accumulates of one sample: those of convolutions, matrix products and recurrent layers.

    The file runs once on the first sample of `inputs`, unoptimised, and ONNX Runtime's profile gives the shapes that
    every operator really met: loops count as often as they turn, branches only where taken, 8-bit operators like
    their float originals. Where the file insists on another batch size, the count is divided by it.
    """
    counted, samples = _counted(onnx_bytes, inputs)
    return sum(counted.values()) // samples


def macs_by_node(onnx_bytes: bytes, inputs: Inputs) -> dict[str, int]:
    """{name of a node: its multiply-accumulates for one sample}, counted as `count_macs` does; others have none."""
    counted, samples = _counted(onnx_bytes, inputs)
    return {name: macs // samples for name, macs in counted.items()}


def _counted(onnx_bytes: bytes, inputs: Inputs) -> tuple[dict[str, int], int]:
    """The multiply-accumulates of one call by node, and of how many samples."""
    with tempfile.TemporaryDirectory() as folder:
        options = session_options()
        # Fused operators would hide the products inside them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # The profile forgets the shapes of weights that were repacked.
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = load_session(onnx_bytes, options)
        samples = OnnxModule(onnx_bytes).fixed_batch or 1
        session.run(None, feeds_of(session, resize_batch(inputs, samples)))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    equations: dict[str, str] | None = None
    counted: dict[str, int] = {}
    for event in events:
        details = event.get("args", {})
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        shapes, outputs = (_shapes(details.get(f"{side}_type_shape", [])) for side in ("input", "output"))
        macs = 0
        if details["op_name"] == "Einsum":
            equations = _einsum_equations(parse(onnx_bytes).graph) if equations is None else equations
            equation = equations.get(name)
            macs = _einsum(equation, shapes) if equation else 0
        elif (rule := _MACS.get(details["op_name"])) is not None and shapes and outputs:
            macs = rule(shapes, outputs[0])
        if macs:
            counted[name] = counted.get(name, 0) + macs
    return counted, samples


def _shapes(described: list[dict[str, Shape]]) -> list[Shape]:
    return [next(iter(entry.values()), []) for entry in described]


# How the multiply-accumulates follow from the shapes of a node's inputs and of its first output. ------------------


def _conv(weight: int) -> Callable[[list[Shape], Shape], int]:
    # Every output element is a sum over one filter: (channels / groups, kernel...).
    return lambda shapes, output: math.prod(output) * math.prod(shapes[weight][1:])


def _conv_transpose(shapes: list[Shape], _output: Shape) -> int:
    # Every input element is spread over one filter: (channels out / groups, kernel...).
    return math.prod(shapes[0]) * math.prod(shapes[1][1:])


def _transposable_matmul(shapes: list[Shape], output: Shape) -> int:
    # The last two dimensions of the left side hold rows x inner, in either order: Gemm and FusedMatMul may transpose.
    left = shapes[0]
    inner = left[-1] if len(left) < 2 or len(output) < 2 else math.prod(left[-2:]) // max(1, output[-2])
    return math.prod(output) * inner


def _plain_matmul(shapes: list[Shape], output: Shape) -> int:
    # Right for vectors too, whose dimension the output drops.
    return math.prod(output) * shapes[0][-1]


def _recurrent(shapes: list[Shape], _output: Shape) -> int:
    # Each step of each sequence meets every weight of W and R, of all gates and directions, once.
    return math.prod(shapes[0][:2]) * (math.prod(shapes[1]) + math.prod(shapes[2]))


def _separate_attention(shapes: list[Shape], _output: Shape) -> int:
    # Query (batch, length, width), key and value (batch, other length, width): scores, then the weighted sum.
    query, key, value = (shapes[index] for index in range(3))
    if len(query) != 3 or len(key) != 3 or len(value) != 3:
        query, key, value = ([*s[:1], s[-2], s[1] * s[-1]] if len(s) == 4 else s for s in (query, key, value))
    return query[0] * query[1] * key[1] * (query[2] + value[2])


def _packed_attention(shapes: list[Shape], output: Shape) -> int:
    # com.microsoft.Attention projects its input (batch, length, width) by one packed weight (width, 3 x inner) first.
    batch, length, _ = shapes[0]
    return batch * length * math.prod(shapes[1]) + 2 * batch * length * length * output[-1]


_MACS: dict[str, Callable[[list[Shape], Shape], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "MatMul": _plain_matmul,
    "MatMulInteger": _plain_matmul,
    "MatMulIntegerToFloat": _plain_matmul,
    "DynamicQuantizeMatMul": _plain_matmul,
    "QLinearMatMul": _plain_matmul,
    "MatMulNBits": _plain_matmul,
    "MatMulBnb4": _plain_matmul,
    "Gemm": _transposable_matmul,
    "QGemm": _transposable_matmul,
    "FusedGemm": _transposable_matmul,
    "FusedMatMul": _transposable_matmul,
    "TransposeMatMul": _transposable_matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "MultiHeadAttention": _separate_attention,
    "Attention": lambda shapes, output: (
        _packed_attention(shapes, output)
        if len(shapes[0]) == 3 and len(shapes[1]) == 2
        else _separate_attention(shapes, output)
    ),
    "QAttention": _packed_attention,
}


def _einsum(equation: str, shapes: list[Shape]) -> int:
    """One multiply-accumulate per combination of all letters; ellipses count by the largest they stand for."""
    sizes: dict[str, int] = {}
    rest = 1
    for term, shape in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=False):
        before, dots, after = term.partition("...")
        letters = zip(before, shape, strict=False), zip(after, shape[len(shape) - len(after) :], strict=False)
        sizes |= {letter: size for pairs in letters for letter, size in pairs}
        if dots:
            rest = max(rest, math.prod(shape[len(before) : len(shape) - len(after)]))
    return math.prod(sizes.values()) * rest


def _einsum_equations(graph: onnx.GraphProto) -> dict[str, str]:
    """The equations of all Einsum nodes by node name, those of inner graphs too."""
    found = {}
    for index, node in enumerate(graph.node):
        if node.op_type == "Einsum":
            # The name that the profile gives to nameless nodes.
            found[node.name or f"Einsum_{index}"] = attribute(node, "equation", b"").decode()
        for inner in inner_graphs(node):
            found |= _einsum_equations(inner)
    return found
