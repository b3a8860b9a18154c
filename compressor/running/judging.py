"""Whether what stages made may stay: each for the time or size it saves, a segment for the accuracy it leaves."""

from collections.abc import Sequence

import torch

from compressor.budget import Budget, Verdict, judge_drop, judge_gain, judge_others, judge_values
from compressor.given.judging import unscored
from compressor.kept_state import private_copy
from compressor.measuring.scores import FileScores
from compressor.notes.running import GivenFile
from compressor.notes.training import Trainings
from compressor.running.folder import State
from compressor.running.order import needs_recovery
from compressor.runtime import OnnxModule
from compressor.stage import Effect, Stage, stage_name
from compressor.structure.calling.draws import kept_randomness
from compressor.training.held_values import torn_values
from compressor.training.held_zeros import held_names
from compressor.workload import Workload, call_model, output_tensor

# So many more weights that are not zero are no sign of lost zeros: biases come and go as layers are folded.
_FILLED = 0.02


def decides_by_gain(budget: Budget | None, stage: Stage) -> bool:
    """Whether `stage` is rolled back where it makes the file slower, or neither faster nor smaller."""
    return stage.effect is not Effect.VALUES and budget is not None and budget.not_slower


def gain(stage: Stage, base: State, state: State, given: GivenFile | None = None) -> Verdict | None:
    """Whether `state`, which `stage` made of `base`, is faster or smaller; None for a stage that need not be.

    `given` is the file that the user gave, where it is one.
    """
    if stage.effect is Effect.VALUES:
        return None
    measured, before = state.outcome.measurement, base.outcome.measurement
    given_bytes = given.size_bytes if given is not None and given.is_exceeded(measured.size_bytes) else None
    return judge_gain(state.outcome.versus_base, measured.size_bytes, before.size_bytes, given_bytes=given_bytes)


def sizes_of_given(given: GivenFile | None, *, reference_bytes: int, size_bytes: int, artifact: str) -> str:
    """What is said of the file that ships, `artifact` of `size_bytes`, beside the `given` one; "" for nothing."""
    if given is None or not given.is_exceeded(max(reference_bytes, size_bytes)):
        return ""
    if given.is_exceeded(size_bytes):
        return (
            f"{artifact} has {size_bytes:,} bytes, more than the given file ({given.file}, {given.size_bytes:,} bytes; "
            f"{reference_bytes:,} as it was read, of which ratios of sizes are). Where size counts, keep the given one"
        )
    return (
        f"ratios of sizes are of the given file ({given.file}) as it was read, {reference_bytes:,} bytes; as it was "
        f"given it has {given.size_bytes:,}, and {artifact} is {given.size_bytes / size_bytes:.2f}x smaller"
    )


def after_gain(verdict: Verdict | None, budget: Budget | None) -> Verdict:
    """Whether the stage whose gain is `verdict` stays under `budget`, and why as a report says it."""
    if verdict is None:
        return Verdict(keep=True, reason="kept: no budget" if budget is None else "")
    if verdict.keep:
        return verdict
    if budget is not None and budget.not_slower:
        told = "; ".join(filter(None, [verdict.reason, verdict.way_out]))
        return Verdict(keep=False, reason=f"rolled back: {told}")
    return _unpaid(verdict, "the budget says not_slower: false" if budget is not None else "no budget forbids it")


def failed_trainings(state: State) -> str:
    """What the stage that made `state` tells of its trainings that failed, in words; "" where none did."""
    note = Trainings.from_json(state.outcome.details)
    failed = [training for training in note.trainings if training.failed] if note else []
    return "; ".join(f"{training.training} failed: {training.says}" for training in failed)


def filled_zeros(base: State, state: State) -> str:
    """That weights are no longer zero in `state` which a stage before `base` made zero for good; "" where none is."""
    before, now = (one.outcome.measurement.nonzero_parameters for one in (base, state))
    if state.origin is not base.origin or not held_names(base.plan) or now <= before * (1 + _FILLED):
        return ""
    return (
        f"its file has {now} weights that are not zero, and the one before it {before}: zeros that were made for good "
        "are filled; make them after it instead"
    )


def parted_values(base: State, state: State) -> str:
    """That weights of `state` differ which a stage before `base` made equal for good; "" where none do."""
    torn = torn_values(base.model, state.model, base.plan) if state.origin is base.origin else {}
    if not torn:
        return ""
    name, (had, has) = next(iter(torn.items()))
    others = f" and {len(torn) - 1} more" if len(torn) > 1 else ""
    return (
        f"weights that were made equal for good are so no more, in {name} ({had} values before, {has} now){others}; "
        "share values after it instead"
    )


def harm_of_training(
    stage: Stage, base: State, state: State, *, budget: Budget | None, scores: FileScores
) -> Verdict | None:
    """What is said against `state`, which `stage` made of `base` by changing weights alone; None for nothing.

    A training that failed has left the model as it was, and is rolled back. Weights that are significantly worse than
    before, which a budget judges by segments, are a remark without one.
    """
    if stage.effect is not Effect.VALUES:
        return None
    failed = failed_trainings(state)
    if failed and state.onnx_bytes == base.onnx_bytes:
        return Verdict(keep=False, reason=f"rolled back: {failed}")
    if budget is not None or needs_recovery(stage) or not scores.based:
        return None
    change = scores.drop(state.onnx_bytes, base.onnx_bytes, "validation")
    verdict = judge_values(change, scores.workload.metric)
    return None if verdict.keep else _unpaid(verdict, "no budget forbids it")


def judge_segment(
    stages: Sequence[Stage], entry: State, state: State, *, reference: State, budget: Budget, scores: FileScores
) -> Verdict:
    """Whether `stages`, which made `state` of `entry` and are judged together, leave enough accuracy on validation."""
    metric = scores.workload.metric
    verdicts: list[Verdict] = []
    if budget.max_drop is not None:
        drop = scores.drop(state.onnx_bytes, reference.onnx_bytes, "validation")
        verdicts.append(judge_drop(drop, budget.max_drop, metric))
    if budget.min_others_db is not None and any(stage.effect is Effect.ENCODING for stage in stages):
        verdicts.append(
            judge_others(scores.others(state.onnx_bytes, entry.onnx_bytes, "validation"), budget.min_others_db)
        )
    # What takes weights out costs accuracy, and is allowed as much as the budget says.
    if all(stage.effect is Effect.VALUES and not needs_recovery(stage) for stage in stages):
        change = scores.drop(state.onnx_bytes, entry.onnx_bytes, "validation")
        verdicts.append(judge_values(change, metric))
    refused = [verdict for verdict in verdicts if not verdict.keep]
    reason = "; ".join(verdict.reason for verdict in (refused or verdicts) if verdict.reason)
    if len(stages) > 1:
        reason += f" (judged together: {' + '.join(map(stage_name, stages))})"
    return Verdict(keep=not refused, reason=reason)


def doubts_about_validation(reference: State, scores: FileScores) -> list[str]:
    """A warning where `reference` scores better on validation than on test by more than chance explains."""
    validation, test = scores.score(reference.onnx_bytes, "validation"), reference.outcome.measurement.score
    better = scores.workload.metric.higher_is_better
    known = validation.low > test.high if better else validation.high < test.low
    doubt = (
        f"the reference scores {validation.value:.4f} on validation and {test.value:.4f} on test: it was "
        "probably trained on the validation data, which makes every drop there look larger than it is; give "
        "Workload.from_datasets(validation=...) data that the model has not seen"
    )
    return [doubt] if known else []


def unscored_outputs(workload: Workload) -> list[str]:
    """A sentence that names the outputs which the metric does not read; none where it reads the only one."""
    if isinstance(workload.model, OnnxModule) and not workload.metric.scored:
        return []
    with kept_randomness(), torch.no_grad():
        raw = call_model(private_copy(workload.model).eval(), workload.example_inputs)
    names = unscored(raw, output_tensor(raw))
    if not names:
        return []
    told = f"{', '.join(map(repr, names))} {'are' if len(names) > 1 else 'is'} not scored"
    way_out = "judge= of the workload says which; how far the others move is told under the stages"
    return [f"{told}: {workload.metric.name} is of another output alone. {way_out}"]


def _unpaid(verdict: Verdict, why: str) -> Verdict:
    return Verdict(keep=True, reason=f"does not pay: {verdict.reason}; kept because {why}")
