"""Equal pieces of an axis that a split asks for: each has to lose as many positions as every other."""

from compressor.structure.axes.axis import Axis, cut, factors, is_locked, join, lock, product, regroup, segments

_COUNTS = "it counts the pieces of a split"
_UNEVEN = "a split takes equal pieces of it, and no others lose as much with it"
# Each round makes two atoms one, smaller, or locks one.
_MOST_ROUNDS = 256

Weights = dict[Axis, int]


def equal_pieces(axis: Axis, count: int) -> list[Axis]:
    """`axis` in `count` (> 1) pieces of one size, tied so that all of them keep one size.

    Where the pieces are rows of a product, all lose the same positions. Elsewhere, as where a shuffled map of
    4 x 29 channels is halved, positions are paired that cost each piece as much; what finds no partner has to stay.
    """
    size = axis.size // count
    if _are_rows(axis, count):
        counter, piece = regroup([axis], [count, size])
        lock(counter, _COUNTS)
        return [piece] * count
    pieces = [cut(axis, number * size, (number + 1) * size) for number in range(count)]
    for _ in range(_MOST_ROUNDS):
        every = [_weights(piece) for piece in pieces]
        uneven = [atom for weights in every for atom in weights if len({other.get(atom, 0) for other in every}) > 1]
        if not uneven:
            break
        _even_out(every, uneven)
    return [cut(axis, number * size, (number + 1) * size) for number in range(count)]


def _are_rows(axis: Axis, count: int) -> bool:
    """Whether a view takes `axis` as `count` rows without cutting anything in its parts."""
    top = axis.root
    if not top.parts:
        return True
    if top.form == "sum":
        return all(not part.parts and part.size % (top.size // count) == 0 for part in segments(top))
    for factor in factors(top):
        if count % factor.size:
            return not factor.parts and factor.size % count == 0
        count //= factor.size
    return True


def _weights(piece: Axis) -> Weights:
    """How many positions of `piece` go with each index of its free atoms; what has no such number is locked."""
    found: Weights = {}
    for atom, weight in _strips(piece):
        found[atom] = found.get(atom, 0) + weight
    return found


def _strips(axis: Axis) -> list[tuple[Axis, int]]:
    top = axis.root
    if is_locked(top):
        return []
    if not top.parts:
        return [(top, 1)]
    if top.form == "sum":
        return [strip for part in top.parts for strip in _strips(part)]
    # Of a product of several that may go, the widest does: what an index takes with it is a fixed number then.
    free = [factor for factor in factors(top) if not is_locked(factor)]
    widest = max(free, key=lambda factor: factor.size)
    for factor in free:
        if factor is not widest:
            lock(factor, _COUNTS)
    return [(atom, weight * (top.size // widest.size)) for atom, weight in _strips(widest)]


def _even_out(every: list[Weights], uneven: list[Axis]) -> None:
    """Ties the first of `uneven` to an atom that costs another piece as much, or locks it."""
    atom = uneven[0]
    most = max(every, key=lambda weights: weights.get(atom, 0))
    least = min(every, key=lambda weights: weights.get(atom, 0))
    surplus = most.get(atom, 0) - least.get(atom, 0)
    for other in least:
        owed = least[other] - most.get(other, 0)
        if other is not atom and owed > 0 and max(surplus, owed) % min(surplus, owed) == 0:
            if surplus >= owed:
                _tie(atom, other, surplus // owed)
            else:
                _tie(other, atom, owed // surplus)
            return
    lock(atom, _UNEVEN)


def _tie(one: Axis, several: Axis, ratio: int) -> None:
    """Lets `ratio` indices of the atom `several` go with each index of the atom `one`, as far as both reach."""
    length = min(one.size, several.size // ratio)
    if length == 0:
        lock(several, _UNEVEN)
        return
    join(cut(several, 0, length * ratio), product([cut(one, 0, length), Axis(ratio, _COUNTS)]))
