"""The interactive part of a comparison's page: what its script is given, and by which hash the page allows it."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

from markupsafe import Markup

from compressor.estimate import Estimate
from compressor.report.numbers import ScoreScale, printable
from compressor.report.view import COLUMNS, Row

_SCRIPT = "comparison.js"
# By which number of a row each column of the table sorts.
SORTED = {
    "score": "score",
    "change": "drop",
    "latency": "latency_ms",
    "speedup": "speedup",
    "size": "size_bytes",
    "zstd": "compressed_bytes",
    "packed": "packed_bytes",
    "seconds": "seconds",
}


class Shown(Protocol):
    """What of a row of a comparison the script is told."""

    @property
    def name(self) -> str: ...
    @property
    def score(self) -> Estimate: ...
    @property
    def latency_ms(self) -> Estimate: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def packed_bytes(self) -> int | None: ...
    @property
    def pareto(self) -> bool: ...
    @property
    def control(self) -> str: ...
    @property
    def scale(self) -> ScoreScale: ...
    @property
    def recipe(self) -> str: ...
    @property
    def stages(self) -> tuple[str, ...]: ...
    @property
    def course(self) -> tuple["Mark", ...]: ...


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The file after one stage of a run, for its small waterfall."""

    stage: str
    latency_ms: float
    size_bytes: int
    kept: bool


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """The `data` and the `script` as the page holds them, the script's `hash` for its policy, and the axes to offer.

    `axes` are pairs (value, text) of what the plot can have across.
    """

    data: Markup
    script: Markup
    hash: str
    axes: tuple[tuple[str, str], ...]


def explorer(rows: Sequence[Shown], table: Sequence[Row], links: Sequence[str | None], first: int | None) -> Explorer:
    """The explorer of `rows`, as texts in `table`, with links to their reports; `first` is the reference's index."""
    told = [
        _row(row, text, link, is_reference=index == first)
        for index, (row, text, link) in enumerate(zip(rows, table, links, strict=True))
    ]
    up = rows[0].scale.higher_is_better if rows else True
    script = files("compressor.report").joinpath("templates", _SCRIPT).read_text(encoding="utf-8")
    # What would end the element early is written otherwise, which JSON allows for every character.
    data = json.dumps({"up": up, "rows": told}, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        data = data.replace(character, f"\\u{ord(character):04x}")
    axes = [("ms", "latency"), ("kib", "file size")]
    if any(row.packed_bytes is not None for row in rows):
        axes.append(("packed", "packed size"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Explorer(data=Markup(data), script=Markup(script), hash=digest, axes=tuple(axes))  # noqa: S704 - our own


def _row(row: Shown, text: Row, link: str | None, *, is_reference: bool) -> dict[str, Any]:
    factor = 100.0 if row.scale.bounded else 1.0
    numbers = {column: getattr(row, name, None) for column, name in SORTED.items()}
    return {
        "name": printable(row.name),
        "score": [factor * value for value in (row.score.value, row.score.low, row.score.high)],
        "ms": [row.latency_ms.value, row.latency_ms.low, row.latency_ms.high],
        "kib": row.size_bytes / 1024,
        "packed": None if row.packed_bytes is None else row.packed_bytes / 1024,
        "best": row.pareto,
        "control": bool(row.control),
        "reference": is_reference,
        "stages": [printable(stage) for stage in row.stages],
        "recipe": "\n".join(map(printable, row.recipe.splitlines())),
        "report": link,
        "steps": [[printable(mark.stage), mark.latency_ms, mark.size_bytes / 1024, mark.kept] for mark in row.course],
        "cells": [
            [COLUMNS[column], f"{cell.text} {cell.note}".strip()] for column, cell in text.cells.items() if cell.text
        ],
        "sort": {
            "name": printable(row.name),
            **{key: value.value if isinstance(value, Estimate) else value for key, value in numbers.items()},
        },
    }
