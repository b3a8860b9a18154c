"""How much each channel of a layer matters: pure functions on weights and gradients, one score a channel."""

from collections.abc import Callable

import torch
from torch import Tensor

_STRETCH = 1 << 18  # elements


def norm_importance(weight: Tensor, dim: int, order: int) -> Tensor:
    """The L1 (`order` 1) or L2 (`order` 2) norm of every slice of `weight` along `dim`, (channels,) in float64.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, sec. 3.1 (L1). Summed in float32 over
    short stretches, whose sums are added in float64.
    """
    return _sums(weight, dim, torch.abs) if order == 1 else squared_norms(weight, dim).sqrt()


def squared_norms(weight: Tensor, dim: int) -> Tensor:
    """The sum of the squares of every slice of `weight` along `dim`, (channels,) in float64, summed as norms are."""
    return _sums(weight, dim, torch.square)


def taylor_importance(weight: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """The sum of |w * dL/dw| over every slice of `weight` along `dim`, (channels,) in float64.

    The first-order estimate of what the loss changes by when the weights become zero. Molchanov et al. 2019,
    arXiv:1906.10771, eq. 8, with the absolute value in place of the square, summed weight by weight.
    """
    return _rows(weight.detach().double() * gradient.detach().double(), dim).abs().sum(dim=1)


def hessian_importance(weight: Tensor, fisher: Tensor, dim: int) -> Tensor:
    """Half the sum of w^2 * F over every slice of `weight` along `dim`, (channels,) in float64.

    The second-order estimate of what the loss grows by when the weights of a channel become zero at a minimum, with the
    diagonal of the Fisher information, `fisher` >= 0 of `weight`'s shape, in place of the Hessian's. LeCun et al. 1989,
    "Optimal Brain Damage", saliencies h * w^2 / 2, summed over a filter: C-OBD in Wang et al. 2019, "EigenDamage",
    arXiv:1905.05934.
    """
    return _rows(weight.detach().double().square() * fisher.detach().double(), dim).sum(dim=1) / 2


def geometric_median_importance(vectors: Tensor) -> Tensor:
    """The sum of the Euclidean distances of every row of `vectors` (channels, n) to all rows, (channels,) in float64.

    What lies nearest to the geometric median can be stood in for by the others. He et al. 2019, "Filter Pruning via
    Geometric Median", arXiv:1811.00250, where the median is sought among the filters themselves.
    """
    rows = vectors.detach().double()
    return torch.cdist(rows, rows).sum(dim=1)


def lamp_importance(squares: Tensor) -> Tensor:
    """The share of each squared norm in the sum of itself and all larger ones, (channels,) in [0, 1] in float64.

    `squares` are those of one layer's channels, (channels,). The largest scores 1, so that a threshold over all layers
    never empties one; of equals, the first counts as the smaller. Lee et al. 2021, "Layer-adaptive sparsity for the
    Magnitude-based Pruning", arXiv:2010.07611, the LAMP score with a channel in place of a weight.
    """
    values, order = squares.detach().double().sort(stable=True)
    tails = values.flip(0).cumsum(0).flip(0)
    # A layer of zeros: nothing in it is worth anything.
    shares = torch.where(tails > 0, values / tails, torch.zeros_like(values))
    return torch.empty_like(shares).index_copy_(0, order, shares)


def scale_importance(scale: Tensor) -> Tensor:
    """|gamma| of every channel of a batch normalization, (channels,). Liu et al. 2017, arXiv:1708.06519, sec. 3."""
    return scale.detach().double().abs()


def coupled_importance(layers: list[Tensor]) -> Tensor:
    """The mean over the coupled layers, each (channels,): what a channel is worth that they keep or lose together."""
    return torch.stack(layers).mean(dim=0)


def comparable(importance: Tensor) -> Tensor:
    """`importance` over its mean, so that groups of layers compare; unchanged where all are zero."""
    mean = importance.mean()
    return importance / mean if float(mean) > 0 else importance


def keep_best(importance: Tensor, count: int) -> list[int]:
    """The `count` channels of the largest importance, ascending; of equals, the first."""
    order = torch.argsort(importance, descending=True, stable=True)
    return sorted(order[:count].tolist())


def aligned_width(kept: int, width: int, align: int) -> int:
    """`kept` of `width` channels rounded up to a multiple of `align` (>= 1): at least `align`, at most `width`."""
    return min(max(-(-kept // align), 1) * align, width)


def kept_by_threshold(groups: list[Tensor], remove: int, least: int | list[int]) -> list[int]:
    """How many channels each group keeps when the `remove` least important of all go, but `least` stay in each.

    Each group is (channels,), already comparable; `least` is one number for all or one for each. Where channels are
    equal, every group gives the same share.
    """
    shares, removable = [], []
    floors = [least] * len(groups) if isinstance(least, int) else least
    for group, floor in zip(groups, floors, strict=True):
        place = torch.empty(len(group), dtype=torch.float64)
        place[torch.argsort(group, stable=True)] = torch.arange(len(group), dtype=torch.float64)
        shares.append(place / len(group))
        removable.append(place < len(group) - floor)
    order = torch.argsort(torch.cat(shares), stable=True)
    order = order[torch.argsort(torch.cat(groups)[order], stable=True)]
    order = order[torch.cat(removable)[order]]
    kept = torch.ones(sum(map(len, groups)), dtype=torch.bool)
    kept[order[:remove]] = False
    return [int(part.sum()) for part in torch.split(kept, [len(group) for group in groups])]


def _sums(weight: Tensor, dim: int, term: Callable[[Tensor], Tensor]) -> Tensor:
    """The sum of `term` over every slice of `weight` along `dim`, (channels,) in float64."""
    values = weight.detach()
    if values.dtype in {torch.float16, torch.bfloat16}:
        values = values.float()
    if values.ndim == 1:
        return term(values.double())
    others = [other for other in range(values.ndim) if other != dim]
    # Stretches that fit the cache: fresh memory for the terms of a whole matrix takes longer than the sums.
    rows = torch.split(values, max(1, _STRETCH // max(1, values[0].numel())))
    sums = [term(stretch).sum(dim=others).double() for stretch in rows]
    return torch.cat(sums) if dim == 0 else torch.stack(sums).sum(dim=0)


def _rows(weight: Tensor, dim: int) -> Tensor:
    return weight.detach().double().movedim(dim, 0).flatten(1) if weight.ndim > 1 else weight.detach().double()[:, None]
