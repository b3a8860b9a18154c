"""Classes of weights that are alike: of every row, column and place one number, whose sum names the table of a weight.

A weight's distribution follows from its row and its column, for filters and inputs differ in scale and in how much of
them is zero. Scales multiply, so that their logarithms add: table = class of row + class of column + class of place,
and all tensors of a kind share the tables. That is a context that is known before anything is decoded, so that many
weights can be decoded at once; what it costs are the classes, a few bits for each row. It is the two-part code of
J. Rissanen 1978, "Modeling by shortest data description", sec. 2, with the classes and tables as its first part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.uint8]
Classes = tuple[NDArray[np.int64], ...]

# One class is this factor in the mean information of a row's symbols.
_STEP = 0.5
_MOST_CLASSES = 48
# Of so many symbols one round fewer, for time.
_ROUNDS, _MANY = 3, 1 << 20
# So many weights have a class in common at least.
_LEAST = 8
# So many symbols of a row tell its class.
_SEEN = 1024


@dataclass(frozen=True)
class Fitted:
    """What symbols of one kind are coded by: `classes[part][axis]` are numbers from 0 on, `counts` (tables, alphabet).

    The table of a weight is the sum of its classes, which is below the number of tables.
    """

    classes: tuple[Classes, ...]
    counts: NDArray[np.int64]

    @property
    def bits(self) -> float:
        """What the symbols take, by the tables' own entropies."""
        return sum(map(entropy_bits, self.counts))

    def tables(self, part: int) -> NDArray[np.int64]:
        """The table of every symbol of a part, in its shape."""
        return summed(self.classes[part])


def summed(classes: Classes) -> NDArray[np.int64]:
    """The sums of three vectors of classes, (rows, columns, places)."""
    rows, columns, places = classes
    return rows[:, None, None] + columns[None, :, None] + places[None, None, :]


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """The bits of symbols that occur so often, at the entropy of order 0: sum of c log2(n / c)."""
    some = counts[counts > 0].astype(np.float64)
    total = some.sum()
    return float(total * np.log2(total) - (some * np.log2(some)).sum()) if some.size else 0.0


def plain(parts: Sequence[Symbols], alphabet: int) -> Fitted:
    """One table for all."""
    counts = sum((np.bincount(part.reshape(-1), minlength=alphabet) for part in parts), np.zeros(alphabet, np.int64))
    zero = tuple(tuple(np.zeros(size, np.int64) for size in part.shape) for part in parts)
    return Fitted(zero, counts[None])


def fitted(parts: Sequence[Symbols], alphabet: int, *, most: int) -> Fitted:
    """Classes of `parts`, each (rows, columns, places), with at most `most` tables over `alphabet` symbols."""
    one = plain(parts, alphabet)
    if most == 1 or np.count_nonzero(one.counts) < 2:
        return one
    # The rarer a symbol, the farther it lies from the middle: its information stands for its magnitude.
    total = one.counts.sum()
    information = -np.log2(np.maximum(one.counts[0], 0.5) / total)
    information -= information.min()
    spread = _STEP * max(1.0, 16 / most)
    classes = [_by_means(information[part], spread) for part in parts]
    rounds = _ROUNDS if total < _MANY else 1 + _ROUNDS // 2
    for round_ in range(rounds):
        classes, counts = _numbered(parts, classes, alphabet, most)
        if round_ + 1 < rounds:
            costs = _costs(counts)
            classes = [_better(part, own, costs) for part, own in zip(parts, classes, strict=True)]
    return Fitted(*_compact(classes, counts))


def _told_apart(shape: tuple[int, ...], axis: int) -> bool:
    """Whether what lies along `axis` has classes of its own: there are several, and enough weights in each."""
    return shape[axis] > 1 and shape[0] * shape[1] * shape[2] >= _LEAST * shape[axis]


def _by_means(values: NDArray[np.float64], step: float) -> Classes:
    """Classes by the logarithms of the mean of each row, column and place, over what the others explain."""
    mean = values.mean() + 1e-9
    scales = [np.ones(size) for size in values.shape]
    for _ in range(2):
        for axis in range(3):
            if _told_apart(values.shape, axis):
                other = [
                    scales[one].reshape([-1 if one == at else 1 for at in range(3)]) for one in range(3) if one != axis
                ]
                rest = values / (other[0] * other[1])
                scales[axis] = rest.mean(axis=tuple(one for one in range(3) if one != axis)) / mean + 0.02
    scales[0] = scales[0] * mean
    return tuple(np.rint(np.log(scale) / (step * np.log(2))).astype(np.int64) for scale in scales)


def _numbered(
    parts: Sequence[Symbols], classes: list[Classes], alphabet: int, most: int
) -> tuple[list[Classes], NDArray[np.int64]]:
    """The classes from 0 on, so that no sum reaches `most`, with the counts of every table."""
    classes = [_from_zero(own) for own in classes]
    sums = np.concatenate([np.unique(summed(own)) for own in classes])
    low, high = int(sums.min()), int(sums.max())
    if high - low >= most:
        # Rare extremes join those next to them.
        weights = np.zeros(high - low + 1, np.int64)
        for own in classes:
            weights += np.bincount((summed(own) - low).reshape(-1), minlength=len(weights))
        inside = np.convolve(weights, np.ones(most, np.int64), mode="valid")
        low += int(inside.argmax())
        high = low + most - 1
    classes = [_within(own, low, high) for own in classes]
    counts = np.zeros((high - low + 1, alphabet), np.int64)
    for part, own in zip(parts, classes, strict=True):
        counts += np.bincount((summed(own) * alphabet + part).reshape(-1), minlength=counts.size).reshape(counts.shape)
    return classes, counts


def _from_zero(classes: Classes) -> Classes:
    """The same sums with the least column and place at 0."""
    rows, columns, places = classes
    return (rows + columns.min() + places.min(), columns - columns.min(), places - places.min())


def _within(classes: Classes, low: int, high: int) -> Classes:
    rows, columns, places = classes
    span = high - low
    places = np.minimum(places, span)
    columns = np.minimum(columns, span - places.max())
    return (np.clip(rows - low, 0, span - places.max() - columns.max()), columns, places)


def _costs(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The bits of every symbol by every table; a symbol that a table lacks takes what one in its neighbours would."""
    wide = counts + 0.25 * (np.roll(counts, 1, 0) + np.roll(counts, -1, 0)) + 0.02
    return np.asarray(-np.log2(wide / wide.sum(axis=1, keepdims=True)))


def _better(part: Symbols, classes: Classes, costs: NDArray[np.float64]) -> Classes:
    """The classes of one axis after the other, each row's the one that costs it the fewest bits."""
    own = list(classes)
    tables, alphabet = costs.shape
    for axis in range(3):
        size = part.shape[axis]
        if axis > 0 and not _told_apart(part.shape, axis):
            continue
        seen, others_of = _sampled(part, own, axis)
        rest = summed(tuple(np.zeros(1, np.int64) if at == axis else one for at, one in enumerate(others_of)))
        others = int(rest.max()) + 1
        key = (rest * alphabet + seen).astype(np.int64)
        index = np.arange(size).reshape([-1 if at == axis else 1 for at in range(3)]) * (others * alphabet)
        histogram = np.bincount((key + index).reshape(-1), minlength=size * others * alphabet)
        histogram = histogram.reshape(size, others, alphabet)
        choices = tables - others + 1
        found = np.zeros((size, choices))
        for other in range(others):
            found += histogram[:, other].astype(np.float32) @ costs[other : other + choices].T.astype(np.float32)
        if not _told_apart(part.shape, axis):
            found[:] = found.sum(axis=0)
        used = np.bincount(own[axis], minlength=choices)[:choices] + 0.5
        found -= np.log2(used / used.sum())
        own[axis] = found.argmin(axis=1).astype(np.int64)
    return tuple(own)


def _sampled(part: Symbols, classes: list[NDArray[np.int64]], axis: int) -> tuple[Symbols, list[NDArray[np.int64]]]:
    """A part and its classes with enough of each row along `axis`: every so many of the other two axes."""
    taken = [slice(None)] * 3
    others = [at for at in (2, 1, 0) if at != axis]
    over = max(1, part.size // part.shape[axis] // _SEEN)
    for at in others:
        step = min(over, max(1, part.shape[at] // 8))
        taken[at] = slice(None, None, step)
        over = max(1, over // step)
    return part[tuple(taken)], [one[cut] for one, cut in zip(classes, taken, strict=True)]


def _compact(classes: list[Classes], counts: NDArray[np.int64]) -> tuple[tuple[Classes, ...], NDArray[np.int64]]:
    """Without tables above the last that is used."""
    last = int(np.flatnonzero(counts.any(axis=1)).max()) + 1
    return tuple(classes), counts[:last]
