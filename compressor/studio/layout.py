"""Graphs drawn in layers: which column and which lane every node gets, and the way of every edge.

Sugiyama, Tagawa & Toda 1981, "Methods for visual understanding of hierarchical system structures" (IEEE SMC 11), with
the barycentre of the neighbours for the order within a layer. Lanes are filled from the top, so that a chain stays
straight and what goes around it runs below.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# An edge that spans more columns gets no lane of its own in each: it would push everything apart.
_LONGEST_WAY = 48
_MOST_BENDS = 20_000
_SWEEPS = 4


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The (column, lane) of every node, and of every edge the (column, lane) of each point on its way, ends and all."""

    nodes: tuple[tuple[int, int], ...]
    ways: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return max((column for column, _ in self.nodes), default=-1) + 1

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        points = [lane for _, lane in self.nodes] + [lane for way in self.ways for _, lane in way]
        return max(points, default=-1) + 1


def laid_out(count: int, edges: Sequence[tuple[int, int]]) -> Layout:
    """`count` nodes in layers; `edges` lead from lower to higher numbers. Raises ValueError for others."""
    if any(not 0 <= source < target < count for source, target in edges):
        raise ValueError(f"edges lead from lower to higher numbers below {count}")
    columns = _columns(count, edges)
    layers: list[list[int]] = [[] for _ in range(max(columns, default=-1) + 1)]
    for node, column in enumerate(columns):
        layers[column].append(node)
    before: list[list[int]] = [[] for _ in range(count)]
    after: list[list[int]] = [[] for _ in range(count)]
    bends: list[list[int]] = []
    for source, target in edges:
        way = [source]
        span = columns[target] - columns[source]
        if 1 < span <= _LONGEST_WAY and len(before) - count < _MOST_BENDS:
            for column in range(columns[source] + 1, columns[target]):
                way.append(len(before))
                layers[column].append(len(before))
                before.append([])
                after.append([])
        way.append(target)
        for one, other in pairwise(way):
            after[one].append(other)
            before[other].append(one)
        bends.append(way)
    lanes = _lanes(layers, before, after)
    place = {node: (column, lanes[node]) for column, layer in enumerate(layers) for node in layer}
    return Layout(
        nodes=tuple(place[node] for node in range(count)),
        ways=tuple(tuple(place[node] for node in way) for way in bends),
    )


def _columns(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """The length of the longest way to each node."""
    found = [0] * count
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        found[target] = max(found[target], found[source] + 1)
    return found


def _lanes(layers: list[list[int]], before: list[list[int]], after: list[list[int]]) -> list[int]:
    """The place of each node in its layer, with few crossings."""
    lanes = [0] * len(before)
    for layer in layers:
        for lane, node in enumerate(layer):
            lanes[node] = lane
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        neighbours = before if forward else after
        for layer in layers if forward else reversed(layers):
            if len(layer) > 1:
                # What has no neighbour stays where it is; equals keep their order.
                keys = {
                    node: sum(lanes[other] for other in neighbours[node]) / len(neighbours[node])
                    if neighbours[node]
                    else lanes[node]
                    for node in layer
                }
                layer.sort(key=lambda node, keys=keys: (keys[node], lanes[node]))  # type: ignore[misc]  # mypy cannot infer a lambda's default
                for lane, node in enumerate(layer):
                    lanes[node] = lane
    return lanes
