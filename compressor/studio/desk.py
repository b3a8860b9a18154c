"""What lies on the table: a workload, what was found of its model, and what the page shows of both."""

import threading
from collections.abc import Callable
from typing import Any

from compressor.inspection.inspection import Inspection, inspect
from compressor.inspection.recommendation import recommend
from compressor.report.numbers import printable
from compressor.studio.events import Broadcast
from compressor.studio.overview import overview
from compressor.studio.pages import render
from compressor.target import Target
from compressor.workload import Workload


class Desk:
    """`workload`, which the command line calls `name`, on `target`; `look` finds out about it beside the server."""

    def __init__(self, workload: Workload, name: str, target: Target) -> None:
        self.workload, self.name, self.target = workload, name, target
        self.events = Broadcast()
        self.inspection: Inspection | None = None
        self.failed: str | None = None
        self._parts: dict[str, Callable[[bool], str]] = {"overview": self._overview}

    def look(self) -> threading.Thread:
        """Starts to look at the model; the pages are told when it is known."""
        thread = threading.Thread(target=self._look, name="looking at the model", daemon=True)
        thread.start()
        return thread

    def _look(self) -> None:
        try:
            self.inspection = inspect(self.workload, target=self.target)
        except Exception as error:  # noqa: BLE001 - a user's model raises anything, and the page says what
            self.failed = printable(f"{type(error).__name__}: {error}")
        self.events.publish("looked", {"failed": self.failed})

    def page(self) -> dict[str, Any]:
        """What the page's template takes."""
        return {
            "name": printable(self.workload.name),
            "model": printable(type(self.workload.model).__name__),
            "command": printable(self.name),
            "target": self.target,
            "failed": self.failed,
            "looked": self.inspection is not None,
        }

    def part(self, name: str, *, may_edit: bool) -> str | None:
        """A part of the page as HTML, None where there is none of that name."""
        return self._parts[name](may_edit) if name in self._parts else None

    def _overview(self, may_edit: bool) -> str:  # noqa: FBT001 - every part takes it
        del may_edit
        if self.inspection is None:
            return render("waiting", failed=self.failed)
        return render("overview", **overview(self.inspection, recommend(self.inspection, self.target)))
