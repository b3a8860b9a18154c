"""The rows of a comparison: the reference and every file, their scores over the seeds, the front, who is alike."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

from compressor.comparing.arms import REFERENCE
from compressor.comparing.significance import LEVEL, letters
from compressor.estimate import Estimate
from compressor.measuring.timing import Timing, in_time_of
from compressor.report.comparison import ComparisonRow, pareto_front
from compressor.report.explorer import Mark
from compressor.report.numbers import ScoreScale
from compressor.report.record import Step
from compressor.report.report import Report
from compressor.report.view import recipe_yaml

_UNCHANGED = Estimate(1.0, 1.0, 1.0)


def rows_of(
    reports: Mapping[str, Sequence[Report]], timings: Mapping[str, Timing], controls: Mapping[str, str]
) -> tuple[ComparisonRow, ...]:
    """The reference, then a row for each of `reports`, which are by row and seed, with the front marked.

    File, size and time are those of the first seed, the score is the mean over all. Milliseconds are those of the
    reference over the speed-up, for files are timed one after another, each in turns with the reference, and what the
    machine did meanwhile meets both alike. `controls` are the kinds of those rows that are controls, which are never on
    the front. Where `timings` are of some rows alone, the front is among these, for those were timed for longer.
    """
    if not reports:
        return ()
    # The reference is the same model in every run.
    first = _of_step(REFERENCE, next(iter(reports.values()))[0], 0)
    known = sorted((timing.reference_ms for timing in timings.values()), key=lambda ms: ms.value)
    reference = replace(
        first,
        drop=None,
        latency_ms=known[len(known) // 2] if known else first.latency_ms,
        speedup=_UNCHANGED,
        seconds=0.0,
        report=None,
        budget_met=None,
        stages=(),
        recipe="",
        course=first.course[:1],
    )
    rows = [replace(_row(name, each), control=controls.get(name, "")) for name, each in reports.items()]
    rows = [replace(row, speedup=timings[row.name].speedup) if row.name in timings else row for row in rows]
    # The file of a run that kept nothing is the reference's, and another time of it would be noise.
    rows = [row if reports[row.name][0].final else replace(row, speedup=_UNCHANGED) for row in rows]
    rows = [replace(row, latency_ms=in_time_of(reference.latency_ms, row.speedup)) for row in rows]
    return _with_front([reference, *rows], timings)


def with_letters(rows: Sequence[ComparisonRow], p_values: Mapping[tuple[str, str], float]) -> tuple[ComparisonRow, ...]:
    """`rows` with the letters that those share which cannot be told apart, by the corrected p values of their pairs.

    Controls have none: each is tested against its own recipes alone.
    """
    names = [row.name for row in rows if not row.control and any(row.name in pair for pair in p_values)]
    found = letters(names, {frozenset(pair) for pair, p in p_values.items() if p < LEVEL and set(pair) <= set(names)})
    return tuple(replace(row, alike=found.get(row.name, "")) for row in rows)


def _with_front(rows: Sequence[ComparisonRow], timings: Mapping[str, Timing]) -> tuple[ComparisonRow, ...]:
    # Errors are better where smaller: with a minus sign, as scores.
    ours = [row for row in rows if not row.control and (not timings or row.name in timings or row is rows[0])]
    goodness = [row.score.value if row.scale.higher_is_better else -row.score.value for row in ours]
    points = [(row.latency_ms.value, row.size_bytes, good) for row, good in zip(ours, goodness, strict=True)]
    front = {row.name for row, best in zip(ours, pareto_front(points), strict=True) if best}
    return tuple(replace(row, pareto=row.name in front) for row in rows)


def _row(name: str, reports: Sequence[Report]) -> ComparisonRow:
    every = [_of_step(name, report, report.final) for report in reports]
    if len(every) == 1:
        return every[0]
    drops = [row.drop for row in every if row.drop is not None]
    met = [row.budget_met for row in every if row.budget_met is not None]
    return replace(
        every[0],
        score=_over_seeds([row.score for row in every]),
        drop=_over_seeds(drops) if len(drops) == len(every) else None,
        seconds=sum(row.seconds for row in every),
        seeds=len(every),
        budget_met=all(met) if met else None,
    )


def _over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean, with the interval of the samples and Student's t of the seeds' scatter, as independent errors."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    values = [each.value for each in estimates]
    mean, count = fmean(values), len(values)
    by_seed = float(stdtrit(count - 1, 0.975)) * stdev(values) / math.sqrt(count)
    below, above = (fmean(gap) for gap in zip(*((e.value - e.low, e.high - e.value) for e in estimates), strict=True))
    return Estimate(mean, mean - math.hypot(below, by_seed), mean + math.hypot(above, by_seed))


def _of_step(name: str, report: Report, index: int) -> ComparisonRow:
    step = report.steps[index]
    measurement = step.measurement
    assert measurement is not None  # only a step with a file can be final
    return ComparisonRow(
        name=name,
        score=measurement.score,
        # A run that kept nothing has lost nothing.
        drop=(step.drop or _validation_drop(step)) if index else Estimate(0.0, 0.0, 0.0),
        latency_ms=measurement.latency_ms,
        speedup=measurement.speedup,
        size_bytes=measurement.size_bytes,
        compressed_bytes=measurement.compressed_bytes,
        packed_bytes=measurement.packed_bytes,
        seconds=sum(done.seconds for done in report.steps),
        pareto=False,
        report=f"{name}/report.html",
        recipe=recipe_yaml(report),
        stages=tuple(dict.fromkeys(done.stage for done in report.steps[1:])),
        course=tuple(
            Mark(
                stage=done.stage,
                latency_ms=done.measurement.latency_ms.value,
                size_bytes=done.measurement.size_bytes,
                kept=done.kept,
            )
            for done in report.steps
            if done.measurement is not None
        ),
        scale=ScoreScale.of(report.workload),
        # Without a budget nothing can be within it.
        budget_met=report.budget_met if report.budget is not None or not report.budget_met else None,
    )


def _validation_drop(step: Step) -> Estimate | None:
    drop = step.validation.get("drop")
    return None if drop is None else Estimate(drop["value"], drop["low"], drop["high"])
