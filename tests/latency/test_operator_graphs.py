"""Operator graphs: every operator's small graph runs, in the kernel that a model would use."""

import onnx
import onnxruntime as ort
import pytest

from compressor.latency.light_graphs import LIGHT
from compressor.latency.operator_graphs import operator_graph, runnable
from compressor.latency.operators import Operator, conv, light, linear, matmul, recurrent
from compressor.quantization.file.compact_graph import kernels
from compressor.runtime import load_session, session_options
from compressor.target import Isa, Target

HEAVY = [
    conv(8, 12, (7, 7), kernel=(3, 3), flags=("relu",)),
    conv(16, 16, (8, 8), kernel=(3, 3), flags=("relu", "add")),
    conv(8, 8, (7, 7), kernel=(3, 3), stride=2, groups=8),
    conv(8, 8, (9,), kernel=(3,), dilation=2),
    conv(2, 4, (4, 4, 4), kernel=(3, 3, 3)),
    conv(8, 4, (5, 5), kernel=(2, 2), stride=2, padding=0, transposed=True),
    linear(12, 20, 3),
    linear(12, 20, 3, flags=("relu", "dynamic")),
    matmul(5, 6, 7, batch=2),
    recurrent("lstm", 5, 6, 4, batch=2),
    recurrent("lstm", 5, 6, 4, bidirectional=True),
    recurrent("gru", 5, 6, 4),
    recurrent("rnn", 5, 6, 4),
]


def _run(operator: Operator, copies: int = 3) -> bytes:
    graph = operator_graph(operator, copies, Target())
    options = session_options()
    if not graph.optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    load_session(graph.onnx_bytes, options).run(None, graph.feeds)
    return graph.onnx_bytes


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("operator", HEAVY, ids=lambda o: f"{o.kind}-{'x'.join(map(str, o.size))}-{o.groups}")
def test_heavy_operators_run(operator: Operator, precision: str) -> None:
    """The graph of every product, convolution and recurrent layer runs in both precisions."""
    _run(runnable(operator, precision))


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_light_operators_run(name: str) -> None:
    """The graph of every light operator runs, for rows of several elements and of one."""
    for row in (8, 1):
        _run(runnable(light(name, 64, row=row), "float32"))


def test_every_copy_is_run() -> None:
    """ONNX Runtime keeps all copies although nothing reads them, fused as in a model and without layout changes."""
    made = kernels(_run(runnable(conv(16, 16, (8, 8), kernel=(3, 3), flags=("relu", "add")), "float32"), copies=5))
    # One makes what the first adds to; ReLU and sum are part of each convolution wherever layouts are blocked.
    assert made["Conv"] + made["FusedConv"] == 6
    assert made["ReorderOutput"] == 0
    assert kernels(_run(runnable(linear(8, 8, 1, flags=("relu",)), "float32"), copies=5))["FusedGemm"] == 5
    assert kernels(_run(runnable(conv(8, 8, (8, 8), kernel=(3, 3)), "int8"), copies=5))["QLinearConv"] == 5
    assert kernels(_run(runnable(recurrent("lstm", 5, 6, 4), "int8"), copies=2))["DynamicQuantizeLSTM"] == 2


@pytest.mark.parametrize(
    ("operator", "inputs", "outputs"),
    [
        (conv(3, 20, (8, 8), kernel=(3, 3)), 4, 20),
        (conv(3, 18, (8, 8), kernel=(4, 4), stride=4), 3, 20),
        (conv(9, 30, (8, 8), kernel=(1, 1)), 16, 32),
        (conv(4, 6, (8, 8), kernel=(1, 1)), 4, 16),
        (conv(9, 9, (8, 8), kernel=(3, 3), groups=9), 16, 16),
        (conv(6, 9, (8, 8), kernel=(3, 3), groups=3), 6, 9),
        (conv(9, 9, (8,), kernel=(3,)), 9, 9),
    ],
)
def test_integer_convolutions_have_the_channels_of_the_file(operator: Operator, inputs: int, outputs: int) -> None:
    """What is timed in int8 is filled up with channels as a quantized file is, not on Arm and not in float."""

    def channels(made: onnx.ModelProto) -> tuple[int, int]:
        sizes = {tensor.name: tensor.dims for tensor in made.graph.initializer}
        (node,) = (node for node in made.graph.node if node.op_type in {"QLinearConv", "Conv"})
        weight = sizes[node.input[3 if node.op_type == "QLinearConv" else 1]]
        groups = next(entry.i for entry in node.attribute if entry.name == "group")
        return weight[1] * groups, weight[0]

    plain = operator.inputs, operator.outputs
    vnni, arm = Target(isa=Isa.X86_VNNI), Target(isa=Isa.ARM_DOT)
    for precision, target, wanted in (
        ("int8", vnni, (inputs, outputs)),
        ("int8", arm, plain),
        ("float32", vnni, plain),
    ):
        graph = operator_graph(runnable(operator, precision), 1, target)
        assert channels(onnx.load_from_string(graph.onnx_bytes)) == wanted


def test_what_time_ignores_is_one_entry() -> None:
    """Operators that run the same way are one entry of the table, and what has no int8 kernel stays in float."""
    plain = conv(8, 8, (7, 7), kernel=(3, 3))
    fused = conv(8, 8, (7, 7), kernel=(3, 3), flags=("relu", "bias"))
    assert runnable(plain, "int8") == runnable(fused, "int8")
    assert runnable(plain, "float32") != runnable(fused, "float32")
    assert runnable(recurrent("gru", 5, 6, 4), "int8").precision == "float32"
    assert runnable(light("Flatten", 4096), "float32") == runnable(light("Reshape", 8), "float32")
    assert runnable(light("Relu", 64, row=8), "float32") == runnable(light("Clip", 64), "float32")
    assert runnable(light("Add", 64), "int8").flags == ("QLinearAdd",)
    # What the file fixes stays.
    fixed = Operator(kind="linear", inputs=4, outputs=4, precision="float32")
    assert runnable(fixed, "int8").precision == "float32"


def test_unknown_precision_is_refused() -> None:
    """A precision without kernels is refused with those that there are."""
    with pytest.raises(ValueError, match='"float32" or "int8", got \'int4\''):
        runnable(linear(4, 4, 1), "int4")
