"""Drafts side by side, the model as it is above them; and before and after of the one that is open, layer by layer."""

from typing import Any

from compressor.report.numbers import printable, si, size
from compressor.studio.choice import Choice
from compressor.studio.drafting.draft import Draft
from compressor.studio.planning import Planning
from compressor.studio.whatif import Judged, Numbers


def draft_table(planning: Planning, shown: Draft, person: str, *, may_edit: bool) -> dict[str, Any]:
    """What the template of the drafts takes, on a page of `person` that shows the draft `shown`."""
    whatif, drafts = planning.whatif, planning.shelf.all()
    whole = whatif.reference
    rows = []
    for draft in drafts:
        owner = f" ({draft.person})" if draft.person not in {"", person} else ""
        row = _row(planning.numbers(draft), whole, planning.judged(draft))
        what = _what(draft.choice)
        rows.append({**row, "name": f"{draft.name}{owner}", "key": draft.key, "open": draft is shown, "what": what})
    return {
        "name": shown.name,
        "may_edit": may_edit,
        "mine": shown.person == person,
        "owner": shown.person,
        "whole": _row(whole, whole, None),
        "rows": rows,
        "changes": [
            *((printable(name), whatif.free.widths[name][0], width) for name, width in shown.choice.widths.items()),
            *((printable(name), "stays", "goes") for name in shown.choice.drop),
        ],
    }


def _row(now: Numbers, whole: Numbers, judged: Judged | None) -> dict[str, str]:
    return {
        "ms": "" if now.ms is None else f"{now.ms:.3g} ms",
        "left": "" if now.ms is None or not whole.ms else f"{now.ms / whole.ms:.0%}",
        "size": "" if now.size_bytes is None else size(round(now.size_bytes)),
        "parameters": si(now.parameters),
        "macs": si(now.macs),
        "score": "" if judged is None else f"{judged.score.value:.3f}",
    }


def _what(choice: Choice) -> str:
    parts = (
        (len(choice.widths), "width", "widths"),
        (len(choice.drop), "block out", "blocks out"),
        (len(choice.bits) if choice.form == "int8" else 0, "layer of other bits", "layers of other bits"),
    )
    words = [f"{count} {one if count == 1 else many}" for count, one, many in parts if count]
    return ", ".join([*words, *(["8 bits"] if choice.form == "int8" else [])]) or "nothing yet"
