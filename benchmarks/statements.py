"""What texts state: the sentences that belong to a claim, and the figures that belong to none."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

# Written by `make docs` from the stored results, and held against them by tests of their own.
GENERATED = (
    "docs/benchmarks.md",
    "docs/structure.md",
    "docs/quantization-results.md",
    "docs/architectures.md",
    "docs/techniques.md",
)
_UNITS = (
    r"x\b|%|percent\b|points?\b|(?:ms|µs|us|s|dB)\b|(?:micro|milli)?seconds?\b|minutes?\b|hours?\b|decibels?\b|"
    r"[KMG]i?B\b|bytes\b|times\b|of \d+\b"
)
_WORDS = r"twice|half|a third|a quarter|fifths?|a fraction of|hundred"
# A number and what it counts: 7.2x, 0.5 points, 4.5 times slower; and the figures that texts spell out.
FIGURE = re.compile(rf"(?<![\w.])\d[\d,]*(?:\.\d+)?[ -]?(?:{_UNITS})|\b(?:{_WORDS})\b", re.IGNORECASE)
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^ {4}.*$", re.MULTILINE)
# What `make docs` writes into a page that people write otherwise.
_MARKED = re.compile(r"<!-- (\w+) -->.*?<!-- /\1 -->", re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")


class Statement(BaseModel):
    """Where a claim is stated: `text` with {value:.2f}, {low:.2f} and {high:.2f} where its numbers stand.

    A text that spells its figure out ("twice as fast") has no place for a number; `between` says which values it is
    true of. A page that is written from the stored results needs no text.
    """

    model_config = ConfigDict(extra="forbid")
    file: str
    text: str | None = None
    between: list[float] | None = None
    generated: bool = False


class Exemption(BaseModel):
    """A passage whose figures are no claims, and why."""

    model_config = ConfigDict(extra="forbid")
    file: str
    text: str
    why: str


class Stated(Protocol):
    """What is read of a claim."""

    id: str
    value: float | None
    interval: list[float] | None
    stated_in: list[Statement]


def faults_of_texts(claims: list[Any], exemptions: list[Exemption], root: Path) -> list[str]:
    """What texts state otherwise than the claims, figures that belong to no claim, and exemptions of nothing."""
    faults = [fault for claim in claims for stated in claim.stated_in for fault in _disagrees(claim, stated, root)]
    for name in hand_written(root):
        text = plain(root / name)
        covered = [rendered(claim, one) for claim in claims for one in claim.stated_in if one.file == name and one.text]
        covered += [one.text for one in exemptions if one.file == name]
        places = [place for part in covered for place in _places(flat(part), text)]
        faults += [
            f"{name}: '{_around(text, found)}' states a figure that no claim holds; add it to benchmarks/claims.json"
            for found in FIGURE.finditer(text)
            if not any(start <= found.start() and found.end() <= end for start, end in places)
        ]
    faults += [
        f"{one.file}: nothing reads '{one.text}' any more; take the exemption out of benchmarks/claims.json"
        for one in exemptions
        if flat(one.text) not in plain(root / one.file)
    ]
    return faults


def hand_written(root: Path) -> list[str]:
    """The documents that people write, as paths from `root`."""
    pages = sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))
    return [name for name in ("README.md", "CHANGELOG.md", *pages) if name not in GENERATED and (root / name).exists()]


def plain(path: Path) -> str:
    """The text of a document in one line: without what `make docs` writes into it and without blocks of code."""
    text = path.read_text(encoding="utf-8")
    for pattern in (_MARKED, _FENCED, _INDENTED):
        text = pattern.sub(" ", text)
    return flat(text)


def flat(text: str) -> str:
    """`text` with every run of spaces and line ends as one space, and code in it without its numbers."""
    return re.sub(r"\s+", " ", _CODE.sub(lambda code: re.sub(r"\d", "#", code[0]), text)).strip()


def rendered(claim: Stated, statement: Statement) -> str:
    """The sentence as it must stand."""
    low, high = claim.interval or (None, None)
    return str(statement.text).format(value=claim.value, low=low, high=high)


def _disagrees(claim: Stated, statement: Statement, root: Path) -> Iterator[str]:
    if statement.generated:
        if statement.file not in (*GENERATED, "README.md"):
            yield f"{claim.id}: {statement.file} is not written from the stored results; say which text states it"
        return
    if statement.text is None:
        yield f"{claim.id}: says no text of {statement.file}"
        return
    text, wanted = plain(root / statement.file), flat(rendered(claim, statement))
    if wanted not in text:
        pieces = re.split(r"\{(?:value|low|high)[^}]*\}", flat(statement.text))
        other = re.search(_NUMBER.join(map(re.escape, pieces)), text)
        if other is None:
            yield f"{claim.id}: {statement.file} does not say '{wanted}' (any more); the claim lists it"
        else:
            yield f"{claim.id}: {statement.file} says '{other[0]}', the stored result '{wanted}'"
    low, high = statement.between or (-math.inf, math.inf)
    if claim.value is not None and not low <= claim.value <= high:
        yield (
            f"{claim.id}: {statement.file} says '{statement.text}', which is true from {low:g} to {high:g}; "
            f"stored is {claim.value:g}"
        )
    if "{" not in statement.text and not statement.between:
        yield f"{claim.id}: '{statement.text}' in {statement.file} has no place for the number, and no 'between'"


def _places(part: str, text: str) -> Iterator[tuple[int, int]]:
    start = text.find(part)
    while start >= 0:
        yield start, start + len(part)
        start = text.find(part, start + 1)


def _around(text: str, found: re.Match[str]) -> str:
    return text[max(0, found.start() - 40) : found.end() + 20].strip()
