"""Which recipes cannot be fast enough, told by the latency table before anything is trained for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.batches import Inputs
from compressor.comparing.arms import Arm
from compressor.comparing.timing import timed_together
from compressor.files.export import export_onnx
from compressor.latency.prediction import predict_ms
from compressor.latency.table import LatencyTable
from compressor.measuring.session_times import Times
from compressor.recipe.recipe import Recipe
from compressor.running.folder import MODEL_FILE
from compressor.searching.limits import Limits
from compressor.searching.space import Candidate, prefixes
from compressor.searching.working import Failed, Working, arm_of
from compressor.stage import Effect, replacement, stage_name
from compressor.target import Target
from compressor.workload import Workload

# The largest error of a prediction, relative to the dense network of its family, was 16 % over the stored benchmark
# (benchmarks/results/latency_table.json): what is set aside is beyond the limit by more.
_CARE = 1.2


@dataclass(frozen=True, kw_only=True)
class TooSlow:
    """The names of candidates that are set aside, and the seconds of work on structure that it took to know it."""

    names: frozenset[str] = frozenset()
    seconds: float = 0.0


def too_slow(candidates: Sequence[Candidate], workload: Workload, limits: Limits, working: Working) -> TooSlow:
    """Those of `candidates` whose structure, in the form that they ship, is predicted beyond the limit of latency.

    The structure is taken out as a run would, which trains nothing; it goes into the store, where trials find it. The
    prediction is relative to the reference, whose time is measured. Candidates whose structure changes after a
    training, or is a student's, are left to their trials.
    """
    if limits.max_latency_ms is None:
        return TooSlow()
    # By candidate what its structure is known by, "" where it has that of the reference.
    keys: dict[str, str] = {}
    structures: dict[str, Arm] = {}
    for candidate in candidates:
        count = _before_training(candidate.recipe)
        if count is not None:
            key = prefixes(candidate.recipe)[count - 1] if count else ""
            keys[candidate.recipe.name] = key
            if key:
                structures.setdefault(key, arm_of(candidate.recipe, f"structures/{key[:16]}", stages=count))
    waiting = list(structures.values())
    reports = {
        arm.folder: end.report
        for arm, end, _ in working.ends(lambda _: waiting.pop(0) if waiting else None)
        if not isinstance(end, Failed)  # else its trials will say why
    }
    made = {key: arm.folder for key, arm in structures.items() if arm.folder in reports}
    seconds = sum(step.seconds for report in reports.values() for step in report.steps[1:])
    target: Target = working.asked["target"]
    predicted = _Predicted.of(workload, target, working.session.times)
    files = {key: (working.folder / folder / MODEL_FILE).read_bytes() for key, folder in made.items()}
    files[""] = predicted.reference
    names = {
        candidate.recipe.name
        for candidate in candidates
        if (file := files.get(keys.get(candidate.recipe.name, "none"))) is not None
        and predicted.ms(file, quantized=_quantized(candidate.recipe)) > _CARE * limits.max_latency_ms
    }
    return TooSlow(names=frozenset(names), seconds=seconds)


@dataclass(frozen=True, kw_only=True)
class _Predicted:
    """What the latency table says of files, times what was measured of the reference for what it says of that."""

    reference: bytes
    table: LatencyTable
    inputs: Inputs
    factor: float

    @classmethod
    def of(cls, workload: Workload, target: Target, times: Times) -> "_Predicted":
        """The table on this machine, with the reference's time in this session."""
        table = LatencyTable(target, progress=False)
        reference = export_onnx(workload.model, workload).onnx_bytes
        timing = timed_together({"reference": reference}, reference, workload, target, times)["reference"]
        dense = predict_ms(reference, workload.example_inputs, table)
        return cls(
            reference=reference,
            table=table,
            inputs=workload.example_inputs,
            factor=timing.reference_ms.value / dense,
        )

    def ms(self, file: bytes, *, quantized: bool) -> float:
        """The milliseconds of a call of `file`, where it is `quantized` those of its integer form."""
        precision = "int8" if quantized else "float32"
        return self.factor * predict_ms(file, self.inputs, self.table, precision=precision)


def _before_training(recipe: Recipe) -> int | None:
    """How many stages take structure before any training; None where structure changes later, too."""
    stages = recipe.stages
    if any(replacement(stage) is not None for stage in stages):
        return None
    count = next((n for n, stage in enumerate(stages) if stage.effect is not Effect.STRUCTURE), len(stages))
    return None if any(stage.effect is Effect.STRUCTURE for stage in stages[count:]) else count


def _quantized(recipe: Recipe) -> bool:
    return any("quantiz" in stage_name(stage) for stage in recipe.stages)
