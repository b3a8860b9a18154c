"""Points that no other beats: their ranks, the volume that they dominate, and which few keep most of it.

Ranks are those of non-dominated sorting (Deb et al. 2002, "NSGA-II", IEEE TEC 6, sec. III-A). The volume is the
hypervolume of Zitzler & Thiele 1998, computed by slices (While et al. 2006, IEEE TEC 10). Few of many points are chosen
one by one, each time the one that adds most to it, which gives at least 1 - 1/e of the best choice's volume (Nemhauser
et al. 1978, Math. Programming 14).
"""

import heapq
from collections.abc import Sequence

# Coordinates in one order, each better where smaller.
Point = tuple[float, ...]


def ranks(points: Sequence[Point]) -> list[int]:
    """For each point the number of fronts before its own: 0 where no other beats it, 1 where only those of 0 do."""
    left = set(range(len(points)))
    found = [0] * len(points)
    rank = 0
    while left:
        front = {one for one in left if not any(beats(points[other], points[one]) for other in left)}
        for index in front:
            found[index] = rank
        left -= front
        rank += 1
    return found


def beats(one: Point, other: Point) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    return one != other and all(ours <= theirs for ours, theirs in zip(one, other, strict=True))


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The volume of what lies between `reference` and any of `points`; points beyond it in a coordinate add nothing."""
    inside = [point for point in points if all(value < limit for value, limit in zip(point, reference, strict=True))]
    return _volume(inside, reference) if inside else 0.0


def most_volume(groups: Sequence[Sequence[Point]], count: int, reference: Point) -> list[int]:
    """The indices of at most `count` of `groups`, each the one whose points add most volume to those before it.

    Of equal ones the first. Groups that add nothing come last, in their order.
    """
    taken: list[Point] = []
    chosen: list[int] = []
    volume = 0.0
    # What a group adds can only shrink while others are taken: one that still leads when looked at anew is the best.
    waiting = [(-hypervolume(group, reference), index, 0) for index, group in enumerate(groups)]
    heapq.heapify(waiting)
    while waiting and len(chosen) < count:
        gain, index, seen = heapq.heappop(waiting)
        if seen == len(chosen):
            chosen.append(index)
            volume -= gain
            taken = _front([*taken, *groups[index]])
        else:
            anew = hypervolume([*taken, *groups[index]], reference) - volume
            heapq.heappush(waiting, (-max(anew, 0.0), index, len(chosen)))
    return chosen


def best_groups(groups: Sequence[Sequence[Point]], count: int, reference: Point) -> list[int]:
    """The indices of the best `count` of `groups`: by the best rank of their points, among equals by volume.

    Schmucker et al. 2021, "Multi-objective Asynchronous Successive Halving", arXiv:2106.12639, sec. 3.2: promotion by
    non-dominated sorting, and within the front that does not fit by what represents it best.
    """
    flat = [(index, point) for index, group in enumerate(groups) for point in group]
    best: dict[int, int] = {}
    for (index, _), rank in zip(flat, ranks([point for _, point in flat]), strict=True):
        best[index] = min(rank, best.get(index, rank))
    chosen: list[int] = []
    for rank in sorted(set(best.values())):
        members = [index for index in sorted(best) if best[index] == rank]
        picked = most_volume([groups[index] for index in members], count - len(chosen), reference)
        chosen += [members[number] for number in picked]
        if len(chosen) >= count:
            break
    return chosen


def _front(points: Sequence[Point]) -> list[Point]:
    every = list(dict.fromkeys(points))
    return [point for point in every if not any(beats(other, point) for other in every)]


def _volume(points: Sequence[Point], reference: Point) -> float:
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in points)
    if len(reference) == 2:
        return _area(points, reference)
    # Slices along the last coordinate: each is as deep as the gap to the next point, and as large as those before it.
    ordered = sorted(points, key=lambda point: point[-1])
    ends = [*(point[-1] for point in ordered[1:]), reference[-1]]
    total = 0.0
    before: list[Point] = []
    for point, end in zip(ordered, ends, strict=True):
        before.append(point[:-1])
        if end > point[-1]:
            before = _front(before)
            total += (end - point[-1]) * _volume(before, reference[:-1])
    return total


def _area(points: Sequence[Point], reference: Point) -> float:
    total, height = 0.0, reference[1]
    for x, y in sorted(points):
        if y < height:
            total += (reference[0] - x) * (height - y)
            height = y
    return total
