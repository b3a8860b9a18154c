"""Operators: the sizes that time depends on, from torch layers and as keys of a table."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.latency.operators import Operator, conv, light, linear, matmul, operators_of_layer, recurrent


def test_macs_by_hand() -> None:
    """Multiply-accumulates are those counted by hand for every kind."""
    assert conv(3, 8, (10, 10), kernel=(3, 3)).macs == 100 * 9 * 3 * 8
    assert conv(8, 8, (10, 10), kernel=(3, 3), groups=8, stride=2, batch=2).macs == 2 * 25 * 9 * 8
    assert conv(4, 2, (5, 5), kernel=(2, 2), stride=2, padding=0, transposed=True).macs == 25 * 4 * 4 * 2
    assert linear(20, 30, 7).macs == 4200
    assert matmul(5, 6, 7, batch=2).macs == 420
    assert recurrent("lstm", 10, 20, 3, bidirectional=True).macs == 3 * 2 * 4 * 20 * 30
    assert recurrent("gru", 10, 20, 3).macs == 3 * 3 * 20 * 30
    assert light("Relu", 100).macs == 0


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(7, 12),
    kernel=st.integers(1, 4),
    window=st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    kind=st.sampled_from([nn.Conv1d, nn.ConvTranspose1d]),
)
def test_output_size_is_torchs(size: int, kernel: int, window: tuple[int, int, int], kind: type[nn.Module]) -> None:
    """The map that a convolution's operator makes is the one that torch's layer makes."""
    stride, padding, dilation = window
    layer = kind(2, 4, kernel, stride, padding, dilation=dilation)
    made = layer(torch.zeros(3, 2, size))
    (operator,) = operators_of_layer(layer, (3, 2, size))
    assert (operator.batch, operator.outputs, *operator.output_size) == tuple(made.shape)


def test_layers_become_operators() -> None:
    """Torch layers give the operators that the constructors give, one a recurrent layer, six to an attention."""
    assert operators_of_layer(nn.Conv2d(3, 8, 3, padding=1, bias=False), (2, 3, 8, 8)) == (
        conv(3, 8, (8, 8), kernel=(3, 3), batch=2),
    )
    assert operators_of_layer(nn.Conv2d(3, 8, 3, padding="same", bias=False), (3, 8, 8)) == (
        conv(3, 8, (8, 8), kernel=(3, 3)),
    )
    assert operators_of_layer(nn.Linear(4, 5), (2, 7, 4)) == (linear(4, 5, 14),)
    stacked = nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True)
    assert operators_of_layer(stacked, (2, 9, 4)) == (
        recurrent("lstm", 4, 6, 9, batch=2, bidirectional=True),
        recurrent("lstm", 12, 6, 9, batch=2, bidirectional=True),
    )
    assert operators_of_layer(nn.GRU(4, 6), (9, 2, 4)) == (recurrent("gru", 4, 6, 9, batch=2),)
    attention = operators_of_layer(nn.MultiheadAttention(8, 2, batch_first=True), (1, 5, 8))
    assert attention[:3] == (linear(8, 8, 5),) * 3
    assert attention[3:6] == (matmul(5, 4, 5, batch=2), light("Softmax", 50, row=5), matmul(5, 5, 4, batch=2))
    assert operators_of_layer(nn.ReLU(), (1, 3)) == ()


def test_output_padding_is_seen() -> None:
    """What torch adds at the end of a transposed convolution's map is part of the operator's map."""
    layer = nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1)
    (operator,) = operators_of_layer(layer, (1, 4, 5, 5))
    assert operator.output_size == tuple(layer(torch.zeros(1, 4, 5, 5)).shape[2:]) == (10, 10)


def test_json_round_trip() -> None:
    """An operator comes back from JSON as it was, and the order of its flags means nothing."""
    operator = conv(3, 8, (8, 8), kernel=(3, 3), flags=("relu", "add"))
    assert Operator.from_json(operator.as_json()) == operator
    assert operator == conv(3, 8, (8, 8), kernel=(3, 3), flags=("add", "relu"))


def test_impossible_operators_are_refused() -> None:
    """Widths that the groups do not divide, unknown kinds and empty maps are refused with what was wanted."""
    with pytest.raises(ValueError, match="groups must divide the widths: 6 -> 9 in 4 groups"):
        conv(6, 9, (8, 8), kernel=(3, 3), groups=4)
    with pytest.raises(ValueError, match=r"kernel \(9, 9\) does not fit the padded map \(3, 3\)"):
        conv(4, 4, (3, 3), kernel=(9, 9), padding=0)
    with pytest.raises(ValueError, match="kind is one of"):
        Operator(kind="fft")
    with pytest.raises(ValueError, match="at least 1"):
        linear(0, 3, 1)
