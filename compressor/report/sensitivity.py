"""What each layer's rounding does to the output, by width: as a plot, and as rows of a table."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.notes.quantization import LayerSensitivity, MixedWidths
from compressor.report.charts import Box, Tick, nice_ticks
from compressor.report.details import noted, sensitivity
from compressor.report.record import Step

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 230, 44, 196
# Room at the right end of the lines for their names.
_RIGHT = _WIDTH - 52
_LINE_HEIGHT = 14.0
# What widths are called of which layers compute floats. Hardly any noise is left there, so they have no line.
_FLOATS = {16: "float16", 32: "float"}


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One layer at one width; `title` is what a pointer shows."""

    x: float
    y: float
    chosen: bool
    title: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """All layers at one width; `label_y` is where its name stands at the right."""

    bits: int
    path: str
    label_y: float
    dots: tuple[Dot, ...]


@dataclass(frozen=True, kw_only=True)
class SensitivityPlot:
    """Decibels by layer, a line for every width, ready to be drawn; `floats` are layers in float, at the top."""

    series: tuple[Series, ...]
    floats: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    bottom: int = _BOTTOM


@dataclass(frozen=True, kw_only=True)
class WidthRow:
    """One layer: its number in the plot, its width, and the decibels at every width of the table, "" where unknown.

    `bits` are "float" and "float16" for layers that compute floats.
    """

    number: int
    layer: str
    bits: str
    decibels: tuple[str, ...]
    reason: str


def widths_tried(step: Step) -> tuple[int, ...]:
    """All the widths that some layer was tried with, rising."""
    return tuple(sorted({bits for layer in sensitivity(step) for bits in layer.sqnr_db}))


def width_rows(step: Step) -> list[WidthRow]:
    """A row for every layer, its decibels in the order of `widths_tried`."""
    widths = widths_tried(step)
    rows = []
    for number, layer in enumerate(sensitivity(step), start=1):
        known = layer.sqnr_db
        rows.append(
            WidthRow(
                number=number,
                layer=layer.node,
                bits="" if layer.bits is None else _FLOATS.get(layer.bits, str(layer.bits)),
                decibels=tuple(f"{known[bits]:.1f}" if bits in known else "" for bits in widths),
                reason=layer.reason,
            )
        )
    return rows


def widths_summary(step: Step) -> str:
    """How many layers have each width, "4 layers of 4 bits, 18 of 8, 2 in float"; "" where nothing was chosen."""
    count = Counter(layer.bits for layer in sensitivity(step) if layer.bits is not None)
    parts = [f"{count[bits]} {f'in {_FLOATS[bits]}' if bits in _FLOATS else f'of {bits}'}" for bits in sorted(count)]
    if parts and min(count) not in _FLOATS:
        number = count[min(count)]
        parts[0] = f"{number} layer{'' if number == 1 else 's'} of {min(count)} bits"
    mixed = noted(step, MixedWidths)
    share = mixed.float_share if mixed else None
    return ", ".join(parts) + (f" ({100 * share:.0f} % of the weights)" if share and count.keys() & _FLOATS else "")


def sensitivity_plot(step: Step) -> SensitivityPlot | None:
    """The plot of a step; None where no layer was looked at."""
    layers = sensitivity(step)
    values = [db for layer in layers for bits, db in layer.sqnr_db.items() if bits not in _FLOATS]
    if not values:
        return None
    pad = 0.06 * (max(values) - min(values)) or 1.0
    box = Box(_LEFT + 10, _RIGHT - 10, 10, _BOTTOM, (1.0, float(len(layers))), (min(values) - pad, max(values) + pad))
    series = [_series(bits, layers, box) for bits in widths_tried(step) if bits not in _FLOATS]
    marked = [1, *(round(x) for x in nice_ticks(1, len(layers), 12) if round(x) > 1)]
    return SensitivityPlot(
        series=_named_apart(series),
        floats=tuple(
            Dot(
                x=box.place(number, 0)[0],
                y=box.place(0, box.y[1])[1],
                chosen=True,
                title=f"{number}: {layer.node} in {_FLOATS[layer.bits]}, chosen",
            )
            for number, layer in enumerate(layers, start=1)
            if layer.bits in _FLOATS
        ),
        x_ticks=tuple(Tick(at=box.place(x, 0)[0], text=str(x)) for x in dict.fromkeys(marked)),
        y_ticks=tuple(Tick(at=box.place(0, y)[1], text=f"{y:g}") for y in nice_ticks(*box.y, 6)),
    )


def _series(bits: int, layers: Sequence[LayerSensitivity], box: Box) -> Series:
    dots = []
    for number, layer in enumerate(layers, start=1):
        known = layer.sqnr_db
        if bits in known:
            x, y = box.place(number, known[bits])
            chosen = layer.bits == bits
            title = f"{number}: {layer.node} at {bits} bits: {known[bits]:.1f} dB{', chosen' if chosen else ''}"
            dots.append(Dot(x=x, y=y, chosen=chosen, title=title))
    path = "M" + " L".join(f"{dot.x} {dot.y}" for dot in dots)
    return Series(bits=bits, path=path, label_y=dots[-1].y, dots=tuple(dots))


def _named_apart(series: Sequence[Series]) -> tuple[Series, ...]:
    """The same with names that do not touch: pushed down from the top, and back up where they would leave the plot."""
    order = sorted(series, key=lambda one: one.label_y)
    places: list[float] = []
    for one in order:
        places.append(max(one.label_y, places[-1] + _LINE_HEIGHT) if places else one.label_y)
    limit = float(_BOTTOM)
    for index in reversed(range(len(places))):
        places[index] = limit = min(places[index], limit)
        limit -= _LINE_HEIGHT
    at = {one.bits: round(place, 1) for one, place in zip(order, places, strict=True)}
    return tuple(Series(bits=one.bits, path=one.path, label_y=at[one.bits], dots=one.dots) for one in series)
