"""ONNX operators as differentiable torch functions: arithmetic, products, normalisation, quantization.

Integers of QuantizeLinear are float32 tensors of whole numbers, so that gradients pass straight through the rounding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.errors import StageError
from compressor.quantization.torch_graph.straight_through import round_trip, straight_through_round


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One node with its inputs at hand; inputs that are left out are None, `bounds` those of a QuantizeLinear."""

    name: str
    operator: str
    inputs: Sequence[Tensor | None]
    attributes: Mapping[str, Any]
    outputs: int
    opset: int
    bounds: tuple[int, int] | None = None

    def tensor(self, position: int) -> Tensor:
        """Input `position`. Raises StageError where the node has none."""
        found = self.optional(position)
        if found is None:
            raise StageError(f"{self.operator} {self.name!r} has no input {position}; the exported graph is damaged")
        return found

    def optional(self, position: int) -> Tensor | None:
        """Input `position`, or None."""
        return self.inputs[position] if position < len(self.inputs) else None

    def integers(self, name: str, position: int) -> list[int] | None:
        """The list of integers that is an attribute in older opsets and input `position` in newer ones."""
        found = self.optional(position)
        if found is not None:
            return [int(value) for value in found.reshape(-1).tolist()]
        value = self.attributes.get(name)
        return None if value is None else [int(entry) for entry in (value if isinstance(value, list) else [value])]

    def get(self, name: str, default: Any) -> Any:
        """The attribute, or `default`."""
        return self.attributes.get(name, default)


Operator = Callable[[Call], Tensor | tuple[Tensor, ...]]


def along_axis(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """`vector` shaped to be multiplied with `like` along `axis`; scalars and vectors of one entry as scalars."""
    if vector.numel() == 1:
        return vector.reshape(())
    shape = [1] * like.ndim
    shape[axis] = -1
    return vector.reshape(shape)


def _quantize_linear(call: Call) -> Tensor:
    values, zero_point = call.tensor(0), call.optional(2)
    axis = call.get("axis", 1)
    scaled = straight_through_round(values / along_axis(call.tensor(1), values, axis))
    if zero_point is not None:
        scaled = scaled + along_axis(zero_point, values, axis).float()
    low, high = call.bounds or (0, 255)
    return scaled.clamp(low, high)


def _fake_quantize(call: Call) -> Tensor:
    values, scale, zero_point = call.tensor(0), call.tensor(1), call.optional(2)
    zero_point = torch.zeros(()) if zero_point is None else zero_point.float()
    bounds = call.bounds or (0, 255)
    return round_trip(values, scale.reshape(()), zero_point.reshape(()), bounds)


def _dequantize_linear(call: Call) -> Tensor:
    values, zero_point = call.tensor(0).float(), call.optional(2)
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    if block:
        size = values.shape[axis]
        if zero_point is not None:
            values = values - zero_point.float().repeat_interleave(block, dim=axis).narrow(axis, 0, size)
        return values * call.tensor(1).repeat_interleave(block, dim=axis).narrow(axis, 0, size)
    if zero_point is not None:
        values = values - along_axis(zero_point, values, axis).float()
    return values * along_axis(call.tensor(1), values, axis)


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """The operator that applies `function` to its input."""
    return lambda call: function(call.tensor(0))


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """The operator that applies `function` to its two inputs."""
    return lambda call: function(call.tensor(0), call.tensor(1))


def _divide(left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        result = call.tensor(0)
        for position in range(1, len(call.inputs)):
            result = function(result, call.tensor(position))
        return result

    return run


def _clip(call: Call) -> Tensor:
    low = call.optional(1) if call.optional(1) is not None else call.attributes.get("min")
    high = call.optional(2) if call.optional(2) is not None else call.attributes.get("max")
    values = call.tensor(0)
    if low is None and high is None:
        return values
    return torch.clamp(values, low, high)


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        values, axes = call.tensor(0), call.integers("axes", 1)
        if not axes:
            if call.get("noop_with_empty_axes", 0):
                return values
            axes = list(range(values.ndim))
        reduced: Tensor = function(values, dim=tuple(axes), keepdim=bool(call.get("keepdims", 1)))
        return reduced

    return run


def _gemm(call: Call) -> Tensor:
    left, right, bias = call.tensor(0), call.tensor(1), call.optional(2)
    left = left.t() if call.get("transA", 0) else left
    right = right.t() if call.get("transB", 0) else right
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    if alpha == beta == 1 and bias is not None and bias.ndim == 1:
        return torch.addmm(bias, left, right)
    product: Tensor = alpha * (left @ right)
    return product if bias is None else product + beta * bias


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def run(call: Call) -> Tensor:
        values = call.tensor(0)
        if call.opset >= 13:
            result: Tensor = function(values, call.get("axis", -1))
            return result
        axis = call.get("axis", 1) % values.ndim
        flat: Tensor = function(values.flatten(axis), -1)
        return flat.reshape(values.shape)

    return run


def _layer_norm(call: Call) -> Tensor:
    values = call.tensor(0)
    shape = values.shape[call.get("axis", -1) % values.ndim :]
    return F.layer_norm(values, list(shape), call.optional(1), call.optional(2), call.get("epsilon", 1e-5))


def _batch_norm(call: Call) -> Tensor:
    scale, bias, mean, variance = (call.tensor(position) for position in range(1, 5))
    return F.batch_norm(call.tensor(0), mean, variance, scale, bias, training=False, eps=call.get("epsilon", 1e-5))


def _instance_norm(call: Call) -> Tensor:
    return F.instance_norm(call.tensor(0), weight=call.tensor(1), bias=call.tensor(2), eps=call.get("epsilon", 1e-5))


def _group_norm(call: Call) -> Tensor:
    return F.group_norm(
        call.tensor(0), call.attributes["num_groups"], call.tensor(1), call.tensor(2), call.get("epsilon", 1e-5)
    )


def _hard_sigmoid(call: Call) -> Tensor:
    slope, offset = float(call.get("alpha", 0.2)), float(call.get("beta", 0.5))
    return (call.tensor(0) * slope + offset).clamp(0, 1)


def _gelu(call: Call) -> Tensor:
    return F.gelu(call.tensor(0), approximate=call.get("approximate", "none"))


OPERATORS: dict[str, Operator] = {
    # The two that follow it, of one scale.
    "FakeQuantize": _fake_quantize,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "Relu": unary(F.relu),
    "Sigmoid": unary(torch.sigmoid),
    "Tanh": unary(torch.tanh),
    "Erf": unary(torch.erf),
    "Sqrt": unary(torch.sqrt),
    "Exp": unary(torch.exp),
    "Log": unary(torch.log),
    "Abs": unary(torch.abs),
    "Neg": unary(torch.neg),
    "Reciprocal": unary(torch.reciprocal),
    "Floor": unary(torch.floor),
    "Ceil": unary(torch.ceil),
    "Sin": unary(torch.sin),
    "Cos": unary(torch.cos),
    "Sign": unary(torch.sign),
    "Softplus": unary(F.softplus),
    "HardSwish": unary(F.hardswish),
    "Mish": unary(F.mish),
    "Round": unary(straight_through_round),
    "Add": binary(torch.add),
    "Sub": binary(torch.sub),
    "Mul": binary(torch.mul),
    "Div": binary(_divide),
    "MatMul": binary(torch.matmul),
    "Pow": binary(torch.pow),
    "PRelu": binary(lambda x, s: torch.where(x < 0, x * s, x)),
    "Mod": binary(torch.remainder),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Sum": _variadic(torch.add),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ReduceL2": _reduce(lambda x, dim, keepdim: x.square().sum(dim, keepdim).sqrt()),
    "LeakyRelu": lambda call: F.leaky_relu(call.tensor(0), call.get("alpha", 0.01)),
    "Elu": lambda call: F.elu(call.tensor(0), call.get("alpha", 1.0)),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Clip": _clip,
    "Gemm": _gemm,
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
}
