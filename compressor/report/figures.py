"""Which of a run's numbers its charts show, and in which words."""

import math
from collections.abc import Callable
from dataclasses import replace

from compressor.estimate import Estimate
from compressor.notes.training import Epochs
from compressor.report.charts import Chart, Item, LineChart, bar_chart, dot_chart, line_chart, nice_ticks, tick_decimals
from compressor.report.details import curves, noted
from compressor.report.numbers import ScoreScale, decimals_for, interval, printable, size
from compressor.report.record import RunRecord, Step
from compressor.report.view import leaves_structure, plain_reason, step_state


def waterfall(report: RunRecord, scale: ScoreScale) -> list[Chart]:
    """Milliseconds, bytes and score by stage; nothing where nothing was measured."""
    measured = [step.measurement for step in report.steps if step.measurement is not None]
    if not measured:
        return []
    ms = decimals_for((m.latency_ms.value for m in measured), digits=3)
    digits = scale.score_decimals(m.score for m in measured)
    largest = max(m.size_bytes for m in measured)
    unit, unit_name = (2**20, "MiB") if largest >= 10 * 2**20 else (2**10, "KiB")
    latency: list[Item] = []
    files: list[Item] = []
    scores: list[Item] = []
    for index, step in enumerate(report.steps):
        state, now = step_state(index, step), step.measurement
        if now is None:
            for items in (latency, files, scores):
                items.append(Item(label=step.stage, state=state, text="not measured", title=plain_reason(step)))
            continue
        time = now.latency_ms
        again = leaves_structure(step)
        text = f"{time.value:.{ms}f} ms{', as before' if again else ''}"
        latency.append(replace(_item(step, state, time, text, interval(time, ms)), as_before=again))
        exact = Estimate(*[now.size_bytes / unit] * 3)
        files.append(_item(step, state, exact, size(now.size_bytes, reference=largest), f"{now.size_bytes:,} bytes"))
        bounds = scale.bounds(now.score, digits)
        scores.append(
            _item(
                step, state, now.score, scale.score(now.score.value, digits), bounds, focus=index in (0, report.final)
            )
        )
    charts = [
        bar_chart("Latency, milliseconds a call", latency, _axis([item.high for item in latency])),
        bar_chart(f"File, {unit_name}", files, _axis([item.value for item in files]), note="bytes of the .onnx file"),
        dot_chart(
            f"{scale.name[:1].upper()}{scale.name[1:]}{', %' if scale.bounded else ''}",
            scores,
            _score_axis(scale),
            limit=_limit(report, scale),
            note="higher is better" if scale.higher_is_better else "lower is better",
        ),
    ]
    return charts if scale.scored else charts[:2]


def _item(step: Step, state: str, value: Estimate, text: str, bounds: str, *, focus: bool = False) -> Item:
    title = f"{printable(step.stage)}: {text} {bounds}"
    return Item(
        label=step.stage,
        state=state,
        text=text,
        title=f"{title} ({plain_reason(step)})" if step.reason else title,
        value=value.value,
        low=value.low,
        high=value.high,
        focus=focus,
    )


def _axis(values: list[float | None]) -> Callable[[float], str]:
    top = max((value for value in values if value is not None), default=1.0)
    decimals = tick_decimals(nice_ticks(0, top or 1.0, 4))
    return lambda value: f"{value:,.{decimals}f}"


def _score_axis(scale: ScoreScale) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.4g}" if scale.bounded else f"{value:.4g}"


def _limit(report: RunRecord, scale: ScoreScale) -> float | None:
    """The score at which the budget's drop, taken on test data, would be used up."""
    base, allowed = report.reference.measurement, (report.budget or {}).get("max_drop")
    if base is None or isinstance(allowed, bool) or not isinstance(allowed, int | float):
        return None
    worse = allowed if scale.bounded else allowed * abs(base.score.value)
    return base.score.value - worse if scale.higher_is_better else base.score.value + worse


def training_curves(step: Step, scale: ScoreScale) -> list[LineChart]:
    """The loss and the validation score of a training by epoch."""
    epochs = noted(step, Epochs)
    charts = []
    for curve in curves(step):
        if curve.name == "score":
            title, label = f"Validation {scale.name}", _score_label(scale)
        else:
            title, label = "Training loss", _loss_label
        points = [(x, 100 * y if curve.name == "score" and scale.bounded else y) for x, y in curve.points]
        most = 100.0 if curve.name == "score" and scale.bounded else math.inf
        kept = epochs.best_epoch if epochs else None
        charts.append(line_chart(title, points, label, best=kept, most=most))
    return charts


def _score_label(scale: ScoreScale) -> Callable[[float, int], str]:
    """How a curve's axis writes scores that are already percentages where the metric is bounded."""
    unit = " %" if scale.bounded else ""
    return lambda value, decimals: f"{value:.{min(decimals, 6)}f}{unit}"


def _loss_label(value: float, decimals: int) -> str:
    return f"{value:.{min(decimals, 6)}f}"
