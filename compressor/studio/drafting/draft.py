"""One draft of a person: every edit is on disk before it counts, with undo, redo, and a number each; it has a name.

The journal is a file of JSON lines that only grows; a line that a kill cut off is no edit. Two pages that edit the
same version are told apart by its number: the later one is refused, not lost.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.errors import StorageError
from compressor.storage import write_atomic
from compressor.studio.choice import Choice

# Longer journals are written anew with the steps that can still be undone.
_MOST_LINES = 2000
_MOST_STEPS = 200
MOST_LETTERS = 60


class ConflictError(Exception):
    """Somebody else has edited the draft since: it is another version than the one that was looked at."""


class Draft:
    """A choice with its history in the journal at `path`; `read` makes a choice of its JSON, or raises ValueError.

    `key` is what requests call it, and `person` whose it is; its `name` is for people, and may change.
    """

    def __init__(
        self, path: Path, read: Callable[[Any], Choice], *, key: str = "1", person: str = "", name: str = "Draft 1"
    ) -> None:
        self._path, self._read = path, read
        self.key, self.person, self.name = key, person, name
        self._lock = threading.Lock()
        self._steps: list[Choice] = [Choice()]
        self._at = 0
        self.version = 0
        self._lines = 0
        self._replay()

    @property
    def choice(self) -> Choice:
        """The choice as it stands."""
        return self._steps[self._at]

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back."""
        return self._at > 0

    @property
    def can_redo(self) -> bool:
        """Whether there is a step that was taken back."""
        return self._at < len(self._steps) - 1

    def edit(self, choice: Choice, version: int) -> None:
        """Makes `choice` the draft, where `version` is the latest. Raises ConflictError, and StorageError."""
        self._take({"do": "edit", "choice": choice.to_json()}, version)

    def undo(self, version: int) -> None:
        """Takes the last step back, if there is one. Raises as `edit`."""
        self._take({"do": "undo"}, version)

    def redo(self, version: int) -> None:
        """Takes the step that was taken back once more, if there is one. Raises as `edit`."""
        self._take({"do": "redo"}, version)

    def rename(self, name: Any, version: int) -> None:
        """Calls the draft `name`, of 1 to `MOST_LETTERS` printable characters. Raises ValueError, and as `edit`."""
        self._take({"do": "name", "name": checked_name(name)}, version)

    def keep(self) -> None:
        """Writes the journal of a draft that has none yet, so that it is found again."""
        with self._lock:
            if not self._path.exists():
                self._compact()

    def delete(self, version: int) -> None:
        """Deletes the journal, where `version` is the latest. Raises ConflictError, and StorageError."""
        with self._lock:
            self._refuse_old(version)
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"{self._path}: the draft was not deleted: {error.strerror}") from error
            # A page that still shows it edits nothing back to life.
            self.version = -1

    def _refuse_old(self, version: int) -> None:
        if version != self.version:
            raise ConflictError(f"version {self.version} is the latest, and {version} was edited")

    def _take(self, step: dict[str, Any], version: int) -> None:
        with self._lock:
            self._refuse_old(version)
            numbered = {"version": version + 1, **step}
            self._write(numbered)
            self._apply(numbered)
            if self._lines > _MOST_LINES:
                self._compact()

    def _apply(self, step: dict[str, Any]) -> None:
        if step["do"] == "edit":
            self._steps = [*self._steps[: self._at + 1], self._read(step["choice"])][-_MOST_STEPS:]
            self._at = len(self._steps) - 1
        elif step["do"] == "undo":
            self._at = max(0, self._at - 1)
        elif step["do"] == "redo":
            self._at = min(len(self._steps) - 1, self._at + 1)
        elif step["do"] == "name":
            self.name = checked_name(step["name"])
        self.version = step["version"]

    def _write(self, step: dict[str, Any]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as journal:
                journal.write(json.dumps(step, separators=(",", ":")).encode() + b"\n")
                journal.flush()
                os.fsync(journal.fileno())
        except OSError as error:
            raise StorageError(f"{self._path}: the edit was not kept: {error.strerror}") from error
        self._lines += 1

    def _replay(self) -> None:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        *whole, rest = raw.split(b"\n")
        for line in whole:
            try:
                step = json.loads(line)
                self._apply({**step, "version": int(step["version"])})
            except (ValueError, KeyError, TypeError, RecursionError):
                # Of another model, or damaged: what follows says what it is by itself.
                continue
            self._lines += 1
        if rest:
            # What a kill cut off must not run into the next line.
            self._compact()

    def _compact(self) -> None:
        kept = [*self._steps[1:], *[None] * (len(self._steps) - 1 - self._at)]
        steps: list[dict[str, Any]] = [{"do": "name", "name": self.name}]
        steps += [{"do": "undo"} if step is None else {"do": "edit", "choice": step.to_json()} for step in kept]
        # The last one has the draft's number; those before it count down, and may fall below the first.
        first = self.version - len(steps) + 1
        lines = [{"version": number, **step} for number, step in enumerate(steps, start=first)]
        write_atomic(self._path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        self._lines = len(lines)


def checked_name(name: Any) -> str:
    """`name` without spaces around it. Raises ValueError for what is no name of a draft."""
    found = name.strip() if isinstance(name, str) else ""
    if not 1 <= len(found) <= MOST_LETTERS or not found.isprintable():
        raise ValueError(f"a draft's name has 1 to {MOST_LETTERS} printable characters")
    return found
