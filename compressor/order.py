"""Which orders of stages work, and which stages are judged together."""

from collections.abc import Sequence
from itertools import pairwise

from compressor.stage import Effect, Stage, stage_name


def segments(stages: Sequence[Stage]) -> list[list[int]]:
    """The indices of the stages that are judged together: structure with the training that recovers it.

    Consecutive structure stages share the training that follows them; other stages stand alone.
    """
    groups: list[list[int]] = []
    recovering = False
    for index, stage in enumerate(stages):
        joins = bool(groups) and (
            (stage.effect is Effect.VALUES and recovering)
            or (stage.effect is Effect.STRUCTURE and stages[index - 1].effect is Effect.STRUCTURE)
        )
        if joins:
            groups[-1].append(index)
        else:
            groups.append([index])
            recovering = stage.effect is Effect.STRUCTURE
    return groups


def refuse_impossible_orders(stages: Sequence[Stage]) -> None:
    """Raises ValueError where something trains, reshapes or encodes again what is encoded."""
    for before, after in pairwise(stages):
        if before.effect is Effect.ENCODING:
            what = {
                Effect.STRUCTURE: "reshape it",
                Effect.VALUES: "train it",
                Effect.ENCODING: "encode it again",
            }[after.effect]
            raise ValueError(
                f"{stage_name(after)} cannot follow {stage_name(before)}: the model is encoded by then and nothing can "
                f"{what}; move {stage_name(before)} to the end"
            )


def doubtful_orders(stages: Sequence[Stage]) -> tuple[str, ...]:
    """A sentence for every order that works but is known to disappoint."""
    return tuple(
        f"{stage_name(after)} follows {stage_name(before)} with no training between: the accuracy that is lost by "
        "removing structure is seldom there to be quantized; put distill or fine_tune between them"
        for before, after in pairwise(stages)
        if before.effect is Effect.STRUCTURE and after.effect is Effect.ENCODING
    )
