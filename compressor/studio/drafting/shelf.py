"""The drafts of everybody who works on one model: each person has some of their own, by name; all may be looked at."""

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import WrongUseError
from compressor.report.numbers import printable
from compressor.storage import sha256
from compressor.studio.choice import Choice
from compressor.studio.drafting.draft import Draft, checked_name

# More of one person are no drafts any more; each is a file, and a row of a table.
MOST_DRAFTS = 40
_PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_KEY = re.compile(r"(?:(?P<person>[A-Za-z0-9][A-Za-z0-9_-]{0,31})\.)?(?P<number>[1-9][0-9]{0,5})")


def distinct_people(names: Sequence[str]) -> tuple[str, ...]:
    """`names`, or somebody without a name where there are none. Raises WrongUseError for what is no name, and twins."""
    for name in names:
        if not _PERSON.fullmatch(name):
            raise WrongUseError(f"--person {printable(name)}: a name has 1 to 32 letters of a to z, digits, - and _")
    # Names are parts of files' names, which some systems tell by the letters alone.
    if len({name.lower() for name in names}) < len(names):
        raise WrongUseError(f"--person {', --person '.join(names)}: two of them are one and the same")
    return tuple(names) or ("",)


class NoDraftError(Exception):
    """There is no draft of that key: it was deleted, or never was."""


class ForeignDraftError(Exception):
    """The draft is another person's: it may be looked at and copied, and not changed."""


class Shelf:
    """The drafts of `people` for the workload called `name`, as journals in the folder `out`.

    `read` makes a choice of its JSON, or raises ValueError. A person without a name is the only one there is. Everybody
    has one draft at least. May be used from any thread.
    """

    def __init__(self, out: Path, name: str, people: Sequence[str], read: Callable[[Any], Choice]) -> None:
        self._out, self._stem, self._read = out, f"draft-{sha256(name.encode())[:12]}-", read
        self.people = tuple(people)
        self._lock = threading.Lock()
        self._drafts: dict[str, Draft] = {}
        # A number is not given twice: a page that still shows a deleted draft must not edit the next one.
        self._last: dict[str, int] = {}
        keys = [path.stem.removeprefix(self._stem) for path in out.glob(f"{self._stem}*.jsonl")]
        for key in sorted(filter(_KEY.fullmatch, keys), key=lambda key: (_owner(key), _number(key))):
            self._open(_owner(key), _number(key))
        for person in self.people:
            self._have_one(person)

    def first(self, person: str) -> Draft:
        """The oldest draft of `person`; of somebody who has none, the oldest of all."""
        mine = self.of(person)
        return mine[0] if mine else self.all()[0]

    def of(self, person: str) -> list[Draft]:
        """The drafts of `person`, oldest first."""
        return [draft for draft in self.all() if draft.person == person]

    def all(self) -> list[Draft]:
        """Every draft of those who may come in, person by person, oldest first."""
        with self._lock:
            found = [draft for draft in self._drafts.values() if draft.person in self.people]
        return sorted(found, key=lambda draft: (self.people.index(draft.person), _number(draft.key)))

    def get(self, key: str) -> Draft:
        """The draft of that key. Raises NoDraftError."""
        found = self._drafts.get(key)
        if found is None or found.person not in self.people:
            raise NoDraftError("there is no such draft any more")
        return found

    def own(self, key: str, person: str) -> Draft:
        """The draft of that key, which has to be `person`'s. Raises NoDraftError and ForeignDraftError."""
        found = self.get(key)
        if found.person != person:
            raise ForeignDraftError(f"this draft is {found.person}'s; save it as one of your own to change it")
        return found

    def add(self, person: str, name: Any, choice: Choice) -> Draft:
        """A further draft of `person` with that `name` and `choice`. Raises ValueError, and StorageError."""
        name = checked_name(name)
        with self._lock:
            mine = [draft for draft in self._drafts.values() if draft.person == person]
            if len(mine) >= MOST_DRAFTS:
                raise ValueError(f"{MOST_DRAFTS} drafts are the most; delete one first")
            for draft in mine:
                # The one to begin with is there as well, also where nothing was done to it.
                draft.keep()
            draft = self._open(person, 1 + self._last.get(person, 0))
        draft.rename(name, draft.version)
        draft.edit(choice, draft.version)
        return draft

    def delete(self, draft: Draft, version: int) -> None:
        """Deletes `draft`, where `version` is its latest. Raises as `Draft.delete`."""
        draft.delete(version)
        with self._lock:
            self._drafts.pop(draft.key, None)
            self._have_one(draft.person)

    def _have_one(self, person: str) -> None:
        if all(draft.person != person for draft in self._drafts.values()):
            self._open(person, 1 + self._last.get(person, 0))

    def _open(self, person: str, number: int) -> Draft:
        key = _key(person, number)
        draft = Draft(self._path(key), self._read, key=key, person=person, name=f"Draft {number}")
        self._drafts[key] = draft
        self._last[person] = max(number, self._last.get(person, 0))
        return draft

    def _path(self, key: str) -> Path:
        return self._out / f"{self._stem}{key}.jsonl"


def _key(person: str, number: int) -> str:
    return f"{person}.{number}" if person else str(number)


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _number(key: str) -> int:
    return int(key.rpartition(".")[2])
