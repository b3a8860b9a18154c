"""One run of a pipeline on its way: each stage applied, judged, kept or rolled back, and the result written."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from compressor.budget import Budget, Verdict, unmet_goals
from compressor.errors import CompressorError
from compressor.files.opening import given_as, given_size
from compressor.machine import environment
from compressor.metrics import Metric
from compressor.notes.running import GivenFile, JudgedAfter, Loaders, VersusBase
from compressor.notes.structure import Scores
from compressor.progress.events import RolledBack, RunFinished, RunStarted, StageFinished, StageStarted, emit
from compressor.report.record import Step, describe_workload
from compressor.report.report import Report, write_report
from compressor.report.use import interface_of
from compressor.report.view import summary
from compressor.running.applying import Job, applied, reference_state, told_besides
from compressor.running.failures import ends_the_run, explained, reason
from compressor.running.folder import MODEL_FILE, State, versions
from compressor.running.judging import (
    after_gain,
    decides_by_gain,
    doubts_about_validation,
    failed_trainings,
    filled_zeros,
    gain,
    harm_of_training,
    judge_segment,
    parted_values,
    sizes_of_given,
)
from compressor.running.order import recovers, segments, takes_away
from compressor.running.session import reused_sentence
from compressor.runtime import OnnxModule
from compressor.stage import Stage, stage_name, stage_parameters
from compressor.storage import json_safe, sha256
from compressor.structure.checkpoint import checkpoint_files
from compressor.target import Target
from compressor.trust.manifest import retire_manifest
from compressor.trust.run_facts import write_run_manifest


@dataclass(frozen=True)
class Artifact:
    """The file that ships."""

    path: Path

    @property
    def size_bytes(self) -> int:
        """Its size on disk."""
        return self.path.stat().st_size


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run gives: the report, the ONNX file, and the model (an OnnxModule once quantized)."""

    report: Report
    artifact: Artifact
    model: nn.Module

    def __repr__(self) -> str:
        return f"<Result in {self.artifact.path.parent}: {summary(self.report)}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    def to_frame(self) -> Any:
        """The steps as a pandas DataFrame, as `Report.to_frame` gives them."""
        return self.report.to_frame()


def run_stages(
    job: Job,
    stages: Sequence[Stage],
    *,
    budget: Budget | None,
    recipe: dict[str, Any] | None,
    warnings: Sequence[str],
    accept_changes: bool,
) -> Result:
    """Runs what is not finished on disk and writes the result there.

    Raises CompressorError whatever goes wrong: RunFolderError where another run is, and, without a budget, with the
    stage named, what a stage, the user's code or a library raises; with a budget that stage is rolled back.
    """
    asked = _asked(job, stages, budget)
    job.folder.begin(asked, accept_changes=accept_changes)
    retire_manifest(job.folder.path)
    names = tuple(map(stage_name, stages))
    emit(RunStarted(workload=job.workload.name, stages=names, seed=job.seed, out=str(job.folder.path)))
    given = [asked["target"], asked["versions"], job.identity.reference]
    before = len(job.session.worked)
    with explained("reference", 0):
        job.say(
            f"recipe {(recipe or {}).get('name') or 'of your own'}: {', '.join(map(stage_name, stages)) or 'no stage'}"
        )
        reference = reference_state(job, sha256(json.dumps(given, sort_keys=True).encode()))
        run = Run(job=job, stages=tuple(stages), budget=budget, reference=reference, trainable=reference)
        run.warnings += [*warnings, *job.identity.warnings, *doubts_about_validation(reference, job.scores)]
        loaders = Loaders(loaders=job.identity.loaders).to_json() if job.identity.loaders else {}
        besides = told_besides(job, 0, "reference", reference, base=reference, reference=reference)
        given_file = run.given.to_json() if run.given is not None else {}
        details = {**reference.outcome.details, **given_file, **loaders, **besides}
        outcome = replace(reference.outcome, details=details)
        run.record(
            Step(
                **outcome.shared(),
                stage="reference",
                kept=True,
                reason="what the stages are compared with",
                validation={"score": vars(job.scores.score(reference.onnx_bytes, "validation")), "drop": None},
            )
        )
    state = run.go()
    if told := reused_sentence(job.session.worked[before:]):
        job.say(told)
    return run.finish(state, recipe)


@dataclass(kw_only=True)
class Run:
    """One run on its way, and the steps it has recorded: `steps[0]` is the reference, `steps[i + 1]` that of stage i.

    `trainable` is the last kept state whose model torch can still train.
    """

    job: Job
    stages: tuple[Stage, ...]
    budget: Budget | None
    reference: State
    trainable: State
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @cached_property
    def given(self) -> GivenFile | None:
        """The file that the user gave in place of a model of torch."""
        model = self.job.workload.model
        found = given_size(model.onnx_bytes) if isinstance(model, OnnxModule) else None
        return None if found is None else GivenFile(file=found[0], size_bytes=found[1])

    def go(self) -> State:
        """The state after all stages, those that were rolled back left out."""
        state = self.reference
        for indices in segments(self.stages):
            state = self._segment(indices, state)
            if not isinstance(state.model, OnnxModule):
                self.trainable = state
        return state

    def record(self, step: Step, *, later: str = "") -> None:
        """Adds the step of the next stage, and says so; `later` is the stage after which it is judged, where one is."""
        self.steps.append(step)
        measured = step.measurement
        emit(_finished(len(self.steps) - 1, step))
        if measured is None:
            self.job.say(f"  {step.reason}")
        else:
            self.job.say(
                f"  {_scored(self.job.workload.metric, measured.score.value)}, {measured.latency_ms.value:.3f} ms "
                f"({measured.speedup.value:.2f}x), {measured.size_bytes / 1024:.0f} KiB, {step.seconds:.1f} s"
                + (f"; {step.reason}" if step.reason else "")
                + (f"; kept for now, judged after {later}" if later and self.budget is not None else "")
            )

    def _segment(self, indices: list[int], entry: State) -> State:
        """The state after the stages `indices`: what they made of `entry`, or `entry` where they were rolled back."""
        state = entry
        removed: list[str] = []  # what this segment was to recover from, and was rolled back
        for index in indices:
            stage = self.stages[index]
            if recovers(stage) and removed and state is entry:
                self._skip(stage, f"skipped: it would recover {', '.join(removed)}, which was rolled back")
                continue
            self.job.say(f"stage {index + 1}/{len(self.stages)}: {stage_name(stage)}")
            emit(StageStarted(number=index + 1, stage=stage_name(stage)))
            decides = decides_by_gain(self.budget, stage)
            try:
                new = applied(self.job, index, stage, state, reference=self.reference, decides=decides)
                with explained(stage_name(stage), index + 1):
                    step = self._step(index, stage, state, new)
            except CompressorError as error:
                if self.budget is None or ends_the_run(error):
                    raise
                self._skip(stage, f"could not be applied: {reason(error)}")
                if takes_away(stage):
                    removed.append(stage_name(stage))
                continue
            later = stage_name(self.stages[indices[-1]]) if step.kept and index != indices[-1] else ""
            self.record(step, later=later)
            if step.kept:
                state = new
            elif takes_away(stage):
                removed.append(stage_name(stage))
        if state is entry:
            return state
        self._note_when_judged([index for index in indices if self.steps[index + 1].kept])
        return state if self.budget is None else self._judge(indices, entry, state, self.budget)

    def _note_when_judged(self, standing: list[int]) -> None:
        """Notes in every step of a segment but the last of those that stand that it is judged with that one."""
        note = JudgedAfter(judged_after=stage_name(self.stages[standing[-1]])).to_json()
        for index in standing[:-1]:
            step = self.steps[index + 1]
            self.steps[index + 1] = replace(step, details={**step.details, **note})

    def _judge(self, indices: list[int], entry: State, state: State, budget: Budget) -> State:
        """Judges the accuracy of a whole segment and notes the verdict in every step of it that still stands."""
        standing = [index for index in indices if self.steps[index + 1].kept]
        last = standing[-1]
        try:
            with explained(stage_name(self.stages[last]), last + 1):
                verdict = judge_segment(
                    [self.stages[index] for index in standing],
                    entry,
                    state,
                    reference=self.reference,
                    budget=budget,
                    scores=self.job.scores,
                )
        except CompressorError as error:
            if ends_the_run(error):
                raise
            verdict = Verdict(keep=False, reason=f"could not be judged: {reason(error)}")
        if verdict.keep:
            # The drop is the segment's, and stands where the segment ends.
            step = self.steps[last + 1]
            both = "; ".join(part for part in (step.reason, verdict.reason) if part)
            self.steps[last + 1] = replace(step, reason=both)
            return state
        for index in standing:
            self.steps[index + 1] = replace(self.steps[index + 1], kept=False, reason=f"rolled back: {verdict.reason}")
        emit(RolledBack(numbers=tuple(index + 1 for index in standing), reason=verdict.reason))
        self.job.say(f"  rolled back: {verdict.reason}")
        return entry

    def _step(self, index: int, stage: Stage, base: State, state: State) -> Step:
        outcome, scores = state.outcome, self.job.scores
        pays = gain(stage, base, state, self.given)
        harm = harm_of_training(stage, base, state, budget=self.budget, scores=scores)
        verdict = harm or after_gain(pays, self.budget)
        failed = failed_trainings(state)
        if failed and verdict.keep:
            verdict = replace(verdict, reason="; ".join(filter(None, [verdict.reason, failed])))
            self.warnings.append(f"{stage_name(stage)}: {failed}")
        for broken in (filled_zeros(base, state), parted_values(base, state)):
            if broken:
                self.warnings.append(f"{stage_name(stage)}: {broken}")
        drop = scores.told_drop(state.onnx_bytes, self.reference.onnx_bytes, "validation")
        beside = VersusBase(versus_base=outcome.versus_base).to_json()
        named = stage_name(stage)
        besides = told_besides(self.job, index + 1, named, state, base=base, reference=self.reference)
        details = {**outcome.details, **_unit_scores(outcome.plan), **beside, **besides}
        return Step(
            **replace(outcome, details=details).shared(),
            stage=stage_name(stage),
            parameters=stage_parameters(stage),
            kept=verdict.keep,
            reason=verdict.reason,
            validation={
                "score": vars(scores.score(state.onnx_bytes, "validation")),
                "drop": vars(drop) if drop else None,
            },
            pays=False if harm else None if pays is None else pays.keep,
        )

    def _skip(self, stage: Stage, reason: str) -> None:
        name, parameters = stage_name(stage), stage_parameters(stage)
        self.record(Step(stage=name, parameters=parameters, kept=False, reason=reason, seconds=0.0))

    def finish(self, state: State, recipe: dict[str, Any] | None) -> Result:
        """Writes `state`, the one that ships, and the report."""
        folder = self.job.folder.path
        path = folder / MODEL_FILE
        # The checkpoint rebuilds from the user's own class.
        rebuilt = checkpoint_files(self.trainable.model, self.trainable.plan)
        self.job.folder.write(folder, {MODEL_FILE: state.onnx_bytes, **rebuilt})
        measured = state.outcome.measurement
        missed: list[str] = []
        if self.budget is not None:
            missed = unmet_goals(
                self.budget,
                speedup=measured.speedup.value,
                latency_ms=measured.latency_ms.value,
                size_bytes=measured.size_bytes,
            )
            self.warnings += [f"budget not met: {text}" for text in missed]
        self.warnings += _timed_beside(self.steps)
        if state is self.reference:
            self.warnings.append("no stage was kept: model.onnx is the reference, exported")
        sizes = sizes_of_given(
            self.given,
            reference_bytes=len(self.reference.onnx_bytes),
            size_bytes=len(state.onnx_bytes),
            artifact=path.name,
        )
        self.warnings += filter(None, [sizes])
        report = Report(
            workload=_described(self.job),
            environment={**environment(self.job.target), **_scoring_threads(self.job)},
            target=_target(self.job.target),
            budget=None if self.budget is None else asdict(self.budget),
            budget_met=not missed,
            seed=self.job.seed,
            recipe=recipe,
            steps=tuple(self.steps),
            final=max(number for number, step in enumerate(self.steps) if step.kept),
            warnings=tuple(self.warnings),
            artifact=path.name,
            use=interface_of(state.onnx_bytes, self.job.workload, path.name).to_json(),
        )
        write_report(report, folder)
        model, asked = self.job.workload.model, _asked(self.job, self.stages, self.budget)
        given = given_as(model.onnx_bytes) if isinstance(model, OnnxModule) else None
        write_run_manifest(folder, report=report.to_json(), asked=asked, given=given)
        emit(
            RunFinished(
                artifact=str(path),
                budget_met=report.budget_met,
                score=measured.score.value,
                latency_ms=measured.latency_ms.value,
                speedup=measured.speedup.value,
                size_bytes=measured.size_bytes,
            )
        )
        return Result(report=report, artifact=Artifact(path), model=state.model)


def _timed_beside(steps: Sequence[Step]) -> list[str]:
    """Which stages were timed while the machine was not quiet, a warning for each thing that it did."""
    found: dict[str, list[str]] = {}
    for step in steps:
        if step.measurement is not None and step.measurement.timed_beside:
            found.setdefault(step.measurement.timed_beside, []).append(step.stage)
    return [f"{', '.join(stages)} timed beside {what}" for what, stages in found.items()]


def _finished(number: int, step: Step) -> StageFinished:
    measured = step.measurement
    told = StageFinished(number=number, stage=step.stage, kept=step.kept, reason=step.reason, seconds=step.seconds)
    if measured is None:
        return told
    return replace(
        told,
        score=measured.score.value,
        latency_ms=measured.latency_ms.value,
        speedup=measured.speedup.value,
        size_bytes=measured.size_bytes,
    )


def _described(job: Job) -> dict[str, Any]:
    facts = describe_workload(job.workload)
    return facts if job.scores.based else {**facts, "based": False}


def _scoring_threads(job: Job) -> dict[str, str]:
    told = job.scores.threads.told
    return {"scoring_threads": told} if told else {}


def _asked(job: Job, stages: Sequence[Stage], budget: Budget | None) -> dict[str, Any]:
    return {
        "stages": [{stage_name(stage): json_safe(stage_parameters(stage))} for stage in stages],
        "budget": None if budget is None else asdict(budget),
        "seed": job.seed,
        "target": _target(job.target),
        "workload": job.workload.name,
        "versions": versions(),
        **job.identity.told,
    }


def _target(target: Target) -> dict[str, Any]:
    return {**asdict(target), "isa": target.isa.value}


def _unit_scores(plan: list[dict[str, Any]]) -> dict[str, Any]:
    """Why units were kept and removed, for the report, where the plan says so."""
    reasons = [entry.get("why", {}) for entry in plan]
    told = Scores.from_json({"scores": [why for why in reasons if "kept_scores" in why]})
    return told.to_json() if told and told.scores else {}


def _scored(metric: Metric, score: float) -> str:
    return f"{metric.name} {score:.4f}" if metric.scored else metric.name
