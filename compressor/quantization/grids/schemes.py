"""Affine quantization: real = scale * (integer - zero_point), as ONNX's QuantizeLinear and DequantizeLinear compute it.

Jacob et al. 2018, arXiv:1712.05877, equation 1. Zero is always one of the representable values, because padding and
ReLU produce it in every feature map.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.checks import check_count


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale and zero point for the whole tensor."""


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """One scale and zero point for every output channel."""


@dataclass(frozen=True, kw_only=True)
class PerBlock:
    """One scale and zero point for every `size` (>= 2) inputs of an output channel."""

    size: int = 32

    def __post_init__(self) -> None:
        check_count(self.size, "size is the number of weights that share a scale", least=2)


Granularity = PerTensor | PerChannel | PerBlock


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits is the width of the integers, from 2 to 16; got {bits!r}")


@dataclass(frozen=True, kw_only=True)
class Symmetric:
    """A range centred on zero. Signed integers then need no zero point; the most negative one is not used.

    Numbers have `bits` bits; `granularity` says what shares one range.
    """

    bits: int = 8
    granularity: Granularity = field(default_factory=PerChannel)

    def __post_init__(self) -> None:
        _check_bits(self.bits)


@dataclass(frozen=True, kw_only=True)
class Asymmetric:
    """A range from the lowest to the highest value, extended to contain zero.

    Numbers have `bits` bits; `granularity` says what shares one range.
    """

    bits: int = 8
    granularity: Granularity = field(default_factory=PerTensor)

    def __post_init__(self) -> None:
        _check_bits(self.bits)


Scheme = Symmetric | Asymmetric

# Below this a scale is subnormal or zero in float32: what it would scale is zero for every purpose.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def integer_bounds(bits: int, *, signed: bool) -> tuple[int, int]:
    """The smallest and the largest integer of `bits` bits: (-128, 127) or (0, 255) for 8."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def extremes(values: Tensor, axis: int | None = None) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value: scalars, or one for every index along `axis`. `values` must not be empty."""
    if axis is not None:
        values = values.movedim(axis, 0).flatten(1)
        return values.amin(dim=1), values.amax(dim=1)
    return values.min(), values.max()


def choose_affine(low: Tensor, high: Tensor, scheme: Scheme, *, signed: bool) -> tuple[Tensor, Tensor]:
    """(scale, zero_point) of the shape of `low`, float32 and int32, for values in [low, high] extended to contain zero.

    Symmetric: signed integers get zero point 0 and use [-127, 127] (at 8 bits). Unsigned ones get the middle, 128, or 0
    where nothing is negative, as after ReLU. Ranges of nothing but zero get scale 1. Raises ValueError for NaN,
    infinities, or low > high.
    """
    low, high = torch.as_tensor(low).double(), torch.as_tensor(high).double()
    if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= high).all()):
        raise ValueError(f"a range needs finite low <= high, got [{low.tolist()}, {high.tolist()}]")
    low, high = low.clamp(max=0), high.clamp(min=0)
    qmin, qmax = integer_bounds(scheme.bits, signed=signed)
    half = 2 ** (scheme.bits - 1)
    if isinstance(scheme, Symmetric):
        largest = torch.maximum(-low, high)
        one_sided = (low == 0) & (not signed)
        scale = torch.where(one_sided, largest / qmax, largest / (half - 1))
        zero_point = torch.where(one_sided, 0, 0 if signed else half)
        return _usable(scale), zero_point.to(torch.int32).expand(scale.shape).clone()
    scale = _usable((high - low) / (qmax - qmin))
    zero_point = (qmin - low / scale.double()).round().clamp(qmin, qmax)
    return scale, zero_point.to(torch.int32)


def _usable(scale: Tensor) -> Tensor:
    return torch.where(scale < _SMALLEST_SCALE, 1.0, scale).float()


def quantize(
    values: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int = 8, signed: bool, axis: int | None = None
) -> Tensor:
    """The int32 integers nearest to `values` (halves to even), saturated to `bits` bits; same shape.

    `scale` and `zero_point` are scalars, or vectors along `axis`. Within the range that was given to `choose_affine` a
    round trip errs by scale / 2 at most.
    """
    scale, zero_point = _along(scale, values, axis), _along(zero_point, values, axis)
    qmin, qmax = integer_bounds(bits, signed=signed)
    return ((values / scale).round() + zero_point).clamp(qmin, qmax).to(torch.int32)


def dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    """The float32 values that the integers stand for; same shape. `scale`, `zero_point` and `axis` as in `quantize`."""
    scale, zero_point = _along(scale, integers, axis), _along(zero_point, integers, axis)
    return (integers - zero_point).float() * scale


def _along(vector: Tensor, values: Tensor, axis: int | None) -> Tensor:
    if axis is None:
        return vector
    shape = [1] * values.ndim
    shape[axis] = -1
    return vector.reshape(shape)
