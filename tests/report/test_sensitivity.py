"""How much each layer's rounding costs: rows, the plot, and every form of the report."""

import io
import itertools
from dataclasses import replace

from rich.console import Console

from compressor.notes.quantization import FloatAgain, LayerSensitivity
from compressor.report.details import given_back, sensitivity
from compressor.report.record import Step
from compressor.report.sections import other_details
from compressor.report.sensitivity import WidthRow, sensitivity_plot, width_rows, widths_summary, widths_tried
from workbench.report_samples import MIXED, hostile, mixed


def step(**details) -> Step:
    """A kept step that tells `details`."""
    return Step(stage="quantize", kept=True, seconds=0.0, details=details)


TWO = step(
    sensitivity=[
        {"node": "a", "bits": 4, "reason": "cheap", "sqnr_db": {"8": 40.0, "4": 20.0}},
        {"node": "b", "bits": 8, "reason": "dear", "sqnr_db": {"8": 30.0, "x": 1.0, "4": None}},
        {"node": "c", "bits": 8, "sqnr_db": "none"},
    ]
)


def test_what_is_no_number_is_left_out() -> None:
    """Widths are counted in digits and decibels are finite; a layer without any has no entry."""
    assert sensitivity(TWO) == [
        LayerSensitivity(node="a", bits=4, reason="cheap", sqnr_db={4: 20.0, 8: 40.0}, size_bytes={}),
        LayerSensitivity(node="b", bits=8, reason="dear", sqnr_db={8: 30.0}, size_bytes={}),
    ]


def test_rows_follow_the_widths_that_were_tried() -> None:
    """The columns are 4 and 8 bits; what was not measured stays empty."""
    assert widths_tried(TWO) == (4, 8)
    assert width_rows(TWO) == [
        WidthRow(number=1, layer="a", bits="4", decibels=("20.0", "40.0"), reason="cheap"),
        WidthRow(number=2, layer="b", bits="8", decibels=("", "30.0"), reason="dear"),
    ]
    assert widths_summary(TWO) == "1 layer of 4 bits, 1 of 8"


def test_the_chosen_width_is_marked_and_more_decibels_lie_higher() -> None:
    """Layer a is marked at 4 bits, b at 8; 40 dB lies above 30, and that above 20."""
    plot = sensitivity_plot(TWO)
    assert plot is not None
    four, eight = plot.series
    assert [dot.chosen for dot in four.dots] == [True]
    assert [dot.chosen for dot in eight.dots] == [False, True]
    assert eight.dots[0].y < eight.dots[1].y < four.dots[0].y
    assert eight.dots[1].title == "2: b at 8 bits: 30.0 dB, chosen"
    assert sensitivity_plot(step()) is None


def test_layers_in_float_stand_at_the_top() -> None:
    """A float layer has no noise to draw: a mark above all others, "float" in the table, and its share in words."""
    layers = [
        {"node": "a", "bits": 8, "sqnr_db": {"8": 40.0, "16": 75.0}},
        {"node": "b", "bits": 32, "sqnr_db": {"8": 20.0, "16": 71.0}},
        {"node": "c", "bits": 16, "sqnr_db": {"8": 30.0, "16": 72.0}},
    ]
    told = step(sensitivity=layers, mixed_precision={"float_share": 0.25})
    plot = sensitivity_plot(told)
    assert plot is not None
    assert [one.bits for one in plot.series] == [8]
    assert max(float(tick.text) for tick in plot.y_ticks) == 40  # and not up to the 75 of float16
    assert [dot.title for dot in plot.floats] == ["2: b in float, chosen", "3: c in float16, chosen"]
    (line,) = plot.series
    assert max(dot.y for dot in plot.floats) < min(dot.y for dot in line.dots)
    assert [dot.x for dot in plot.floats] == [dot.x for dot in line.dots[1:]]
    assert [row.bits for row in width_rows(told)] == ["8", "float", "float16"]
    assert widths_tried(told) == (8, 16)
    assert widths_summary(told) == "1 layer of 8 bits, 1 in float16, 1 in float (25 % of the weights)"
    page = replace(mixed(), steps=(told,), final=0).to_html()
    assert page.count('<rect class="dot"') == 3  # and one in the legend
    assert "1 in float (25 % of the weights)" in page


def test_names_of_widths_do_not_touch() -> None:
    """Four widths with the same decibels are named 14 pixels apart, all within the plot."""
    plot = sensitivity_plot(step(sensitivity=[{"node": "a", "sqnr_db": dict.fromkeys("3468", 5.0)}]))
    assert plot is not None
    places = sorted(one.label_y for one in plot.series)
    assert all(after - before >= 14 for before, after in itertools.pairwise(places))
    assert places[-1] <= plot.bottom


def test_every_form_of_the_report_tells_widths_and_what_went_back() -> None:
    """Page, Markdown and terminal name the chosen widths and the layer in float again, with its reason."""
    report, stream = mixed(), io.StringIO()
    page, text = report.to_html(), report.to_markdown()
    from compressor.report.text import print_report

    print_report(report, Console(file=stream, width=100))
    for written in (page, text, stream.getvalue()):
        assert "7 layers of 3 bits, 7 of 4, 6 of 8" in written
        assert "layer7" in written
    for written in (page, text):
        assert "0.0312 ms in integers" in written
        assert "accuracy fell 2.1 points" in written
    assert "predicts 24.1" in page
    assert given_back(MIXED) == [
        FloatAgain(node="layer7", why="slower: 0.0312 ms in integers, 0.0213 ms in float", numbers={})
    ]
    assert not {"sensitivity", "given_back"} & other_details(MIXED).keys()


def test_hostile_details_are_only_text() -> None:
    """Markup in names of layers, widths and reasons is shown, never run."""
    assert "<script>" not in hostile().to_html()
