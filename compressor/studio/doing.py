"""What a page may ask to be done with the draft, and what it gets back."""

from enum import StrEnum
from typing import Any

from compressor.studio.planning import Planning


class Doing(StrEnum):
    """What is asked for, by its address: try, keep, take back, do once more, let the knapsack choose."""

    TRY = "try"
    EDIT = "edit"
    UNDO = "undo"
    REDO = "redo"
    CHOOSE = "choose"


def done(planning: Planning, doing: Doing, given: dict[str, Any]) -> dict[str, Any]:
    """What the page shows after `doing`, with what it has `given`.

    Raises ValueError for what is no choice, ConflictError, BudgetError and StorageError.
    """
    if doing is Doing.TRY:
        return planning.tried(planning.read(given.get("choice")))
    version = given.get("version")
    if type(version) is not int:
        raise ValueError("an edit says which version it is of")
    draft = planning.draft
    match doing:
        case Doing.UNDO:
            draft.undo(version)
        case Doing.REDO:
            draft.redo(version)
        case Doing.CHOOSE:
            share = given.get("percent")
            if type(share) is not int or not 1 <= share <= 99:
                raise ValueError("a target is from 1 to 99 percent of the time")
            draft.edit(planning.within(share), version)
        case _:
            draft.edit(planning.read(given.get("choice")), version)
    return planning.changed()
