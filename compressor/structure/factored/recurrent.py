"""A recurrent module behind a linear layer: its inputs' matrix as a product of two.

The first layer of nn.LSTM, nn.GRU and nn.RNN multiplies every input by W_ih; with W_ih = L R it is a recurrent module
of inputs R x. Both directions share R (Prabhavalkar et al. 2016, arXiv:1603.08042, sec. 3: the part of it that needs no
other recurrence). The matrices of the state and between layers stay: ONNX's LSTM, GRU and RNN multiply the
state by one matrix, and torch's form with a projection of the state (`proj_size`) hands out another state.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

KINDS = (nn.LSTM, nn.GRU, nn.RNN)
# What callers read of a recurrent module.
_SETTINGS = frozenset(
    {"hidden_size", "num_layers", "bidirectional", "batch_first", "bias", "dropout", "proj_size", "mode"}
)


class BehindProjection(nn.Module):
    """`recurrent` on what `projection`, a linear layer without bias, makes of the inputs; called like the former.

    Its settings (`hidden_size`, `num_layers`, ...) can be read here, too; `input_size` is that of the projection.
    """

    def __init__(self, projection: nn.Linear, recurrent: nn.RNNBase) -> None:
        super().__init__()
        self.projection, self.recurrent = projection, recurrent

    def forward(self, input: Any, hx: Any = None) -> Any:  # noqa: A002 - the names that torch gives them
        if isinstance(input, PackedSequence):
            return self.recurrent(input._replace(data=self.projection(input.data)), hx)
        return self.recurrent(self.projection(input), hx)

    @property
    def input_size(self) -> int:
        """How wide the inputs are."""
        return self.projection.in_features

    def flatten_parameters(self) -> None:
        """What callers do to recurrent modules."""
        self.recurrent.flatten_parameters()

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__ if name not in _SETTINGS else super().__getattr__("recurrent").__getattribute__
        return found(name)


def why_not_recurrent(layer: nn.RNNBase) -> str | None:
    """Why `layer` cannot be put behind a projection, None where it can."""
    if type(layer) not in KINDS:
        return f"{type(layer).__name__} is no nn.LSTM, nn.GRU or nn.RNN"
    if set(layer._parameters) != {name for names in layer._all_weights for name in names}:  # noqa: SLF001 - torch tells them nowhere else
        return "it holds other parameters than torch gives it"
    return None


def input_names(layer: nn.RNNBase) -> list[str]:
    """The names of the matrices by which the first layer multiplies the inputs, one for each direction."""
    return ["weight_ih_l0", "weight_ih_l0_reverse"][: 2 if layer.bidirectional else 1]


def input_weight(layer: nn.RNNBase) -> Tensor:
    """These matrices, one above the other: (directions * gates * units, inputs)."""
    return torch.cat([getattr(layer, name).detach() for name in input_names(layer)])


def behind_projection(layer: nn.RNNBase, first: Tensor, second: Tensor) -> BehindProjection:
    """`layer` with its inputs' matrices as the product of `second` and `first`; other parameters stay the same ones."""
    projection = nn.Linear(first.shape[1], first.shape[0], bias=False, device="meta")
    trained = bool(layer.weight_ih_l0.requires_grad)
    projection.weight = nn.Parameter(first.detach().clone(), requires_grad=trained)
    kind: Any = type(layer)
    settings = {key: getattr(layer, key) for key in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")}
    settings |= {"nonlinearity": layer.nonlinearity} if isinstance(layer, nn.RNN) else {}
    settings |= {"proj_size": layer.proj_size} if isinstance(layer, nn.LSTM) else {}
    # On the meta device nothing is drawn for weights that come from elsewhere.
    narrow: nn.RNNBase = kind(first.shape[0], layer.hidden_size, device="meta", **settings)
    halves = dict(zip(input_names(layer), second.detach().chunk(len(input_names(layer))), strict=True))
    for name, parameter in layer.named_parameters(recurse=False, remove_duplicate=False):
        own = nn.Parameter(halves[name].clone(), requires_grad=trained) if name in halves else parameter
        setattr(narrow, name, own)
    narrow.flatten_parameters()
    return BehindProjection(projection, narrow).train(layer.training)
