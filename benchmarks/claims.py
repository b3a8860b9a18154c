"""Holds every figure that a text states against the stored result it comes from: `make claims`.

    python -m benchmarks.claims

Reads benchmarks/claims.json, makes its values anew from benchmarks/results/, and writes them back; prints what falls
short of its goal, with the reason. Ends with 1 where a text states another number than the stored one, where a figure
in a text belongs to no claim, or where a goal is missed without a reason. Nothing is measured.

A claim's value is (take(path) / take(over) - minus) * times, each part where it is given: `path` leads to a number, or
to an estimate {"value", "low", "high"}, in `result` (`benchmarks.stored.values_at` says how), and `take` makes one
number of several. Without a stored result, `result` is null, the value is typed, and `note` says where it comes from.
`met` says whether the claim holds: its goal is reached or, where there is none, its value comes from a stored result.
"""

import json
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks import stored
from benchmarks.statements import Exemption, Statement, faults_of_texts
from compressor.storage import read_json, write_atomic
from workbench import ROOT

FILE = ROOT / "benchmarks" / "claims.json"
TAKE: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "smallest": min,
    "largest": max,
    "count": len,
}


class Goal(BaseModel):
    """What a value is to reach; `by` names the end of the interval that is judged in place of the value."""

    model_config = ConfigDict(extra="forbid")
    at_least: float | None = None
    at_most: float | None = None
    by: Literal["low", "high"] | None = None

    def met(self, value: float, interval: list[float] | None) -> bool:
        if self.by and interval is None:
            raise ValueError(f"the goal is judged by the {self.by} end of an interval, and there is none")
        judged = value if self.by is None or interval is None else interval[self.by == "high"]
        return (self.at_least is None or judged >= self.at_least) and (self.at_most is None or judged <= self.at_most)

    def __str__(self) -> str:
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


class Claim(BaseModel):
    """One figure: what it says, where it is stored, what was aimed at, and where it is stated."""

    model_config = ConfigDict(extra="forbid")
    id: str
    says: str
    value: float | None = None
    unit: str
    interval: list[float] | None = None
    goal: Goal | None = None
    met: bool | None = None
    reason: str | None = None
    command: str
    result: str | None
    path: list[Any] | None = None
    take: Literal["median", "smallest", "largest", "count"] | None = None
    over: list[Any] | None = None
    minus: float | None = None
    times: float | None = None
    note: str | None = None
    stated_in: list[Statement] = []


class Claims(BaseModel):
    """All claims, and the figures of the texts that are none, with the reason."""

    model_config = ConfigDict(extra="forbid")
    claims: list[Claim]
    exemptions: list[Exemption]


def rebuilt(claim: Claim, results: Path) -> Claim:
    """`claim` with its value, interval and `met` made from the stored result. Raises ValueError naming it where not."""
    try:
        value, interval = _measured(claim, results) if claim.result else _typed(claim)
        met = claim.goal.met(value, interval) if claim.goal else claim.result is not None
    except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(f"{claim.id}: {claim.result or 'no stored result'}: {text}") from error
    return claim.model_copy(update={"value": value, "interval": interval, "met": met})


def _typed(claim: Claim) -> tuple[float, list[float] | None]:
    if claim.value is None:
        raise ValueError("it has neither a stored result nor a value")
    return claim.value, claim.interval


def _measured(claim: Claim, results: Path) -> tuple[float, list[float] | None]:
    path = results / str(claim.result)
    if not path.exists():
        raise ValueError(f"there is no such result in {results}")
    result = read_json(path)
    found = _one(stored.values_at(result, claim.path or []), claim.take)
    divisor = _one(stored.values_at(result, claim.over), claim.take)[0] if claim.over else 1.0

    def derived(value: float) -> float:
        return _rounded((value / divisor - (claim.minus or 0.0)) * (claim.times or 1.0))

    value, *ends = map(derived, found)
    return value, ends or None


def _one(found: list[Any], take: str | None) -> list[float]:
    """The number that was found, or [value, low, high] of an estimate; of several what `take` makes of them."""
    if take is not None:
        return [float(TAKE[take](found))]
    if len(found) > 1:
        raise ValueError(f"the path leads to {len(found)} values; say with 'take' which one is meant")
    (value,) = found
    if isinstance(value, dict):
        return [float(value[name]) for name in ("value", "low", "high")]
    return [float(value)]


def _rounded(value: float) -> float:
    """Six digits: as many as any text may want, and the same on every machine."""
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.6g}")


def check(claims: Claims, root: Path) -> list[str]:
    """What is wrong: ids given twice, goals missed without a reason, and texts that say something else."""
    ids = Counter(claim.id for claim in claims.claims)
    faults = [f"{name}: there are {count} claims with this id" for name, count in ids.items() if count > 1]
    for claim in claims.claims:
        if claim.reason and claim.met is not False:
            faults.append(f"{claim.id}: says why it misses its goal, and does not miss one; take the reason out")
        if claim.goal and claim.met is False and not claim.reason:
            faults.append(f"{claim.id}: misses its goal ({claim.goal}), and no reason is given")
        if claim.result is None and not claim.note:
            faults.append(f"{claim.id}: has no stored result, and no note says where its value comes from")
    return faults + faults_of_texts(claims.claims, claims.exemptions, root)


def table(claims: list[Claim]) -> list[str]:
    """The claims that fall short of their goal, each with the reason."""
    lines = []
    for claim in claims:
        if claim.goal and claim.met is False:
            lines.append(f"{claim.id}: {claim.value:.3g} {claim.unit}, goal {claim.goal}")
            lines.append(f"    {reason(claim, claims)}")
    return lines


def reason(claim: Claim, claims: list[Claim]) -> str:
    """Why `claim` misses its goal; numbers of other claims, {quantization.resnet20.bound:.2f}, are filled in.

    Raises ValueError where there is no such claim.
    """
    values = {one.id: one.value for one in claims}

    def value_of(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise ValueError(f"{claim.id}: its reason reads the value of {found[1]}, and there is no such claim")
        return format(values[found[1]], found[2])

    return re.sub(r"\{([\w.]+):([^}]+)\}", value_of, claim.reason or "")


def text_of(claims: Claims) -> str:
    """The file: one field a line, so that a change shows as the lines that changed."""
    data = {name: [_plain(one) for one in getattr(claims, name)] for name in ("claims", "exemptions")}
    parts = []
    for name, entries in data.items():
        blocks = [
            "  {\n" + ",\n".join(f"   {json.dumps(key)}: {_json(value)}" for key, value in entry.items()) + "\n  }"
            for entry in entries
        ]
        parts.append(f' "{name}": [\n' + ",\n".join(blocks) + "\n ]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _plain(entry: BaseModel) -> dict[str, Any]:
    """The fields that are set; what every reader looks for stands there in any case."""
    always = {"value", "goal", "met", "result", "path"} & set(type(entry).model_fields)
    dumped = entry.model_dump()
    short = entry.model_dump(exclude_none=True, exclude_defaults=True)
    return {name: short.get(name) for name in dumped if name in short or name in always}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read(path: Path) -> Claims:
    """The claims as they stand in `path`. Raises ValueError naming the claim and the field that is wrong."""
    raw = read_json(path)
    try:
        return Claims.model_validate(raw)
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            part, *where = fault["loc"]
            entry = raw.get(part, [])[where[0]] if where and isinstance(where[0], int) else {}
            name = entry.get("id") or entry.get("text") or part
            faults.append(f"{name}: {'.'.join(map(str, where[1:]))}: {fault['msg']}")
        raise ValueError(f"{path.name}: " + "; ".join(faults)) from error


def main() -> None:
    try:
        before = read(FILE)
        after = before.model_copy(update={"claims": [rebuilt(claim, stored.RESULTS) for claim in before.claims]})
    except ValueError as error:
        sys.exit(str(error))
    for old, new in zip(before.claims, after.claims, strict=True):
        if (old.value, old.met) != (new.value, new.met):
            print(f"{new.id}: {old.value} becomes {new.value}, met: {new.met}")
    write_atomic(FILE, text_of(after))
    short = table(after.claims)
    goals = [claim for claim in after.claims if claim.goal]
    print(f"{len(after.claims)} claims, {len(goals)} with a goal, {len(short) // 2} of them fall short of it:")
    print("\n".join(short))
    if faults := check(after, ROOT):
        sys.exit("\n".join(["", *faults]))


if __name__ == "__main__":
    main()
