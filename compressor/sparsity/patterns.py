"""In which pattern weights become zero: one by one, in blocks, in whole rows, or a fixed number of every few.

Each pattern makes units of the scores of a weight's elements, arranged as (outputs, kernel positions, inputs), and of
the units that stay the elements that stay.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.checks import check_count
from compressor.sparsity.layers import SparseWeight


@dataclass(frozen=True, kw_only=True)
class Unstructured:
    """Single weights: the least loss for a number of zeros, and files that compress; nothing becomes faster."""

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why `weight` cannot have this pattern, None where it can."""
        del weight
        return None

    def units(self, values: Tensor) -> Tensor:
        """The mean of `values` (outputs, positions, inputs) over each unit, (outputs, units)."""
        return values.flatten(1)

    def elements(self, units: Tensor, shape: torch.Size) -> Tensor:
        """`units` (outputs, units) for each of their elements, in `shape` (outputs, positions, inputs)."""
        return units.reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Whole filters of convolutions and neurons of linear layers, which RemoveZeroChannels can take out.

    Their biases, and the scale and shift of a batch normalization right behind them, become zero with them.
    """

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why `weight` cannot have this pattern, None where it can."""
        if not weight.neurons:
            return f"the rows of a {type(weight.module).__name__} are no filters and no neurons"
        if weight.inputs_dim == 0 and getattr(weight.module, "groups", 1) > 1:
            return "a grouped transposed convolution has its filters in several rows"
        return None

    def units(self, values: Tensor) -> Tensor:
        """The mean of `values` (outputs, positions, inputs) over each row, (outputs, 1)."""
        return values.flatten(1).mean(dim=1, keepdim=True)

    def elements(self, units: Tensor, shape: torch.Size) -> Tensor:
        """`units` (outputs, 1) for each of their elements, in `shape` (outputs, positions, inputs)."""
        return units[:, :, None].expand(shape)


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of `height` outputs by `width` weights of each (>= 1), kernel position by position.

    Where they do not fill a weight, the last ones are smaller, and are judged by the mean of what they have.
    """

    height: int = 4
    width: int = 4

    def __post_init__(self) -> None:
        check_count(self.height, "height counts the outputs of a block")
        check_count(self.width, "width counts the weights of each output in a block")

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why `weight` cannot have this pattern, None where it can."""
        del weight
        return None

    def units(self, values: Tensor) -> Tensor:
        """The mean of `values` (outputs, positions, inputs) over each block, (blocks down, blocks across)."""
        flat = values.flatten(1)
        ones = torch.ones_like(flat)
        return self._sums(flat) / self._sums(ones)

    def elements(self, units: Tensor, shape: torch.Size) -> Tensor:
        """`units` (blocks down, blocks across) for each of their elements, in `shape`."""
        wide = units.repeat_interleave(self.height, dim=0).repeat_interleave(self.width, dim=1)
        return wide[: shape[0], : shape[1:].numel()].reshape(shape)

    def _sums(self, flat: Tensor) -> Tensor:
        rows, columns = flat.shape
        padded = F.pad(flat, (0, -columns % self.width, 0, -rows % self.height))
        down, across = padded.shape[0] // self.height, padded.shape[1] // self.width
        return padded.reshape(down, self.height, across, self.width).sum(dim=(1, 3))


@dataclass(frozen=True, kw_only=True)
class SemiStructured:
    """`n` weights of every `m` along the inputs stay (0 < n < m): 2 of 4 is what NVIDIA's sparse kernels read.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, sec. 3. Layers whose inputs `m`
    does not divide are left alone. CPUs have no kernel for it: it is a pattern for another target. With `permute` inner
    channels change places first, so that less magnitude goes, in a search that begins `escapes` (>= 0) times anew.
    """

    n: int = 2
    m: int = 4
    permute: bool = False
    escapes: int = 50

    def __post_init__(self) -> None:
        check_count(self.n, "n counts the weights of every m that stay")
        check_count(self.m, "m counts the weights of a group", least=2)
        if self.n >= self.m:
            raise ValueError(
                f"n weights of every m stay, so n has to be below m; got n={self.n} and m={self.m}; write n=2 and m=4 "
                "for two of four"
            )
        check_count(self.escapes, "escapes counts the searches after the first one", least=0)

    @property
    def sparsity(self) -> float:
        """The part of the weights that becomes zero."""
        return 1 - self.n / self.m

    def unfit(self, weight: SparseWeight) -> str | None:
        """Why `weight` cannot have this pattern, None where it can."""
        inputs = weight.parameter.shape[weight.inputs_dim]
        if inputs % self.m:
            return f"its {inputs} input{'s'[: inputs > 1]} are no multiple of {self.m}"
        return None

    def kept(self, values: Tensor, share: float = 1.0) -> Tensor:
        """Which of `values` (..., inputs) stay, of that shape: the `n` largest of every `m`; of equals the first.

        Of the zeros that the pattern wants in a group, the part `share` in [0, 1], rounded, is asked for.
        """
        groups = values.reshape(-1, self.m)
        order = groups.argsort(dim=1, descending=True, stable=True)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(1, order[:, : self.m - round(share * (self.m - self.n))], value=True)
        return kept.reshape(values.shape)
