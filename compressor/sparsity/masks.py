"""Which weights stay, of all that have a score: ranked over the network, in each layer or in each row.

Magnitude pruning over layers and over the whole network: Han et al. 2015, arXiv:1506.02626, sec. 3; the layers of a
network compared row by row: Sun et al. 2023, arXiv:2306.11695, sec. 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.pruning.ranking.scope import Global, PerLayer


@dataclass(frozen=True, kw_only=True)
class PerRow:
    """Each output of each layer by itself: every row of a weight gets the same fraction of zeros."""


Scope = Global | PerLayer | PerRow


def kept_units(
    scores: Mapping[str, Tensor], sizes: Mapping[str, Tensor], sparsity: float, scope: Scope
) -> dict[str, Tensor]:
    """Which units stay, by layer, when units of at most the part `sparsity` of all elements go; least scores first.

    `scores` and `sizes`, the number of elements of each unit, are (outputs, units). Of equal scores the earlier ones
    go first. A layer loses its best unit last of all: in the scope Global each keeps one.
    """
    if isinstance(scope, Global):
        flat = {name: _without_best(values.flatten()) for name, values in scores.items()}
        gone = _lowest(torch.cat([*flat.values()]), torch.cat([sizes[name].flatten() for name in flat]), sparsity)
        parts = torch.split(gone, [len(values) for values in flat.values()])
        return {name: ~part.reshape(scores[name].shape) for name, part in zip(flat, parts, strict=True)}
    if isinstance(scope, PerLayer):
        return {
            name: ~_lowest(values.flatten(), sizes[name].flatten(), sparsity).reshape(values.shape)
            for name, values in scores.items()
        }
    return {
        name: ~torch.stack([_lowest(row, size, sparsity) for row, size in zip(values, sizes[name], strict=True)])
        for name, values in scores.items()
    }


def _without_best(scores: Tensor) -> Tensor:
    best = scores.clone()
    best[scores.argmax()] = torch.inf
    return best


def _lowest(scores: Tensor, sizes: Tensor, sparsity: float) -> Tensor:
    """Which of `scores` (units,) go: the lowest, as long as their `sizes` fit into the part `sparsity` of all."""
    allowed = round(sparsity * int(sizes.sum()))
    order = scores.argsort(stable=True)
    fits = sizes[order].cumsum(0) <= allowed
    gone = torch.zeros_like(scores, dtype=torch.bool)
    gone[order[fits]] = True
    return gone
