"""One stage applied: what it makes of a model, exported, timed and scored, or taken from disk where it is finished."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressor.budget import describe_drop
from compressor.errors import StageError, StorageError, WriteError
from compressor.estimate import Estimate
from compressor.evaluations.evaluation import Evaluation, Known, Subject, evaluated
from compressor.files.export import export_onnx
from compressor.files.export_memory import Exported, ExportMemory
from compressor.files.graphs import same_structure
from compressor.identity.values import Identifier
from compressor.identity.workload import Identity
from compressor.kept_state import private_copy
from compressor.measuring.measure import Measurement, measure, timed_against
from compressor.measuring.scores import FileScores
from compressor.measuring.timing import Timing
from compressor.notes import running as notes
from compressor.notes.training import Forgotten
from compressor.progress.bars import say
from compressor.running.failures import explained
from compressor.running.folder import Outcome, RunFolder, State
from compressor.running.session import How, Session, Worked, store_key
from compressor.running.together.helping import applied_by_all
from compressor.runtime import OnnxModule
from compressor.stage import Context, Stage, replacement, stage_name
from compressor.storage import json_safe, read_sealed, sha256, write_sealed
from compressor.store.kept import Kept
from compressor.structure.calling.draws import seeded
from compressor.structure.extra_state import as_tensors, extra_states, from_tensors, set_extra_states_
from compressor.structure.preparing.emptied_caches import empty_caches_
from compressor.target import Target
from compressor.training.passes.threads import heard_rankings
from compressor.workload import Workload

_UNCHANGED = Estimate(1.0, 1.0, 1.0)
_EVALUATIONS = "evaluations.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all stages of one run share."""

    workload: Workload
    target: Target
    folder: RunFolder
    seed: int
    scores: FileScores
    identity: Identity
    exports: ExportMemory
    session: Session
    progress: bool
    evaluations: tuple[Evaluation, ...] = ()
    known: Known | None = None

    def say(self, text: str) -> None:
        """Shows a line of progress where it is wanted."""
        say(text, shown=self.progress)

    def tell(self, stage: str, state: State, how: How) -> None:
        """Tells the session how a stage came about."""
        seconds, run = state.outcome.seconds, self.folder.path.name
        self.session.tell(Worked(run=run, stage=stage, key=state.key, how=how, seconds=seconds))


def reference_state(job: Job, key: str) -> State:
    """The model before any stage, as the file that every other is compared with; it is known by `key`."""
    job.say("reference: export and measure")

    def anew(onnx_bytes: bytes, outcome: Outcome) -> Outcome:
        return replace(
            outcome, measurement=replace(_times(outcome, _timing(job, onnx_bytes, onnx_bytes)), speedup=_UNCHANGED)
        )

    return _come_about(job, 0, "reference", key, anew=anew, make=lambda folder: _made_reference(job, key, folder))


def _made_reference(job: Job, key: str, folder: Path) -> State:
    job.folder.require_space(folder, job.workload.model)
    started = time.perf_counter()
    model = empty_caches_(private_copy(job.workload.model).eval(), job.workload.example_inputs)
    exported = export_onnx(model, job.workload, memory=job.exports)
    rows = job.scores.rows(exported.onnx_bytes, "test")
    measurement = replace(_measured(job, exported.onnx_bytes, exported.onnx_bytes, rows), speedup=_UNCHANGED)
    outcome = Outcome(
        seconds=time.perf_counter() - started,
        measurement=measurement,
        versus_base=_UNCHANGED,
        drop=None,
        details=_told(exported).to_json(),
        plan=[],
    )
    return State(model=model, onnx_bytes=exported.onnx_bytes, plan=[], key=key, outcome=outcome)


def applied(job: Job, index: int, stage: Stage, base: State, *, reference: State, decides: bool) -> State:
    """What `stage`, the one at `index`, makes of `base`.

    `decides` says whether its speed-up over `base` decides on keeping it, and is worth timing for longer. Raises
    CompressorError, with the stage named, whatever goes wrong while it is applied, exported, measured and stored:
    StageError where it has nothing to do or somebody's code fails, ExportError, StorageError.
    """
    name, seed = stage_name(stage), job.seed + 1000 * (index + 1)
    key = base.next_key(job.identity.stages[index], seed)
    # What a student takes the place of is not built upon.
    origin = replacement(stage)
    before = base if origin is None else replace(base, origin=origin, plan=[])

    def make(folder: Path) -> State:
        context = Context(
            seed=seed,
            target=job.target,
            folder=job.folder.snapshots(folder, key),
            progress=job.progress,
            details={},
            plan=[],
            plan_before=tuple(before.plan),
            origin=before.origin,
            exports=job.exports,
            known={"run": key},
        )
        return _made(job, stage, before, reference=reference, context=context, key=key, decides=decides)

    def anew(onnx_bytes: bytes, outcome: Outcome) -> Outcome:
        return _timed_anew(job, onnx_bytes, outcome, before, reference=reference, seed=seed, decides=decides)

    return _come_about(job, index + 1, name, key, origin=before.origin, anew=anew, make=make)


def _come_about(
    job: Job,
    number: int,
    name: str,
    key: str,
    *,
    origin: nn.Module | None = None,
    anew: Callable[[bytes, Outcome], Outcome],
    make: Callable[[Path], State],
) -> State:
    """The state `key` of the stage `number`: from the run's folder, else from the store, else as `make` makes it."""
    folder = job.folder.stage(number, name)
    found = job.folder.load(folder, key, job.workload, origin)
    if found is not None:
        job.say("  finished earlier, taken from disk")
        job.tell(name, found, "folder")
        return found
    # What depends on something that is not known is another thing in every run.
    store = job.session.store if number < job.identity.known else None
    stored = store_key(key, seed=job.seed)
    with explained(name, number), store.making(stored) if store else nullcontext():
        if store is not None and (kept := store.get(stored)) is not None:
            try:
                outcome = partial(_reused, kept, anew)
                state = job.folder.adopt(folder, key, kept, job.workload, origin, anew=outcome)
            except StorageError as error:
                if isinstance(error, WriteError):
                    raise
                store.discard(stored, str(error))
            else:
                job.say(f"  made before, in {state.outcome.seconds:.1f} s, and taken from the store; timed again")
                job.tell(name, state, "store")
                return state
        state = make(folder)
        contents = state.files()
        # First into the store: whoever is killed between the two takes it from there.
        if store is not None:
            store.put(stored, stage=name, seconds=state.outcome.seconds, facts=state.facts(), contents=contents)
        job.folder.save(folder, state, contents)
    job.tell(name, state, "made")
    return state


def _reused(kept: Kept, anew: Callable[[bytes, Outcome], Outcome], onnx_bytes: bytes, outcome: Outcome) -> Outcome:
    note = notes.Reused(made=kept.made, spared=outcome.seconds).to_json()
    return anew(onnx_bytes, replace(outcome, details={**outcome.details, **note}))


def _timed_anew(
    job: Job, onnx_bytes: bytes, outcome: Outcome, base: State, *, reference: State, seed: int, decides: bool
) -> Outcome:
    """`outcome` with the times of this session, taken as `_made` takes them."""
    first = base.onnx_bytes == reference.onnx_bytes
    timing = _timing(job, onnx_bytes, reference.onnx_bytes, decides=decides and first)
    versus_base = (
        timing.speedup if first else _timing(job, onnx_bytes, base.onnx_bytes, seed=seed, decides=decides).speedup
    )
    return replace(outcome, measurement=_times(outcome, timing), versus_base=versus_base)


def _times(outcome: Outcome, timing: Timing) -> Measurement:
    """The measurement of `outcome` with other times."""
    return replace(
        outcome.measurement,
        latency_ms=timing.candidate_ms,
        speedup=timing.speedup,
        timed_beside=timing.met or None,
    )


def _made(job: Job, stage: Stage, base: State, *, reference: State, context: Context, key: str, decides: bool) -> State:
    started = time.perf_counter()
    _remember(job, base)
    # Whatever a stage leaves behind of random state and gradient mode ends with it.
    with seeded(context.seed), torch.enable_grad(), _unchanged(job.workload.model), heard_rankings() as heard:
        model = applied_by_all(stage, private_copy(base.model), job.workload, context)
    if not isinstance(model, nn.Module):
        raise StageError(f"apply must give the model to go on with, got {type(model).__name__}; end it with its return")
    if heard:
        context.tell(notes.RankingThreads(ranking_threads="; ".join(heard)))
    model.eval()
    exported = export_onnx(model, job.workload, memory=job.exports)
    seconds = time.perf_counter() - started
    rows = job.scores.rows(exported.onnx_bytes, "test")
    first = base.onnx_bytes == reference.onnx_bytes
    measurement = _measured(job, exported.onnx_bytes, reference.onnx_bytes, rows, decides=decides and first)
    # One number for one fact: what is compared with the reference is timed against it once.
    versus_base = (
        measurement.speedup
        if first
        else _timing(job, exported.onnx_bytes, base.onnx_bytes, seed=context.seed, decides=decides).speedup
    )
    context.tell(_told(exported))
    if getattr(stage, "new_data", None) is not None:
        lost = job.scores.told_drop(exported.onnx_bytes, base.onnx_bytes, "test")
        says = "not scored" if lost is None else describe_drop(lost, job.workload.metric)
        context.tell(Forgotten(forgotten=lost, forgotten_says=says))
    if same_structure(exported.onnx_bytes, base.onnx_bytes):
        context.tell(notes.SameStructure(same_structure=True))
    outcome = Outcome(
        seconds=seconds,
        measurement=measurement,
        versus_base=versus_base,
        drop=job.scores.told_drop(exported.onnx_bytes, reference.onnx_bytes, "test"),
        details=context.details,
        plan=context.plan,
    )
    return State(
        model=model,
        onnx_bytes=exported.onnx_bytes,
        plan=base.plan + context.plan,
        key=key,
        outcome=outcome,
        origin=base.origin,
    )


def told_besides(job: Job, index: int, name: str, state: State, *, base: State, reference: State) -> dict[str, Any]:
    """What the evaluations of the run say of `state`, the one at `index`, as entries of its details, or as on disk."""
    if not job.evaluations or job.known is None:
        return {}
    path = job.folder.stage(index, name) / _EVALUATIONS
    asked = Identifier().digest(job.evaluations)
    key = sha256(json.dumps([state.key, reference.key, job.seed, job.identity.told, asked.text]).encode())
    with suppress(StorageError):
        saved = read_sealed(path, way_out="it is made again") if path.is_file() else {}
        if saved.get("key") == key and not asked.unknown:
            details: dict[str, Any] = saved["details"]
            return details
    job.say(f"  evaluations: {', '.join(stage_name(type(each)) for each in job.evaluations)}")
    subject = Subject(
        onnx_bytes=state.onnx_bytes,
        reference=reference.onnx_bytes,
        workload=job.workload,
        known=job.known,
        seed=job.seed,
        before=None if isinstance(base.model, OnnxModule) else base.model,
        plan=state.outcome.plan,
    )
    found = json_safe(evaluated(job.evaluations, subject))
    write_sealed(path, {"key": key, "details": found})
    return dict(found)


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Raises StageError where what the reference stores is changed within; it is put back first."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    states = as_tensors(extra_states(model))
    changed = []
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name in before and not torch.equal(tensor, before[name]):
                    changed.append(name)
                    if tensor.shape == before[name].shape:
                        tensor.copy_(before[name])
        now = as_tensors(extra_states(model))
        others = [name for name in states if name not in now or not torch.equal(now[name], states[name])]
        if others:
            set_extra_states_(model, from_tensors(states))
            changed += others
    if changed:
        raise StageError(
            f"it writes into workload.model, the reference that all stages are compared with ({changed[0]}); "
            "change the model that apply is given, which is its own"
        )


def _remember(job: Job, state: State) -> None:
    """Keeps `state` from being exported again where it came from disk."""
    told = notes.Exported.from_json(state.outcome.details)
    if isinstance(state.model, OnnxModule):
        return
    key, known = job.exports.find(state.model)
    if known is None and told is not None:
        job.exports.keep(key, Exported(onnx_bytes=state.onnx_bytes, **vars(told)))


def _measured(job: Job, onnx_bytes: bytes, reference: bytes, rows: Tensor, *, decides: bool = False) -> Measurement:
    workload = job.workload
    return measure(
        onnx_bytes,
        reference=reference,
        data=workload.test,
        metric=workload.metric,
        example_inputs=workload.example_inputs,
        target=job.target,
        seed=job.seed,
        rows=rows,
        decides=decides,
        times=job.session.times,
    )


def _timing(job: Job, onnx_bytes: bytes, base: bytes, *, seed: int | None = None, decides: bool = False) -> Timing:
    return timed_against(
        onnx_bytes,
        base,
        example_inputs=job.workload.example_inputs,
        target=job.target,
        seed=job.seed if seed is None else seed,
        decides=decides,
        times=job.session.times,
    )


def _told(exported: Exported) -> notes.Exported:
    return notes.Exported(exporter=exported.exporter, opset=exported.opset, notes=tuple(exported.notes))
