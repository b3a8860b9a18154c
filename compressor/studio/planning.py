"""Planning on the page: what is free, the draft, what it costs at once, and what it loses, foretold and measured."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.inspection.inspection import Looked
from compressor.pruning.choice.costs import block_key
from compressor.recipe.recipe import Recipe
from compressor.report.numbers import printable, shorten
from compressor.storage import sha256
from compressor.studio.choice import BITS, CRITERIA, FLOAT_BITS, USUAL_BITS, Choice, choice_of
from compressor.studio.drafting.draft import ConflictError, Draft
from compressor.studio.drafting.shelf import Shelf
from compressor.studio.drawing import percent
from compressor.studio.events import Broadcast
from compressor.studio.foresight.background import Background
from compressor.studio.foresight.recovery import Recovery, Trained
from compressor.studio.pages import Kept, render
from compressor.studio.tiles import cost_tiles, drop_in_words, judged_in_words, trained_in_words
from compressor.studio.whatif import Judged, Numbers, WhatIf
from compressor.target import Target
from compressor.workload import Workload

# A finished run: its name, its recipe, and the drop on validation data behind its training.
Finished = tuple[str, Recipe, float]
# Steps of measuring between two that pages are told of.
_TOLD_EVERY = 4
# Drafts of which there is kept what was shown last.
_MOST_KEPT = 256


class Planning:
    """The drafts of what `workload`, called `name`, is to become, kept in `out`; pages are told by `events`.

    `people` are those who have drafts of their own: one without a name, where nobody was named. `finished` gives the
    runs that are done, by which it is told what training wins back.
    """

    def __init__(
        self,
        workload: Workload,
        name: str,
        target: Target,
        out: Path,
        events: Broadcast,
        *,
        people: Sequence[str] = ("",),
        finished: Callable[[], Sequence[Finished]] = tuple,
    ) -> None:
        self._workload, self._target, self._events = workload, target, events
        self._out, self._name, self._people = out, name, tuple(people)
        self._finished = finished
        self._shares: dict[str, float | None] = {}
        # By the draft's key: its version, and what it loses.
        self._judged: dict[str, tuple[int, Judged | None]] = {}
        self._latest = ""
        self._ready: tuple[WhatIf, Shelf] | None = None
        self._background: Background | None = None
        self._trained: dict[str, Trained | None] = {}
        self._asked_ahead = self._formed = False
        self._edited: Kept[dict[str, Any]] = Kept(_MOST_KEPT)
        self._recipes: Kept[str] = Kept(_MOST_KEPT)
        self._pages: Kept[str] = Kept(_MOST_KEPT)
        self._numbers: Kept[Numbers] = Kept(_MOST_KEPT)
        self.unmeasured = ""

    @property
    def is_ready(self) -> bool:
        """Whether it is known what is free."""
        return self._ready is not None

    @property
    def whatif(self) -> WhatIf:
        """What the model would cost. Raises NotReadyError until it is known."""
        return self._both()[0]

    @property
    def shelf(self) -> Shelf:
        """The drafts. Raises NotReadyError until it is known what is free."""
        return self._both()[1]

    def begin(self, looked: Looked, file: bytes) -> None:
        """Takes what is free and what the exported `file` costs; what parts are worth is measured beside from then on.

        Takes about a second.
        """
        kept = f"losses-{sha256(self._name.encode())[:12]}"
        whatif = WhatIf(self._workload, self._target, looked, file, out=self._out, kept=kept)
        self._shares = {group.name: group.time_fraction for group in looked.inspection.free_groups}
        self._shares |= {block.name: block.time_fraction for block in looked.inspection.free_blocks}
        shelf = Shelf(self._out, self._name, self._people, lambda data: Choice.from_json(data, whatif.free))
        self._ready = whatif, shelf
        self._events.publish("planned", {"forms": len(whatif.free.forms)})
        jobs = (
            self._judge,
            self._time,
            self._read,
            self._form,
            self._measure,
            self._ahead,
            self._look_back,
            whatif.pack,
        )
        self._background = Background(jobs, self._failed)
        self._background.start()

    def settle(self, seconds: float = 600.0) -> bool:
        """Waits until all that is measured beside the page is measured, for so long at most; whether it is."""
        return self._background is not None and self._background.settle(seconds)

    def end(self) -> None:
        """Ends what is measured beside the page; what was measured is kept."""
        if self._background is not None:
            self._background.end()

    def read(self, data: Any) -> Choice:
        """The choice that a page sent. Raises ValueError."""
        return Choice.from_json(data, self.whatif.free)

    def tried(self, choice: Choice) -> dict[str, Any]:
        """What `choice` would cost, for a page that has not decided: the tiles."""
        self._asked()
        return {"tiles": render("tiles", **self._tiles(choice, None))}

    def edited(self, draft: Draft) -> dict[str, Any]:
        """The draft for a page, after whatever was done to it."""
        self._asked()
        return self._edited.of(draft.key, self._known_of(draft), lambda: self._as_edited(draft))

    def numbers(self, draft: Draft) -> Numbers:
        """What the draft costs as it stands."""
        same = draft.version, self.whatif.revision
        return self._numbers.of(draft.key, same, lambda: self.whatif.numbers(draft.choice))

    def _known_of(self, draft: Draft) -> Hashable:
        """What is the same as long as a page shows the same of the draft."""
        revisions = self.whatif.revision, self.whatif.sensitivities(draft.choice.criterion).revision
        judged, _ = self._judged.get(draft.key, (-1, None))
        return draft.version, judged, *revisions, len(self._trained), self.unmeasured

    def _recipe_of(self, draft: Draft) -> str:
        def text() -> str:
            recipe = draft.choice.recipe(self.whatif.free, self._target)
            return "" if recipe is None else recipe.dump()

        return self._recipes.of(draft.key, (draft.version, self.whatif.revision), text)

    def _as_edited(self, draft: Draft) -> dict[str, Any]:
        choice = draft.choice
        return {
            "draft": draft.key,
            "name": draft.name,
            "version": draft.version,
            "choice": choice.to_json(),
            "undo": draft.can_undo,
            "redo": draft.can_redo,
            "tiles": render("tiles", **self._tiles(choice, draft)),
            "recipe": self._recipe_of(draft),
        }

    def told_of(self, draft: Draft) -> None:
        """Tells the pages that something became of the draft."""
        self._events.publish("drafted", {"draft": draft.key, "version": draft.version})

    def changed(self, draft: Draft) -> dict[str, Any]:
        """`edited`, with the other pages told, and the draft judged beside."""
        self._latest = draft.key
        self.told_of(draft)
        self.wake()
        return self.edited(draft)

    def _asked(self) -> None:
        if self._background is not None:
            self._background.asked()

    def wake(self) -> None:
        """Says that there may be something to measure: the draft was edited, or a run is done."""
        if self._background is not None:
            self._background.wake()

    def recipe(self, draft: Draft, version: int) -> Recipe | None:
        """The recipe of the draft, None where nothing is chosen. Raises ConflictError for another version of it."""
        if version != draft.version:
            raise ConflictError(f"version {draft.version} is the latest")
        return draft.choice.recipe(self.whatif.free, self._target)

    def judged(self, draft: Draft) -> Judged | None:
        """What the draft loses as it stands; None where that is not known."""
        version, found = self._judged.get(draft.key, (-1, None))
        return found if version == draft.version else None

    def within(self, share: int, choice: Choice) -> Choice:
        """`choice` with what takes at most so many percent of the time, for the least loss.

        Raises BudgetError where nothing does, and NotReadyError as long as it is not measured what parts are worth.
        """
        known = self.whatif.sensitivities(choice.criterion)
        if not known.items or not self.whatif.is_known(choice.form):
            so_far = f", {known.done} of {known.total}" if known.total else ""
            raise NotReadyError(f"what each part is worth is still being measured{so_far}; wait for it")
        return self.whatif.within(share / 100, choice)

    def recovery(self) -> Recovery | None:
        """What training won back in the finished runs of this model; None without any that tells."""
        return Recovery.of([run for run in self._trained.values() if run is not None])

    def page(self, draft: Draft, *, may_edit: bool) -> str:
        """The controls of the draft as HTML."""
        self._asked()
        return self._pages.of(
            (draft.key, may_edit), self._known_of(draft), lambda: self._page(draft, may_edit=may_edit)
        )

    def _page(self, draft: Draft, *, may_edit: bool) -> str:
        whatif = self.whatif
        choice = draft.choice
        return render(
            "plan",
            may_edit=may_edit,
            draft=draft.key,
            version=draft.version,
            can_choose=bool(whatif.sensitivities(choice.criterion).items),
            criteria=list(CRITERIA),
            criterion=choice.criterion,
            layers=[
                {"name": printable(name), "key": name, "bits": choice.bits.get(name, USUAL_BITS)}
                for name in whatif.free.layers
            ],
            bits=[(bits, "float" if bits == FLOAT_BITS else f"{bits} bits") for bits in BITS],
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
                    **self._share(name, choice),
                }
                for name, stops in whatif.free.widths.items()
            ],
            blocks=[
                {"name": printable(name), "key": name, "stays": name not in choice.drop, **self._share(name, choice)}
                for name in whatif.free.blocks
            ],
            undo=draft.can_undo,
            redo=draft.can_redo,
            recipe=self._recipe_of(draft),
            **self._tiles(choice, draft),
        )

    def _share(self, name: str, choice: Choice) -> dict[str, Any]:
        share = self._shares.get(name)
        return {
            "time": "" if share is None else percent(share),
            "bar": round(100 * (share or 0.0), 1),
            "loss": self._worth(name, choice),
        }

    def _worth(self, name: str, choice: Choice) -> str:
        """What the model loses where all of a part goes that can: "+0.31", the loss that is added."""
        whatif = self.whatif
        known = whatif.sensitivities(choice.criterion)
        stops = whatif.free.widths.get(name)
        worth = known.worth(block_key(name), 0) if stops is None else known.worth(name, stops[-1])
        return "" if worth is None else f"{worth:+.2g}"

    def _tiles(self, choice: Choice, draft: Draft | None) -> dict[str, Any]:
        """What the template of the tiles takes; a choice that is no draft is foretold, not judged."""
        now = self.whatif.numbers(choice) if draft is None else self.numbers(draft)
        before = self.whatif.reference
        if now.rough:
            self.wake()
        judged = None if draft is None else self.judged(draft)
        waiting = draft is None or self._judged.get(draft.key, (-1, None))[0] != draft.version
        known = self.whatif.sensitivities(choice.criterion)
        unchanged = not choice.widths and not choice.drop
        foretold = None if unchanged else self.whatif.forecast(choice)
        return {
            "tiles": cost_tiles(now, before),
            "scored": self._workload.metric.scored,
            "metric": printable(self._workload.metric.name),
            "judged": None if judged is None else judged_in_words(judged),
            "foretold": None if foretold is None else drop_in_words(foretold),
            "trained": trained_in_words(choice, self.recovery(), foretold if judged is None else judged.drop),
            "waiting": waiting,
            "measuring": f"{known.done} of {known.total}" if known.done < known.total else "",
            "unmeasured": printable(self.unmeasured),
            "unchanged": unchanged,
        }

    # What is measured beside, step by step. ------------------------------------------------------------------------

    def _drafts(self) -> list[Draft]:
        """All of them, the one that was changed last before the others."""
        return sorted(self.shelf.all(), key=lambda draft: draft.key != self._latest)

    def _judge(self) -> bool:
        """Judges one draft as it stands."""
        for draft in self._drafts():
            version, choice = draft.version, draft.choice
            if self._judged.get(draft.key, (-1, None))[0] == version:
                continue
            try:
                found = self.whatif.judged(choice)
            except (CompressorError, ValueError, RuntimeError) as error:
                found, self.unmeasured = None, f"{type(error).__name__}: {error}"
            self._judged[draft.key] = version, found
            self._events.publish("judged", {"draft": draft.key, "version": version})
            return True
        return False

    def _time(self) -> bool:
        if not self.whatif.time_wanted():
            return False
        if self.whatif.is_timed:
            self._events.publish("timed", {})
        return True

    def _read(self) -> bool:
        """What was measured by an earlier studio."""
        criteria = dict.fromkeys(draft.choice.criterion for draft in self._drafts())
        known = next((each for each in map(self.whatif.sensitivities, criteria) if not each.begun), None)
        return known is not None and known.step()

    def _form(self) -> bool:
        if self._formed:
            return False
        self._formed = True
        before = self.whatif.free.forms
        self.whatif.form_integers()
        # Controls are drawn anew only where there are others: somebody may be at them.
        changed = self.whatif.free.forms != before
        self._events.publish("planned" if changed else "timed", {"forms": len(self.whatif.free.forms)})
        return True

    def _measure(self) -> bool:
        for criterion in dict.fromkeys(draft.choice.criterion for draft in self._drafts()):
            known = self.whatif.sensitivities(criterion)
            had = bool(known.items)
            if not known.step():
                continue
            if known.items and not had:
                self._events.publish("measured", {"criterion": criterion})
            if known.done % _TOLD_EVERY == 0 or known.done == known.total:
                self._events.publish("measuring", {"done": known.done, "total": known.total})
            return True
        return False

    def _ahead(self) -> bool:
        if self._asked_ahead:
            return False
        self._asked_ahead = True
        self.whatif.warm()
        return True

    def _look_back(self) -> bool:
        """What one more of the finished runs had lost before it trained."""
        for name, recipe, after in self._finished():
            if name in self._trained:
                continue
            choice = choice_of(recipe, self.whatif.free)
            judged = None if choice is None or not choice.epochs else self.whatif.judged(choice)
            self._trained[name] = (
                None
                if choice is None or judged is None
                else Trained(before=judged.drop.value, after=after, epochs=choice.epochs)
            )
            self._events.publish("timed", {})
            return True
        return False

    def _failed(self, error: Exception) -> None:
        self.unmeasured = f"{type(error).__name__}: {error}"
        self._events.publish("timed", {})

    def _both(self) -> tuple[WhatIf, Shelf]:
        if self._ready is None:
            raise NotReadyError("what is free is not known yet; the page will show it")
        return self._ready


class NotReadyError(Exception):
    """It is not known yet what may be chosen."""


def _place(stops: tuple[int, ...], width: int) -> int:
    """Where a slider stands, from the narrowest stop up: at the nearest that is at least `width`."""
    rising = stops[::-1]
    return next((place for place, stop in enumerate(rising) if stop >= width), len(rising) - 1)
