"""Control arms: what training alone brings, and what a random choice of the same size would have given."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.running.order import needs_recovery, prepares_structure, recovers, takes_away
from compressor.stage import Effect, Stage


@dataclass(frozen=True, kw_only=True)
class Control:
    """An arm that is run to be compared with: `kind` says what it leaves out or does by chance."""

    kind: str
    stages: tuple[Stage, ...]


TRAINING_ONLY, RANDOM = "training only", "random structure"


def controls_of(stages: Sequence[Stage]) -> list[Control]:
    """The controls of a recipe of `stages`; none where nothing is taken away that could be chosen otherwise.

    Training only: the recipe's own training, with its epochs and data, on the model as it was. Random structure: the
    recipe with what goes drawn at random, as much of it, and everything else as it is; only where every stage that
    takes structure can draw it (`by_chance`).
    """
    taking = [stage for stage in stages if takes_away(stage)]
    found = []
    training = tuple(stage for stage in stages if recovers(stage))
    if taking and training:
        found.append(Control(kind=TRAINING_ONLY, stages=training))
    drawn = tuple(_by_chance(stage) for stage in stages)
    structural = any(stage.effect is Effect.STRUCTURE for stage in stages)
    if structural and all(stage is not None for stage in drawn) and drawn != tuple(stages):
        found.append(Control(kind=RANDOM, stages=tuple(stage for stage in drawn if stage is not None)))
    return found


def _by_chance(stage: Stage) -> Stage | None:
    """`stage` with its choice drawn at random; itself where it chooses no structure, None where it cannot."""
    if stage.effect is not Effect.STRUCTURE and not prepares_structure(stage) and not needs_recovery(stage):
        return stage
    draw = getattr(stage, "by_chance", None)
    made: Stage | None = draw() if callable(draw) else None
    return made
