"""The grammar of Markdown: headings, lists, tables of facts and code, in which nothing from outside becomes markup."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from compressor.report.numbers import printable
from compressor.report.record import Step


def escape(value: object) -> str:
    """Text that Markdown shows as it is: nothing in it becomes markup or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", printable(str(value)))


def headed(heading: str, body: str) -> str:
    """`body` under its heading; nothing where there is no body."""
    return f"## {heading}\n\n{body}" if body else ""


def titled(step: Step, lines: Sequence[str]) -> str:
    """`lines` under the name of the step; nothing where there are none."""
    title = f"**{escape(step.stage)}**{'' if step.kept else ' (rolled back)'}"
    return "\n".join([title, "", *lines]) if lines else ""


def bullets(lines: Iterable[str]) -> str:
    """`lines` as a list."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def facts(values: dict[str, Any]) -> str:
    """`values` as a table of two columns without a head."""
    if not values:
        return ""
    rows = [f"| {escape(key.replace('_', ' '))} | {escape(_plain(value))} |" for key, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def code(value: object) -> str:
    """A code span: the fence is longer than any run of backticks inside."""
    text = printable(str(value)).replace("|", "/")
    fence = "`" * (1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def fenced(text: str, language: str) -> str:
    """A block of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
