"""Weights taken apart into those of a chain of thinner layers, for the least error of what the layer computes.

Everything is in float64. A weight is (outputs, inputs, *kernel); `whitening` is a matrix S with S S^T = E[x x^T] for
the inputs x of one position. In W S the error of the weight is the error of the outputs, for ||(W - V) S||_F^2 is
E||(W - V) x||^2: truncating there loses least (Wang et al. 2024, "SVD-LLM", arXiv:2403.07378, sec. 3.1; Chen et al.
2021, "DRONE"), and S^-1 then goes into the first layer. For kernels of several positions these count as uncorrelated.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from compressor.structure.factored.chains import CP, SPATIAL, SVD, TUCKER, full_ranks, unit_values

# Sweeps of the higher-order orthogonal iteration: it settles in a few.
_SWEEPS = 5
# Sweeps of alternating least squares, and the part of the error below which another one is not worth its time.
_ALTERNATIONS, _GAIN = 60, 1e-3
# Of the mean of the diagonal: keeps terms from growing against each other without bound.
_RIDGE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """A lower triangular matrix (inputs, inputs) that turns white noise into inputs, and its inverse."""

    factor: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, moments: Tensor, ridge: float = 1e-4) -> "Whitening | None":
        """The whitening of second moments (inputs, inputs), by Cholesky; None where they are all zero or not finite.

        `ridge` times their mean is added to the diagonal: inputs that calibration hardly saw keep some weight.
        """
        moments = moments.double()
        mean = float(moments.diagonal().mean())
        if not 0 < mean < math.inf or not bool(torch.isfinite(moments).all()):
            return None
        unit = torch.eye(len(moments), dtype=torch.float64)
        factor = torch.linalg.cholesky(moments / mean + ridge * unit)
        # Of unit scale: only the proportions between inputs matter.
        return cls(factor=factor, inverse=torch.linalg.solve_triangular(factor, unit, upper=False))


class Decomposition(Protocol):
    """A weight taken apart in one way, at every rank."""

    def error(self, ranks: Sequence[int]) -> float:
        """The part of the squared outputs that is lost at `ranks`, in [0, 1]."""

    def values(self, ranks: Sequence[int]) -> list[Tensor]:
        """The weights of the chain at `ranks`, in its order."""


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """The singular values of a matrix (rows, columns): left (rows, k), values (k,), right (k, columns)."""

    left: Tensor
    singular: Tensor
    right: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "_Matrix":
        return cls(
            **dict(zip(("left", "singular", "right"), torch.linalg.svd(matrix, full_matrices=False), strict=True))
        )

    def error(self, rank: int) -> float:
        squares = self.singular.square()
        total = float(squares.sum())
        return float(squares[rank:].sum()) / total if total > 0 else 0.0

    def halves(self, rank: int) -> tuple[Tensor, Tensor]:
        """(rows, rank) and (rank, columns): of one size, so that both train at one rate and quantize alike."""
        root = self.singular[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


@dataclass(frozen=True, kw_only=True)
class SingularValues:
    """Truncated singular values of (outputs, inputs * kernel): Eckart and Young 1936; for kernels Zhang et al. 2015,
    arXiv:1505.06798, sec. 3.1.
    """

    weight: Tensor
    whitening: Whitening | None
    _matrix: _Matrix = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_matrix", _Matrix.of(_whitened(self.weight, self.whitening).flatten(1)))

    def error(self, ranks: Sequence[int]) -> float:
        return self._matrix.error(ranks[0])

    def values(self, ranks: Sequence[int]) -> list[Tensor]:
        outputs, inputs, *kernel = self.weight.shape
        left, right = self._matrix.halves(ranks[0])
        first = _unwhitened(right.reshape(-1, inputs, *kernel), self.whitening)
        return [first, left.reshape(outputs, -1, *[1] * len(kernel))]


@dataclass(frozen=True, kw_only=True)
class SpatialValues:
    """Truncated singular values of (inputs * rows, outputs * columns): separable kernels, Jaderberg et al. 2014, eq. 4.

    In closed form: Tai et al. 2016, arXiv:1511.06067, theorem 1.
    """

    weight: Tensor
    whitening: Whitening | None
    _matrix: _Matrix = field(init=False)

    def __post_init__(self) -> None:
        whitened = _whitened(self.weight, self.whitening)
        object.__setattr__(self, "_matrix", _Matrix.of(whitened.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)))

    def error(self, ranks: Sequence[int]) -> float:
        return self._matrix.error(ranks[0])

    def values(self, ranks: Sequence[int]) -> list[Tensor]:
        outputs, inputs, height, width = self.weight.shape
        left, right = self._matrix.halves(ranks[0])
        rows = left.t().reshape(-1, inputs, height, 1)
        columns = right.reshape(-1, outputs, 1, width).transpose(0, 1)
        return [_unwhitened(rows, self.whitening), columns]


@dataclass(frozen=True, kw_only=True)
class TuckerValues:
    """Tucker-2: a smaller kernel between two 1x1 layers, along outputs and inputs (Kim et al. 2016, eq. 4 to 7).

    Started by higher-order singular values (De Lathauwer et al. 2000) and improved by orthogonal iteration, each side
    anew with the other at hand. `error` is that of the start, which the iteration only lowers.
    """

    weight: Tensor
    whitening: Whitening | None
    _whole: Tensor = field(init=False)
    _sides: tuple[Tensor, Tensor] = field(init=False)
    _energies: Tensor = field(init=False)

    def __post_init__(self) -> None:
        whole = _whitened(self.weight, self.whitening).flatten(2)
        sides = (_main_axes(whole.flatten(1)), _main_axes(whole.transpose(0, 1).flatten(1)))
        core = torch.einsum("oip,or,is->rsp", whole, *sides)
        # What the first so many rows and columns of the core hold, for every pair of ranks.
        energies = core.square().sum(dim=2).cumsum(0).cumsum(1)
        for name, value in (("_whole", whole), ("_sides", sides), ("_energies", energies)):
            object.__setattr__(self, name, value)

    def error(self, ranks: Sequence[int]) -> float:
        total = float(self._whole.square().sum())
        made, taken = ranks
        return max(0.0, 1 - float(self._energies[made - 1, taken - 1]) / total) if total > 0 else 0.0

    def values(self, ranks: Sequence[int]) -> list[Tensor]:
        made, taken = ranks
        left, right = self._sides[0][:, :made], self._sides[1][:, :taken]
        for _ in range(_SWEEPS):
            left = _main_axes(torch.einsum("oip,is->osp", self._whole, right).flatten(1))[:, :made]
            right = _main_axes(torch.einsum("oip,or->irp", self._whole, left).flatten(1))[:, :taken]
        core = torch.einsum("oip,or,is->rsp", self._whole, left, right)
        kernel = self.weight.shape[2:]
        ones = [1] * len(kernel)
        first = _unwhitened(right.t().reshape(taken, -1, *ones), self.whitening)
        return [first, core.reshape(made, taken, *kernel), left.reshape(-1, made, *ones)]


@dataclass(frozen=True, kw_only=True)
class CanonicalValues:
    """A sum of outer products of three vectors (CP), by alternating least squares: Kolda and Bader 2009, fig. 3.3.

    For convolutions Lebedev et al. 2015, arXiv:1412.6553, eq. 4, here with the positions of the kernel as one side. The
    start is drawn under a fixed seed. A ridge keeps terms from growing against each other (Phan et al. 2020,
    arXiv:2008.05441, sec. 3, tell what that costs). Each rank is a search of its own, made once.
    """

    weight: Tensor
    whitening: Whitening | None
    _whole: Tensor = field(init=False)
    _found: dict[int, tuple[float, list[Tensor]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_whole", _whitened(self.weight, self.whitening).flatten(2))

    def error(self, ranks: Sequence[int]) -> float:
        return 0.0 if tuple(ranks) == full_ranks(self.weight.shape, CP) else self._at(ranks[0])[0]

    def values(self, ranks: Sequence[int]) -> list[Tensor]:
        (rank,) = ranks
        if tuple(ranks) == full_ranks(self.weight.shape, CP):
            return unit_values(self.weight, CP, ranks)
        made, taken, moved = self._at(rank)[1]
        kernel = self.weight.shape[2:]
        ones = [1] * len(kernel)
        first = _unwhitened(taken.t().reshape(rank, -1, *ones), self.whitening)
        return [first, moved.t().reshape(rank, 1, *kernel), made.reshape(-1, rank, *ones)]

    def _at(self, rank: int) -> tuple[float, list[Tensor]]:
        if rank not in self._found:
            self._found[rank] = _outer_products(self._whole, rank)
        return self._found[rank]


def _outer_products(whole: Tensor, rank: int) -> tuple[float, list[Tensor]]:
    """What part of the squares of `whole`, of three sides, a sum of `rank` outer products loses, and its factors.

    Each factor is (side, rank); the three vectors of a term are of one size.
    """
    total = float(whole.square().sum())
    if total == 0:
        return 0.0, [torch.zeros(side, rank, dtype=whole.dtype) for side in whole.shape]
    generator = torch.Generator().manual_seed(0)
    made, taken, moved = (torch.randn(side, rank, generator=generator, dtype=whole.dtype) for side in whole.shape)
    rows = whole.flatten(1)
    lost = 1.0
    for _ in range(_ALTERNATIONS):
        made = _unit(_least_squares(rows @ (taken[:, None] * moved[None]).flatten(0, 1), taken, moved))
        # (rank, inputs, positions): both other sides match against it, which saves the product of their two long sides.
        seen = (made.t() @ rows).reshape(rank, *whole.shape[1:])
        taken = _unit(_least_squares(torch.einsum("rip,pr->ir", seen, moved), made, moved))
        matched = torch.einsum("rip,ir->pr", seen, taken)
        moved = _least_squares(matched, made, taken)
        held = float(((made.t() @ made) * (taken.t() @ taken) * (moved.t() @ moved)).sum())
        now = max(0.0, (total - 2 * float((matched * moved).sum()) + held) / total)
        settled = lost - now < _GAIN * lost
        lost = now
        if settled:
            break
    factors = [made, taken, moved]
    sizes = torch.stack([factor.norm(dim=0).clamp_min(1e-30) for factor in factors])
    even = sizes.prod(dim=0).pow(1 / 3)
    return lost, [factor / size * even for factor, size in zip(factors, sizes, strict=True)]


def _least_squares(matched: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Eq. 3.4: X_(n) (C kr B) (C^T C * B^T B)^-1, from the product of the first two, `matched` (side, rank)."""
    gram = (first.t() @ first) * (second.t() @ second)
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved: Tensor = torch.cholesky_solve(matched.t(), torch.linalg.cholesky(gram + ridge)).t()
    return solved


def _unit(factor: Tensor) -> Tensor:
    unit: Tensor = factor / factor.norm(dim=0).clamp_min(1e-30)
    return unit


def decomposed(weight: Tensor, by: str, whitening: Whitening | None = None) -> Decomposition:
    """`weight` (outputs, inputs, *kernel) taken apart `by` "svd", "spatial", "tucker" or "cp"."""
    exact = weight.detach().to("cpu", torch.float64)
    kinds: dict[str, Callable[..., Decomposition]] = {
        SVD: SingularValues,
        SPATIAL: SpatialValues,
        TUCKER: TuckerValues,
        CP: CanonicalValues,
    }
    return kinds[by](weight=exact, whitening=whitening)


def _whitened(weight: Tensor, whitening: Whitening | None) -> Tensor:
    if whitening is None:
        return weight
    return torch.einsum("oi...,ij->oj...", weight, whitening.factor)


def _unwhitened(first: Tensor, whitening: Whitening | None) -> Tensor:
    """The first layer of a chain for inputs as they are, from the one for white inputs."""
    if whitening is None:
        return first
    return torch.einsum("rj...,ji->ri...", first, whitening.inverse)


def _main_axes(matrix: Tensor) -> Tensor:
    """All axes (rows, rows) of the rows of `matrix`, those of the largest singular values first."""
    axes: Tensor = torch.linalg.eigh(matrix @ matrix.t()).eigenvectors
    return axes.flip(1)
