"""By which score weights are ranked: small ones go first. The arithmetic is one pure function a score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from compressor.checks import check_one_of
from compressor.sparsity.layers import SparseWeight
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a score may look at: the model in eval mode, its `weights`, the workload without its test data, a seed."""

    model: nn.Module
    weights: Sequence[SparseWeight]
    workload: Workload
    seed: int
    progress: bool = False


class Score(Protocol):
    """A way to rank weights. `by_weights` says whether the weights alone decide, so that it costs next to nothing."""

    by_weights: ClassVar[bool]

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name one score for each element, of the weight's shape; the larger, the more it matters."""


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """The absolute value of each weight; of rows and blocks their norm, L1 or L2, over the number of their weights.

    Han et al. 2015, arXiv:1506.02626, sec. 3; filters by their L1 norm: Li et al. 2017, arXiv:1608.08710, sec. 3.1.
    """

    by_weights: ClassVar[bool] = True
    norm: Literal["l1", "l2"] = "l1"

    def __post_init__(self) -> None:
        check_one_of(self.norm, "norm is that of rows and blocks", ("l1", "l2"))

    def scores(self, case: Case) -> Mapping[str, Tensor]:
        """By the weight's name |w|, or w^2 for the L2 norm, which ranks alike: units are judged by their mean."""
        power = torch.abs if self.norm == "l1" else torch.square
        return {weight.name: power(weight.parameter.detach()) for weight in case.weights}
