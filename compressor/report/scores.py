"""What was removed from each group of layers, and by which scores: as rows of a table, and as small plots."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.report.details import Scores, channel_groups, unit_scores
from compressor.report.numbers import shorten
from compressor.report.record import Step

PLOT_WIDTH = 240
PLOT_HEIGHT = 56
# Two pixels a bar with a gap between them: finer ones cannot be told apart, and a pointer cannot hit them.
_MOST_BARS = 80
_LEAST_HEIGHT = 1.5
_NAME_CHARACTERS = 17


@dataclass(frozen=True, kw_only=True)
class Removal:
    """One group: its units before and after, and the scores at the border; "" where there are none.

    `kept_from` is the lowest score that stayed, `removed_to` the highest that went, in the last decision on the group.
    """

    layer: str
    before: int
    after: int
    kept_from: str
    removed_to: str


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One unit of a plot, or several neighbours where there are many; `title` is what a pointer shows."""

    x: float
    y: float
    width: float
    height: float
    state: str
    title: str


@dataclass(frozen=True, kw_only=True)
class ScorePlot:
    """The sorted scores of one group's units, ready to be drawn; `floor` is where zero is."""

    layer: str
    heading: str
    title: str
    border: str
    bars: tuple[Bar, ...]
    floor: float
    width: int = PLOT_WIDTH
    height: int = PLOT_HEIGHT


def removals(step: Step) -> list[Removal]:
    """The groups that a step narrowed, as the stage lists them; those that only the plan names come last."""
    scores = {item.group: item for item in unit_scores(step)}
    rows = []
    for group in channel_groups(step):
        if group.before != group.after:
            found = scores.pop(group.layer, None)
            rows.append(_removal(group.layer, group.before, group.after, found))
    rows += [_removal(item.group, item.before, len(item.kept), item) for item in scores.values() if item.removed]
    return rows


def criteria(step: Step) -> str:
    """The criteria that the scores of a step come from, in words; "" where it has none."""
    return ", ".join(dict.fromkeys(item.criterion for item in unit_scores(step) if item.criterion))


def score_plots(step: Step) -> list[ScorePlot]:
    """A plot for each decision on a group of units, in the order in which they were made."""
    found = unit_scores(step)
    repeated = {item.group for item in found if item.turn > 1}
    return [_plot(item, turn=item.turn if item.group in repeated else None) for item in found]


def number(score: float) -> str:
    """A score with three digits."""
    return f"{score:.3g}"


def _removal(layer: str, before: int, after: int, scores: Scores | None) -> Removal:
    kept = number(min(scores.kept)) if scores and scores.kept else ""
    gone = number(max(scores.removed)) if scores and scores.removed else ""
    return Removal(layer=layer, before=before, after=after, kept_from=kept, removed_to=gone)


def _plot(scores: Scores, *, turn: int | None) -> ScorePlot:
    units = sorted([(score, 0) for score in scores.removed] + [(score, 1) for score in scores.kept])
    values = [score for score, _ in units]
    low, high = min(0.0, *values), max(0.0, *values)
    scale = PLOT_HEIGHT / ((high - low) or 1.0)
    floor = PLOT_HEIGHT + low * scale
    pitch = PLOT_WIDTH / len(units)
    bars, start = [], 0
    for run in _runs([state for _, state in units]):
        span = values[start : start + run]
        kept = bool(units[start][1])
        mean = sum(span) / run
        # The least height makes a score of zero visible: the unit is there.
        height = max(abs(mean) * scale, _LEAST_HEIGHT)
        top = floor - height if mean >= 0 else floor
        width = pitch * run
        bars.append(
            Bar(
                x=round(start * pitch, 2),
                y=round(min(max(top, 0.0), PLOT_HEIGHT - height), 2),
                width=round(width - min(1.0, 0.25 * width), 2),
                height=round(height, 2),
                state="stays" if kept else "went",
                title=_bar_title(span, start, len(units), "kept" if kept else "removed"),
            )
        )
        start += run
    made = f"made by {', '.join(scores.layers)}" if scores.layers else ""
    ranked = f"by {scores.criterion}" if scores.criterion else ""
    return ScorePlot(
        layer=shorten(scores.group, _NAME_CHARACTERS) + (f" · {turn}" if turn else ""),
        heading=f"{scores.before} → {len(scores.kept)}",
        title="; ".join(filter(None, [scores.group, f"decision {turn} on this group" if turn else "", made, ranked])),
        border=_border(scores),
        bars=tuple(bars),
        floor=round(floor, 2),
    )


def _border(scores: Scores) -> str:
    if not scores.removed:
        return f"all kept, ≥ {number(min(scores.kept))}"
    gone = f"removed ≤ {number(max(scores.removed))}"
    return f"{gone}, kept ≥ {number(min(scores.kept))}" if scores.kept else gone


def _bar_title(span: Sequence[float], start: int, count: int, fate: str) -> str:
    if len(span) == 1:
        return f"rank {start + 1} of {count}: score {number(span[0])}, {fate}"
    return (
        f"ranks {start + 1} to {start + len(span)} of {count}: scores {number(span[0])} to {number(span[-1])}, {fate}"
    )


def _runs(states: Sequence[int]) -> list[int]:
    """How many neighbours share each bar: as many as make at most about `_MOST_BARS`, and never of two states."""
    most = -(-len(states) // _MOST_BARS)
    runs: list[int] = []
    for place, state in enumerate(states):
        if runs and runs[-1] < most and states[place - 1] == state:
            runs[-1] += 1
        else:
            runs.append(1)
    return runs
