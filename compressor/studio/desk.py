"""What lies on the table: a workload, what was found of its model, and what the page shows of both."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.files.export import export_onnx
from compressor.files.weights import count_parameters
from compressor.identity.package import package_code
from compressor.identity.values import Identifier
from compressor.inspection.inspection import Inspection, Looked, look
from compressor.inspection.recommendation import recommend
from compressor.kept_state import private_copy
from compressor.measuring.node_times import NodeTime, node_times
from compressor.report.numbers import printable
from compressor.running.folder import versions
from compressor.runtime import OnnxModule
from compressor.storage import sha256
from compressor.store.place import users_store
from compressor.studio.draft_table import draft_table
from compressor.studio.drafting.draft import Draft
from compressor.studio.drawing import drawn, told
from compressor.studio.events import Broadcast
from compressor.studio.overview import findings, overview
from compressor.studio.pages import Kept, render
from compressor.studio.picture import Detail, Picture
from compressor.studio.planning import Planning
from compressor.studio.runs import Runs
from compressor.target import Target
from compressor.workload import Workload

Query = Mapping[str, str]
# What of a workload decides what its file is, and that file's name in the store.
_EXPORTED = ("model", "example_inputs", "free_sizes", "export_seconds", "metric", "output", "others")
_FILE = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who asks: an editor, by the name of whom drafts are, or somebody who watches."""

    person: str = ""
    may_edit: bool = False


class Desk:
    """`workload`, which the command line calls `name`, on `target`; `look` finds out about it beside the server.

    What is done on the page is kept in the folder `out`; `people` are those who have drafts of their own.
    """

    def __init__(
        self, workload: Workload, name: str, target: Target, out: Path, *, people: Sequence[str] = ("",)
    ) -> None:
        self.workload, self.name, self.target = workload, name, target
        self.events = Broadcast()
        self.runs = Runs(name, out, self.events, up=workload.metric.higher_is_better)
        finished = self.runs.finished
        self.planning = Planning(workload, name, target, out, self.events, people=people, finished=finished)
        self.runs.when_done = self.planning.wake
        self.inspection: Inspection | None = None
        self.picture: Picture | None = None
        self.failed: str | None = None
        self.unplanned = ""
        self._drawings: Kept[str] = Kept(len(Detail))
        self._run_pages: Kept[str] = Kept(2)
        self._parameters = 0
        self._parts: dict[str, Callable[[Query, Visitor], str | None]] = {
            "overview": self._overview,
            "findings": self._findings,
            "picture": self._picture,
            "box": self._box,
            "plan": self._plan,
            "drafts": self._drafts,
            "runs": self._runs,
            "stages": self._stages,
            "beside": self._beside,
        }

    def look(self) -> threading.Thread:
        """Starts to look at the model; the pages are told when it is known."""
        thread = threading.Thread(target=self._look, name="looking at the model", daemon=True)
        thread.start()
        return thread

    def _look(self) -> None:
        try:
            # The shape is there at once, its times behind one run, what can go when it is proved.
            file = self._file()
            names = [name for name, _ in self.workload.model.named_modules()]
            picture = Picture.untimed(file, self.workload.example_inputs, modules=names)
            self._show(picture)
            times = self._times(file, names)
            self._show(picture.timed(times))
            looked = look(self.workload, target=self.target, times=times)
            self.inspection = looked.inspection
        except Exception as error:  # noqa: BLE001 - a user's model raises anything, and the page says what
            self.failed = printable(f"{type(error).__name__}: {error}")
        self.events.publish("looked", {"failed": self.failed})
        if self.failed is None:
            self._begin_planning(looked, file)

    def _begin_planning(self, looked: Looked, file: bytes) -> None:
        if isinstance(self.workload.model, OnnxModule):
            self.unplanned = "An ONNX file has no layers to take out: give the torch model that it came from."
        else:
            try:
                self.planning.begin(looked, file)
            except Exception as error:  # noqa: BLE001 - a user's model raises anything, and the page says what
                self.unplanned = printable(f"{type(error).__name__}: {error}")
        if self.unplanned:
            self.events.publish("planned", {"failed": self.unplanned})

    def _file(self) -> bytes:
        file = _exported(self.workload)
        self._parameters, _ = count_parameters(file)
        return file

    def _show(self, picture: Picture) -> None:
        self.picture = picture
        self.events.publish("pictured", {"timed": picture.ms is not None})

    def _times(self, file: bytes, names: Sequence[str]) -> tuple[NodeTime, ...]:
        """The times of the file's operators; none where it cannot be timed, which the picture shows."""
        try:
            return node_times(file, self.workload.example_inputs, modules=names, target=self.target)
        except (CompressorError, ValueError, RuntimeError):
            return ()

    def page(self) -> dict[str, Any]:
        """What the page's template takes."""
        return {
            "name": printable(self.workload.name),
            "model": printable(type(self.workload.model).__name__),
            "command": printable(self.name),
            "target": self.target,
            "failed": self.failed,
        }

    def part(self, name: str, query: Query, visitor: Visitor) -> str | None:
        """A part of the page as HTML, None where there is none of that name. Raises NoDraftError."""
        return self._parts[name](query, visitor) if name in self._parts else None

    def draft(self, query: Query, visitor: Visitor) -> Draft:
        """The draft that is asked for; the visitor's first where none is. Raises NoDraftError and NotReadyError."""
        shelf, key = self.planning.shelf, query.get("draft", "")
        return shelf.get(key) if key else shelf.first(visitor.person)

    def _overview(self, query: Query, visitor: Visitor) -> str:
        del query, visitor
        if self.picture is None:
            return render("waiting", failed=self.failed)
        return render("overview", **overview(self.picture, self._parameters))

    def _findings(self, query: Query, visitor: Visitor) -> str | None:
        del query, visitor
        if self.inspection is None:
            return render("waiting", failed=self.failed)
        return render("findings", **findings(self.inspection, recommend(self.inspection, self.target)))

    def _picture(self, query: Query, visitor: Visitor) -> str | None:
        del visitor
        detail = _detail(query)
        if self.picture is None or detail is None:
            return None
        picture, inspection = self.picture, self.inspection
        return self._drawings.of(
            detail,
            (picture, inspection is None),
            lambda: render("picture", **drawn(picture, inspection, detail)),
        )

    def _plan(self, query: Query, visitor: Visitor) -> str:
        if not self.planning.is_ready:
            return render("unplanned", reason=self.unplanned, failed=self.failed)
        draft = self.draft(query, visitor)
        return self.planning.page(draft, may_edit=visitor.may_edit and draft.person == visitor.person)

    def _drafts(self, query: Query, visitor: Visitor) -> str | None:
        if not self.planning.is_ready:
            return None
        draft = self.draft(query, visitor)
        return render("drafts", **draft_table(self.planning, draft, visitor.person, may_edit=visitor.may_edit))

    def _runs(self, query: Query, visitor: Visitor) -> str:
        del query
        may_edit, ready = visitor.may_edit, self.planning.is_ready

        def made() -> str:
            shown = self.runs.page()
            busy = any(run["state"] in {"going on", "pausing"} for run in shown["runs"])
            return render("runs", may_edit=may_edit, busy=busy, ready=ready, **shown)

        return self._run_pages.of(may_edit, (ready, self.runs.stand()), made)

    def _stages(self, query: Query, visitor: Visitor) -> str | None:
        del visitor
        found = self.runs.stages(query.get("run", ""))
        return None if found is None else render("stages", **found)

    def _beside(self, query: Query, visitor: Visitor) -> str | None:
        del visitor
        found = self.runs.beside(query.get("one", ""), query.get("other", ""))
        return None if found is None else render("beside", **found)

    def run(self, key: str, version: int) -> str:
        """Begins a run of the draft of that key, which is of this version, and gives its name.

        Raises ValueError where nothing is chosen, NoDraftError, ConflictError, and RunRefusedError.
        """
        recipe = self.planning.recipe(self.planning.shelf.get(key), version)
        if recipe is None:
            raise ValueError("nothing is chosen yet; narrow a layer, drop a block, or take 8 bits")
        return self.runs.begin(recipe)

    def _box(self, query: Query, visitor: Visitor) -> str | None:
        del visitor
        detail, number = _detail(query), query.get("number", "")
        if self.picture is None or detail is None:
            return None
        if not (number.isascii() and number.isdecimal() and len(number) < 9):
            return None
        found = told(self.picture, self.inspection, detail, int(number))
        return None if found is None else render("box", **found)


def _exported(workload: Workload) -> bytes:
    """The file of the model, exported, or as it was when a studio looked at the very same model and calls before."""
    identifier = Identifier()
    parts = {name: getattr(workload, name) for name in _EXPORTED}
    digests = [identifier.digest(private_copy(part) if name == "model" else part) for name, part in parts.items()]
    known = not isinstance(workload.model, OnnxModule) and not any(digest.unknown for digest in digests)
    store = users_store() if known else None
    if store is None:
        return export_onnx(workload.model, workload).onnx_bytes
    facts = [*(digest.text for digest in digests), sorted(versions().items()), package_code()]
    key = sha256(repr(facts).encode())
    kept = store.get(key)
    if kept is not None:
        return kept.contents[_FILE]
    begun = time.perf_counter()
    file = export_onnx(workload.model, workload).onnx_bytes
    store.put(key, stage="export", seconds=time.perf_counter() - begun, facts={}, contents={_FILE: file})
    return file


def _detail(query: Query) -> Detail | None:
    asked = query.get("detail", Detail.BLOCKS)
    return Detail(asked) if asked in set(Detail) else None
