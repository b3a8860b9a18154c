"""Evaluations as reports show them: rows of numbers, changes by class, samples that flipped, parts that went."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compressor.estimate import Estimate
from compressor.notes.evaluations import ClassChanges, Evaluated, Evaluations, Flip, RemovedPart, RemovedParts
from compressor.report.details import noted
from compressor.report.markdown import code, escape
from compressor.report.numbers import ScoreScale, interval, signed
from compressor.report.record import Step
from compressor.report.view import change_decimals

# Rows of classes that are shown; report.json has them all.
_MOST_CLASSES = 20
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One row in words: the question, the file's answer, the reference's, and the change with its interval."""

    what: str
    value: str
    reference: str = ""
    change: str = ""
    tone: str = ""


def answers(step: Step, scale: ScoreScale) -> list[Answer]:
    """What was asked of the file of a step, a row each."""
    note = noted(step, Evaluations)
    return [_answer(row, scale) for row in note.evaluations] if note else []


def _answer(row: Evaluated, scale: ScoreScale) -> Answer:
    if row.value is None:
        return Answer(what=(row.what or row.evaluation).replace("_", " "), value=f"not asked: {row.why}")
    change, tone = "", ""
    if row.worse is not None:
        # Scores fall where they are worse; errors and gaps rise.
        moved = scale.change(row.worse) if row.unit == "score" else _times(row.worse, 100.0)
        places = change_decimals(moved)
        unit = " points" if row.unit == "points" else scale.change_unit
        change = f"{signed(moved.value, places)}{unit} {interval(moved, places)}".strip()
        certain = row.worse.low < row.worse.high and row.worse.excludes(0)
        tone = "" if not certain else "bad" if row.worse.value > 0 else "good"
    reference = "" if row.reference is None else _shown(row, row.reference, scale)
    return Answer(what=row.what, value=_shown(row, row.value, scale), reference=reference, change=change, tone=tone)


def _shown(row: Evaluated, value: Estimate, scale: ScoreScale) -> str:
    if row.unit == "score":
        digits = scale.score_decimals([value])
        return f"{scale.score(value.value, digits)} {scale.bounds(value, digits)}".strip()
    unit = " points" if row.unit == "points" else scale.change_unit
    return f"{100 * value.value:.2f}{unit} {interval(_times(value, 100.0), 2)}".strip()


def _times(value: Estimate, factor: float) -> Estimate:
    return Estimate(factor * value.value, factor * value.low, factor * value.high)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class in words."""

    label: str
    samples: int
    before: str
    after: str
    change: str
    p: str
    lost: bool


def class_rows(note: ClassChanges) -> list[ClassRow]:
    """The classes, those that lost most first, as far as they are shown."""
    rows = []
    for each in note.classes[:_MOST_CLASSES]:
        change = ""
        if each.drop is not None:
            moved = _times(Estimate(-each.drop.value, -each.drop.high, -each.drop.low), 100.0)
            change = f"{signed(moved.value + 0.0, 1)} {interval(moved, 1)}".strip()
        rows.append(
            ClassRow(
                label=each.label,
                samples=each.samples,
                before=f"{100 * each.before:.1f} %",
                after=f"{100 * each.after:.1f} %",
                change=change,
                p="1" if each.p > 0.995 else f"{each.p:.2g}",
                lost=each.lost,
            )
        )
    return rows


def flips_in_words(note: ClassChanges) -> str:
    """How many samples changed their answer."""
    lost = [each.label for each in note.classes if each.lost]
    named = (
        f"classes that lost more than chance explains (Holm, 5 %): {', '.join(lost)}"
        if lost
        else ("no class lost more than chance explains (Holm, 5 %)")
    )
    return (
        f"{note.lost} samples went from right to wrong, {note.won} from wrong to right, {note.other} from one wrong "
        f"answer to another; {named}"
    )


def picture(flip: Flip) -> str:
    """The picture of a flip as the address of an image, "" where it has none that is a PNG file."""
    try:
        raw = base64.b64decode(flip.picture, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return f"data:image/png;base64,{base64.b64encode(raw).decode()}" if raw.startswith(_PNG) else ""


def part_in_words(part: RemovedPart) -> str:
    """What a removed part did before, as a line."""
    if part.moved is not None:
        return f"block {part.part}: its output differed from its input by {100 * part.moved:.0f} % of the input's size"
    silent = f"; {100 * part.silent:.0f} % of them never changed" if part.silent else ""
    return (
        f"{part.part}: {part.removed} of {part.of} channels went; their mean size was {_number(part.removed_size)}, "
        f"that of the kept ones {_number(part.kept_size)}; their deviation {_number(part.removed_spread)}, that of the "
        f"kept ones {_number(part.kept_spread)}{silent}"
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def besides_card(step: Step, scale: ScoreScale) -> Mapping[str, Any]:
    """What the page shows of the evaluations of a step."""
    rows, changes, parts = answers(step, scale), noted(step, ClassChanges), noted(step, RemovedParts)
    if not rows and changes is None and parts is None:
        return {}
    return {
        "answers": rows,
        "compared": any(row.reference for row in rows),
        "class_rows": class_rows(changes) if changes else [],
        "more_classes": max(0, len(changes.classes) - _MOST_CLASSES) if changes else 0,
        "flipped": flips_in_words(changes) if changes else "",
        "flips": [(flip, picture(flip)) for flip in changes.flips] if changes else [],
        "parts": [part_in_words(part) for part in parts.removed_parts] if parts else [],
    }


def besides_text(step: Step, scale: ScoreScale) -> list[str]:
    """The same as lines of Markdown."""
    rows, changes, parts = answers(step, scale), noted(step, ClassChanges), noted(step, RemovedParts)
    lines = []
    if rows:
        lines += ["| question | answer | reference | change |", "|---|--:|--:|--:|"]
        lines += [f"| {' | '.join(map(escape, (row.what, row.value, row.reference, row.change)))} |" for row in rows]
        lines.append("")
    if changes:
        lines += [f"{escape(flips_in_words(changes))}.", ""]
        lines += ["| class | samples | before | after | change, points | p |", "|---|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {escape(row.label)}{' (lost)' if row.lost else ''} | {row.samples} | {row.before} | {row.after} "
            f"| {escape(row.change)} | {row.p} |"
            for row in class_rows(changes)
        ]
        lines.append("")
        lines += [
            f"- sample {flip.index}, {code(flip.label)}: {code(flip.before)} became {code(flip.after)}"
            for flip in changes.flips
        ]
    lines += [f"- {escape(part_in_words(part))}" for part in parts.removed_parts] if parts else []
    return lines


def besides_lines(step: Step, scale: ScoreScale) -> list[str]:
    """The same in a few lines for a terminal."""
    changes, parts = noted(step, ClassChanges), noted(step, RemovedParts)
    lines = [
        f"{row.what}: {row.value}" + (f", before {row.reference}, {row.change}" if row.reference else "")
        for row in answers(step, scale)
    ]
    lines += [flips_in_words(changes)] if changes else []
    return lines + ([part_in_words(part) for part in parts.removed_parts[:3]] if parts else [])
