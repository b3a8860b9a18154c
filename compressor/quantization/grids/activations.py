"""Scales and zero points of activations, from the ranges that calibration found."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.quantization.grids.schemes import Scheme, choose_affine, integer_bounds


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationGrid:
    """One tensor's grid, scale * (integer - zero_point): float32 and int32 scalars, integers of 8 or 16 bits."""

    scale: Tensor
    zero_point: Tensor
    bits: int = 8
    signed: bool = False

    def __post_init__(self) -> None:
        if self.bits not in {8, 16}:
            raise ValueError(f"activations have 8 or 16 bits, for which ONNX has types; got {self.bits}")
        low, high = integer_bounds(self.bits, signed=self.signed)
        if not low <= int(self.zero_point) <= high:
            raise ValueError(f"the zero point lies in [{low}, {high}], got {int(self.zero_point)}")

    @property
    def low(self) -> float:
        """The lowest value of the grid; whatever lies below is cut to it."""
        return (integer_bounds(self.bits, signed=self.signed)[0] - int(self.zero_point)) * float(self.scale)

    @property
    def high(self) -> float:
        """The highest value of the grid."""
        return (integer_bounds(self.bits, signed=self.signed)[1] - int(self.zero_point)) * float(self.scale)


def activation_grids(
    ranges: Mapping[str, tuple[float, float]], scheme: Scheme, *, signed: bool
) -> dict[str, ActivationGrid]:
    """{tensor: grid} for {tensor: (low, high)}. Raises ValueError where a range is not finite or reversed."""
    grids = {}
    for name, (low, high) in ranges.items():
        scale, zero_point = choose_affine(torch.tensor(low), torch.tensor(high), scheme, signed=signed)
        grids[name] = ActivationGrid(scale=scale, zero_point=zero_point, bits=scheme.bits, signed=signed)
    return grids
