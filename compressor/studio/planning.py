"""Planning on the page: what is free, the draft, what it costs at once, and what it loses once that is measured."""

import threading
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.inspection.inspection import Inspection
from compressor.recipe.recipe import Recipe
from compressor.report.numbers import printable, shorten, si, size
from compressor.storage import sha256
from compressor.studio.choice import Choice
from compressor.studio.drafts import ConflictError, Draft
from compressor.studio.drawing import percent
from compressor.studio.events import Broadcast
from compressor.studio.pages import render
from compressor.studio.whatif import Judged, Numbers, WhatIf
from compressor.target import Target
from compressor.workload import Workload


class Planning:
    """The draft of what `workload`, called `name`, is to become, kept in `out`; pages are told by `events`."""

    def __init__(self, workload: Workload, name: str, target: Target, out: Path, events: Broadcast) -> None:
        self._workload, self._target, self._events = workload, target, events
        self._path = out / f"draft-{sha256(name.encode())[:12]}.jsonl"
        self._shares: dict[str, float | None] = {}
        self._judging = threading.Lock()
        self._judged: tuple[int, Judged | None] | None = None
        self._ready: tuple[WhatIf, Draft] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it is known what is free."""
        return self._ready is not None

    @property
    def whatif(self) -> WhatIf:
        """What the model would cost. Raises NotReadyError until it is known."""
        return self._both()[0]

    @property
    def draft(self) -> Draft:
        """The draft. Raises NotReadyError until it is known what is free."""
        return self._both()[1]

    def begin(self, inspection: Inspection) -> None:
        """Finds out what is free and what it costs, then what it is worth; takes seconds to minutes."""
        whatif = WhatIf(self._workload, self._target, inspection)
        self._shares = {group.name: group.time_fraction for group in inspection.free_groups}
        self._shares |= {block.name: block.time_fraction for block in inspection.free_blocks}
        draft = Draft(self._path, lambda data: Choice.from_json(data, whatif.free))
        self._ready = whatif, draft
        self._events.publish("planned", {"version": draft.version})
        self._judge()
        whatif.measure()
        self._events.publish("measured", {})
        whatif.warm()

    def read(self, data: Any) -> Choice:
        """The choice that a page sent. Raises ValueError."""
        return Choice.from_json(data, self.whatif.free)

    def tried(self, choice: Choice) -> dict[str, Any]:
        """What `choice` would cost, for a page that has not decided: the tiles."""
        return {"tiles": render("tiles", **self._tiles(choice, None))}

    def edited(self) -> dict[str, Any]:
        """The draft for a page, after whatever was done to it."""
        draft = self.draft
        choice = draft.choice
        recipe = choice.recipe(self.whatif.free, self._target)
        return {
            "version": draft.version,
            "choice": choice.to_json(),
            "undo": draft.can_undo,
            "redo": draft.can_redo,
            "tiles": render("tiles", **self._tiles(choice, draft.version)),
            "recipe": "" if recipe is None else recipe.dump(),
        }

    def changed(self) -> dict[str, Any]:
        """`edited`, with the other pages told, and the draft judged beside."""
        self._events.publish("drafted", {"version": self.draft.version})
        threading.Thread(target=self._judge, name="judging a draft", daemon=True).start()
        return self.edited()

    def recipe(self, version: int) -> Recipe | None:
        """The recipe of the draft, None where nothing is chosen. Raises ConflictError for another version of it."""
        if version != self.draft.version:
            raise ConflictError(f"version {self.draft.version} is the latest")
        return self.draft.choice.recipe(self.whatif.free, self._target)

    def within(self, share: int) -> Choice:
        """The draft with what takes at most so many percent of the time, for the least loss. Raises BudgetError."""
        return self.whatif.within(share / 100, self.draft.choice)

    def page(self, *, may_edit: bool) -> str:
        """The controls as HTML."""
        whatif, draft = self._both()
        choice = draft.choice
        return render(
            "plan",
            may_edit=may_edit,
            version=draft.version,
            can_choose=whatif.can_choose,
            forms=whatif.free.forms,
            form=choice.form,
            epochs=choice.epochs,
            widths=[
                {
                    "name": printable(name),
                    "key": name,
                    "short": shorten(printable(name), 40),
                    "stops": " ".join(str(stop) for stop in reversed(stops)),
                    "last": len(stops) - 1,
                    "at": _place(stops, choice.widths.get(name, stops[0])),
                    "now": choice.widths.get(name, stops[0]),
                    "whole": stops[0],
                    **self._share(name),
                }
                for name, stops in whatif.free.widths.items()
            ],
            blocks=[
                {"name": printable(name), "key": name, "stays": name not in choice.drop, **self._share(name)}
                for name in whatif.free.blocks
            ],
            **{key: value for key, value in self.edited().items() if key in {"undo", "redo", "recipe"}},
            **self._tiles(choice, draft.version),
        )

    def _share(self, name: str) -> dict[str, Any]:
        share = self._shares.get(name)
        return {"time": "" if share is None else percent(share), "bar": round(100 * (share or 0.0), 1)}

    def _tiles(self, choice: Choice, version: int | None) -> dict[str, Any]:
        """What the template of the tiles takes; a choice without a version is not judged."""
        now, before = self.whatif.numbers(choice), self.whatif.reference
        judged = self._judged
        if judged is not None and judged[0] != version:
            judged = None
        return {
            "tiles": _tiles(now, before),
            "scored": self._workload.metric.scored,
            "metric": printable(self._workload.metric.name),
            "judged": None if judged is None or judged[1] is None else _words(judged[1]),
            "waiting": judged is None,
            "unchanged": not choice.widths and not choice.drop,
        }

    def _judge(self) -> None:
        """Judges the draft as it stands; of several that wait, the last one counts."""
        with self._judging:
            version, choice = self.draft.version, self.draft.choice
            if self._judged is not None and self._judged[0] == version:
                return
            try:
                found = self.whatif.judged(choice)
            except (CompressorError, ValueError, RuntimeError):
                found = None
            self._judged = version, found
        self._events.publish("judged", {"version": version})

    def _both(self) -> tuple[WhatIf, Draft]:
        if self._ready is None:
            raise NotReadyError("what is free is not known yet; the page will show it")
        return self._ready


class NotReadyError(Exception):
    """It is not known yet what may be chosen."""


def _place(stops: tuple[int, ...], width: int) -> int:
    """Where a slider stands, from the narrowest stop up: at the nearest that is at least `width`."""
    rising = stops[::-1]
    return next((place for place, stop in enumerate(rising) if stop >= width), len(rising) - 1)


def _tiles(now: Numbers, before: Numbers) -> list[dict[str, Any]]:
    rows = (
        ("milliseconds a call", now.ms, before.ms, lambda value: f"{value:.3g} ms"),
        ("file", now.size_bytes, before.size_bytes, lambda value: size(round(value))),
        ("parameters", now.parameters, before.parameters, si),
        ("multiply-accumulates", now.macs, before.macs, si),
    )
    return [
        {
            "label": label,
            "value": words(value),
            "before": words(whole),
            "left": f"{value / whole:.0%}" if whole else "",
            "bar": round(100 * min(1.0, value / whole), 1) if whole else 0,
            "better": value < 0.995 * whole,
        }
        for label, value, whole, words in rows
    ]


def _words(judged: Judged) -> dict[str, Any]:
    drop = judged.drop
    return {
        "score": f"{judged.score.value:.3f}",
        "drop": f"{-drop.value:+.3f}",
        "interval": "" if drop.low == drop.high else f"{-drop.high:+.3f} to {-drop.low:+.3f}",
        "samples": f"{judged.samples:,}",
        "bad": drop.low > 0,
    }
