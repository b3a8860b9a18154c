"""The table of a run in words: the same rows and the same claims for terminal, Markdown and HTML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from compressor.estimate import Estimate
from compressor.measuring.measure import Measurement
from compressor.notes.running import GivenFile, JudgedAfter, SameStructure, VersusBase
from compressor.report.details import noted
from compressor.report.numbers import (
    ScoreScale,
    claim,
    decimals_for,
    drop_tone,
    duration,
    interval,
    printable,
    ratio_interval,
    si,
    signed,
    size,
    smaller,
    times,
)
from compressor.report.record import RunRecord, Step

# In the order shown; where the terminal is narrow, columns go in the order of `DROPPED_FIRST`.
COLUMNS = {
    "stage": "stage",
    "score": "score",
    "change": "change",
    "latency": "latency",
    "speedup": "speed-up",
    "size": "file",
    "zstd": "zstd",
    "packed": "packed",
    "macs": "MACs",
    "parameters": "parameters",
    "seconds": "time",
}
DROPPED_FIRST = ("packed", "macs", "parameters", "zstd", "seconds", "latency", "score", "change")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number: `text` and, below it, `note`. `tone` is good, bad, warn or none of them ("")."""

    text: str = ""
    note: str = ""
    tone: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step. `state` is as `step_state` gives it, `outcome` says it in words; `ships` marks the final file."""

    stage: str
    state: str
    reason: str
    ships: bool
    outcome: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)


def table(report: RunRecord) -> list[Row]:
    """The steps of `report` as rows of text, with the same digits down each column."""
    measured = [step.measurement for step in report.steps if step.measurement is not None]
    scale = ScoreScale.of(report.workload)
    digits = scale.score_decimals(m.score for m in measured)
    ms = decimals_for((m.latency_ms.value for m in measured), digits=3)
    base = report.reference.measurement
    return [
        Row(
            stage=printable(step.stage),
            state=step_state(index, step),
            reason=plain_reason(step),
            ships=index == report.final,
            outcome=outcome(report, index),
            cells=_cells(step, base if index else None, scale, digits=digits, ms=ms),
        )
        for index, step in enumerate(report.steps)
    ]


def step_state(index: int, step: Step) -> str:
    """What became of a step.

    reference, kept, for_now (kept until it is judged with a later one), no_gain (kept, does not pay), rolled_back, or
    skipped (no file).
    """
    if index == 0:
        return "reference"
    if not step.kept:
        return "skipped" if step.measurement is None else "rolled_back"
    if step.pays is False:
        return "no_gain"
    return "for_now" if noted(step, JudgedAfter) else "kept"


_OUTCOMES = {
    "reference": "reference",
    "kept": "kept",
    "no_gain": "kept, does not pay",
    "rolled_back": "rolled back",
    "skipped": "not applied",
}


def outcome(report: RunRecord, index: int) -> str:
    """What became of a step, in words."""
    step = report.steps[index]
    state = step_state(index, step)
    later = noted(step, JudgedAfter)
    if state != "for_now" or later is None:
        return _OUTCOMES[state]
    if report.budget is None:
        return f"kept, {later.judged_after} follows"
    return f"kept for now, judged after {later.judged_after}"


def leaves_structure(step: Step) -> bool:
    """Whether a step changed values alone, and its time differs from that of the step before by noise at most."""
    same, beside = noted(step, SameStructure), noted(step, VersusBase)
    return bool(same and same.same_structure and (beside is None or claim(beside.versus_base) == "same"))


def plain_reason(step: Step) -> str:
    """Why a step stands or fell, without the outcome that is shown beside it."""
    reason = printable(step.reason)
    for outcome in ("rolled back: ", "does not pay: ", "skipped: ", "could not be applied: "):
        reason = reason.removeprefix(outcome)
    return reason


def score_drop(report: RunRecord, step: Step) -> Estimate | None:
    """How much worse `step` is than the reference on test data: paired where it was, else without an interval."""
    base = report.reference.measurement
    if step.drop is not None:
        return step.drop
    if step.measurement is None or base is None:
        return None
    return ScoreScale.of(report.workload).plain_drop(base.score.value, step.measurement.score.value)


def score_change(report: RunRecord, step: Step) -> str:
    """The change of the score from the reference with its interval, such as "-0.5 points [-0.9, 0.0]"; may be empty."""
    drop = score_drop(report, step)
    scale = ScoreScale.of(report.workload)
    if drop is None or not scale.scored:
        return ""
    change = scale.change(drop)
    digits = change_decimals(change)
    return f"{signed(change.value, digits)}{scale.change_unit} {interval(change, digits)}".strip()


def change_decimals(change: Estimate) -> int:
    """One decimal of a point or percent, two where the change is smaller than a tenth."""
    return 2 if 0 < max(abs(change.value), abs(change.low), abs(change.high)) < 0.1 else 1


def summary(report: RunRecord) -> str:
    """The run in a sentence: "model.onnx: 6.1x faster [5.9, 6.3], 11.8x smaller, accuracy 89.4 % (-0.5 points)"."""
    name = printable(report.artifact)
    base, last = report.reference.measurement, report.shipped.measurement
    if report.final == 0:
        text = (
            "the reference as it was, no stage was kept" if len(report.steps) > 1 else "the reference, nothing was run"
        )
        given = exceeded(report)
        larger = f"; {compared(given.size_bytes, base.size_bytes, 'the given file')}" if given and base else ""
        return f"{name}: {text}{larger}"
    if base is None or last is None:
        return f"{name}: not measured"
    scale = ScoreScale.of(report.workload)
    digits = scale.score_decimals((base.score, last.score))
    change = score_change(report, report.shipped)
    judged = f"{scale.name} {scale.score(last.score.value, digits)} ({change})" if scale.scored else scale.name.upper()
    sizes, given = smaller(base.size_bytes, last.size_bytes), exceeded(report)
    if given is not None:
        sizes = f"{compared(given.size_bytes, last.size_bytes, 'the given file')} ({sizes} beside it as read)"
    return ", ".join([f"{name}: {speed(last.speedup)}", sizes, judged])


def exceeded(report: RunRecord) -> GivenFile | None:
    """The file that the user gave, where the reference, that file as it was read, is larger."""
    given, reference = noted(report.reference, GivenFile), report.reference.measurement
    larger = given is not None and reference is not None and given.is_exceeded(reference.size_bytes)
    return given if larger else None


def compared(before: int, after: int, what: str) -> str:
    """How a file's size is beside that of `what`: "11.8x smaller than it", "as large as it"."""
    told = smaller(before, after)
    return f"{told} {'as' if told == 'as large' else 'than'} {what}"


def speed(speedup: Estimate) -> str:
    """What was measured of the speed, claiming a difference only where the interval excludes 1."""
    verdict = claim(speedup)
    if verdict == "faster":
        return f"{times(speedup.value)} faster {ratio_interval(speedup)}".strip()
    if verdict == "slower":
        slower = Estimate(1 / speedup.value, 1 / speedup.high, 1 / speedup.low)
        return f"{times(slower.value)} slower {ratio_interval(slower)}".strip()
    return f"no difference in speed (~{times(speedup.value)} {ratio_interval(speedup)})".replace(" )", ")")


def budget_lines(budget: dict[str, Any] | None, scale: ScoreScale) -> list[str]:
    """What a budget demands, a phrase each."""
    if not budget:
        return []
    phrases = {
        "max_drop": lambda value: (
            f"at most {_amount(100 * value, scale)} of {scale.name} lost, on validation data"
            if scale.scored
            else f"at most {100 * value:g} points lost, which nobody could look at: {scale.name}"
        ),
        "min_speedup": lambda value: f"at least {times(value)} faster",
        "max_latency_ms": lambda value: f"at most {value:g} ms",
        "max_size_bytes": lambda value: f"a file of at most {size(value)}",
    }
    lines = []
    for key, value in budget.items():
        if key == "not_slower":
            lines.append(
                "no stage may make the file slower"
                if value
                else "stages that make the file slower may stay (not_slower: false): bytes count, time does not"
            )
        elif key in phrases and isinstance(value, int | float):
            lines.append(phrases[key](value))
        elif value is not None:
            lines.append(printable(f"{key}: {value}"))
    return lines


def busy_sentence(environment: Mapping[str, Any]) -> str:
    """That the machine was busy, and what that means for times; "" where it was not."""
    if not environment.get("busy"):
        return ""
    load, cores = environment.get("load_average"), environment.get("cores")
    shown = load[0] if isinstance(load, list) and load else load
    return (
        f"The machine was busy (load average {shown} on {cores} cores): timings deserve less trust. They are "
        "interleaved with the reference's, so ratios suffer less than milliseconds do."
    )


def budget_verdict(report: RunRecord) -> str:
    """Whether the budget is met, and by what, in a sentence."""
    if report.budget is None:
        return "No budget was set."
    if not report.budget_met:
        return "The budget is NOT met."
    if report.final == 0 and len(report.steps) > 1:
        return "The budget is met by the reference as it is: no stage was kept, so nothing is gained."
    return "The budget is met."


def recipe_yaml(report: RunRecord) -> str:
    """The recipe as YAML; where the run had none, the stages that were run with their parameters."""
    data = report.to_json()
    recipe = data["recipe"] or {
        "seed": data["seed"],
        "stages": [{step["stage"]: step["parameters"]} for step in data["steps"][1:]],
    }
    return yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=88).rstrip()


def total_seconds(report: RunRecord) -> float:
    """The time all steps took together."""
    return sum(step.seconds for step in report.steps)


def _cells(step: Step, base: Measurement | None, scale: ScoreScale, *, digits: int, ms: int) -> dict[str, Cell]:
    cells = {"seconds": Cell(text=duration(step.seconds))}
    now = step.measurement
    if now is None:
        return cells
    cells["score"] = Cell(text=scale.score(now.score.value, digits), note=scale.bounds(now.score, digits))
    cells["latency"] = Cell(text=f"{now.latency_ms.value:.{ms}f} ms", note=interval(now.latency_ms, ms))
    cells["macs"] = Cell(text=si(now.macs))
    cells["parameters"] = Cell(text=si(now.parameters), note=_zeros(now))
    reference = base or now
    cells["size"] = Cell(text=size(now.size_bytes, reference=reference.size_bytes))
    cells["zstd"] = Cell(text=size(now.compressed_bytes, reference=reference.size_bytes))
    if now.packed_bytes is not None:
        note = smaller(base.packed_bytes, now.packed_bytes) if base is not None and base.packed_bytes else ""
        cells["packed"] = Cell(text=size(now.packed_bytes, reference=reference.size_bytes), note=note)
    if base is None:
        return cells
    verdict = claim(now.speedup)
    cells["speedup"] = Cell(
        text=("~" if verdict == "same" else "") + times(now.speedup.value),
        note=ratio_interval(now.speedup),
        tone={"faster": "good", "slower": "bad"}.get(verdict, ""),
    )
    if leaves_structure(step):
        # Measured again, it is another number by noise alone, which is no merit of the stage.
        cells["speedup"] = Cell(text=times(now.speedup.value), note="as before")
    cells["size"] = Cell(
        text=cells["size"].text,
        note=smaller(base.size_bytes, now.size_bytes),
        tone=_tone(base.size_bytes / now.size_bytes) if now.size_bytes else "",
    )
    if now.compressed_bytes:
        cells["zstd"] = Cell(text=cells["zstd"].text, note=smaller(base.compressed_bytes, now.compressed_bytes))
    if not scale.scored:
        return cells
    drop = step.drop or scale.plain_drop(base.score.value, now.score.value)
    if drop is None:
        return cells
    change = scale.change(drop)
    places = change_decimals(change)
    unit = " pt" if scale.bounded else " %"
    note = interval(change, places)
    cells["change"] = Cell(text=signed(change.value, places) + unit, note=note, tone=drop_tone(drop))
    return cells


def _amount(value: float, scale: ScoreScale) -> str:
    return f"{value:g}{' point' if scale.bounded and value == 1 else scale.change_unit}"


def _tone(ratio: float) -> str:
    return "" if round(ratio, 2) == 1 else "good" if ratio > 1 else "bad"


def _zeros(measurement: Measurement) -> str:
    zeros = measurement.parameters - measurement.nonzero_parameters
    if not measurement.parameters or zeros / measurement.parameters < 0.005:
        return ""
    return f"{100 * zeros / measurement.parameters:.0f} % zero"
