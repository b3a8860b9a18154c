"""One computation that a runtime is timed at: its kind and every size that its time depends on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from torch import nn

CONVOLUTIONS = ("conv", "conv_transpose")
RECURRENT = ("lstm", "gru", "rnn")
PRODUCTS = ("linear", "matmul")


@dataclass(frozen=True, order=True, kw_only=True)
class Operator:
    """One operator with its sizes, comparable and hashable: the key of a latency table.

    `kind`: "conv" (1 to 3 dimensions, depthwise and grouped ones by `groups`), "conv_transpose", "linear" (`batch` rows
    times a constant matrix), "matmul" (`batch` products of `size[0]` x `inputs` by `inputs` x `outputs`, both computed
    by the network), "lstm", "gru", "rnn" (one layer; `outputs` hidden units, `size` = (steps,)), or "light": anything
    else, by its ONNX name in `flags`, with `size` = (rows, elements in a row).
    `inputs`, `outputs`: channels or features. `size`: the input map, empty for "linear". `padding`: as in ONNX, all
    begins, then all ends. `flags`: "bias"; "relu" and "add" (a residual sum) done with a convolution or product;
    "dynamic" (a linear layer whose int8 form finds its ranges at run time); "bidirectional". `footprint`: the KiB that
    the weights of the whole model take, where that decides how far from the core this operator's weights lie (see
    `LatencyTable.total`), else 0. `precision`: "float32" or "int8" where the file fixes it, "" where the caller of the
    table decides.
    """

    kind: str
    inputs: int = 1
    outputs: int = 1
    batch: int = 1
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    flags: tuple[str, ...] = ()
    precision: str = ""
    footprint: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (*CONVOLUTIONS, *RECURRENT, *PRODUCTS, "light"):
            raise ValueError(
                f"kind is one of conv, conv_transpose, linear, matmul, lstm, gru, rnn, light; got {self.kind!r}"
            )
        if min(self.inputs, self.outputs, self.batch, self.groups, *self.size) < 1:
            raise ValueError(f"widths, batch, groups and sizes are at least 1; got {self}")
        if self.kind in CONVOLUTIONS and (self.inputs % self.groups or self.outputs % self.groups):
            raise ValueError(
                f"groups must divide the widths: {self.inputs} -> {self.outputs} in {self.groups} groups; "
                "round the widths to a multiple of the groups"
            )
        if min(self.output_size, default=1) < 1:
            raise ValueError(f"the kernel {self.kernel} does not fit the padded map {self.size}; got {self}")
        object.__setattr__(self, "flags", tuple(sorted(self.flags)))

    @cached_property
    def output_size(self) -> tuple[int, ...]:
        """The map that a convolution makes; `size` for everything else."""
        if self.kind not in CONVOLUTIONS:
            return self.size
        count = len(self.size)
        pads = [self.padding[i] + self.padding[i + count] for i in range(count)]
        spans = [step * (kernel - 1) + 1 for step, kernel in zip(self.dilation, self.kernel, strict=True)]
        if self.kind == "conv":
            steps = zip(self.size, pads, spans, self.stride, strict=True)
            return tuple((size + pad - span) // stride + 1 for size, pad, span, stride in steps)
        steps = zip(self.size, pads, spans, self.stride, strict=True)
        return tuple((size - 1) * stride - pad + span for size, pad, span, stride in steps)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch; 0 for light operators."""
        if self.kind in CONVOLUTIONS:
            positions = self.output_size if self.kind == "conv" else self.size
            return (
                self.batch * math.prod(positions) * math.prod(self.kernel) * self.inputs * self.outputs // self.groups
            )
        if self.kind in PRODUCTS:
            return self.batch * math.prod(self.size) * self.inputs * self.outputs
        if self.kind in RECURRENT:
            gates = {"lstm": 4, "gru": 3, "rnn": 1}[self.kind]
            directions = 2 if "bidirectional" in self.flags else 1
            return self.batch * math.prod(self.size) * directions * gates * self.outputs * (self.inputs + self.outputs)
        return 0

    def as_json(self) -> dict[str, Any]:
        """The fields that differ from their defaults, tuples as lists."""
        defaults = {field.name: field.default for field in fields(self)}
        found = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Operator":
        """The operator that `as_json` described. Raises ValueError or TypeError for anything else."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


def conv(
    inputs: int,
    outputs: int,
    size: Sequence[int],
    *,
    kernel: Sequence[int],
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int | None = None,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    batch: int = 1,
    flags: Sequence[str] = (),
    transposed: bool = False,
) -> Operator:
    """A convolution on an input map of `size`; `padding` on both sides alike, by default what keeps the map's size."""
    count = len(size)
    dilations = _each(dilation, count)
    if padding is None:
        padding = [step * (width - 1) // 2 for step, width in zip(dilations, kernel, strict=True)]
    pads = _each(padding, count)
    return Operator(
        kind="conv_transpose" if transposed else "conv",
        inputs=inputs,
        outputs=outputs,
        batch=batch,
        size=tuple(size),
        kernel=tuple(kernel),
        stride=_each(stride, count),
        padding=(*pads, *pads),
        dilation=dilations,
        groups=groups,
        flags=tuple(flags),
    )


def linear(inputs: int, outputs: int, rows: int, *, flags: Sequence[str] = ("bias",)) -> Operator:
    """`rows` vectors times a constant (inputs, outputs) matrix."""
    return Operator(kind="linear", inputs=inputs, outputs=outputs, batch=rows, flags=tuple(flags))


def matmul(rows: int, inner: int, columns: int, *, batch: int = 1) -> Operator:
    """`batch` products of (rows, inner) by (inner, columns), as in attention."""
    return Operator(kind="matmul", inputs=inner, outputs=columns, size=(rows,), batch=batch)


def recurrent(
    kind: str, inputs: int, hidden: int, steps: int, *, batch: int = 1, bidirectional: bool = False
) -> Operator:
    """One layer of an LSTM, GRU or RNN over `steps` steps."""
    flags = ("bidirectional",) if bidirectional else ()
    return Operator(kind=kind, inputs=inputs, outputs=hidden, size=(steps,), batch=batch, flags=flags)


def light(name: str, elements: int, *, row: int = 1) -> Operator:
    """The ONNX operator `name` on `elements` numbers: activations, sums, pooling, moves.

    `row`: how many of them softmax, a norm or a mean takes together.
    """
    return Operator(kind="light", size=(max(1, elements // row), row), flags=(name,))


def operators_of_layer(layer: nn.Module, input_shape: Sequence[int]) -> tuple[Operator, ...]:
    """What one torch layer computes for an input of `input_shape`, batch included; empty for layers without products.

    Convolutions (`input_shape` with or without the batch), Linear, LSTM, GRU and RNN (one operator a layer) and
    `nn.MultiheadAttention` (self-attention; its attributes `num_heads` and `head_dim` count).
    """
    shape = list(input_shape)
    if isinstance(layer, nn.Linear):
        return (_linear(layer, math.prod(shape[:-1])),)
    if isinstance(
        layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    ):
        return (_convolution(layer, shape),)
    if isinstance(layer, nn.LSTM | nn.GRU | nn.RNN):
        return _recurrent_layers(layer, shape)
    if isinstance(layer, nn.MultiheadAttention):
        return _attention(layer, shape)
    return ()


def _linear(layer: nn.Linear, rows: int) -> Operator:
    # The weight's shape counts, not the attributes: a narrowed layer may be described wrongly, its time is not.
    outputs, inputs = layer.weight.shape
    return linear(inputs, outputs, max(1, rows), flags=("bias",) if layer.bias is not None else ())


def _convolution(layer: nn.modules.conv._ConvNd, shape: list[int]) -> Operator:
    count = len(layer.kernel_size)
    size, batch = shape[-count:], shape[0] if len(shape) == count + 2 else 1
    if isinstance(layer.padding, str):
        spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        pads = [0] * count * 2 if layer.padding == "valid" else [s // 2 for s in spans] + [s - s // 2 for s in spans]
    else:
        pads = [*layer.padding, *layer.padding]
    if layer.transposed:
        # What torch adds at the end of the output, ONNX's sizes take off the padding.
        pads[count:] = [p - extra for p, extra in zip(pads[count:], layer.output_padding, strict=True)]
    return Operator(
        kind="conv_transpose" if layer.transposed else "conv",
        inputs=layer.in_channels,
        outputs=layer.out_channels,
        batch=batch,
        size=tuple(size),
        kernel=tuple(layer.kernel_size),
        stride=tuple(layer.stride),
        padding=tuple(int(pad) for pad in pads),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        flags=("bias",) if layer.bias is not None else (),
    )


def _recurrent_layers(layer: nn.RNNBase, shape: list[int]) -> tuple[Operator, ...]:
    if len(shape) == 2:
        steps, batch = shape[0], 1
    else:
        steps, batch = (shape[1], shape[0]) if layer.batch_first else (shape[0], shape[1])
    directions = 2 if layer.bidirectional else 1
    made = (layer.proj_size or layer.hidden_size) * directions
    return tuple(
        recurrent(
            layer.mode.split("_")[0].lower(),
            made if index else layer.input_size,
            layer.hidden_size,
            steps,
            batch=batch,
            bidirectional=layer.bidirectional,
        )
        for index in range(layer.num_layers)
    )


def _attention(layer: nn.MultiheadAttention, shape: list[int]) -> tuple[Operator, ...]:
    if len(shape) == 2:
        steps, batch = shape[0], 1
    else:
        steps, batch = (shape[1], shape[0]) if layer.batch_first else (shape[0], shape[1])
    heads, width = layer.num_heads, layer.head_dim
    projections = (linear(layer.embed_dim, heads * width, steps * batch),) * 3
    scores = matmul(steps, width, steps, batch=batch * heads)
    softmax = light("Softmax", batch * heads * steps * steps, row=steps)
    weighted = matmul(steps, steps, width, batch=batch * heads)
    return (*projections, scores, softmax, weighted, linear(heads * width, layer.embed_dim, steps * batch))


def _each(value: Sequence[int] | int, count: int) -> tuple[int, ...]:
    return (value,) * count if isinstance(value, int) else tuple(value)
