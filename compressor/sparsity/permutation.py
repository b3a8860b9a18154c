"""The order of inputs in which n of every m lose least: neighbours make the groups, and channels may change places.

Pool & Yu 2021, "Channel Permutations for N:M Sparsity" (NeurIPS), sec. 4: groups of inputs are taken two at a time, and
of all ways to divide their inputs anew the one that keeps most magnitude is taken, until no two groups gain; then some
inputs change places at random, and the search goes on from there, from the best order found.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import torch
from torch import Tensor

# Up to so many inputs in two groups are divided in all ways (35 for two groups of four); of more, two change places.
_ALL_WAYS = 8
# Elements that are compared at once: 32 MiB.
_MAX_ELEMENTS = 1 << 23
# Elements of a matrix that is searched whole; of larger ones so many, in rows that lie evenly.
_MOST_SEARCHED = 1 << 18
# Up to so many elements a search begins anew as often as asked; of larger ones less often, in proportion.
_OFTEN = 1 << 15
# So many columns change places where a search begins anew.
_EXCHANGED = 4
# A round has to gain this part of what is kept: less is rounding.
_LEAST_GAIN = 1e-7


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """An `order` of inputs, and the magnitude that stays with it (`kept`) and without it (`before`)."""

    order: Tensor
    before: float
    kept: float


def best_order(sizes: Tensor, *, n: int, m: int, escapes: int, seed: int) -> Permutation:
    """The order of columns of `sizes` (rows, inputs), >= 0, with the most left where `n` of every `m` stay in each row.

    `m` divides the inputs. After the first search `escapes` (>= 0) more begin at the best order found, some columns
    exchanged; fewer where the matrix is large. The order is that which was given where nothing is better.
    """
    generator = torch.Generator().manual_seed(seed)
    everything = sizes.detach().float()
    # What a column is worth beside others is seen on a part of the rows: the search takes as long as they are many.
    values = everything[:: max(1, -(-everything.numel() // _MOST_SEARCHED))]
    lines = values.T.contiguous()
    best = torch.arange(sizes.shape[1])
    kept = float(magnitude(values, n=n, m=m))
    for attempt in range(round(escapes * min(1.0, _OFTEN / max(1, values.numel()))) + 1):
        order = _exchanged(best, generator) if attempt else best
        moved = (order != best).reshape(-1, m).any(dim=1)
        # Groups that stayed have met before, and did not gain.
        order = _searched(lines, order, moved | (attempt == 0), n=n, m=m, generator=generator)
        found = float(magnitude(values[:, order], n=n, m=m))
        if found > kept * (1 + _LEAST_GAIN):
            best, kept = order, found
    before, kept = (float(magnitude(everything[:, order], n=n, m=m)) for order in (slice(None), best))
    if kept <= before:
        return Permutation(order=torch.arange(sizes.shape[1]), before=before, kept=before)
    return Permutation(order=best, before=before, kept=kept)


def magnitude(sizes: Tensor, *, n: int, m: int) -> Tensor:
    """The sum of the `n` largest of every `m` neighbours of `sizes` (rows, inputs), a scalar in float64."""
    return sizes.reshape(-1, m).topk(n, dim=1).values.sum(dtype=torch.float64)


def _searched(lines: Tensor, order: Tensor, moved: Tensor, *, n: int, m: int, generator: torch.Generator) -> Tensor:
    """`order` after every two groups have met of which one has `moved` (groups,) since, until none gains."""
    groups = order.reshape(-1, m).clone()
    to_meet = moved[:, None] | moved
    while bool(to_meet.triu(1).any()):
        for pairs in _rounds(len(groups), generator):
            some = pairs[to_meet[pairs[:, 0], pairs[:, 1]]]
            if len(some):
                to_meet[some[:, 0], some[:, 1]] = to_meet[some[:, 1], some[:, 0]] = False
                gained = _divide_anew_(groups, lines, some, n=n)
                to_meet[gained] = to_meet[:, gained] = True
    return groups.reshape(-1)


def _rounds(count: int, generator: torch.Generator) -> list[Tensor]:
    """Pairs of `count` groups, (pairs, 2) each round, so that every two meet once: the circle method of tournaments."""
    players = torch.randperm(count, generator=generator)
    if count % 2:
        players = torch.cat([players, torch.tensor([-1])])
    half = len(players) // 2
    rounds = []
    for _ in range(len(players) - 1):
        pairs = torch.stack([players[:half], players.flip(0)[:half]], dim=1)
        rounds.append(pairs[(pairs >= 0).all(dim=1)])
        players = torch.cat([players[:1], players[1:].roll(1)])
    return rounds


def _divide_anew_(groups: Tensor, lines: Tensor, pairs: Tensor, *, n: int) -> Tensor:
    """Divides the inputs of each of `pairs` of `groups` (groups, m) in the best way; the groups that changed."""
    m = groups.shape[1]
    splits = _splits(m)
    both = groups[pairs].reshape(len(pairs), 2 * m)
    step = max(1, _MAX_ELEMENTS // (lines.shape[1] * len(splits) * 2 * m))
    kept = torch.cat([_kept(lines, part, n=n) for part in torch.split(both, step)])
    best = kept.argmax(dim=1)
    gains = kept[torch.arange(len(pairs)), best] > kept[:, 0] * (1 + _LEAST_GAIN)
    groups[pairs[gains]] = both[gains].gather(1, splits[best[gains]]).reshape(-1, 2, m)
    return pairs[gains].flatten()


def _kept(lines: Tensor, both: Tensor, *, n: int) -> Tensor:
    """What stays of the columns `both` (pairs, 2m) in each way to divide them, (pairs, splits); `lines` are columns."""
    m = both.shape[1] // 2
    columns = lines[both]  # (pairs, 2m, rows): whole lines are gathered, which is several times as fast
    subsets, halves = _subsets(m)
    if (n, m) == (2, 4):
        # The two largest of a, b, c, d: the larger of a, b and the larger of c, d, or one of these pairs itself.
        first, second, third, fourth = (columns[:, subsets[:, position]] for position in range(4))
        mixed = torch.maximum(first, second).add_(torch.maximum(third, fourth))
        largest = torch.maximum(torch.maximum(first.add_(second), third.add_(fourth)), mixed)
    else:
        largest = columns[:, subsets].topk(n, dim=2).values.sum(dim=2)
    sums = largest.sum(dim=2)  # (pairs, subsets)
    return sums[:, halves[:, 0]] + sums[:, halves[:, 1]]


@cache
def _splits(m: int) -> Tensor:
    """The ways to divide 2m columns into two groups, (splits, 2m) positions, the present way first."""
    subsets, halves = _subsets(m)
    return torch.cat([subsets[halves[:, 0]], subsets[halves[:, 1]]], dim=1)


@cache
def _subsets(m: int) -> tuple[Tensor, Tensor]:
    """(subsets of m of 2m positions, (subsets, m); the two subsets of each way to divide them, (splits, 2))."""
    everything = range(2 * m)
    if 2 * m <= _ALL_WAYS:
        firsts = [subset for subset in combinations(everything, m) if 0 in subset]
    else:
        changes = [(give, take) for give in range(m) for take in range(m, 2 * m)]
        firsts = [tuple(range(m))]
        firsts += [tuple(take if position == give else position for position in range(m)) for give, take in changes]
    seconds = [tuple(position for position in everything if position not in first) for first in firsts]
    count = len(firsts)
    halves = torch.stack([torch.arange(count), torch.arange(count, 2 * count)], dim=1)
    return torch.tensor(firsts + seconds), halves


def _exchanged(order: Tensor, generator: torch.Generator) -> Tensor:
    """`order` with some columns exchanged at random, in different groups mostly."""
    places = torch.randperm(len(order), generator=generator)[:_EXCHANGED]
    changed = order.clone()
    changed[places] = order[places.roll(1)]
    return changed
