"""One run of a pipeline on its way: apply, export, measure, judge, keep or roll back, and remember on disk."""

import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from compressor.budget import Budget, Verdict, judge_drop, judge_gain, judge_values, unmet_goals
from compressor.errors import ExportError, StageError
from compressor.estimate import Estimate
from compressor.files.export import export_onnx
from compressor.machine import environment
from compressor.measuring.measure import Measurement, measure, speedup_over
from compressor.measuring.scores import FileScores
from compressor.report.record import Step, describe_workload
from compressor.report.report import Report, write_report
from compressor.running.folder import Outcome, RunFolder, State, fingerprint_data, fingerprint_model, versions
from compressor.running.order import segments
from compressor.runtime import OnnxModule
from compressor.stage import Context, Effect, Stage, stage_name, stage_parameters
from compressor.storage import sha256, write_atomic
from compressor.structure.checkpoint import save_checkpoint
from compressor.target import Target
from compressor.workload import Workload

_UNCHANGED = Estimate(1.0, 1.0, 1.0)


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


class Run:
    """One run on its way; the steps it has recorded so far, and the state that stands."""

    def __init__(
        self,
        stages: Sequence[Stage],
        workload: Workload,
        *,
        budget: Budget | None,
        target: Target,
        folder: RunFolder,
        seed: int,
        progress: bool,
    ) -> None:
        self.stages, self.workload, self.budget = stages, workload, budget
        self.target, self.folder, self.seed, self.progress = target, folder, seed, progress
        self.steps: list[Step] = []
        self.warnings: list[str] = []
        self.scores = FileScores(workload, seed=seed)

    def go(self, *, recipe: dict[str, Any] | None, warnings: Sequence[str], accept_changes: bool) -> Result:
        """Runs what is not finished on disk and writes the result there."""
        self.warnings += warnings
        asked = self._asked()
        self.folder.begin(asked, accept_changes=accept_changes)
        given = {key: asked[key] for key in ("target", "model", "data", "versions")}
        self.reference = self._reference(sha256(repr(sorted(given.items())).encode()))
        self.measured = {self.reference.key: self._reference_measurement}
        state = self.float_state = self.reference
        for indices in segments(self.stages):
            state = self._segment(indices, state)
            if not isinstance(state.model, OnnxModule):
                self.float_state = state
        return self._finish(state, recipe)

    def _asked(self) -> dict[str, Any]:
        return {
            "stages": [{stage_name(stage): stage_parameters(stage)} for stage in self.stages],
            "budget": None if self.budget is None else asdict(self.budget),
            "seed": self.seed,
            "target": self._target(),
            "workload": self.workload.name,
            "model": fingerprint_model(self.workload.model),
            "data": fingerprint_data(self.workload),
            "versions": versions(),
        }

    def _target(self) -> dict[str, Any]:
        return {**asdict(self.target), "isa": self.target.isa.value}

    def _reference(self, key: str) -> State:
        self._say("reference: export and measure")
        folder = self.folder.stage(0, "reference")
        found = self.folder.load(folder, key, self.workload)
        if found is None:
            started = time.perf_counter()
            model = deepcopy(self.workload.model).eval()
            exported = export_onnx(model, self.workload)
            state = State(model=model, onnx_bytes=exported.onnx_bytes, plan=[], key=key)
            rows = self.scores.rows(exported.onnx_bytes, "test")
            measurement = replace(self._measure(exported.onnx_bytes, exported.onnx_bytes, rows), speedup=_UNCHANGED)
            outcome = Outcome(
                seconds=time.perf_counter() - started,
                measurement=measurement,
                versus_base=_UNCHANGED,
                drop=None,
                details={"export": _export_details(exported)},
                plan=[],
            )
            self.folder.save(folder, state, outcome)
        else:
            state, outcome = found
        self._reference_measurement = outcome.measurement
        self._warn_of_known_validation(state, outcome.measurement)
        self._record(
            Step(
                stage="reference",
                parameters={},
                kept=True,
                reason="what the stages are compared with",
                seconds=outcome.seconds,
                measurement=outcome.measurement,
                validation={"score": vars(self.scores.score(state.onnx_bytes, "validation")), "drop": None},
                pays=None,
                details=outcome.details,
            )
        )
        return state

    def _warn_of_known_validation(self, state: State, measurement: Measurement) -> None:
        validation, test = self.scores.score(state.onnx_bytes, "validation"), measurement.score
        better = self.workload.metric.higher_is_better
        known = validation.low > test.high if better else validation.high < test.low
        if known:
            self.warnings.append(
                f"the reference scores {validation.value:.4f} on validation and {test.value:.4f} on test: it was "
                "probably trained on the validation data, which makes every drop there look larger than it is; give "
                "Workload.from_datasets(validation=...) data that the model has not seen"
            )

    def _segment(self, indices: list[int], entry: State) -> State:
        """The state after the stages `indices`: what they made of `entry`, or `entry` where they were rolled back."""
        state, first_step = entry, len(self.steps)
        removed: list[str] = []  # structure stages of this segment that were rolled back
        for index in indices:
            stage = self.stages[index]
            if stage.effect is Effect.VALUES and removed and state is entry:
                self._skip(stage, f"skipped: it would recover {', '.join(removed)}, which was rolled back")
                continue
            try:
                new, outcome = self._apply(index, stage, state)
            except (StageError, ExportError) as error:
                if self.budget is None:
                    raise
                self._skip(stage, f"could not be applied: {error}")
                if stage.effect is Effect.STRUCTURE:
                    removed.append(stage_name(stage))
                continue
            verdict = self._judge_gain(stage, outcome, state)
            self._record(self._step(stage, new, outcome, verdict))
            if verdict is not None and not verdict.keep and self._judges_gain():
                removed.append(stage_name(stage))
                continue
            state = new
        if state is entry or self.budget is None:
            return state
        return self._judge_segment(indices, entry, state, first_step)

    def _judges_gain(self) -> bool:
        return self.budget is not None and self.budget.not_slower

    def _judge_gain(self, stage: Stage, outcome: Outcome, base: State) -> Verdict | None:
        if stage.effect is Effect.VALUES:
            return None
        base_size = self.measured[base.key].size_bytes
        return judge_gain(outcome.versus_base, outcome.measurement.size_bytes, base_size)

    def _judge_segment(self, indices: list[int], entry: State, state: State, first_step: int) -> State:
        """Judges the accuracy of a whole segment and notes the verdict in every step of it that still stands."""
        assert self.budget is not None
        metric = self.workload.metric
        verdicts: list[Verdict] = []
        if self.budget.max_drop is not None:
            drop = self.scores.drop(state.onnx_bytes, self.reference.onnx_bytes, "validation")
            verdicts.append(judge_drop(drop, self.budget.max_drop, metric))
        standing = [number for number in range(first_step, len(self.steps)) if self.steps[number].kept]
        names = {self.steps[number].stage for number in standing}
        kept = [stage for index in indices if stage_name(stage := self.stages[index]) in names]
        if all(stage.effect is Effect.VALUES for stage in kept):
            change = self.scores.drop(state.onnx_bytes, entry.onnx_bytes, "validation")
            verdicts.append(judge_values(change, metric))
        refused = [verdict for verdict in verdicts if not verdict.keep]
        reason = "; ".join(verdict.reason for verdict in (refused or verdicts))
        if len(standing) > 1:
            reason += f" (judged together: {' + '.join(self.steps[number].stage for number in standing)})"
        for number in standing:
            step = self.steps[number]
            if refused:
                step = replace(step, kept=False, reason=f"rolled back: {reason}")
            elif number == standing[-1]:
                # The drop is the segment's, and stands where the segment ends.
                step = replace(step, reason="; ".join(part for part in (step.reason, reason) if part))
            self.steps[number] = step
        if refused:
            self._say(f"  rolled back: {reason}")
            return entry
        return state

    def _apply(self, index: int, stage: Stage, base: State) -> tuple[State, Outcome]:
        """What `stage` makes of `base`, from disk where it is finished there."""
        name, seed = stage_name(stage), self.seed + 1000 * (index + 1)
        self._say(f"stage {index + 1}/{len(self.stages)}: {name}")
        folder = self.folder.stage(index + 1, name)
        key = base.next_key({name: stage_parameters(stage)}, seed)
        found = self.folder.load(folder, key, self.workload)
        if found is not None:
            self._say("  finished earlier, taken from disk")
            self.measured[key] = found[1].measurement
            return found
        started = time.perf_counter()
        context = Context(
            seed=seed, target=self.target, folder=folder / "snapshots", progress=self.progress, details={}, plan=[]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = stage.apply(deepcopy(base.model), self.workload, context)
        model.eval()
        exported = export_onnx(model, self.workload)
        seconds = time.perf_counter() - started
        versus_base = speedup_over(
            exported.onnx_bytes,
            base.onnx_bytes,
            example_inputs=self.workload.example_inputs,
            target=self.target,
            seed=seed,
            decides=stage.effect is not Effect.VALUES and self._judges_gain(),
        )
        rows, reference = self.scores.rows(exported.onnx_bytes, "test"), self.reference.onnx_bytes
        measurement = self._measure(exported.onnx_bytes, reference, rows)
        drop = self.scores.drop(exported.onnx_bytes, reference, "test")
        state = State(model=model, onnx_bytes=exported.onnx_bytes, plan=base.plan + context.plan, key=key)
        outcome = Outcome(
            seconds=seconds,
            measurement=measurement,
            versus_base=versus_base,
            drop=drop,
            details={**context.details, "export": _export_details(exported)},
            plan=context.plan,
        )
        self.folder.save(folder, state, outcome)
        self.measured[key] = measurement
        return state, outcome

    def _measure(self, onnx_bytes: bytes, reference: bytes, rows: Tensor) -> Measurement:
        workload = self.workload
        return measure(
            onnx_bytes,
            reference=reference,
            data=workload.test,
            metric=workload.metric,
            example_inputs=workload.example_inputs,
            target=self.target,
            seed=self.seed,
            rows=rows,
        )

    def _step(self, stage: Stage, state: State, outcome: Outcome, verdict: Verdict | None) -> Step:
        pays = None if verdict is None else verdict.keep
        kept = pays is not False or not self._judges_gain()
        if verdict is None:
            reason = "kept: no budget" if self.budget is None else ""
        elif kept and not verdict.keep:
            reason = f"does not pay: {verdict.reason}; kept because no budget forbids it"
        else:
            reason = verdict.reason if kept else f"rolled back: {verdict.reason}"
        drop = self.scores.drop(state.onnx_bytes, self.reference.onnx_bytes, "validation")
        return Step(
            stage=stage_name(stage),
            parameters=stage_parameters(stage),
            kept=kept,
            reason=reason,
            seconds=outcome.seconds,
            measurement=outcome.measurement,
            validation={"score": vars(self.scores.score(state.onnx_bytes, "validation")), "drop": vars(drop)},
            pays=pays,
            details={**outcome.details, **_unit_scores(outcome.plan), "versus_base": vars(outcome.versus_base)},
            drop=outcome.drop,
        )

    def _skip(self, stage: Stage, reason: str) -> None:
        self._record(
            Step(
                stage=stage_name(stage),
                parameters=stage_parameters(stage),
                kept=False,
                reason=reason,
                seconds=0.0,
                measurement=None,
                validation={},
                pays=None,
                details={},
            )
        )

    def _record(self, step: Step) -> None:
        self.steps.append(step)
        measured = step.measurement
        if measured is None:
            self._say(f"  {step.reason}")
        else:
            self._say(
                f"  {self.workload.metric.name} {measured.score.value:.4f}, {measured.latency_ms.value:.3f} ms "
                f"({measured.speedup.value:.2f}x), {measured.size_bytes / 1024:.0f} KiB, {step.seconds:.1f} s"
                + (f"; {step.reason}" if step.reason else "")
            )

    def _say(self, text: str) -> None:
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def _finish(self, state: State, recipe: dict[str, Any] | None) -> Result:
        path = self.folder.path / "model.onnx"
        write_atomic(path, state.onnx_bytes)
        # The last kept model that torch can still train: it rebuilds from the user's own class.
        save_checkpoint(self.folder.path, self.float_state.model, self.float_state.plan)
        final = max(number for number, step in enumerate(self.steps) if step.kept)
        measured = self.measured[state.key]
        missed: list[str] = []
        if self.budget is not None:
            missed = unmet_goals(
                self.budget,
                speedup=measured.speedup.value,
                latency_ms=measured.latency_ms.value,
                size_bytes=measured.size_bytes,
            )
            self.warnings += [f"budget not met: {text}" for text in missed]
        if state is self.reference:
            self.warnings.append("no stage was kept: model.onnx is the reference, exported")
        report = Report(
            workload=describe_workload(self.workload),
            environment=environment(self.target),
            target=self._target(),
            budget=None if self.budget is None else asdict(self.budget),
            budget_met=not missed,
            seed=self.seed,
            recipe=recipe,
            steps=tuple(self.steps),
            final=final,
            warnings=tuple(self.warnings),
            artifact=path.name,
        )
        write_report(report, self.folder.path)
        return Result(report=report, artifact=Artifact(path), model=state.model)


def _unit_scores(plan: list[dict[str, Any]]) -> dict[str, Any]:
    """Why units were kept and removed, for the report, where the plan says so."""
    reasons = [entry.get("why", {}) for entry in plan]
    scores = [why for why in reasons if "kept_scores" in why]
    return {"scores": scores} if scores else {}


def _export_details(exported: Any) -> dict[str, Any]:
    return {"exporter": exported.exporter, "opset": exported.opset, "notes": list(exported.notes)}
