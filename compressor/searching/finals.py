"""The end of a search: which trials come into question, timed together and scored on test data once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compressor.comparing.rows import rows_of, with_letters
from compressor.comparing.significance import told_apart
from compressor.comparing.timing import timed_together
from compressor.measuring.scores import FileScores
from compressor.measuring.session_times import Times
from compressor.report.comparison import ComparisonRow
from compressor.report.record import Step
from compressor.report.report import Report
from compressor.running.folder import MODEL_FILE
from compressor.running.reference_base import without_base
from compressor.searching.front import best_groups, ranks
from compressor.searching.halving import worst
from compressor.searching.limits import Limits
from compressor.searching.trials import Trial
from compressor.target import Target
from compressor.workload import Workload

_REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Finals:
    """The reference and the finalists as rows, on test data, with the p values of their pairs."""

    rows: tuple[ComparisonRow, ...]
    p_values: dict[tuple[str, str], float]


def newest(trials: Sequence[Trial]) -> list[Trial]:
    """Of every candidate the trial of its highest rung that gave a file, in the order of the trials.

    Not the best one: the best of several numbers that scatter is too good.
    """
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.ended and (trial.candidate not in found or found[trial.candidate].rung < trial.rung):
            found[trial.candidate] = trial
    return list(found.values())


def finalists_of(trials: Sequence[Trial], limits: Limits, *, most: int) -> list[Trial]:
    """At most `most` of the candidates' newest trials: within the limits, and beaten by none that is.

    The fastest and the smallest are among them, the others those that add most to the volume that they dominate. Where
    none is within the limits, those that miss them by least. Give trials `in_one_time`.
    """
    known = newest(trials)
    within = [trial for trial in known if not limits.excess(trial)]
    if not within:
        return sorted(known, key=limits.excess)[: min(most, 3)]
    points = [limits.point(trial) for trial in within]
    front = [trial for trial, rank in zip(within, ranks(points), strict=True) if rank == 0]
    if len(front) <= most:
        return front
    fastest = min(range(len(front)), key=lambda at: (front[at].latency_ms.value, front[at].size_bytes))
    smallest = min(range(len(front)), key=lambda at: (front[at].size_bytes, front[at].latency_ms.value))
    ends = list(dict.fromkeys([fastest, smallest]))[:most]
    groups = [[limits.point(trial)] for trial in front]
    others = [at for at in best_groups(groups, len(front), worst(points)) if at not in ends]
    return [front[at] for at in sorted([*ends, *others[: most - len(ends)]])]


def finals_of(
    finalists: Mapping[str, Trial],
    reports: Mapping[str, Report],
    folders: Mapping[str, Path],
    workload: Workload,
    *,
    limits: Limits,
    target: Target,
    times: Times,
) -> Finals:
    """The finalists, by the names of what was run: their files timed in one session, and read on test data.

    `reports` are those of their runs, judged on validation, and `folders` where those lie.
    """
    files = {name: (folders[name] / MODEL_FILE).read_bytes() for name in finalists}
    reference = (next(iter(folders.values())) / "stages" / "00-reference" / MODEL_FILE).read_bytes()
    scores = FileScores(workload, seed=0, based=not without_base(workload))
    timings = timed_together(files, reference, workload, target, times)
    tested = {name: [_on_test(reports[name], files[name], reference, scores)] for name in finalists}
    rows = rows_of(tested, timings, {})
    judged = []
    for row in rows:
        if row.name == _REFERENCE:
            judged.append(row)
            continue
        trial = finalists[row.name]
        met = not limits.excess(trial, latency_ms=row.latency_ms.value)
        folder = folders[row.name]
        judged.append(
            replace(row, budget_met=met, seconds=trial.made_seconds, report=f"trials/{folder.name}/report.html")
        )
    tensors = {_REFERENCE: [scores.rows(reference, "test")]}
    tensors |= {name: [scores.rows(file, "test")] for name, file in files.items()}
    p_values = told_apart(tensors, workload.metric)
    return Finals(rows=with_letters(judged, p_values), p_values=p_values)


def _on_test(report: Report, file: bytes, reference: bytes, scores: FileScores) -> Report:
    """The report of a run whose file and reference are scored on test data instead."""

    def tested(step: Step, onnx_bytes: bytes) -> Step:
        assert step.measurement is not None  # the reference and the final step have files
        measurement = replace(step.measurement, score=scores.score(onnx_bytes, "test"))
        return replace(step, measurement=measurement, drop=scores.told_drop(onnx_bytes, reference, "test"))

    steps = list(report.steps)
    for index, onnx_bytes in {0: reference, report.final: file}.items():
        steps[index] = tested(steps[index], onnx_bytes)
    return replace(report, steps=tuple(steps))
