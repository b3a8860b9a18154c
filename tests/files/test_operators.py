"""The table of what is known of ONNX operators: facts a person can check, and that they fit together."""

from math import inf

import onnx
import pytest
import torch

from compressor.files.export import export_onnx
from compressor.files.operators import (
    OPERATORS,
    ROWS,
    Arithmetic,
    Fact,
    Family,
    IntegerForm,
    facts_of,
    heavy_operators,
    operator_of,
)
from compressor.files.weights import inner_graphs
from compressor.measuring.macs import _MACS
from compressor.quantization.torch_graph.steps import KNOWN
from workbench.zoo import ARCHITECTURES
from workbench.zoo.architecture import Architecture
from workbench.zoo.check import randomized_, workload_of

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
PRODUCTS = {Family.CONVOLUTION, Family.MATRIX, Family.RECURRENT}


def with_fact(fact: Fact) -> set[str]:
    return {row.name for row in ROWS if fact in row.facts}


def test_every_operator_has_one_row() -> None:
    """No operator stands in the table twice, where the second row would hide the first."""
    assert len(OPERATORS) == len(ROWS)


def test_nothing_is_known_of_an_operator_without_a_row() -> None:
    """Det, which no network here uses, has no fact, no weights and no kernel: it stays in float."""
    row = operator_of("Det")
    assert row.name == "Det"
    assert not row.facts
    assert [row.multiplies, row.heavy, row.linear, row.on_integers] == [False] * 4
    assert (row.inputs.weights, row.inputs.bias, row.bounds, row.recurrence) == ((), None, None, None)


def test_heavy_operators_are_those_that_hold_weights() -> None:
    """The heavy ones are convolutions, products and recurrent layers, in the order in which messages list them."""
    assert heavy_operators() == HEAVY
    assert [name for name in HEAVY if operator_of(name).linear] == ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    assert [name for name in HEAVY if operator_of(name).multiplies_matrices] == ["Gemm", "MatMul"]
    assert [name for name in HEAVY if operator_of(name).integer_form is IntegerForm.CELLS] == ["GRU", "RNN"]


def test_the_gates_and_states_of_recurrent_layers_are_onnx_s() -> None:
    """An LSTM has four gates and two states, at inputs 5 and 6; a GRU three and one; a plain RNN one and one."""
    cells = {name: operator_of(name).recurrence for name in ("LSTM", "GRU", "RNN")}
    assert {name: (cell.gates, cell.states) for name, cell in cells.items() if cell} == {
        "LSTM": (4, (5, 6)),
        "GRU": (3, (5,)),
        "RNN": (1, (5,)),
    }


def test_relu_and_clip_alone_cut_values_off() -> None:
    """A ReLU cuts off below 0; a Clip cuts nothing off until its inputs say where; no other operator has bounds."""
    assert {row.name: row.bounds for row in ROWS if row.bounds} == {"Relu": (0.0, inf), "Clip": (-inf, inf)}


def test_what_moves_values_takes_no_time_and_no_weights() -> None:
    """No operator both moves values and multiplies; what reshapes moves, and a table of words is the only weight."""
    movers = with_fact(Fact.MOVES)
    assert {"Reshape", "Transpose", "MaxPool", "Gather", "DepthToSpace"} <= movers
    assert not any(operator_of(name).multiplies or operator_of(name).on_integers for name in movers)
    assert with_fact(Fact.RESHAPES) <= movers
    assert [name for name in sorted(movers) if operator_of(name).inputs.weights] == ["Gather"]
    assert Fact.MOVES not in facts_of("Add")


def test_followers_are_light_operators_of_exported_files() -> None:
    """What follows integers is in float files, holds no weights to quantize, and multiplies nothing."""
    for name in with_fact(Fact.FOLLOWS):
        row = operator_of(name)
        assert row.family is None, name
        assert row.arithmetic is None, name
        assert not row.inputs.weights, name
        assert Fact.FUSED not in row.facts, name


def test_what_cuts_off_follows_too() -> None:
    """An operator with bounds is a follower: where its bounds are the ends of the integers it is dropped."""
    assert {row.name for row in ROWS if row.bounds} <= with_fact(Fact.FOLLOWS)


def test_operators_that_multiply_say_where_their_weights_are() -> None:
    """Weights of a kernel on integers are among the integers it lists; a float one has them at input 1."""
    for row in ROWS:
        if not row.multiplies:
            continue
        assert row.inputs.weights, row.name
        if row.inputs.integers:
            assert set(row.inputs.weights) <= set(row.inputs.integers), row.name
        if not row.on_integers:
            assert row.inputs.weights[0] == 1, row.name


def test_only_operators_on_integers_list_integers() -> None:
    """Zero points are a matter of integer kernels and of the two conversions alone."""
    listed = {row.name for row in ROWS if row.inputs.listed}
    assert all(operator_of(name).on_integers for name in listed - with_fact(Fact.CONVERTS))
    assert with_fact(Fact.CONVERTS) == {"QuantizeLinear", "DequantizeLinear"}


def test_integer_forms_are_for_heavy_operators() -> None:
    """Every heavy operator has a way onto integers, and no other operator has one."""
    assert {row.name for row in ROWS if row.integer_form is not None} == set(HEAVY)


def test_recurrent_operators_tell_their_cell() -> None:
    """The rows of recurrent layers, and they alone, say how many gates there are."""
    assert {row.name for row in ROWS if row.recurrence} == {row.name for row in ROWS if row.family is Family.RECURRENT}


def test_every_kernel_that_multiplies_is_counted() -> None:
    """`count_macs` has a formula for whatever multiplies; ONNX Runtime's CPU build has no kernel of the two others."""
    multiplying = {row.name for row in ROWS if row.multiplies or row.family is Family.ATTENTION}
    assert multiplying - set(_MACS) == {"NhwcFusedConv", "QLinearConvTranspose"}


def test_what_runs_on_integers_has_a_form_in_torch() -> None:
    """Training a quantized graph needs every heavy operator and every follower as a torch function."""
    assert {*HEAVY, *with_fact(Fact.FOLLOWS), *with_fact(Fact.MOVES)} <= set(KNOWN)


def test_the_kernels_of_the_optimized_graph_are_told_apart() -> None:
    """Of the names that fusions give, those on integers, on stored weights and on floats are what they say."""
    on = {name: operator_of(name).arithmetic for name in ("QLinearConv", "MatMulIntegerToFloat", "MatMulNBits")}
    assert on == {
        "QLinearConv": Arithmetic.STATIC,
        "MatMulIntegerToFloat": Arithmetic.DYNAMIC,
        "MatMulNBits": Arithmetic.STORED,
    }
    assert operator_of("FusedConv").multiplies_floats
    assert not operator_of("FusedConv").heavy
    assert operator_of("QGemm").multiplies_integers
    assert not operator_of("QLinearAdd").multiplies_integers


# The operators of ONNX in the files of the zoo, as `test_the_files_of_the_zoo_are_known` finds them.
ZOO = (
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Clip", "Col2Im",
    "Concat", "ConcatFromSequence", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DFT",
    "DepthToSpace", "Div", "Einsum", "Elu", "Equal", "Expand", "Flatten", "GRU", "Gather", "GatherElements",
    "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
    "Identity", "If", "InstanceNormalization", "IsNaN", "LSTM", "LayerNormalization", "LeakyRelu", "Less",
    "LessOrEqual", "Log", "LogSoftmax", "Loop", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "Not", "PRelu",
    "Pad", "Pow", "RNN", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape",
    "Resize", "ScatterND", "SequenceEmpty", "SequenceInsert", "Shape", "Sigmoid", "Sin", "Size", "Slice", "Softmax",
    "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip


def test_the_operators_of_the_zoo_have_rows() -> None:
    """Somebody has looked at every operator that the zoo's networks are exported with."""
    assert [name for name in ZOO if name not in OPERATORS] == []


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize(
    "architecture",
    # A program that branches on values has no file.
    [known for known in ARCHITECTURES if known.exports and "branches on" not in (known.refuses or "")],
    ids=lambda architecture: architecture.name,
)
def test_the_files_of_the_zoo_are_known(architecture: Architecture) -> None:
    """Every operator of the network's file has a row and stands in the list above."""
    pytest.importorskip("transformers", reason="the zoo builds networks of transformers: pip install .[dev]")
    torch.manual_seed(0)
    model = randomized_(architecture.build()).eval()
    file = export_onnx(model, workload_of(architecture, model)).onnx_bytes
    assert kinds(onnx.load_from_string(file).graph) <= set(ZOO)


def kinds(graph: onnx.GraphProto) -> set[str]:
    """The operators of a graph, those of the graphs inside of it included."""
    inner = [kinds(within) for node in graph.node for within in inner_graphs(node)]
    return {node.op_type for node in graph.node}.union(*inner)
