"""What the page says of a model at first sight: where its time goes, what can go, and what is locked and why."""

from collections.abc import Sequence
from typing import Any

from compressor.inspection.inspection import Family, Inspection
from compressor.inspection.recommendation import Recommendation
from compressor.report.numbers import printable, shorten, si
from compressor.studio.picture import Picture

# The bar of the operators is so many units wide; kinds below this share are told together.
BAR_UNITS = 1000
_LEAST_SHARE = 0.03


def overview(picture: Picture, parameters: int) -> dict[str, Any]:
    """What the template of the overview takes: the time, and the operators that it goes to."""
    return {
        "ms": None if picture.ms is None else f"{picture.ms:.3g}",
        "parameters": si(parameters),
        "operators": _strip(picture.kinds()),
    }


def findings(inspection: Inspection, recommendation: Recommendation | None) -> dict[str, Any]:
    """What the template of the findings takes: what can go, and what is locked and why."""
    free = [family for family in inspection.found.families if family.locked is None]
    locked = [family for family in inspection.found.families if family.locked is not None]
    return {
        "untimed": printable(inspection.refusals.get("times", "")),
        "blocks": [_row(family) for family in free if family.is_block],
        "widths": [_row(family) for family in free if not family.is_block],
        "no_blocks": printable(inspection.refusals.get("blocks", "")),
        "no_widths": printable(inspection.refusals.get("widths", "")),
        "locked": [_row(family) for family in locked],
        "unreached": [(printable(name), printable(why)) for name, why in inspection.found.unreached.items()],
        "best": [(words, _percent(inspection.remaining.get(kind))) for kind, words in _best(inspection)],
        "recipe": None if recommendation is None else recommendation.text,
    }


def _best(inspection: Inspection) -> Sequence[tuple[str, str]]:
    return [
        pair
        for pair, some in (
            (("blocks", "every block that can go"), inspection.free_blocks),
            (("widths", "every width that can shrink"), inspection.free_groups),
        )
        if some and inspection.remaining
    ]


def _strip(operators: dict[str, float]) -> list[dict[str, Any]]:
    """The shares of the time as pieces of one bar, the largest first."""
    shown = [(kind, share) for kind, share in operators.items() if share >= _LEAST_SHARE]
    rest = 1 - sum(share for _, share in shown)
    if operators and rest > 0.001:
        shown.append(("everything else", rest))
    pieces, at = [], 0.0
    for number, (kind, share) in enumerate(shown):
        pieces.append(
            {
                "kind": printable(kind),
                "share": _percent(share),
                "x": round(at * BAR_UNITS, 1),
                "width": round(share * BAR_UNITS, 1),
                "tone": min(number, 5) if kind != "everything else" else 5,
            }
        )
        at += share
    return pieces


def _row(family: Family) -> dict[str, Any]:
    count = len(family.members)
    return {
        "name": printable(family.pattern),
        "short": shorten(printable(family.pattern), 48),
        "count": count if count > 1 else None,
        "what": printable(family.what),
        "time": _percent(family.time_fraction),
        "bar": round((family.time_fraction or 0.0) * 100, 1),
        "parameters": _percent(family.parameter_fraction),
        "locked": printable(family.locked or ""),
        "lines": [printable(line) for line in family.lines[:2]],
    }


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"
