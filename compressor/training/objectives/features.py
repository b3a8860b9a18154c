"""How inner features of student and teacher are compared: value by value, or by where they attend.

FitNets: Romero et al. 2015, arXiv:1412.6550, eq. 3; attention transfer: Zagoruyko and Komodakis 2017, arXiv:1612.03928,
eq. 2.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

_LEAST = 1e-12


@dataclass(frozen=True, kw_only=True)
class FeatureValues:
    """The mean squared difference of all values; where widths differ, a linear map learns to fit the student's."""

    maps_widths = True

    def distance(self, student: Tensor, teacher: Tensor, axis: int) -> Tensor:
        """Both of one shape; `axis` holds the channels."""
        del axis
        return F.mse_loss(student, teacher)


@dataclass(frozen=True, kw_only=True)
class AttentionMaps:
    """Where features are large: the squares summed over channels, as one vector of length 1 a sample.

    Channels may be of any number in either, and no map has to learn to fit them.
    """

    maps_widths = False

    def distance(self, student: Tensor, teacher: Tensor, axis: int) -> Tensor:
        """Features that differ in their channels alone, dimension `axis`; the mean over samples, eq. 2 with p = 2."""
        own, wanted = (
            F.normalize(features.square().sum(dim=axis).flatten(1), dim=1) for features in (student, teacher)
        )
        # The root of 0 has no gradient.
        apart: Tensor = (own - wanted).square().sum(dim=1).add(_LEAST).sqrt() - _LEAST**0.5
        return apart.mean()
