"""The geometry of the comparison's scatter plots: points, whiskers, labels that do not collide, the Pareto front."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compressor.report.charts import Tick, nice_ticks, tick_decimals
from compressor.report.numbers import printable, shorten

WIDTH, HEIGHT = 420, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, WIDTH - 12, 36, HEIGHT - 48
_RADIUS = 5
_FEW = 60
_CHARACTER, _LINE = 6.6, 14  # of the 12 px labels, generously

Span = tuple[float, float, float]
Area = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, kw_only=True)
class Point:
    """One file: value, low and high on both axes; `best` marks the Pareto front over all three quantities.

    Only what is `named` has a label.
    """

    name: str
    x: Span
    y: Span
    best: bool
    title: str = ""
    named: bool = True


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A point with its pixels, and its label's place and text anchor."""

    label: str
    title: str
    best: bool
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    label_x: float
    label_y: float
    anchor: str
    leader: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One scatter plot ready to be drawn."""

    title: str
    x_title: str
    points: tuple[Placed, ...]
    front: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    left: float = _LEFT
    right: float = _RIGHT
    top: float = _TOP
    bottom: float = _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT


def panel(title: str, points: Sequence[Point], *, x_title: str, y_label: Callable[[float], str], up: bool) -> Panel:
    """The plot of `points`; x is logarithmic where its values span more than a factor of 6. `up`: larger y is better.

    Where smaller y is better the axis is turned over, so that up and to the left is always better.
    """
    lows, highs = [point.x[1] for point in points], [point.x[2] for point in points]
    logarithmic = min(lows) > 0 and max(highs) / min(lows) > 6
    if logarithmic:
        x_range = (math.log10(min(lows) / 1.35), math.log10(max(highs) * 1.35))
    else:
        x_range = (0.0, max(highs) * 1.08 or 1.0)
    floor, ceiling = min(point.y[1] for point in points), max(point.y[2] for point in points)
    pad = 0.1 * (ceiling - floor) or abs(ceiling) * 0.05 or 1.0
    y_range = (floor - pad, ceiling + pad)

    def across(value: float) -> float:
        at = math.log10(value) if logarithmic else value
        return round(_LEFT + (at - x_range[0]) / (x_range[1] - x_range[0]) * (_RIGHT - _LEFT), 1)

    def upward(value: float) -> float:
        part = (value - y_range[0]) / (y_range[1] - y_range[0])
        return round(_BOTTOM - (part if up else 1 - part) * (_BOTTOM - _TOP), 1)

    pixels = [(across(point.x[0]), upward(point.y[0])) for point in points]
    whiskers = [(across(point.x[0]) - 1, *sorted((upward(point.y[1]), upward(point.y[2])))) for point in points]
    bars = [(left, top, left + 2, bottom) for left, top, bottom in whiskers]
    bars += [
        (across(point.x[1]), y - 1, across(point.x[2]), y + 1) for point, (_, y) in zip(points, pixels, strict=True)
    ]
    labels = [shorten(printable(point.name), 26) if point.named else "" for point in points]
    x_values = _log_ticks(*x_range) if logarithmic else nice_ticks(*x_range, 6)
    decimals = tick_decimals(x_values)
    return Panel(
        title=title,
        x_title=f"{x_title}{', log scale' if logarithmic else ''}",
        points=tuple(
            Placed(
                label=label,
                title=point.title or printable(point.name),
                best=point.best,
                x=x,
                y=y,
                x_low=across(point.x[1]),
                x_high=across(point.x[2]),
                y_low=upward(point.y[1]),
                y_high=upward(point.y[2]),
                label_x=label_x,
                label_y=label_y,
                anchor=anchor,
                leader=_leader(label_area(label_x, label_y, anchor, label), (x, y)) if label else "",
            )
            for point, label, (x, y), (label_x, label_y, anchor) in zip(
                points, labels, pixels, place_labels(pixels, labels, bars), strict=True
            )
        ),
        front=staircase(pixels),
        x_ticks=tuple(
            Tick(at=across(value), text=f"{value:,.10g}" if logarithmic else f"{value:,.{decimals}f}")
            for value in x_values
        ),
        y_ticks=tuple(Tick(at=upward(value), text=y_label(value)) for value in nice_ticks(*y_range, 5)),
    )


def staircase(pixels: Sequence[tuple[float, float]]) -> str:
    """The path that separates what some point beats (further right or further down) from what none does."""
    best = float(_BOTTOM)
    path = ""
    for x, y in sorted(pixels):
        if y < best or not path:
            path += f"V{y}" if not path else f"H{x}V{y}"
            if path == f"V{y}":
                path = f"M{x} {_BOTTOM}V{y}"
            best = y
    return f"{path}H{_RIGHT}" if path else ""


def place_labels(
    pixels: Sequence[tuple[float, float]], labels: Sequence[str], obstacles: Sequence[Area] = ()
) -> list[tuple[float, float, str]]:
    """(x, y, anchor) for each label: beside its point, where it covers no point, no obstacle and no other label.

    A place that lies as near to another point costs too: the reader must see whose label it is. Where every place
    beside the point covers something, the nearest free one of the whole plot is taken, else the least bad one.
    """
    dots = [(x - _RADIUS, y - _RADIUS, x + _RADIUS, y + _RADIUS) for x, y in pixels]
    taken: list[Area] = []
    places = []
    for number, ((x, y), label) in enumerate(zip(pixels, labels, strict=True)):
        if not label:
            places.append((x, y, "start"))
            continue
        others = [point for index, point in enumerate(pixels) if index != number and point != (x, y)]
        solid = [*taken, *dots[:number], *dots[number + 1 :], *obstacles]
        choices: list[tuple[bool, float, int, tuple[float, float, str], Area]] = []
        # Among hundreds of points no place is free, and looking at all of them takes seconds.
        farther = _ANYWHERE if len(pixels) <= _FEW else ()
        for at, base, anchor in [*((x + dx, y + dy, anchor) for dx, dy, anchor in _OFFSETS), *farther]:
            if len(choices) == len(_OFFSETS) and not min(choices)[0]:
                break
            area = label_area(at, base, anchor, label)
            outside = max(0.0, _LEFT - area[0]) + max(0.0, area[2] - WIDTH) + max(0.0, _TOP - 14 - area[1])
            outside += max(0.0, area[3] - _BOTTOM)
            covered = sum(overlap(area, other) for other in solid)
            own = _distance(area, (x, y))
            unclear = sum(max(0.0, own + 6 - _distance(area, other)) for other in others)
            cost = 15 * covered + 40 * outside + 15 * unclear + 4 * own
            choices.append((covered > 0 or outside > 0, cost, len(choices), (at, base, anchor), area))
        *_, place, area = min(choices)
        taken.append(area)
        places.append((round(place[0], 1), round(place[1], 1), place[2]))
    return places


# Offsets from the point, best first: the whiskers run straight up and to the sides, so the diagonals come first.
_OFFSETS = tuple(
    (dx * far, dy + (0 if not side else side * (far - 1) * 10), anchor)
    for far in (1, 2, 3)
    for dx, dy, side, anchor in (
        (9, -7, -1, "start"), (9, 16, 1, "start"), (-9, -7, -1, "end"), (-9, 16, 1, "end"),
        (0, -12, -1, "middle"), (0, 22, 1, "middle"),
    )
)  # fmt: skip


# Every place of the plot, for labels that find none beside their point.
_ANYWHERE = tuple(
    (float(at), float(base), "start") for base in range(_TOP, _BOTTOM, 8) for at in range(_LEFT + 4, _RIGHT, 12)
)


def label_area(at: float, base: float, anchor: str, label: str) -> Area:
    """What a label covers whose text stands at (at, base) with that anchor, generously."""
    length = len(label) * _CHARACTER
    start = {"start": at, "middle": at - length / 2, "end": at - length}[anchor]
    return (start, base - _LINE + 3, start + length, base + 3)


def _leader(area: Area, point: tuple[float, float]) -> str:
    """The line from a label to its point, where they are so far apart that the eye needs one; else nothing."""
    if _distance(area, point) < 3 * _RADIUS:
        return ""
    end = (min(max(point[0], area[0]), area[2]), min(max(point[1], area[1]), area[3]))
    return f"M{point[0]} {point[1]}L{round(end[0], 1)} {round(end[1], 1)}"


def _distance(area: Area, point: tuple[float, float]) -> float:
    across = max(area[0] - point[0], 0.0, point[0] - area[2])
    along = max(area[1] - point[1], 0.0, point[1] - area[3])
    return math.hypot(across, along)


def overlap(one: Area, other: Area) -> float:
    """The pixels that two areas share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    values = [step * 10.0**power for power in powers for step in steps]
    return [value for value in values if low <= math.log10(value) <= high]
