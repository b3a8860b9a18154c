"""Which channels others can stand in for, and with which shares: least squares on what the readers are fed.

A layer that reads the channels h as W h reads nearly the same without channel j where h_j is a sum of the others: with
h_j = sum_k A_jk h_k, W_k grows by A_jk W_j. The shares of least squared error follow from the second moments of h (Kim
et al. 2020, "Neuron Merging", arXiv:2010.13160, sec. 3, with the moments in the place of the weights' cosines), and
what is lost by each next channel from their inverse (Hassibi and Stork 1992, eq. 5, for a column of weights at once).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How one layer reads the channels: `weights` (width, values) and what it is fed, `moments` (width, width).

    Both are in float64. The moments are of second order, about the means where the layer can hold a constant.
    """

    weights: Tensor
    moments: Tensor

    @property
    def energy(self) -> float:
        """The sum of squares of what the layer makes of the channels."""
        return float((self.weights * (self.moments @ self.weights)).sum())


def elimination(readings: Sequence[Reading], count: int) -> tuple[list[int], list[float]]:
    """The first `count` channels to go, one after the other, and the loss of each: the least at every step.

    The loss is the squared error that the layers make by its going, once the channels that stay took it over, as a part
    of the energy of what they make, summed over the layers.
    """
    width = len(readings[0].moments)
    here = torch.ones(width, dtype=torch.bool)
    states = [
        (reading.weights.clone(), torch.linalg.inv(reading.moments), max(reading.energy, torch.finfo().tiny))
        for reading in readings
    ]
    order: list[int] = []
    losses: list[float] = []
    for _ in range(min(count, width - 1)):
        costs = torch.zeros(width, dtype=torch.float64)
        for weights, inverse, energy in states:
            costs += weights.square().sum(dim=1) / inverse.diagonal().clamp(min=1e-300) / energy
        costs[~here] = torch.inf
        gone = int(costs.argmin())
        order.append(gone)
        losses.append(float(costs[gone]))
        here[gone] = False
        for weights, inverse, _ in states:
            pivot = inverse[gone, gone].clone()
            line = inverse[gone].clone()
            # Its own weight becomes zero by this, too, but for rounding.
            weights.sub_(torch.outer(line / pivot, weights[gone].clone()))
            inverse.sub_(torch.outer(line, line) / pivot)
            weights[gone] = 0
            # What is gone has no part in the others any more.
            inverse[gone] = 0
            inverse[:, gone] = 0
            inverse[gone, gone] = 1
    return order, losses


def alone(readings: Sequence[Reading]) -> Tensor:
    """The loss of each channel if it alone went, (width,)."""
    losses = torch.zeros(len(readings[0].moments), dtype=torch.float64)
    for reading in readings:
        inverse = torch.linalg.inv(reading.moments)
        energy = max(reading.energy, torch.finfo().tiny)
        losses += reading.weights.square().sum(dim=1) / inverse.diagonal() / energy
    return losses


def shares(moments: Tensor, gone: list[int], kept: list[int]) -> Tensor:
    """What of each channel of `gone` every one of `kept` takes over, (gone, kept): least squares by `moments`."""
    found: Tensor = torch.linalg.solve(moments[kept][:, kept], moments[kept][:, gone])
    return found.T


def share_of_one(moments: Tensor, into: dict[int, int], kept: list[int]) -> Tensor:
    """The same where each channel of `into` goes into one other alone, (into, kept)."""
    found = torch.zeros(len(into), len(kept), dtype=torch.float64)
    for row, (gone, other) in enumerate(into.items()):
        if moments[other, other] > 0:
            found[row, kept.index(other)] = moments[gone, other] / moments[other, other]
    return found
