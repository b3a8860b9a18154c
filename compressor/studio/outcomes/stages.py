"""A finished run stage by stage, as bars and with the samples that flipped; and two runs beside each other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from compressor.measuring.measure import Measurement
from compressor.report.evaluations.besides import besides_card
from compressor.report.figures import waterfall
from compressor.report.numbers import ScoreScale, printable, size
from compressor.report.record import RunRecord
from compressor.report.view import outcome


def stage_by_stage(name: str, record: RunRecord) -> dict[str, Any]:
    """What the template of one run takes: the waterfall, and which samples flipped in the file that ships."""
    scale = ScoreScale.of(record.workload)
    card = besides_card(record.shipped, scale)
    return {
        "name": name,
        "charts": [replace(chart, title=printable(chart.title)) for chart in waterfall(record, scale)],
        "flipped": card.get("flipped", ""),
        "flips": card.get("flips", []),
    }


def beside(names: Sequence[str], records: Sequence[RunRecord]) -> dict[str, Any]:
    """What the template of two runs takes: a row for each stage of either, in order, with what differs between them.

    Differences are those of measured values, of the second run to the first; they have no interval, since the two
    were timed in turns with the same reference, and not with each other.
    """
    one, other = records
    rows = [
        {"cells": [_cell(record, index) for record in records], "difference": _difference(records, index)}
        for index in range(max(len(one.steps), len(other.steps)))
    ]
    shipped = [record.shipped.measurement for record in records]
    return {"names": list(names), "rows": rows, "whole": _words(shipped[0], shipped[1])}


def _cell(record: RunRecord, index: int) -> dict[str, str]:
    if index >= len(record.steps):
        return {"stage": "", "outcome": "", "ms": "", "size": "", "score": ""}
    step = record.steps[index]
    now = step.measurement
    return {
        "stage": printable(step.stage),
        "outcome": outcome(record, index),
        "ms": "" if now is None else f"{now.latency_ms.value:.3g} ms",
        "size": "" if now is None else size(now.size_bytes),
        "score": "" if now is None else f"{now.score.value:.4f}",
    }


def _difference(records: Sequence[RunRecord], index: int) -> str:
    measured = [record.steps[index].measurement if index < len(record.steps) else None for record in records]
    return _words(measured[0], measured[1])


def _words(one: Measurement | None, other: Measurement | None) -> str:
    if one is None or other is None:
        return ""
    # Milliseconds of two runs are of two moments; both were timed in turns with the same reference.
    time = one.speedup.value / other.speedup.value - 1
    file = other.size_bytes / one.size_bytes - 1 if one.size_bytes else 0.0
    return f"{time:+.0%} time, {file:+.0%} bytes, {other.score.value - one.score.value:+.4f} score"
