"""What a factorisation is told: how much of which layer stays, how kernels are taken apart, and what error counts."""

from dataclasses import dataclass

from compressor.checks import check_count, check_fraction
from compressor.structure.factored.chains import CP, SPATIAL, SVD, TUCKER


@dataclass(frozen=True)
class Energy:
    """Each layer keeps the least rank that loses at most 1 - `kept` of its squared outputs; `kept` lies in (0, 1]."""

    kept: float = 0.95

    def __post_init__(self) -> None:
        check_fraction(
            self.kept, "kept is the part of the squares of each layer that stays", within="(0, 1]", least_meant=0.5
        )


@dataclass(frozen=True)
class Rank:
    """Each layer gets the rank `rank` (>= 1), on both sides of a Tucker kernel but at most a side's width.

    A layer whose full rank is lower stays whole, and is told; where every layer's is, the stage is refused.
    """

    rank: int

    def __post_init__(self) -> None:
        check_count(self.rank, "rank is that of every layer")


@dataclass(frozen=True, kw_only=True)
class Channelwise:
    """Kernels by singular values: the whole kernel to fewer maps, then 1x1 (Zhang et al. 2015, arXiv:1505.06798)."""

    ways = (SVD,)


@dataclass(frozen=True, kw_only=True)
class Spatial:
    """Kernels as a column and a row: k x 1, then 1 x k (Jaderberg et al. 2014, arXiv:1405.3866)."""

    ways = (SPATIAL,)


@dataclass(frozen=True, kw_only=True)
class Tucker:
    """Kernels as 1x1, a smaller kernel, and 1x1 (Kim et al. 2016, arXiv:1511.06530)."""

    ways = (TUCKER,)


@dataclass(frozen=True, kw_only=True)
class Canonical:
    """Kernels as 1x1, one kernel a map, and 1x1: a sum of outer products, CP (Lebedev et al. 2015, arXiv:1412.6553)."""

    ways = (CP,)


@dataclass(frozen=True, kw_only=True)
class BestWay:
    """For each kernel whichever of the four costs least; with a `Rank`, which means less by CP, of the other three."""

    ways = (SVD, SPATIAL, TUCKER, CP)


@dataclass(frozen=True, kw_only=True)
class WeightError:
    """The weights come as near as they can, whatever the inputs are: no data are read."""


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """The outputs come as near as they can, for inputs as `batches` (>= 1) calibration batches have them."""

    batches: int = 8

    def __post_init__(self) -> None:
        check_count(self.batches, "batches counts the calibration batches whose inputs are looked at")
