"""The exported file as a picture: every operator with its time, bytes and products, folded into layers or blocks."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from compressor.batches import Inputs
from compressor.errors import CompressorError
from compressor.files.graphs import initializers, names_read, parse
from compressor.inspection.inspection import Inspection
from compressor.measuring.macs import macs_by_node
from compressor.measuring.node_times import NodeTime, node_places, node_times
from compressor.report.numbers import printable
from compressor.studio.layout import Layout, laid_out
from compressor.target import Target

# What is folded into blocks has at most so many boxes, and so many for each layer, where the modules' names allow it.
_FEW = 36
_SHARE_OF_LAYERS = 0.6
# A convolution, a normalization, an addition and an activation become one at most.
_MOST_FUSED = 4


class Detail(StrEnum):
    """How much of a graph is shown: its blocks, its layers, or every operator."""

    BLOCKS = "blocks"
    LAYERS = "layers"
    OPERATORS = "operators"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the file: its module, and what it costs; `ms` is None where nothing could be timed.

    An operator that ONNX Runtime fused into another takes no time of its own.
    """

    kind: str
    layer: str
    module: str
    weighted: bool
    ms: float | None
    weight_bytes: int
    macs: int
    sources: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Box:
    """What is drawn as one: the operators of a module, or a single one; shares are of the whole file."""

    name: str
    kinds: tuple[str, ...]
    members: tuple[int, ...]
    layers: tuple[str, ...]
    ms: float | None
    time_fraction: float | None
    weight_bytes: int
    macs: int


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Boxes, the edges between them by number, and where both lie."""

    boxes: tuple[Box, ...]
    edges: tuple[tuple[int, int], ...]
    layout: Layout


class Picture:
    """The graph of an ONNX file as drawings of any detail; each is laid out once."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.operators = tuple(operators)
        self._drawn: dict[Detail, Drawing] = {}

    @classmethod
    def of(
        cls, onnx_bytes: bytes, inputs: Inputs, *, modules: Collection[str], target: Target, seconds: float = 2.0
    ) -> "Picture":
        """The picture of the file, timed for about `seconds`; what cannot be timed has no time."""
        try:
            times = node_times(onnx_bytes, inputs, modules=modules, target=target, seconds=seconds)
        except (CompressorError, ValueError, RuntimeError):
            times = ()
        return cls.untimed(onnx_bytes, inputs, modules=modules).timed(times)

    @classmethod
    def untimed(cls, onnx_bytes: bytes, inputs: Inputs, *, modules: Collection[str]) -> "Picture":
        """The picture of the file without its times, at once."""
        proto = parse(onnx_bytes)
        owners = node_places(onnx_bytes, modules)
        for number, node in enumerate(proto.graph.node):
            node.name = str(number)
        try:
            macs = macs_by_node(proto.SerializeToString(), inputs)
        except (CompressorError, ValueError, RuntimeError):
            macs = {}
        constants = {name: tensor.ByteSize() for name, tensor in initializers(proto.graph).items()}
        writers: dict[str, int] = {}
        found = []
        for number, node in enumerate(proto.graph.node):
            read = names_read(node)
            found.append(
                Operator(
                    kind=printable(node.op_type),
                    layer=owners[number].layer,
                    module=owners[number].module,
                    weighted=owners[number].weighted,
                    ms=None,
                    weight_bytes=sum(constants.get(name, 0) for name in read),
                    macs=macs.get(str(number), 0),
                    sources=tuple(dict.fromkeys(writers[name] for name in read if name in writers)),
                )
            )
            writers |= dict.fromkeys(filter(None, node.output), number)
        return cls(found)

    def timed(self, times: Sequence[NodeTime]) -> "Picture":
        """The same with the times of its operators, or as it is without any."""
        if not times:
            return self
        found: dict[int, float] = {}
        for time in times:
            number = _origin(time, self.operators)
            found[number] = found.get(number, 0.0) + time.ms
        return Picture([replace(each, ms=found.get(number, 0.0)) for number, each in enumerate(self.operators)])

    @property
    def ms(self) -> float | None:
        """The milliseconds of a call; None where it could not be timed."""
        times = [operator.ms for operator in self.operators]
        return math.fsum(ms for ms in times if ms is not None) if times and None not in times else None

    def kinds(self) -> dict[str, float]:
        """The fraction of the time by kind of operator, largest first; empty where nothing was timed."""
        total, found = self.ms, dict[str, float]()
        for operator in self.operators:
            if total and operator.ms:
                found[operator.kind] = found.get(operator.kind, 0.0) + operator.ms / total
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def count(self, detail: Detail) -> int:
        """How many boxes the graph has in that detail."""
        return len(set(self._folded(detail)))

    def drawing(self, detail: Detail) -> Drawing:
        """The graph in that detail."""
        if detail not in self._drawn:
            self._drawn[detail] = self._draw(self._folded(detail))
        return self._drawn[detail]

    def _folded(self, detail: Detail) -> list[str]:
        """What each operator is drawn as a part of: equal names are one box, where they hang together."""
        if detail is Detail.OPERATORS:
            return [f"@{number}" for number in range(len(self.operators))]
        layers: list[str] = []
        for number, operator in enumerate(self.operators):
            # What works on one result alone goes with it; what joins several is no part of the last of them.
            one = operator.sources[0] if len(operator.sources) == 1 and not operator.weighted else None
            layers.append(operator.layer if operator.weighted else f"@{number}" if one is None else layers[one])
        if detail is Detail.LAYERS:
            return layers
        few = min(_FEW, round(_SHARE_OF_LAYERS * len(set(layers))))
        names = [operator.module or layers[number] for number, operator in enumerate(self.operators)]
        deepest = max((name.count(".") for name in names), default=0) + 1
        cut = layers
        for depth in range(deepest, 0, -1):
            cut = [name if name.startswith("@") else ".".join(name.split(".")[:depth]) for name in names]
            if len(set(cut)) <= few:
                break
        return cut

    def _draw(self, folds: Sequence[str]) -> Drawing:
        number_of: dict[str, int] = {}
        members: list[list[int]] = []
        box_of: list[int] = []
        for number, fold in enumerate(folds):
            box = number_of.setdefault(fold, len(members))
            if box == len(members):
                members.append([])
            members[box].append(number)
            box_of.append(box)
        # A box that is left and entered again would be a circle: only ways onwards are drawn.
        edges = sorted(
            {
                (box_of[source], box_of[number])
                for number, operator in enumerate(self.operators)
                for source in operator.sources
                if box_of[source] < box_of[number]
            }
        )
        total = self.ms or 0.0
        boxes = tuple(self._box(fold, inside, total) for fold, inside in zip(number_of, members, strict=True))
        return Drawing(boxes=boxes, edges=tuple(edges), layout=laid_out(len(boxes), edges))

    def _box(self, fold: str, inside: Sequence[int], total: float) -> Box:
        parts = [self.operators[number] for number in inside]
        timed = all(part.ms is not None for part in parts) and total > 0
        ms = math.fsum(part.ms or 0.0 for part in parts) if timed else None
        # What takes the most of it says what it is.
        kinds = dict.fromkeys(
            part.kind for part in sorted(parts, key=lambda part: (-(part.ms or 0.0), not part.weighted))
        )
        return Box(
            name=printable(parts[0].layer or parts[0].module if fold.startswith("@") else fold),
            kinds=tuple(kinds),
            members=tuple(inside),
            layers=tuple(dict.fromkeys(part.layer for part in parts if part.layer)),
            ms=ms,
            time_fraction=None if ms is None else ms / total,
            weight_bytes=sum(part.weight_bytes for part in parts),
            macs=sum(part.macs for part in parts),
        )


def _origin(time: NodeTime, operators: Sequence[Operator]) -> int:
    """The number of the operator that a fused one's time is about: of those that went into it, the one it is called by.

    A convolution that an activation was fused into is told by the activation's place.
    """
    place = time.place or 0
    around = [place]
    for _ in range(_MOST_FUSED):
        fits = next((number for number in around if operators[number].kind in time.operator), None)
        if fits is not None:
            return fits
        around = [source for number in around for source in operators[number].sources]
    return place


def couplings(inspection: Inspection | None) -> Mapping[str, tuple[int, ...]]:
    """The numbers of the groups, in the inspection's order, that each layer's size goes with; none without one."""
    found: dict[str, list[int]] = {}
    for number, group in enumerate(inspection.found.groups if inspection is not None else ()):
        for layer in group.coupled:
            found.setdefault(layer, []).append(number)
    return {layer: tuple(numbers) for layer, numbers in found.items()}
