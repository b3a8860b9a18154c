"""Which recipes cannot be fast enough, told by the latency table before anything is trained for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.files.export import export_onnx
from compressor.latency.prediction import predict_ms
from compressor.latency.table import LatencyTable
from compressor.recipe.recipe import Recipe
from compressor.running.failures import ends_the_run
from compressor.running.folder import MODEL_FILE
from compressor.running.pipeline import Pipeline
from compressor.running.session import Session
from compressor.searching.limits import Limits
from compressor.searching.space import Candidate, prefixes
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


def too_slow(
    candidates: Sequence[Candidate],
    workload: Workload,
    limits: Limits,
    session: Session,
    asked: dict[str, Any],
    *,
    folder: Path,
) -> TooSlow:
    """Those of `candidates` whose structure, in the form that they ship, is predicted beyond the limit of latency.

    The structure is taken out as a run would, which trains nothing; it goes into the store, where trials find it. The
    prediction is relative to the reference, whose time is measured. Candidates whose structure changes after a
    training, or is a student's, are left to their trials.
    """
    if limits.max_latency_ms is None:
        return TooSlow()
    target: Target = asked["target"]
    table = LatencyTable(target, progress=False)
    reference = export_onnx(workload.model, workload).onnx_bytes
    dense = predict_ms(reference, workload.example_inputs, table)
    files: dict[str, bytes] = {}
    factor, seconds = 1.0, 0.0
    names = set()
    for candidate in candidates:
        count = _before_training(candidate.recipe)
        if count is None:
            continue
        key = prefixes(candidate.recipe)[count - 1] if count else ""
        if key and key not in files:
            out = folder / key[:16]
            try:
                pipeline = Pipeline(candidate.recipe.stages[:count])
                report = pipeline.run(workload, out=out, seed=candidate.recipe.seed, session=session, **asked).report
            except CompressorError as error:
                if ends_the_run(error):
                    raise
                continue  # its trial will say why
            files[key] = (out / MODEL_FILE).read_bytes()
            seconds += sum(step.seconds for step in report.steps[1:])
            measured = report.reference.measurement
            if measured is not None:
                factor = measured.latency_ms.value / dense
        precision = "int8" if _quantized(candidate.recipe) else "float32"
        file = files[key] if key else reference
        predicted = factor * predict_ms(file, workload.example_inputs, table, precision=precision)
        if predicted > _CARE * limits.max_latency_ms:
            names.add(candidate.recipe.name)
    return TooSlow(names=frozenset(names), seconds=seconds)


def _before_training(recipe: Recipe) -> int | None:
    """How many stages take structure before any training; None where structure changes later, too."""
    stages = recipe.stages
    if any(replacement(stage) is not None for stage in stages):
        return None
    count = next((n for n, stage in enumerate(stages) if stage.effect is not Effect.STRUCTURE), len(stages))
    return None if any(stage.effect is Effect.STRUCTURE for stage in stages[count:]) else count


def _quantized(recipe: Recipe) -> bool:
    return any("quantiz" in stage_name(stage) for stage in recipe.stages)
