"""Which orders of stages work, and which stages are judged together."""

from collections.abc import Sequence
from itertools import combinations, pairwise

from compressor.errors import WorkloadError
from compressor.stage import Effect, Stage, replacement, stage_name


def segments(stages: Sequence[Stage]) -> list[list[int]]:
    """The indices of the stages that are judged together: structure with the training that recovers it.

    Consecutive structure stages share the training that follows them, and the sparse training that prepares them; so
    do stages that make weights zero. Other stages stand alone; a student, which is trained already, begins anew.
    """
    groups: list[list[int]] = []
    recovering = False
    for index, stage in enumerate(stages):
        takes = takes_away(stage)
        before = stages[index - 1] if groups else None
        joins = before is not None and (
            ((takes_away(before) and replacement(before) is None) or prepares_structure(before))
            and replacement(stage) is None
            if takes
            else stage.effect is Effect.VALUES and recovering
        )
        if joins:
            groups[-1].append(index)
        else:
            groups.append([index])
            recovering = takes or prepares_structure(stage)
    return groups


def prepares_structure(stage: Stage) -> bool:
    """Whether `stage` only makes sense before structure goes, so that it is not judged by itself.

    A stage says so with a class attribute `prepares_structure = True`.
    """
    return bool(getattr(stage, "prepares_structure", False))


def needs_recovery(stage: Stage) -> bool:
    """Whether `stage` takes from the weights what the training after it wins back, so that both are judged together.

    A stage says so with a class attribute `needs_recovery = True`.
    """
    return bool(getattr(stage, "needs_recovery", False))


def takes_away(stage: Stage) -> bool:
    """Whether `stage` takes channels, blocks or weights, which the training after it wins back."""
    return stage.effect is Effect.STRUCTURE or needs_recovery(stage)


def recovers(stage: Stage) -> bool:
    """Whether `stage` is the training that wins back what others took, and takes nothing nor prepares it itself."""
    return stage.effect is Effect.VALUES and not takes_away(stage) and not prepares_structure(stage)


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


def refuse_for_files(stages: Sequence[Stage]) -> None:
    """Raises WorkloadError where something trains or reshapes a model that is an ONNX file."""
    for stage in stages:
        if replacement(stage) is not None:
            return  # a file can teach, and what comes after works on the student
        if stage.effect is not Effect.ENCODING:
            raise WorkloadError(
                f"{stage_name(stage)} needs the layers of a torch model, and this one is an ONNX file; quantize and "
                "quantization_aware_training work on files; for everything else give the model that it came from"
            )


def doubtful_orders(stages: Sequence[Stage]) -> tuple[str, ...]:
    """A sentence for every order that works but is known to disappoint."""
    unrecovered = (
        f"{stage_name(after)} follows {stage_name(before)} with no training between: the accuracy that went with the "
        f"{'structure' if before.effect is Effect.STRUCTURE else 'weights'} is not won back, and quantization takes "
        "some more; put distill or fine_tune between them"
        for before, after in pairwise(stages)
        if takes_away(before) and replacement(before) is None and after.effect is Effect.ENCODING
    )
    return (*unrecovered, *(text for before, after in combinations(stages, 2) if (text := _lost(before, after))))


def _lost(before: Stage, after: Stage) -> str:
    """What of the work of `before` a stage `after` it undoes, "" where nothing.

    Stages say so with attributes: `pattern_of_neighbours` where zeros are counted among neighbours,
    `reorders_channels` where inner channels change places, `shares_values` where weights are made equal, and
    `moves_single_weights`, the settings by which equal weights would be moved apart.
    """
    moving = getattr(after, "moves_single_weights", ())
    if replacement(after) is not None:
        return (
            f"{stage_name(after)} goes on with a student in place of the model that {stage_name(before)} works on, and "
            f"nothing of that work is left; put {stage_name(before)} behind it, or leave it out"
        )
    if getattr(before, "shares_values", False) and moving:
        return (
            f"{stage_name(after)} moves single weights, by {' and '.join(moving)}, so that those which "
            f"{stage_name(before)} made equal come apart and the file packs no smaller for them; leave one of both out"
        )
    if getattr(before, "pattern_of_neighbours", False) and after.effect is Effect.STRUCTURE:
        return (
            f"{stage_name(after)} takes channels out after {stage_name(before)}, and what is left of every group of "
            f"neighbours is no longer its pattern, though all zeros stay; put {stage_name(before)} behind it"
        )
    if getattr(before, "reorders_channels", False) and getattr(after, "features", ()):
        return (
            f"{stage_name(after)} compares inner features with the teacher's, and {stage_name(before)} puts their "
            "channels into another order; leave features out, or set permute: false"
        )
    return ""
