"""A drawing of a graph in pixels and words, for the template that makes it SVG."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compressor.inspection.inspection import Inspection
from compressor.report.numbers import printable, shorten, si, size
from compressor.studio.picture import Box, Detail, Picture, couplings

_WIDTH, _HEIGHT, _ACROSS, _DOWN, _EDGE = 132, 44, 156, 62, 10
_NAME_LETTERS = 18
# Shares of the time from which a box is drawn warmer.
_HEAT = (0.002, 0.01, 0.03, 0.08, 0.2)


def drawn(picture: Picture, inspection: Inspection | None, detail: Detail) -> dict[str, Any]:
    """What the template of the picture takes."""
    drawing = picture.drawing(detail)
    coupled = couplings(inspection)
    groups = inspection.found.groups if inspection is not None else ()
    widths = {number: group.name for number, group in enumerate(groups) if group.locked is None}
    blocks = [block.name for block in inspection.free_blocks] if inspection is not None else []
    return {
        "detail": str(detail),
        "details": [(str(each), f"{picture.count(each):,}") for each in Detail],
        "width": _EDGE * 2 + max(1, drawing.layout.columns) * _ACROSS - (_ACROSS - _WIDTH),
        "height": _EDGE * 2 + max(1, drawing.layout.lanes) * _DOWN - (_DOWN - _HEIGHT),
        "box_width": _WIDTH,
        "box_height": _HEIGHT,
        "boxes": [
            {
                **_box(number, box, drawing.layout.nodes[number], coupled),
                "widths": _listed([widths[each] for each in _groups(box, coupled) if each in widths]),
                "blocks": _listed([name for name in blocks if _within(box, name)]),
            }
            for number, box in enumerate(drawing.boxes)
        ],
        "ways": [_way(way) for way in drawing.layout.ways],
        "timed": any(box.ms is not None for box in drawing.boxes),
    }


def _box(number: int, box: Box, place: tuple[int, int], coupled: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    share = box.time_fraction
    name, kinds = box.name or box.kinds[0], box.kinds[0]
    short = shorten(name, _NAME_LETTERS)
    says = shorten(kinds if len(box.kinds) == 1 else f"{kinds} +{len(box.members) - 1}", 15)
    says += f" · {percent(share)}" if share else ""
    # What is seen comes first, so that who says it aloud is understood.
    more = [*([name] if name != short else []), *box.kinds[:3]]
    return {
        "number": number,
        "x": _EDGE + place[0] * _ACROSS,
        "y": _EDGE + place[1] * _DOWN,
        "short": short,
        "says": says,
        "spoken": f"{short} {says}{' of the time' if share else ''}: {', '.join(more)}",
        "heat": 0 if share is None else sum(share >= step for step in _HEAT),
        "groups": " ".join(map(str, _groups(box, coupled))),
    }


def _listed(names: Sequence[str]) -> str:
    """`names` as JSON, which holds whatever a name may hold; nothing where there are none."""
    return json.dumps(names) if names else ""


def _groups(box: Box, coupled: Mapping[str, tuple[int, ...]]) -> list[int]:
    """The numbers of the groups that the box's layers belong to."""
    return sorted({each for layer in box.layers for each in coupled.get(layer, ())})


def _within(box: Box, block: str) -> bool:
    """Whether all of the box's layers are the block's: it goes with it."""
    return bool(box.layers) and all(layer == block or layer.startswith(f"{block}.") for layer in box.layers)


def _way(points: tuple[tuple[int, int], ...]) -> str:
    """A path from the right side of the first box to the left side of the last one, level where it passes others."""
    (column, lane), *between = points
    *between, (last, end) = between
    x, y = _EDGE + column * _ACROSS + _WIDTH, _EDGE + lane * _DOWN + _HEIGHT / 2
    path = [f"M{x} {y:g}"]
    stops = [(_EDGE + c * _ACROSS, _EDGE + row * _DOWN + _HEIGHT / 2) for c, row in between]
    for left, level in (*stops, (_EDGE + last * _ACROSS, _EDGE + end * _DOWN + _HEIGHT / 2)):
        middle = (x + left) / 2
        path.append(f"C{middle:g} {y:g} {middle:g} {level:g} {left} {level:g}")
        x, y = left, level
        if (left, level) in stops:
            x = left + _WIDTH
            path.append(f"H{x}")
    return "".join(path)


def told(picture: Picture, inspection: Inspection | None, detail: Detail, number: int) -> dict[str, Any] | None:
    """What the template of one box takes, None where there is no box of that number."""
    boxes = picture.drawing(detail).boxes
    if not 0 <= number < len(boxes):
        return None
    box = boxes[number]
    coupled = couplings(inspection)
    groups = [] if inspection is None else [inspection.found.groups[each] for each in _groups(box, coupled)]
    blocks = [
        block
        for block in (inspection.found.blocks if inspection is not None else ())
        if any(layer == block.name or layer.startswith(f"{block.name}.") for layer in box.layers)
    ]
    return {
        "name": box.name or "Without a module of its own",
        "kinds": ", ".join(box.kinds),
        "count": len(box.members),
        "us": None if box.ms is None else f"{1000 * box.ms:,.1f}",
        "share": "" if box.time_fraction is None else percent(box.time_fraction),
        "bytes": size(box.weight_bytes) if box.weight_bytes else "none",
        "macs": si(box.macs) if box.macs else "none",
        "groups": [
            {
                "width": group.width,
                "key": group.name,
                "kind": printable(group.kind),
                "name": printable(group.name),
                "others": [printable(layer) for layer in group.coupled if layer not in {*box.layers, group.name}],
                "locked": printable(group.locked or ""),
                "line": printable(group.line or ""),
            }
            for group in groups
        ],
        "blocks": [
            {
                "name": printable(block.name),
                "key": block.name,
                "locked": printable(block.locked or ""),
                "line": printable(block.line or ""),
            }
            for block in blocks
        ],
    }


def percent(share: float) -> str:
    """A share of the whole in whole percent."""
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"
