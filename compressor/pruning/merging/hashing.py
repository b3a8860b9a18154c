"""Vectors of nearly one direction, found by their hashes and verified by their cosine.

A bit of SimHash is the sign of a random projection; two vectors at the angle a share one with probability 1 - a / pi
(Charikar 2002, "Similarity estimation techniques from rounding algorithms", sec. 3).
"""

import math
import warnings

import torch
from torch import Tensor

# What a pair at the least cosine wanted is missed with, at most, unless that takes more tables.
_MISSED = 1e-3
_TABLES = 256


def similar_pairs(vectors: Tensor, least: float, seed: int) -> dict[tuple[int, int], float]:
    """The pairs (i, j), i < j, of rows of `vectors` (count, size) whose cosine is `least` (0 to 1) or more, with it.

    Only rows that share all bits of some hash are compared, so that a pair right at `least` may be missed, with
    probability 0.001 (more below a cosine of about 0.6). Zero rows are similar to nothing.
    """
    from sklearn.exceptions import DataDimensionalityWarning
    from sklearn.random_projection import GaussianRandomProjection

    lengths = vectors.double().norm(dim=1)
    rows = vectors.double() / lengths.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    if len(rows) < 2 or not rows.shape[1]:
        return {}
    # As many bits as tell all rows apart.
    bits = max(1, math.ceil(math.log2(len(rows))))
    shared = (1 - math.acos(min(least, 1.0)) / math.pi) ** bits
    tables = 1 if shared == 1 else min(_TABLES, math.ceil(math.log(_MISSED) / math.log1p(-shared)))
    projection = GaussianRandomProjection(n_components=bits * tables, random_state=seed)
    with warnings.catch_warnings():
        # More bits than dimensions are meant.
        warnings.simplefilter("ignore", DataDimensionalityWarning)
        signs = torch.from_numpy(projection.fit_transform(rows.cpu().numpy()) > 0)
    candidates = set[tuple[int, int]]()
    for table in signs.reshape(len(rows), tables, bits).unbind(dim=1):
        buckets: dict[tuple[bool, ...], list[int]] = {}
        for row, hashed in enumerate(table.tolist()):
            if lengths[row] > 0:
                buckets.setdefault(tuple(hashed), []).append(row)
        for bucket in buckets.values():
            candidates.update((one, two) for place, one in enumerate(bucket) for two in bucket[place + 1 :])
    found = {}
    # A cosine of 1 is computed with rounding.
    limit = least - 1e-6
    for one, two in sorted(candidates):
        cosine = float(rows[one] @ rows[two])
        if cosine >= limit:
            found[one, two] = min(cosine, 1.0)
    return found


def clusters(pairs: dict[tuple[int, int], float], lengths: Tensor) -> dict[int, int]:
    """Which row each merged one of `pairs` goes into: the longest of its neighbours, by `lengths` (count,).

    Nothing goes into a row that itself goes, so that every row is similar to what it goes into, not to a chain's end.
    """
    neighbours: dict[int, set[int]] = {}
    for one, two in pairs:
        neighbours.setdefault(one, set()).add(two)
        neighbours.setdefault(two, set()).add(one)
    into: dict[int, int] = {}
    leaders = set[int]()
    for row in sorted(neighbours, key=lambda row: (-float(lengths[row]), row)):
        if row in into:
            continue
        leaders.add(row)
        for other in neighbours[row] - leaders:
            into.setdefault(other, row)
    return into
