"""Reports as one HTML page that needs no other file: what is said where; the templates say how it looks."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from compressor.report.figures import waterfall
from compressor.report.numbers import (
    DECIBEL_SCALE,
    ScoreScale,
    claim,
    decimals_for,
    drop_tone,
    duration,
    interval,
    printable,
    ratio_interval,
    signed,
    size,
    smaller,
    times,
)
from compressor.report.record import RunRecord, Step
from compressor.report.sections import ON_THE_PAGE, Section, other_details
from compressor.report.snippets import netron, snippets
from compressor.report.use import Interface
from compressor.report.view import (
    COLUMNS,
    budget_lines,
    budget_verdict,
    busy_sentence,
    change_decimals,
    exceeded,
    outcome,
    plain_reason,
    recipe_yaml,
    score_drop,
    speed,
    step_state,
    summary,
    table,
    total_seconds,
)
from compressor.storage import json_safe


def html(report: RunRecord) -> str:
    """The page. Names of layers, models and files are untrusted: everything is escaped, and scripts are forbidden."""
    scale = ScoreScale.of(report.workload)
    rows = table(report)
    columns = [column for column in COLUMNS if column != "stage" and any(row.cells.get(column) for row in rows)]
    data = report.to_json()
    interface = Interface.from_json(report.use, report.artifact)
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            name=printable(str(report.workload.get("name", "model"))),
            subtitle=_subtitle(report, scale),
            summary=summary(report),
            verdict=_verdict(report),
            tiles=_tiles(report, scale),
            warnings=[*map(printable, report.warnings), *filter(None, [busy_sentence(report.environment)])],
            charts=waterfall(report, scale),
            rows=rows,
            columns={column: COLUMNS[column] for column in columns},
            sections=[
                {"title": section.title, "template": section.template, "cards": _cards(section, report, scale)}
                for section in ON_THE_PAGE
            ],
            others=[(printable(step.stage), other) for step in report.steps if (other := _other(step))],
            budget=budget_lines(report.budget, scale),
            budget_verdict=budget_verdict(report) if report.budget else "",
            recipe=recipe_yaml(report),
            environment=data["environment"],
            facts={
                "workload": data["workload"],
                "target": data["target"],
                "seed": data["seed"],
                "artifact": data["artifact"],
                "schema version": data["schema_version"],
            },
            scale=scale,
            interface=interface,
            snippets=snippets(interface) if interface else [],
            netron=netron(interface) if interface else "",
        )
    )


@cache
def templates() -> Environment:
    """The templates, with autoescape on and undefined names as errors: a typo must not print an empty number."""
    loaded = Environment(
        loader=PackageLoader("compressor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loaded.filters["minus_numbers"] = _minus
    loaded.filters["times_sign"] = _times_sign
    loaded.filters["plain"] = printable
    loaded.filters["breakable"] = _breakable
    loaded.filters["coded"] = _coded
    loaded.globals["decibel_scale"] = DECIBEL_SCALE
    return loaded


# HTML has the characters that a terminal may not have; only numbers get them, names stay as they are.
def _minus(text: str) -> str:
    return re.sub(r"(?<![\w.)])-(?=\d)", "\N{MINUS SIGN}", text)


def _breakable(text: str) -> Markup:
    """A name that may break after its underscores, and needs not do so within a word."""
    return Markup("_<wbr>").join(text.split("_"))


def _coded(text: str) -> Markup:
    """A sentence with what stands between backticks as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if number % 2 else part for number, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts) if len(parts) % 2 else escape(text)


def _times_sign(text: str) -> str:
    return re.sub(r"(?<=\d)x(?= |$)", "\N{MULTIPLICATION SIGN}", text)


def _subtitle(report: RunRecord, scale: ScoreScale) -> str:
    target = report.target
    parts = [
        str(report.workload.get("model") or ""),
        f"judged by {scale.name}",
        f"batch {target['batch_size']}" if "batch_size" in target else "",
        f"{target['threads']} thread{'' if target['threads'] == 1 else 's'}" if "threads" in target else "",
        str(report.environment.get("cpu") or ""),
    ]
    return " · ".join(printable(part) for part in parts if part)


def _verdict(report: RunRecord) -> dict[str, str]:
    if report.budget is None:
        return {"tone": "", "text": "No budget set", "mark": "–"}  # noqa: RUF001 - a dash is meant
    if report.budget_met and report.final == 0 and len(report.steps) > 1:
        return {"tone": "", "text": "Nothing kept, budget met", "mark": "–"}  # noqa: RUF001 - a dash is meant
    if report.budget_met:
        return {"tone": "good", "text": "Budget met", "mark": "✓"}
    return {"tone": "bad", "text": "Budget not met", "mark": "✗"}


def _tiles(report: RunRecord, scale: ScoreScale) -> list[dict[str, str]]:
    base, last = report.reference.measurement, report.shipped.measurement
    kept = sum(step.kept for step in report.steps[1:])
    tried = len(report.steps) - 1
    time = _tile(
        "Time spent",
        duration(total_seconds(report)),
        f"{kept} of {tried} stage{'' if tried == 1 else 's'} kept" if tried else "no stage was run",
    )
    if base is None or last is None:
        return [time]
    ms = decimals_for((base.latency_ms.value, last.latency_ms.value), digits=3)
    if not report.final:
        return [
            _tile("Speed", f"{base.latency_ms.value:.{ms}f} ms", "a call, as the reference"),
            _tile("File size", size(base.size_bytes), "as the reference"),
            _score_tile(report, scale),
            time,
        ]
    verdict = claim(last.speedup)
    fast, slow = f"{times(last.speedup.value)} faster", speed(last.speedup).split(" [")[0]
    lead = _tile(
        "Speed",
        {"faster": fast, "slower": slow}.get(verdict, "no difference"),
        f"95 % CI {ratio_interval(last.speedup)}" if last.speedup.low < last.speedup.high else "",
        f"{base.latency_ms.value:.{ms}f} → {last.latency_ms.value:.{ms}f} ms a call",
        {"faster": "good", "slower": "bad"}.get(verdict, ""),
    )
    given = exceeded(report)
    before = base.size_bytes if given is None else given.size_bytes
    packed = f"zstd {_sizes(base.compressed_bytes, last.compressed_bytes)}"
    room = _tile(
        "File size",
        smaller(before, last.size_bytes),
        _sizes(before, last.size_bytes),
        packed if given is None else f"the given file, {size(base.size_bytes)} as read",
        "good" if before > 1.005 * last.size_bytes else "",
    )
    return [lead, room, _score_tile(report, scale), time]


def _tile(label: str, value: str, note: str = "", detail: str = "", tone: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "detail": detail, "tone": tone}


def _sizes(before: int, after: int) -> str:
    first, last = size(before), size(after, reference=before)
    return f"{first.split()[0]} → {last}"


def _score_tile(report: RunRecord, scale: ScoreScale) -> dict[str, str]:
    base, last = report.reference.measurement, report.shipped.measurement
    assert base is not None
    assert last is not None
    if not scale.scored:
        return _tile("Score", "NOT SCORED", "there were no data", tone="bad")
    digits = scale.score_decimals((base.score, last.score))
    shown = f"{scale.score(base.score.value, digits, unit=False)} → {scale.score(last.score.value, digits)}"
    drop = score_drop(report, report.shipped)
    name = scale.name[:1].upper() + scale.name[1:]
    if drop is None or not report.final:
        return _tile(
            name,
            scale.score(last.score.value, digits),
            f"95 % CI {scale.bounds(last.score, digits)}",
            "as the reference" if scale.based or not report.final else "",
        )
    change = scale.change(drop)
    places = change_decimals(change)
    return _tile(
        name,
        f"{signed(change.value, places)}{scale.change_unit}",
        f"95 % CI {interval(change, places)}" if change.low < change.high else "",
        shown,
        drop_tone(drop),
    )


def _cards(section: Section, report: RunRecord, scale: ScoreScale) -> list[dict[str, Any]]:
    """The cards of one section: a step each, with what its inside is drawn from."""
    return [
        {
            "stage": printable(step.stage),
            "state": step_state(index, step),
            "outcome": outcome(report, index),
            "reason": plain_reason(step),
            **inside,
        }
        for index, step in enumerate(report.steps)
        if (inside := section.card(step, scale))
    ]


def _other(step: Step) -> dict[str, Any]:
    """The details without a section of their own, as JSON values."""
    shown: dict[str, Any] = json_safe(other_details(step))
    return shown
