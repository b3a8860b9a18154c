"""How much each channel of a layer matters: pure functions on weights and gradients, one score a channel."""

import torch
from torch import Tensor


def norm_importance(weight: Tensor, dim: int, order: int) -> Tensor:
    """The L1 (`order` 1) or L2 (`order` 2) norm of every slice of `weight` along `dim`, (channels,) in float64.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, sec. 3.1 (L1).
    """
    rows = _rows(weight, dim)
    return rows.abs().sum(dim=1) if order == 1 else rows.square().sum(dim=1).sqrt()


def taylor_importance(weight: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """The sum of |w * dL/dw| over every slice of `weight` along `dim`, (channels,) in float64.

    The first-order estimate of what the loss changes by when the weights become zero. Molchanov et al. 2019,
    arXiv:1906.10771, eq. 8, with the absolute value in place of the square, summed weight by weight.
    """
    return _rows(weight.detach().double() * gradient.detach().double(), dim).abs().sum(dim=1)


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


def kept_by_threshold(groups: list[Tensor], remove: int, least: int) -> list[int]:
    """How many channels each group keeps when the `remove` least important of all go, but `least` stay in each.

    Each group is (channels,), already comparable. Where channels are equal, every group gives the same share.
    """
    shares, removable = [], []
    for group in groups:
        place = torch.empty(len(group), dtype=torch.float64)
        place[torch.argsort(group, stable=True)] = torch.arange(len(group), dtype=torch.float64)
        shares.append(place / len(group))
        removable.append(place < len(group) - least)
    order = torch.argsort(torch.cat(shares), stable=True)
    order = order[torch.argsort(torch.cat(groups)[order], stable=True)]
    order = order[torch.cat(removable)[order]]
    kept = torch.ones(sum(map(len, groups)), dtype=torch.bool)
    kept[order[:remove]] = False
    return [int(part.sum()) for part in torch.split(kept, [len(group) for group in groups])]


def _rows(weight: Tensor, dim: int) -> Tensor:
    return weight.detach().double().movedim(dim, 0).flatten(1) if weight.ndim > 1 else weight.detach().double()[:, None]
