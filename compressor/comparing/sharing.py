"""What recipes had in common: which stages were made once for several, and what that saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compressor.report.numbers import duration
from compressor.running.session import Worked

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A stage that several recipes share, by the recipes' names, and the seconds that making it once took."""

    stage: str
    recipes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a comparison cost, in seconds of work on stages, without timing and scoring.

    `made` is what its different stages took to make, `alone` what the recipes would have taken one by one, and `spent`
    what of that this session spent; the rest was on disk. None of them tells of other sessions' timings.
    """

    made: float
    alone: float
    spent: float
    shared: tuple[Shared, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Minutes, and what was shared."""
        return {
            "minutes": round(self.made / 60, 3),
            "minutes_one_by_one": round(self.alone / 60, 3),
            "shared": [
                {"stage": each.stage, "recipes": list(each.recipes), "seconds": round(each.seconds, 3)}
                for each in self.shared
            ],
        }

    def sentences(self) -> list[str]:
        """The cost, and the dearest of what was shared, for people; nothing where nothing was shared."""
        if not self.shared:
            return []
        dear = sorted(self.shared, key=lambda each: -each.seconds * (len(each.recipes) - 1))[:_SHOWN]
        parts = [f"{each.stage} ({duration(each.seconds)}, {len(each.recipes)} recipes)" for each in dear]
        more = f" and {len(self.shared) - _SHOWN} more" if len(self.shared) > _SHOWN else ""
        took = f"The stages took {duration(self.made)}; one by one it would have been {duration(self.alone)}."
        return [f"{took} Made once for several recipes: {', '.join(parts)}{more}."]


def cost_of(worked: Sequence[Worked]) -> Cost:
    """The cost of the runs of a session: equal keys are one piece of work. The reference is not told as shared."""
    runs: dict[str, dict[str, Worked]] = {}
    for one in worked:
        # A stage that was begun twice, as after a failure, counts once for its run.
        runs.setdefault(one.key, {}).setdefault(one.run, one)
    firsts = {key: next(iter(by_run.values())) for key, by_run in runs.items()}
    return Cost(
        made=sum(one.seconds for one in firsts.values()),
        alone=sum(one.seconds for by_run in runs.values() for one in by_run.values()),
        spent=sum(one.seconds for one in worked if one.how == "made"),
        shared=tuple(
            Shared(stage=firsts[key].stage, recipes=tuple(by_run), seconds=firsts[key].seconds)
            for key, by_run in runs.items()
            if len(by_run) > 1 and firsts[key].stage != "reference"
        ),
    )
