"""The fastest of several integer forms of one exported graph, by measurement.

Which form pays depends on widths and on the machine: a GRU on integers takes twice the time of float with 128 units and
half of it with 384; weights of 4 bits are the smallest and, with many rows to multiply, the slowest.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

from compressor.errors import StageError
from compressor.estimate import Estimate
from compressor.measuring.scores import paired_drop, score_rows
from compressor.measuring.timing import time_interleaved
from compressor.quantization.placement.forms import Candidate, Fastest
from compressor.quantization.quantizer import Choices, quantized_file
from compressor.stage import Context
from compressor.workload import Workload, resize_batch


class FormChoices(Choices, Protocol):
    """Choices whose form and weights can be replaced: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Tried:
    candidate: Candidate
    onnx_bytes: bytes
    details: dict[str, Any]


def fastest(exported: bytes, choices: FormChoices, workload: Workload, context: Context) -> bytes:
    """The file of the candidate of `choices.form` (Fastest) that runs fastest; the smallest of those that tie with it.

    All candidates stand in the details under "candidates", with their numbers and why they were left out; times are
    taken in turns with the float file. Nothing is timed where one candidate is left. Raises StageError where none is.
    """
    form = choices.form
    if not isinstance(form, Fastest):
        raise StageError(f"fastest chooses between candidates, got form={form}; use Fastest(), or quantized_file")
    rows: list[dict[str, Any]] = []
    left: list[tuple[_Tried, dict[str, Any]]] = []
    reference = None if form.max_drop is None else score_rows(exported, workload.validation, workload.metric)
    bar = tqdm(form.candidates, desc="forms", leave=False, disable=not context.progress)
    for index, candidate in enumerate(bar):
        row: dict[str, Any] = {"form": _label(candidate), "kept": False}
        rows.append(row)
        folder = None if context.folder is None else context.folder / f"form{index}"
        own = replace(context, details={}, folder=folder)
        tried = _tried(exported, choices, candidate, workload=workload, own=own, row=row)
        if tried is None:
            continue
        twin = next((other["form"] for made, other in left if made.onnx_bytes == tried.onnx_bytes), None)
        if twin is not None:
            row["why"] = f"the same file as {twin}"
            continue
        sqnr = tried.details["sqnr_db"]
        if form.min_sqnr_db is not None and sqnr < form.min_sqnr_db:
            row["why"] = f"keeps {sqnr:.1f} dB, at least {form.min_sqnr_db:g} are asked for"
            continue
        if form.max_drop is not None and reference is not None:
            scored = score_rows(tried.onnx_bytes, workload.validation, workload.metric)
            drop = paired_drop(scored, reference, workload.metric, seed=context.seed)
            row["drop"] = asdict(drop)
            if drop.value > form.max_drop:
                row["why"] = f"loses {drop.value:.4f} of {workload.metric.name}, at most {form.max_drop:g} is allowed"
                continue
        left.append((tried, row))
    if not left:
        reasons = "; ".join(f"{row['form']}: {row['why']}" for row in rows)
        raise StageError(f"no form is left to choose from: {reasons}")
    chosen = left[0] if len(left) == 1 else _timed(exported, left, workload, context)
    chosen[1]["kept"] = True
    context.details.update({**chosen[0].details, "candidates": rows, "chosen_form": chosen[1]["form"]})
    return chosen[0].onnx_bytes


def smallest_of_ties(speedups: Sequence[Estimate], sizes: Sequence[int]) -> int:
    """The place of the smallest file among those not proved slower than the leader; `speedups` are against it."""
    tied = [index for index, speedup in enumerate(speedups) if speedup.high >= 1]
    return min(tied, key=lambda index: (sizes[index], index))


def _label(candidate: Candidate) -> str:
    kind = repr(candidate.form)
    return kind if candidate.weights is None else f"{kind}, weights={candidate.weights!r}"


def _tried(
    exported: bytes,
    choices: FormChoices,
    candidate: Candidate,
    *,
    workload: Workload,
    own: Context,
    row: dict[str, Any],
) -> _Tried | None:
    """The candidate's file, with its numbers in `row`; None, with the reason there, where it cannot be made."""
    weights = choices.weights if candidate.weights is None else candidate.weights
    try:
        asked = replace(choices, form=candidate.form, weights=weights)
        onnx_bytes = quantized_file(exported, asked, workload, own)
    except (StageError, ValueError) as error:
        row["why"] = str(error)
        return None
    row.update(size_bytes=len(onnx_bytes), sqnr_db=own.details["sqnr_db"])
    row["integer_kernels"] = own.details["integer_kernels"]
    return _Tried(candidate=candidate, onnx_bytes=onnx_bytes, details=own.details)


def _timed(
    exported: bytes, left: Sequence[tuple[_Tried, dict[str, Any]]], workload: Workload, context: Context
) -> tuple[_Tried, dict[str, Any]]:
    inputs = resize_batch(workload.example_inputs, context.target.batch_size)

    def timed(candidate: bytes, other: bytes) -> Estimate:
        return time_interleaved(candidate, other, inputs, threads=context.target.threads, seed=context.seed).speedup

    for tried, row in left:
        row["speedup"] = asdict(timed(tried.onnx_bytes, exported))
    leader = max(range(len(left)), key=lambda index: left[index][1]["speedup"]["value"])
    # Two intervals against the float file say less about a pair than the pair timed in turns.
    against = [
        Estimate(1.0, 1.0, 1.0) if index == leader else timed(tried.onnx_bytes, left[leader][0].onnx_bytes)
        for index, (tried, _) in enumerate(left)
    ]
    best = smallest_of_ties(against, [len(tried.onnx_bytes) for tried, _ in left])
    for index, (_, row) in enumerate(left):
        if index != best:
            slower = against[index].high < 1
            row["why"] = (
                f"{against[index].value:.2f}x the speed of {left[leader][1]['form']}"
                if slower
                else f"as fast as {left[best][1]['form']}, and not smaller"
            )
    return left[best]
