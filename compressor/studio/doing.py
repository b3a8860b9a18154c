"""What a page may ask to be done with a draft, and what it gets back."""

from enum import StrEnum
from typing import Any

from compressor.studio.drafting.draft import Draft
from compressor.studio.planning import Planning


class Doing(StrEnum):
    """What is asked for, by its address.

    Try, keep, take back, do once more, let the knapsack choose; and save as a further draft, rename, delete.
    """

    TRY = "try"
    EDIT = "edit"
    UNDO = "undo"
    REDO = "redo"
    CHOOSE = "choose"
    SAVE = "save"
    RENAME = "rename"
    DELETE = "delete"


def done(planning: Planning, doing: Doing, given: dict[str, Any], person: str) -> dict[str, Any]:
    """What the page of `person` shows after `doing`, with what it has `given`.

    Raises ValueError for what is no choice, ConflictError, BudgetError and StorageError, NoDraftError and
    ForeignDraftError.
    """
    if doing is Doing.TRY:
        return planning.tried(planning.read(given.get("choice")))
    version, key, shelf = given.get("version"), given.get("draft"), planning.shelf
    if type(version) is not int or not isinstance(key, str):
        raise ValueError("an edit says which draft and which version it is of")
    if doing is Doing.SAVE:
        seen = shelf.get(key)
        return planning.changed(shelf.add(person, given.get("name"), seen.choice))
    draft = shelf.own(key, person)
    if doing is Doing.DELETE:
        shelf.delete(draft, version)
        planning.told_of(draft)
        return planning.edited(shelf.first(person))
    _change(planning, draft, doing, given, version)
    return planning.changed(draft)


def _change(planning: Planning, draft: Draft, doing: Doing, given: dict[str, Any], version: int) -> None:
    match doing:
        case Doing.UNDO:
            draft.undo(version)
        case Doing.REDO:
            draft.redo(version)
        case Doing.RENAME:
            draft.rename(given.get("name"), version)
        case Doing.CHOOSE:
            share = given.get("percent")
            if type(share) is not int or not 1 <= share <= 99:
                raise ValueError("a target is from 1 to 99 percent of the time")
            draft.edit(planning.within(share, draft.choice), version)
        case _:
            draft.edit(planning.read(given.get("choice")), version)
