"""The fastest of several integer forms of one exported graph, by measurement.

Which form pays depends on widths and on the machine: a GRU on integers takes twice the time of float with 128 units and
half of it with 384; weights of 4 bits are the smallest and, with many rows to multiply, the slowest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from compressor.errors import StageError, reasons_of
from compressor.estimate import Estimate
from compressor.intervals import paired_drop
from compressor.measuring.scores import score_rows
from compressor.measuring.timing import time_interleaved
from compressor.notes.quantization import Coverage, FormChosen, OutputNoise, TriedForm
from compressor.progress.bars import progress_bar
from compressor.quantization.placement.forms import Candidate, Fastest
from compressor.quantization.quantizer import QuantizationSettings, quantized_file, why_failed
from compressor.stage import Context
from compressor.workload import Workload, resize_batch


@dataclass(frozen=True, kw_only=True)
class _File:
    onnx_bytes: bytes
    details: dict[str, Any]


def fastest(exported: bytes, settings: QuantizationSettings, workload: Workload, context: Context) -> bytes:
    """The file of the candidate of `settings.form` (Fastest) that runs fastest; the smallest of those that tie with it.

    All candidates stand in the details under "candidates", with their numbers and why they were left out; times are
    taken in turns with the float file. Nothing is timed where one candidate is left. Raises StageError where none is.
    """
    form = settings.form
    if not isinstance(form, Fastest):
        raise StageError(f"fastest chooses between candidates, got form={form}; use Fastest(), or quantized_file")
    tried: list[TriedForm] = []
    left: dict[int, _File] = {}
    reference = None if form.max_drop is None else score_rows(exported, workload.validation, workload.metric)
    bar = progress_bar(form.candidates, desc="forms", shown=context.progress)
    for index, candidate in enumerate(bar):
        folder = None if context.folder is None else context.folder / f"form{index}"
        own = replace(context, details={}, folder=folder)
        made = _made(exported, settings, candidate, workload, own)
        if isinstance(made, str):
            tried.append(TriedForm(form=_label(candidate), kept=False, why=made))
            continue
        noise, covered = OutputNoise.from_json(own.details), Coverage.from_json(own.details)
        entry = TriedForm(
            form=_label(candidate),
            kept=False,
            size_bytes=len(made),
            sqnr_db=noise.sqnr_db if noise else None,
            integer_kernels=covered.integer_kernels if covered else None,
        )
        twin = next((tried[other].form for other, file in left.items() if file.onnx_bytes == made), None)
        if twin is None:
            try:
                entry = _judged(entry, made, form, reference, workload, seed=context.seed)
            except Exception as error:  # noqa: BLE001 - the next form may do without what failed
                entry = replace(entry, why=why_failed(error))
        else:
            entry = replace(entry, why=f"the same file as {twin}")
        tried.append(entry)
        if entry.why is None:
            left[index] = _File(onnx_bytes=made, details=own.details)
    if not left:
        reasons = reasons_of((entry.form, str(entry.why)) for entry in tried)
        raise StageError(f"no form is left to choose from: {reasons}")
    if len(left) > 1:
        timed = _timed(exported, [(tried[index], file) for index, file in left.items()], workload, context)
        for index, entry in zip(left, timed, strict=True):
            tried[index] = entry
    chosen = next(index for index in left if tried[index].why is None)
    tried[chosen] = replace(tried[chosen], kept=True)
    context.details.update(left[chosen].details)
    context.tell(FormChosen(candidates=tuple(tried), chosen_form=tried[chosen].form))
    return left[chosen].onnx_bytes


def smallest_of_ties(speedups: Sequence[Estimate], sizes: Sequence[int]) -> int:
    """The place of the smallest file among those not proved slower than the leader; `speedups` are against it."""
    tied = [index for index, speedup in enumerate(speedups) if speedup.high >= 1]
    return min(tied, key=lambda index: (sizes[index], index))


def _label(candidate: Candidate) -> str:
    kind = repr(candidate.form)
    return kind if candidate.weights is None else f"{kind}, weights={candidate.weights!r}"


def _made(
    exported: bytes, settings: QuantizationSettings, candidate: Candidate, workload: Workload, own: Context
) -> bytes | str:
    """The candidate's file, or why it cannot be made."""
    weights = settings.weights if candidate.weights is None else candidate.weights
    try:
        return quantized_file(exported, replace(settings, form=candidate.form, weights=weights), workload, own)
    except Exception as error:  # noqa: BLE001 - the next form may do without what failed
        return why_failed(error)


def _judged(
    entry: TriedForm, onnx_bytes: bytes, form: Fastest, reference: Tensor | None, workload: Workload, *, seed: int
) -> TriedForm:
    """The entry with what the limits of `form` say of its file; `reference` are the float file's rows, if it asks."""
    if form.min_sqnr_db is not None and entry.sqnr_db is not None and entry.sqnr_db < form.min_sqnr_db:
        why = f"keeps {entry.sqnr_db:.1f} dB, at least {form.min_sqnr_db:g} are asked for"
        return replace(entry, why=why)
    if form.max_drop is None or reference is None:
        return entry
    scored = score_rows(onnx_bytes, workload.validation, workload.metric)
    drop = paired_drop(scored, reference, workload.metric, seed=seed)
    lost = f"loses {drop.value:.4f} of {workload.metric.name}, at most {form.max_drop:g} is allowed"
    return replace(entry, drop=drop, why=lost if drop.value > form.max_drop else None)


def _timed(
    exported: bytes, left: Sequence[tuple[TriedForm, _File]], workload: Workload, context: Context
) -> list[TriedForm]:
    """The entries with their times; all but the one to keep say why not."""
    inputs = resize_batch(workload.example_inputs, context.target.batch_size)
    files = [file.onnx_bytes for _, file in left]

    def timed(candidate: bytes, other: bytes) -> Estimate:
        return time_interleaved(candidate, other, inputs, threads=context.target.threads, seed=context.seed).speedup

    speedups = [timed(file, exported) for file in files]
    leader = max(range(len(left)), key=lambda index: speedups[index].value)
    # Two intervals against the float file say less about a pair than the pair timed in turns.
    against = [
        Estimate(1.0, 1.0, 1.0) if index == leader else timed(file, files[leader]) for index, file in enumerate(files)
    ]
    best = smallest_of_ties(against, [len(file) for file in files])

    def told(index: int) -> TriedForm:
        entry = replace(left[index][0], speedup=speedups[index])
        if index == best:
            return entry
        if against[index].high < 1:
            return replace(entry, why=f"{against[index].value:.2f}x the speed of {left[leader][0].form}")
        return replace(entry, why=f"as fast as {left[best][0].form}, and not smaller")

    return [told(index) for index in range(len(left))]
