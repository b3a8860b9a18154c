"""The axes of recurrent layers: one hidden axis for all layers and directions, gates as its outer factor.

Rows of W_ih, W_hh and the biases are (gates, hidden), in the order of torch's documentation; columns of W_hh are
hidden, or the projection's (Sak et al. 2014, arXiv:1402.1128) where there is one.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from compressor.structure.axes.axis import Axis, join, name_role, product
from compressor.structure.axes.calls import Dims

RECURRENT = (nn.RNNBase, nn.RNNCellBase)

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}


def recurrent_dims(
    module: nn.Module, dims_of: Callable[[Tensor], Dims], args: tuple[Any, ...], output: Any
) -> list[tuple[Tensor, Dims]]:
    """The axes of every tensor that a recurrent layer or cell handed back, after joining those of its weights.

    `args` are what it was called with: the sequence, and the state where one was given. Raises IrreconcilableError.
    """
    given, state = args[0], args[1] if len(args) > 1 else None
    given = given.data if isinstance(given, PackedSequence) else given
    *lead, features = dims_of(given)
    hidden = Axis(int(module.hidden_size))  # type: ignore[arg-type]  # both kinds of module have an integer there
    name_role(hidden, "units")
    size = int(getattr(module, "proj_size", 0))
    out = Axis(size) if size else hidden
    if size:
        name_role(out, "units")
    kind = str(getattr(module, "mode", type(module).__name__))
    gates = _GATES[kind if kind in _GATES else _base_name(module)]
    directions = 2 if getattr(module, "bidirectional", False) else 1
    both = product([Axis(directions, "it counts directions"), out])
    rows = product([Axis(gates, "it counts gates"), hidden])
    for name, weight in module.named_parameters(recurse=False):
        dims = dims_of(weight)
        if name.startswith("weight_hr"):
            join(dims[0], out)
            join(dims[1], hidden)
            continue
        join(dims[0], rows)
        if name.startswith("weight_hh"):
            join(dims[1], out)
        elif name.startswith("weight_ih"):
            join(dims[1], features if name in {"weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"} else both)
    states = list(_flat(state))
    for number, tensor in enumerate(states):
        join(dims_of(tensor)[-1], hidden if number == 1 else out)
    if isinstance(module, nn.RNNCellBase):
        return [(tensor, [*lead, hidden]) for tensor in _flat(output)]
    sequence, last = output
    sequence = sequence.data if isinstance(sequence, PackedSequence) else sequence
    found: list[tuple[Tensor, Dims]] = [(sequence, [*lead, both])]
    for number, tensor in enumerate(_flat(last)):
        fixed = [Axis(length, "it counts layers, directions and samples") for length in tensor.shape[:-1]]
        found.append((tensor, [*fixed, hidden if number == 1 else out]))
    return found


def _base_name(module: nn.Module) -> str:
    return next(parent.__name__ for parent in type(module).__mro__ if parent.__name__ in _GATES)


def _flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
