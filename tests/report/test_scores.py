"""What was removed, and by which scores: rows, plots and pages."""

import io

import pytest
from rich.console import Console

from compressor.report.details import Scores, unit_scores, zero_channels
from compressor.report.record import Step
from compressor.report.scores import PLOT_HEIGHT, PLOT_WIDTH, Removal, criteria, removals, score_plots
from workbench.report_samples import DROP, NARROW, SPARSE, narrowed


def step(**details) -> Step:
    """A kept step that tells `details`."""
    return Step(stage="prune_channels", kept=True, seconds=0.0, details=details)


def why(group: str, kept: list, removed: list, criterion: str = "L1()") -> dict:
    return {
        "group": group,
        "criterion": criterion,
        "layers": [group],
        "kept_scores": kept,
        "removed_scores": removed,
    }


def test_scores_are_read_sorted_and_without_what_is_no_number() -> None:
    """Two units stayed and one went; NaN, text and missing lists are no scores."""
    found = unit_scores(step(scores=[why("a", [3.0, 1.0, None], [0.5, float("nan")]), why("b", [], "none"), 7]))
    assert found == [Scores("a", "L1()", ("a",), kept=(1.0, 3.0), removed=(0.5,))]


def test_repeated_decisions_are_counted() -> None:
    """A schedule decides on the same group twice: the second is turn 2, and its scores are the row's."""
    twice = step(
        groups=[{"layer": "a", "before": 4, "after": 2}],
        scores=[why("a", [1.0, 2.0, 3.0], [0.5]), why("a", [20.0, 30.0], [10.0])],
    )
    assert [item.turn for item in unit_scores(twice)] == [1, 2]
    assert removals(twice) == [Removal(layer="a", before=4, after=2, kept_from="20", removed_to="10")]
    assert [plot.layer for plot in score_plots(twice)] == ["a · 1", "a · 2"]


def test_rows_hold_the_border() -> None:
    """Of (1, 2, 3, 4) the lower half goes: the highest that went is 2, the lowest that stayed 3."""
    (row,) = removals(step(scores=[why("a", [4.0, 3.0], [1.0, 2.0])]))
    assert row == Removal(layer="a", before=4, after=2, kept_from="3", removed_to="2")


def test_groups_without_scores_have_rows_too() -> None:
    """A stage that tells widths alone still gets its rows, and groups that kept their width have none."""
    (row,) = removals(step(groups=[{"layer": "a", "before": 4, "after": 2}, {"layer": "b", "before": 4, "after": 4}]))
    assert row == Removal(layer="a", before=4, after=2, kept_from="", removed_to="")


def test_bars_stand_on_zero_in_order() -> None:
    """Scores of 1, 2 and 4 are bars of a quarter, half and all of the height, the removed one first and titled so."""
    (plot,) = score_plots(step(scores=[why("a", [4.0, 2.0], [1.0])]))
    assert [bar.height for bar in plot.bars] == [PLOT_HEIGHT / 4, PLOT_HEIGHT / 2, PLOT_HEIGHT]
    assert [bar.state for bar in plot.bars] == ["went", "stays", "stays"]
    assert plot.bars[0].title == "rank 1 of 3: score 1, removed"
    assert plot.bars[0].x < plot.bars[1].x < plot.bars[2].x < PLOT_WIDTH
    assert plot.floor == PLOT_HEIGHT
    assert plot.border == "removed ≤ 1, kept ≥ 2"


def test_negative_scores_hang_below_zero() -> None:
    """A loss that fell without a unit is a negative score: between -1 and 3 the floor is at three quarters."""
    (plot,) = score_plots(step(scores=[why("a", [3.0], [-1.0])]))
    assert plot.floor == 0.75 * PLOT_HEIGHT
    assert plot.bars[0].y == 0.75 * PLOT_HEIGHT
    assert plot.bars[0].height == PLOT_HEIGHT / 4
    assert all(0 <= bar.y <= bar.y + bar.height <= PLOT_HEIGHT for bar in plot.bars)


def test_zeros_are_visible() -> None:
    """Units that are worth exactly nothing still have a bar."""
    (plot,) = score_plots(step(scores=[why("a", [0.0], [0.0, 0.0])]))
    assert len(plot.bars) == 3
    assert min(bar.height for bar in plot.bars) > 1


def test_many_units_share_bars_but_never_two_fates() -> None:
    """768 units make at most some eighty bars, none of which mixes removed and kept ones."""
    (plot,) = score_plots(step(scores=[why("a", [float(i) for i in range(256, 768)], [float(i) for i in range(256)])]))
    assert 70 <= len(plot.bars) <= 82
    assert plot.bars[0].title == "ranks 1 to 10 of 768: scores 0 to 9, removed"
    gone = [bar for bar in plot.bars if bar.state == "went"]
    assert gone[-1].title.startswith("ranks 251 to 256")


def test_criteria_are_named_once() -> None:
    """Groups judged by one criterion name it once."""
    assert criteria(NARROW) == "Taylor(batches=8)"
    assert criteria(DROP) == ""


def test_zero_channels_are_read() -> None:
    """Sparse training tells four of sixteen channels, and a page says so."""
    assert [(item.zero, item.of) for item in zero_channels(SPARSE)] == [(4, 16), (0, 16)]
    assert "4 of 32 channels were driven to zero" in narrowed().to_html()


def test_every_form_shows_scores() -> None:
    """The page, the Markdown table and the terminal name the group, its widths and the scores at the border."""
    html, text = narrowed().to_html(), narrowed().to_markdown()
    assert html.count('class="score-plot"') == 16
    assert "rank 1 of 16: score 0.02, removed" in html
    assert "| `encoder.intermediate` | 768 | 512 | 0.131 | 0.13 |" in text
    stream = io.StringIO()
    narrowed().print(Console(file=stream, width=100))
    assert "layer1.0.conv1   16 → 8         0.27            0.211" in stream.getvalue()
    assert "left alone: linear: it makes the model's output" in stream.getvalue()
    assert "and 4 more groups" in stream.getvalue()


def test_every_form_warns_of_layers_that_no_input_reaches() -> None:
    """The page, the Markdown and the terminal name the layer and its line, beside what was left alone."""
    html, text = narrowed().to_html(), narrowed().to_markdown()
    assert "Reached by no input" in html
    assert "danger: it (net.py:14) is reached by no example" in html
    assert "- `long`: danger: it (net.py:14) is reached by no example" in text
    stream = io.StringIO()
    narrowed().print(Console(file=stream, width=100))
    assert "long: danger: it (net.py:14) is reached by no example" in stream.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_narrow_terminals_cut_names_and_no_numbers(width: int) -> None:
    """Where there is little room, scores are left out and names give way; widths are whole."""
    stream = io.StringIO()
    narrowed().print(Console(file=stream, width=width))
    assert "16 → 8" in stream.getvalue()
    assert max(map(len, stream.getvalue().splitlines())) <= width
