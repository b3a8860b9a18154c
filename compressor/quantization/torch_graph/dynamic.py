"""Operators whose activations become integers at every call, as torch functions with straight-through gradients.

Integers are float32 tensors of whole numbers. Sums of products of 8-bit integers are exact in float32 below 2^24, that
is up to 518 inputs, and good to 1e-7 of the largest beyond. MatMulNBits rounds every block of a row of activations to
int8 on its own, over the block's largest magnitude, as ONNX Runtime does at accuracy_level 4.
"""

import torch
from torch import Tensor

from compressor.errors import StageError
from compressor.quantization.torch_graph.operators import Call, Operator
from compressor.quantization.torch_graph.straight_through import dynamic_integers, straight_through_round

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# Half of the range of unsigned 4- and 8-bit integers: the zero point of blocks that have none.
_MIDDLE = {4: 8, 8: 128}


def _centred(integers: Tensor, zero_point: Tensor | None) -> Tensor:
    return integers.float() if zero_point is None else integers.float() - zero_point.float()


def _matmul_integer(call: Call) -> Tensor:
    left, right = call.tensor(0), call.tensor(1)
    return _centred(left, call.optional(2)) @ _centred(right, call.optional(3))


def _dynamic_quantize_linear(call: Call) -> tuple[Tensor, ...]:
    return dynamic_integers(call.tensor(0))


def _scaled_product(values: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    integers, own_scale, zero_point = dynamic_integers(values)
    return (integers - zero_point) @ weight * (own_scale * scale)


def _dynamic_quantize_lstm(call: Call) -> tuple[Tensor, ...]:
    """ONNX Runtime's DynamicQuantizeLSTM: the input is rounded over all steps at once, the state at every step."""
    unknown = {"clip", "activations", "activation_alpha", "activation_beta"} & call.attributes.keys()
    coupled = call.get("input_forget", 0) or call.get("layout", 0)
    if unknown or coupled or call.optional(4) is not None or call.optional(7) is not None:
        raise StageError(
            f"LSTM {call.name!r} has sequence lengths, peepholes, a clip, other activations or its batch first, and "
            "has no form in torch here; leave it in float with skip, or use Quantize, which does not train"
        )
    values, hidden = call.tensor(0), call.tensor(2).shape[1]
    batch = values.shape[1]
    outputs, lasts, cells = [], [], []
    for side, backwards in enumerate(_DIRECTIONS[call.get("direction", "forward")]):
        (inputs, of_inputs), (states, of_states) = (
            (_centred(call.tensor(position)[side], call.tensor(zero)[side]), call.tensor(zero - 1)[side])
            for position, zero in ((1, 9), (2, 11))
        )
        h, c = (
            values.new_zeros(batch, hidden) if given is None else given[side]
            for given in (call.optional(5), call.optional(6))
        )
        gates, bias = _scaled_product(values, inputs, of_inputs), call.optional(3)
        if bias is not None:
            gates = gates + bias[side, : 4 * hidden] + bias[side, 4 * hidden :]
        found: list[Tensor] = []
        for step in gates.flip(0).unbind() if backwards else gates.unbind():
            total = step + _scaled_product(h, states, of_states)
            i, o, f = total[:, : 3 * hidden].sigmoid().chunk(3, dim=1)
            c = f * c + i * total[:, 3 * hidden :].tanh()
            h = o * c.tanh()
            found.append(h)
        outputs.append(torch.stack(found[::-1] if backwards else found))
        lasts.append(h)
        cells.append(c)
    return torch.stack(outputs, dim=1), torch.stack(lasts), torch.stack(cells)


def _matmul_nbits(call: Call) -> Tensor:
    """`values` (..., K) times the matrix (N, K), which may be given in floats in place of its blocks."""
    values, stored, block = call.tensor(0), call.tensor(1), call.attributes["block_size"]
    weight = stored if stored.is_floating_point() else _unpacked(call, stored)
    inputs = values.shape[-1]
    rows = torch.nn.functional.pad(values, (0, -inputs % block)).reshape(*values.shape[:-1], -1, block)
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    rounded = (straight_through_round(rows / scale) * scale).flatten(-2)[..., :inputs]
    return torch.nn.functional.linear(rounded, weight, call.optional(5))


def _unpacked(call: Call, stored: Tensor) -> Tensor:
    channels, bits = call.attributes["N"], call.attributes["bits"]
    if bits not in _MIDDLE or (call.optional(3) is not None and bits != 8):
        raise StageError(
            f"MatMulNBits {call.name!r} with {bits} bits or packed zero points has no form in torch here; "
            "quantize without training"
        )
    integers = torch.stack([stored & 15, stored >> 4], dim=-1).flatten(-2) if bits == 4 else stored
    zero_point = call.optional(3)
    middle = _MIDDLE[bits] if zero_point is None else zero_point.float().reshape(channels, -1, 1)
    blocks = (integers.float() - middle) * call.tensor(2).reshape(channels, -1, 1)
    return blocks.flatten(1)[:, : call.attributes["K"]]


DYNAMIC: dict[str, Operator] = {
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "MatMulInteger": _matmul_integer,
    "DynamicQuantizeLSTM": _dynamic_quantize_lstm,
    "MatMulNBits": _matmul_nbits,
}
