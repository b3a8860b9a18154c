"""The geometry of the report's charts: where marks go, in pixels. The templates draw them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from compressor.report.numbers import decimals_for, printable, shorten

# Wide enough for a label and a number on one line at 13 px, narrow enough for a telephone.
BAR_WIDTH = 340
_ROW = 44
_HEAD = 6
_AXIS = 26
_LABEL_CHARACTERS = 22


@dataclass(frozen=True, kw_only=True)
class Item:
    """One row of a chart before it has a place; `value` is None where nothing was measured.

    `focus` marks the rows that a cut axis must show well; `as_before` those that differ from the row before by noise.
    """

    label: str
    state: str
    text: str = ""
    title: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    focus: bool = False
    as_before: bool = False


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A row with its place. `x` is the value, `low`/`high` the whisker, `before` where the state it changed stood.

    `beyond` says that the value lies off the axis: "low" or "high", else "".
    """

    label: str
    full_label: str
    state: str
    text: str
    title: str
    y: float
    x: float | None = None
    low: float | None = None
    high: float | None = None
    before: float | None = None
    beyond: str = ""

    @property
    def fallen(self) -> bool:
        """Whether the row is not in the file that ships."""
        return self.state in {"rolled_back", "skipped"}

    @property
    def grew(self) -> bool:
        """Whether the bar is visibly longer than before the stage."""
        return not self.fallen and self.before is not None and self.x is not None and self.x > self.before + 1


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A line across the plot at `x` (or `y`) with its text, aligned so that nothing is cut at the edges."""

    at: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart ready to be drawn."""

    title: str
    width: int
    height: int
    marks: tuple[Mark, ...] = ()
    ticks: tuple[Tick, ...] = ()
    zero_based: bool = True
    limit: float | None = None
    note: str = ""

    @property
    def grew(self) -> bool:
        """Whether some stage that was kept made its bar longer."""
        return self.zero_based and any(mark.grew for mark in self.marks)


def bar_chart(title: str, items: Sequence[Item], label: Callable[[float], str], *, note: str = "") -> Chart:
    """Bars from zero, a row per stage: lengths compare, so the axis starts at 0."""
    tops = [max(item.value, item.high or 0) for item in items if item.value is not None]
    top = max(tops, default=1.0) or 1.0
    return _rows(title, items, label, 0.0, top, zero_based=True, limit=None, note=note)


def dot_chart(
    title: str, items: Sequence[Item], label: Callable[[float], str], *, limit: float | None = None, note: str = ""
) -> Chart:
    """Dots with whiskers on an axis cut to the values, for scores: their differences matter, not their lengths.

    `limit` is a line that marks the budget. The axis covers the rows in focus with their whiskers and the limit, and as
    much again on both sides; a row beyond that (a model just cut, not yet retrained) is an arrow at the edge.
    """
    focus = [bound for item in items if item.focus for bound in _bounds(item)]
    focus += [] if limit is None else [limit]
    if not focus:
        focus = [bound for item in items for bound in _bounds(item)] or [0.0, 1.0]
    reach = (max(focus) - min(focus)) or abs(max(focus)) * 0.05 or 1.0
    window = (min(focus) - reach, max(focus) + reach)
    near = [bound for item in items for bound in _bounds(item) if window[0] <= bound <= window[1]] + focus
    pad = 0.06 * (max(near) - min(near)) or reach
    return _rows(title, items, label, min(near) - pad, max(near) + pad, zero_based=False, limit=limit, note=note)


def _bounds(item: Item) -> list[float]:
    return [bound for bound in (item.value, item.low, item.high) if bound is not None]


def _rows(
    title: str,
    items: Sequence[Item],
    label: Callable[[float], str],
    low: float,
    high: float,
    *,
    zero_based: bool,
    limit: float | None,
    note: str,
) -> Chart:
    def place(value: float | None) -> float | None:
        return None if value is None else round((value - low) / (high - low) * BAR_WIDTH, 1)

    marks: list[Mark] = []
    before = None
    for number, item in enumerate(items):
        x = place(item.value)
        beyond = "" if x is None else "low" if x < 0 else "high" if x > BAR_WIDTH else ""
        marks.append(
            Mark(
                label=shorten(printable(item.label), _LABEL_CHARACTERS),
                full_label=printable(item.label),
                state=item.state,
                text=item.text,
                title=item.title,
                y=_HEAD + number * _ROW,
                x=_clamp(x),
                low=_clamp(place(item.low)),
                high=_clamp(place(item.high)),
                before=None if item.as_before else before,
                beyond=beyond,
            )
        )
        if item.state not in {"rolled_back", "skipped"} and x is not None and not item.as_before:
            before = _clamp(x)
    return Chart(
        title=title,
        width=BAR_WIDTH,
        height=_HEAD + len(items) * _ROW + _AXIS,
        marks=tuple(marks),
        ticks=tuple(_tick(value, label, low, high) for value in nice_ticks(low, high, 4)),
        zero_based=zero_based,
        limit=place(limit),
        note=note,
    )


def _clamp(x: float | None) -> float | None:
    return None if x is None else min(max(x, 0.0), float(BAR_WIDTH))


def _tick(value: float, label: Callable[[float], str], low: float, high: float) -> Tick:
    at = (value - low) / (high - low) * BAR_WIDTH
    anchor = "start" if at < 18 else "end" if at > BAR_WIDTH - 18 else "middle"
    return Tick(at=round(at, 1), text=label(value), anchor=anchor)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low] if math.isfinite(low) else []
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_decimals(ticks: Sequence[float]) -> int:
    """The decimals that tell neighbouring ticks apart."""
    if len(ticks) < 2:
        return 2
    step = abs(ticks[1] - ticks[0])
    return max(0, -math.floor(math.log10(step) + 1e-9))


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """A curve over epochs; `dots` are (x, y, title), `best` the index of the epoch that was kept (None: unknown)."""

    title: str
    width: int
    height: int
    left: int
    bottom: int
    path: str
    dots: tuple[tuple[float, float, str], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    best: int | None = None
    last_text: str = ""


@dataclass(frozen=True)
class Box:
    """The plot area within a chart: its edges, and the values at them."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float] = field(default=(0.0, 1.0))
    y: tuple[float, float] = field(default=(0.0, 1.0))

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixel of a point."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            round(self.left + across * (self.right - self.left), 1),
            round(self.bottom - up * (self.bottom - self.top), 1),
        )


def line_chart(
    title: str,
    points: Sequence[tuple[float, float]],
    label: Callable[[float, int], str],
    *,
    best: float | None,
    most: float = math.inf,
) -> LineChart:
    """A training curve; `label(value, decimals)` writes the values, `best` is the epoch that was kept.

    `most` is the largest value there can be: the axis does not go beyond it.
    """
    width, height, left, bottom = 340, 180, 48, 152
    xs, ys = [x for x, _ in points], [y for _, y in points]
    pad = 0.08 * (max(ys) - min(ys)) or abs(max(ys)) * 0.05 or 1.0
    box = Box(left + 6, width - 12, 12, bottom, (min(xs), max(xs)), (min(ys) - pad, min(max(ys) + pad, max(most, *ys))))
    y_values = nice_ticks(box.y[0], box.y[1], 4)
    decimals = tick_decimals(y_values)
    exact = max(decimals + 1, decimals_for([points[-1][1]], digits=3))
    placed = [box.place(x, y) for x, y in points]
    path = "M" + " L".join(f"{x} {y}" for x, y in placed)
    epochs = sorted({round(x) for x in nice_ticks(min(xs), max(xs), 6)} | {round(min(xs)), round(max(xs))})
    near_end = [epoch for epoch in epochs if 0 < max(xs) - epoch < (max(xs) - min(xs)) / 12]
    return LineChart(
        title=title,
        width=width,
        height=height,
        left=left,
        bottom=bottom,
        path=path,
        dots=tuple((*pixel, f"epoch {x:g}: {label(y, exact)}") for pixel, (x, y) in zip(placed, points, strict=True)),
        x_ticks=tuple(
            Tick(at=box.place(epoch, 0)[0], text=f"{epoch}")
            for epoch in epochs
            if epoch not in near_end and min(xs) <= epoch <= max(xs)
        ),
        y_ticks=tuple(Tick(at=box.place(0, value)[1], text=label(value, decimals)) for value in y_values),
        best=next((number for number, (x, _) in enumerate(points) if x == best), None),
        last_text=label(points[-1][1], exact),
    )
