"""What is known of each ONNX operator, in one table that all read: one row an operator, one place for each fact.

Rows are of operators in exported files and of those that ONNX Runtime's fusions make of them. What ONNX Runtime has
kernels for was looked up in version 1.32, CPU. Nothing is known of an operator without a row, which is always safe:
it computes floats, and what it touches stays as it is. A row without facts says that somebody looked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, Flag, auto
from math import inf


class Fact(Flag):
    """What may hold of an operator, each for itself."""

    # ONNX Runtime's fusions alone make it: no exporter writes it.
    FUSED = auto()
    # ONNX Runtime computes it on 8-bit tensors when both sides are 8-bit already, by itself or as `integer_forms`
    # writes it: with float neighbours it would only add conversions.
    FOLLOWS = auto()
    # It only moves values: ONNX Runtime runs it on integers where both sides have one grid, its input's.
    MOVES = auto()
    # Its output holds values of several inputs side by side: one grid may be too coarse for those of small scale.
    JOINS = auto()
    # It gives all of its input's values in their order: only the shape is another.
    RESHAPES = auto()
    # Where its first input is all zeros its output is, whatever its other inputs are.
    KEEPS_ZEROS = auto()
    # f(s x) = s f(x) for every s > 0, channel by channel, with the channels where they were.
    HOMOGENEOUS = auto()
    # f(s x, s y) = s f(x, y) for every s > 0; of Mul and Div s f(x) where the other operand is constant.
    COMBINES = auto()
    # It works on every channel by itself, or on each place of the map: zero channels that are added change no other.
    CHANNELWISE = auto()
    # Adds, subtracts, multiplies or divides two tensors that broadcast: a constant of several numbers is a bias or a
    # scale, which a training changes.
    BROADCASTS = auto()
    # Its constant operands are values, quantized like activations; elsewhere constants are shapes or bounds.
    CONSTANT_VALUES = auto()
    # It has kernels that take integers and give floats.
    FLOAT_OUTPUT = auto()
    # ONNX Runtime (WeightBiasQuantization) rounds its float weights by itself between integers, with one scale.
    ROUNDED_UNASKED = auto()
    # It only turns floats into integers or integers into floats.
    CONVERTS = auto()
    # It makes one place of several: what it makes of a block's result may be the work of whoever called the block.
    POOLS = auto()


class Family(Enum):
    """What an operator with weights or over whole rows computes; operators of the first three take the time."""

    CONVOLUTION = auto()
    MATRIX = auto()
    RECURRENT = auto()
    ATTENTION = auto()
    # Over the last axes; the second with the sum in front of it.
    NORM = auto()
    RESIDUAL_NORM = auto()


class Arithmetic(Enum):
    """The numbers that an operator computes with."""

    FLOAT = auto()
    # Integers whose scales are given.
    STATIC = auto()
    # Integers whose scales are found at every call.
    DYNAMIC = auto()
    # Floats, with weights of integers.
    STORED = auto()


class IntegerForm(Enum):
    """How a float operator with weights gets onto integers."""

    # ONNX Runtime has an integer kernel for it.
    KERNEL = auto()
    # There is none: `transposed_convolutions` writes it as a convolution.
    CONVOLUTION = auto()
    # There is none: `recurrent_cells` writes it out as matrix products.
    CELLS = auto()


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """A recurrent layer: its `cell` in ONNX, gates, usual activations, and the inputs that are its first states.

    From `cells_from` units on, cells on integers are not slower than the float kernel on a CPU with VNNI and 2 MB of L2
    cache, at batch 1 and 61 steps: a GRU runs 0.49, 1.21 and 2.3 times as fast at 128, 256 and 384 units, an RNN 1.01,
    1.8 and 2.6. An LSTM has an integer kernel and is not written out as cells.
    """

    cell: str
    gates: int
    activations: tuple[str, ...]
    states: tuple[int, ...]
    cells_from: int = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Which inputs of an operator hold what, by position.

    `weights` are what quantization rounds, with the output channels along `channel_axis` (-1: the last; a Gemm turns
    it around with transB); `bias` is added to them. `trained` are all that a training changes, `settings` numbers that
    nobody trains. An operator on integers has `integers`, {position: (position of the zero point, the axis it lies
    on)}, and `floats`; all else that it reads are scales and zero points.
    """

    weights: tuple[int, ...] = ()
    channel_axis: int = -1
    bias: int | None = None
    trained: tuple[int, ...] = ()
    settings: tuple[int, ...] = ()
    integers: Mapping[int, tuple[int | None, int]] = field(default_factory=dict)
    floats: tuple[int, ...] = ()

    @property
    def listed(self) -> bool:
        """Whether `integers` and `floats` list all that it computes with: it is an operator on integers."""
        return bool(self.integers or self.floats)


_PRODUCTS = (Family.CONVOLUTION, Family.MATRIX, Family.RECURRENT)
_NONE = Fact(0)


@dataclass(frozen=True)
class Operator:
    """One row: what is known of the ONNX operator `name`.

    `bounds` are (low, high) where it cuts values off unless its inputs say otherwise, None where it cuts nothing off.
    `makes` are, by attribute, the settings at which an operator that moves values computes new ones instead.
    """

    name: str
    facts: Fact = _NONE
    family: Family | None = None
    arithmetic: Arithmetic | None = None
    integer_form: IntegerForm | None = None
    inputs: Inputs = field(default_factory=Inputs)
    recurrence: Recurrence | None = None
    bounds: tuple[float, float] | None = None
    makes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def multiplies(self) -> bool:
        """Whether it is a convolution, a matrix product or a recurrent layer, on whatever numbers."""
        return self.family in _PRODUCTS

    @property
    def multiplies_floats(self) -> bool:
        """Whether it is one of them in floats, under its own name or that of a fusion."""
        return self.multiplies and self.arithmetic is Arithmetic.FLOAT

    @property
    def multiplies_integers(self) -> bool:
        """Whether it is one of them with weights of integers."""
        return self.multiplies and self.on_integers

    @property
    def heavy(self) -> bool:
        """Whether it holds the weights and takes the time of an exported float graph."""
        return self.multiplies_floats and Fact.FUSED not in self.facts

    @property
    def linear(self) -> bool:
        """Whether it is a heavy operator whose output is its weights times its input."""
        return self.heavy and self.family is not Family.RECURRENT

    @property
    def multiplies_matrices(self) -> bool:
        """Whether it is the heavy operator of a linear layer or of a product of two activations."""
        return self.heavy and self.family is Family.MATRIX

    @property
    def on_integers(self) -> bool:
        """Whether weights or activations are integers in it."""
        return self.arithmetic not in {None, Arithmetic.FLOAT}


# Rows -----------------------------------------------------------------------------------------------------------------

_FLOAT, _STATIC, _DYNAMIC, _STORED = Arithmetic.FLOAT, Arithmetic.STATIC, Arithmetic.DYNAMIC, Arithmetic.STORED
_CONVOLUTION, _MATRIX, _RECURRENT, _ATTENTION, _NORM, _RESIDUAL_NORM = Family
_FUSED, _FOLLOWS, _MOVES, _JOINS = Fact.FUSED, Fact.FOLLOWS, Fact.MOVES, Fact.JOINS
_HOMOGENEOUS, _CHANNELWISE, _POOLS, _KEEPS_ZEROS = Fact.HOMOGENEOUS, Fact.CHANNELWISE, Fact.POOLS, Fact.KEEPS_ZEROS
_RESHAPE = _FOLLOWS | _MOVES | Fact.RESHAPES
_ARITHMETIC = Fact.BROADCASTS | Fact.COMBINES | Fact.CONSTANT_VALUES
_PRODUCT = Fact.FLOAT_OUTPUT | Fact.CONSTANT_VALUES
_UNASKED, _KERNEL = Fact.ROUNDED_UNASKED, IntegerForm.KERNEL
_BIASED = Inputs(weights=(1,), bias=2, trained=(1, 2))
_SCALED = Inputs(trained=(1, 2))
# W and R are (directions, gates * hidden, inputs): rows are the output channels, shared by both directions.
_CELL = Inputs(weights=(1, 2), channel_axis=1, trained=(1, 2, 3))
_LSTM = Recurrence(cell="LSTM", gates=4, activations=("Sigmoid", "Tanh", "Tanh"), states=(5, 6))
_GRU = Recurrence(cell="GRU", gates=3, activations=("Sigmoid", "Tanh"), states=(5,), cells_from=256)
_RNN = Recurrence(cell="RNN", gates=1, activations=("Tanh",), states=(5,), cells_from=128)

# The heavy ones, in the order in which messages list them.
_HEAVY = (
    Operator("Conv", _UNASKED, _CONVOLUTION, _FLOAT, _KERNEL, replace(_BIASED, channel_axis=0)),
    Operator(
        "ConvTranspose", _UNASKED, _CONVOLUTION, _FLOAT, IntegerForm.CONVOLUTION, replace(_BIASED, channel_axis=1)
    ),
    Operator("Gemm", _UNASKED | _PRODUCT, _MATRIX, _FLOAT, _KERNEL, _BIASED),
    Operator("MatMul", _PRODUCT, _MATRIX, _FLOAT, _KERNEL, Inputs(weights=(1,), trained=(0, 1))),
    Operator("LSTM", _NONE, _RECURRENT, _FLOAT, _KERNEL, _CELL, _LSTM),
    Operator("GRU", _NONE, _RECURRENT, _FLOAT, IntegerForm.CELLS, _CELL, _GRU),
    Operator("RNN", _NONE, _RECURRENT, _FLOAT, IntegerForm.CELLS, _CELL, _RNN),
)
# What ONNX Runtime makes of them in floats. The two without arithmetic have no kernel, or no fusion, in its CPU build.
_FLOAT_KERNELS = (
    Operator("FusedConv", _FUSED, _CONVOLUTION, _FLOAT, inputs=Inputs(weights=(1,), channel_axis=0, bias=2)),
    Operator("NhwcFusedConv", _FUSED, _CONVOLUTION, inputs=Inputs(weights=(1,), channel_axis=0, bias=2)),
    Operator("FusedGemm", _FUSED, _MATRIX, _FLOAT, inputs=Inputs(weights=(1,), bias=2)),
    Operator("FusedMatMul", _FUSED, _MATRIX, _FLOAT, inputs=Inputs(weights=(1,))),
    Operator("TransposeMatMul", _FUSED, _MATRIX, inputs=Inputs(weights=(1,))),
)
# And on integers, between its conversions.
_INTEGER_KERNELS = (
    Operator("QuantizeLinear", Fact.CONVERTS, inputs=Inputs(floats=(0,))),
    Operator("DequantizeLinear", Fact.CONVERTS, inputs=Inputs(integers={0: (2, 1)})),
    Operator("DynamicQuantizeLinear", _NONE, None, _DYNAMIC),
    Operator(
        "QLinearConv",
        _NONE,
        _CONVOLUTION,
        _STATIC,
        inputs=Inputs(weights=(3,), channel_axis=0, integers={0: (2, 1), 3: (5, 0), 8: (None, 0)}),
    ),
    Operator(
        "ConvInteger", _NONE, _CONVOLUTION, _DYNAMIC, inputs=Inputs(weights=(1,), integers={0: (2, 1), 1: (3, 0)})
    ),
    Operator("QLinearConvTranspose", _FUSED, _CONVOLUTION, _STATIC, inputs=Inputs(weights=(3,))),
    Operator("QLinearMatMul", _NONE, _MATRIX, _STATIC, inputs=Inputs(weights=(3,), integers={0: (2, -2), 3: (5, -1)})),
    Operator(
        "QGemm", _FUSED, _MATRIX, _STATIC, inputs=Inputs(weights=(3,), integers={0: (2, 0), 3: (5, -1), 6: (None, 0)})
    ),
    Operator("MatMulInteger", _NONE, _MATRIX, _DYNAMIC, inputs=Inputs(weights=(1,), integers={0: (2, -2), 1: (3, -1)})),
    Operator(
        "MatMulIntegerToFloat",
        _FUSED,
        _MATRIX,
        _DYNAMIC,
        inputs=Inputs(weights=(1,), integers={0: (4, -2), 1: (5, -1)}, floats=(6,)),
    ),
    Operator(
        "DynamicQuantizeMatMul",
        _FUSED,
        _MATRIX,
        _DYNAMIC,
        inputs=Inputs(weights=(1,), integers={1: (3, -1)}, floats=(0, 4)),
    ),
    Operator("MatMulNBits", _NONE, _MATRIX, _STORED, inputs=Inputs(weights=(1,), floats=(0, 5))),
    Operator(
        "DynamicQuantizeLSTM",
        _NONE,
        _RECURRENT,
        _DYNAMIC,
        inputs=Inputs(weights=(1, 2), trained=(3,), integers={1: (9, 0), 2: (11, 0)}, floats=(0, 3, 5, 6, 7)),
        recurrence=_LSTM,
    ),
    Operator("QAttention", _FUSED, _ATTENTION, _STATIC, inputs=Inputs(integers={0: (6, 0), 1: (7, -1)}, floats=(2,))),
    Operator("QLinearAdd", _FUSED, None, _STATIC, inputs=Inputs(integers={0: (2, 0), 3: (5, 0)})),
    Operator("QLinearMul", _FUSED, None, _STATIC, inputs=Inputs(integers={0: (2, 0), 3: (5, 0)})),
    Operator("QLinearConcat", _FUSED, None, _STATIC),
    Operator("QLinearAveragePool", _FUSED, None, _STATIC),
    Operator("QLinearGlobalAveragePool", _FUSED, None, _STATIC),
    Operator("QLinearLeakyRelu", _FUSED, None, _STATIC),
    Operator("QLinearSigmoid", _FUSED, None, _STATIC),
    Operator("QLinearSoftmax", _FUSED, None, _STATIC),
    Operator("QLinearReduceMean", _FUSED, None, _STATIC),
    Operator("QLinearWhere", _FUSED, None, _STATIC),
)
_NORMS_AND_ATTENTION = (
    Operator("LayerNormalization", _NONE, _NORM, inputs=_SCALED),
    Operator("SimplifiedLayerNormalization", _FUSED, _NORM),
    Operator("SkipLayerNormalization", _FUSED, _RESIDUAL_NORM),
    Operator("SkipSimplifiedLayerNormalization", _FUSED, _RESIDUAL_NORM),
    Operator("BatchNormalization", inputs=_SCALED),
    Operator("InstanceNormalization", inputs=_SCALED),
    Operator("GroupNormalization", inputs=_SCALED),
    Operator("Attention", _NONE, _ATTENTION),
    Operator("MultiHeadAttention", _NONE, _ATTENTION),
)
_ARITHMETIC_ON_VALUES = (
    Operator("Add", _ARITHMETIC | _FOLLOWS | _CHANNELWISE),
    Operator("Sub", _ARITHMETIC),
    Operator("Mul", _ARITHMETIC | _FOLLOWS | _CHANNELWISE),
    Operator("Div", _ARITHMETIC),
    Operator("Sum", Fact.COMBINES),
    Operator("Relu", _FOLLOWS | _HOMOGENEOUS | _CHANNELWISE, bounds=(0.0, inf)),
    Operator("Clip", _FOLLOWS | _CHANNELWISE, bounds=(-inf, inf), inputs=Inputs(settings=(1, 2))),
    Operator("LeakyRelu", _FOLLOWS | _HOMOGENEOUS | _CHANNELWISE),
    Operator("Sigmoid", _FOLLOWS | _CHANNELWISE),
    Operator("HardSigmoid", _FOLLOWS),
    Operator("PRelu", inputs=Inputs(trained=(1,))),
    Operator("Dropout", _HOMOGENEOUS, inputs=Inputs(settings=(1, 2))),
    Operator("GlobalAveragePool", _FOLLOWS | _HOMOGENEOUS | _CHANNELWISE | _POOLS),
    Operator("GlobalMaxPool", _HOMOGENEOUS | _POOLS),
    Operator("AveragePool", _FOLLOWS | _HOMOGENEOUS | _CHANNELWISE | _POOLS),
    Operator("MaxPool", _FOLLOWS | _MOVES | _HOMOGENEOUS | _CHANNELWISE | _POOLS),
    Operator("ReduceMean", _POOLS),
    Operator("ReduceMax", _POOLS),
    Operator("ReduceSum", _POOLS),
)
# What moves values, one line each.
_MOVERS = (
    Operator("Reshape", _RESHAPE | _KEEPS_ZEROS),
    Operator("Flatten", _RESHAPE | _POOLS),
    Operator("Squeeze", _RESHAPE | _KEEPS_ZEROS),
    Operator("Unsqueeze", _RESHAPE | _KEEPS_ZEROS),
    Operator("Transpose", _FOLLOWS | _MOVES | _KEEPS_ZEROS),
    Operator("Slice", _FOLLOWS | _MOVES | _KEEPS_ZEROS),
    Operator("Split", _FOLLOWS | _MOVES),
    # Between samples ONNX Runtime cuts integers down, half a step too low on average, and has no cubic on integers.
    Operator(
        "Resize",
        _FOLLOWS | _MOVES | _HOMOGENEOUS,
        inputs=Inputs(settings=(1, 2, 3)),
        makes={"mode": ("linear", "cubic"), "coordinate_transformation_mode": ("tf_crop_and_resize",)},
    ),
    Operator("Upsample", _HOMOGENEOUS, inputs=Inputs(settings=(1,))),
    Operator("Pad", _FOLLOWS | _MOVES | _JOINS, inputs=Inputs(settings=(1, 2, 3))),
    Operator("DepthToSpace", _FOLLOWS | _MOVES),
    Operator("Concat", _FOLLOWS | _JOINS | Fact.COMBINES | Fact.CONSTANT_VALUES),
    Operator("Where", _JOINS),
    Operator("ScatterND", _JOINS),
    Operator("ScatterElements", _JOINS),
    Operator("Gather", _MOVES, inputs=Inputs(weights=(0,), channel_axis=0, trained=(0,))),
    Operator("Expand", _MOVES | _KEEPS_ZEROS),
    Operator("Tile", _MOVES),
    Operator("Identity", _HOMOGENEOUS | _KEEPS_ZEROS),
    Operator("Cast", _KEEPS_ZEROS),
    Operator("Range", inputs=Inputs(settings=(0, 1, 2))),
)
# Looked at, and nothing of the above holds: they stay in float.
_OTHERS = (
    "Abs", "And", "ArgMax", "CastLike", "Col2Im", "ConcatFromSequence", "Constant", "ConstantOfShape", "Cos",
    "CumSum", "DFT", "Einsum", "Elu", "Equal", "Erf", "GatherElements", "GatherND", "Gelu", "Greater",
    "GreaterOrEqual", "HardSwish", "If", "IsNaN", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "Max", "Min",
    "Neg", "Not", "Pow", "Reciprocal", "ReduceL2", "SequenceEmpty", "SequenceInsert", "Shape", "Sin",
    "Size", "Softmax", "Softplus", "Sqrt", "Tanh", "Trilu",
)  # fmt: skip

ROWS = (
    *_HEAVY,
    *_FLOAT_KERNELS,
    *_INTEGER_KERNELS,
    *_NORMS_AND_ATTENTION,
    *_ARITHMETIC_ON_VALUES,
    *_MOVERS,
    *map(Operator, _OTHERS),
)
OPERATORS: Mapping[str, Operator] = {row.name: row for row in ROWS}


def operator_of(name: str) -> Operator:
    """The row of the operator `name`; one without facts where there is none."""
    return OPERATORS.get(name) or Operator(name)


def facts_of(name: str) -> Fact:
    """The facts of the operator `name`, none where it has no row."""
    return operator_of(name).facts


def heavy_operators() -> tuple[str, ...]:
    """The names of the heavy operators, in the table's order."""
    return tuple(row.name for row in OPERATORS.values() if row.heavy)
