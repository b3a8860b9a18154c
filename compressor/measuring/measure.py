"""The only place numbers come from: the score, size, work and speed of an ONNX file, with their uncertainty."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from typing import Any

import zstandard
from torch import Tensor

from compressor.batches import Inputs
from compressor.estimate import Estimate
from compressor.files.graphs import same_structure
from compressor.files.weights import count_parameters
from compressor.intervals import score_estimate
from compressor.measuring.macs import count_macs
from compressor.measuring.scores import score_rows
from compressor.measuring.session_times import Times
from compressor.measuring.timing import Timing, time_interleaved
from compressor.metrics import Metric
from compressor.packing.files import packed_size
from compressor.target import Target
from compressor.workload import input_tensors, resize_batch

__all__ = [
    "Measurement",
    "compressed_size",
    "count_macs",
    "count_parameters",
    "measure",
    "score_rows",
]

_ZSTD_LEVEL = 19
# Packing takes a second or so of computing a megabyte: larger files would hold a run up.
_MOST_PACKED = 8 << 20
_SECONDS_ALONE = 0.7
# Three times as long as the first timing: intervals are then about as narrow as timing can tell files apart.
_SECONDS_WHERE_OPEN = 6.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """An ONNX file in numbers: `macs` are those of one sample, `latency_ms` and `speedup` those of one call.

    `compressed_bytes` is the file through zstandard, where zeros and repeated weights show, and `packed_bytes` what
    `compressor pack` makes of it (None: too large to be packed for a report). `speedup` is the reference's latency over
    this file's. `timed_beside` says what else the machine did meanwhile, None where it was quiet.
    """

    score: Estimate
    parameters: int
    nonzero_parameters: int
    macs: int
    size_bytes: int
    compressed_bytes: int
    latency_ms: Estimate
    speedup: Estimate
    packed_bytes: int | None = None
    timed_beside: str | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values: numbers, and {"value", "low", "high"} for estimates; what is None is left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measurement":
        """The measurement that `to_json` wrote. Raises ValueError where a field is missing."""
        needed = [field.name for field in fields(cls) if field.default is MISSING]
        missing = [name for name in needed if name not in value]
        if missing:
            raise ValueError(f"a measurement needs {needed}, got none of {missing}")
        known: dict[str, Any] = {
            name: Estimate(**entry) if isinstance(entry, Mapping) else entry
            for name, entry in ((field.name, value.get(field.name)) for field in fields(cls))
        }
        return cls(**known)


def timed_against(
    onnx_bytes: bytes,
    base: bytes,
    *,
    example_inputs: Inputs,
    target: Target,
    seed: int = 0,
    decides: bool = False,
    times: Times | None = None,
) -> Timing:
    """How long the file and `base` take on `target`, timed interleaved.

    Where it `decides` whether something stays, a first answer that leaves open which file is faster is not enough: they
    are timed again, for longer. Where it does not, files that differ in the values of their weights alone are timed for
    a moment. What `times`, those of the session, know is not timed again.
    """
    inputs = resize_batch(example_inputs, target.batch_size)

    def take() -> Timing:
        timed = partial(time_interleaved, onnx_bytes, base, inputs, threads=target.threads)
        if onnx_bytes == base or (not decides and same_structure(onnx_bytes, base)):  # there is no ratio to resolve
            return timed(seed=seed, seconds=_SECONDS_ALONE)
        found = timed(seed=seed)
        if decides and found.speedup.low < 1 < found.speedup.high:
            return timed(seed=seed + 1, seconds=_SECONDS_WHERE_OPEN)
        return found

    if times is None:
        return take()
    shapes = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in input_tensors(inputs)]
    return times.of(onnx_bytes, base, (target, shapes), take, decides=decides)


def compressed_size(onnx_bytes: bytes) -> int:
    """The bytes of the file through zstandard at its highest usual level."""
    return len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(onnx_bytes))


def measure(
    onnx_bytes: bytes,
    *,
    reference: bytes,
    data: Iterable[Any],
    metric: Metric,
    example_inputs: Inputs,
    target: Target,
    seed: int = 0,
    rows: Tensor | None = None,
    decides: bool = False,
    times: Times | None = None,
) -> Measurement:
    """The numbers of an ONNX file: its score on `data`, its speed against the file `reference` as `target` runs them.

    `example_inputs` are repeated or cut to the target's batch size. `seed` decides the resampling and the order of
    timing. `rows`, where they are at hand, are what `score_rows` gave for this file and `data`. `decides` and
    `times` are as for `timed_against`, where the speed-up over the reference is what decides.
    """
    if rows is None:
        rows = score_rows(onnx_bytes, data, metric, threads=target.threads)
    parameters, nonzero = count_parameters(onnx_bytes)
    timing = timed_against(
        onnx_bytes, reference, example_inputs=example_inputs, target=target, seed=seed, decides=decides, times=times
    )
    return Measurement(
        score=score_estimate(rows, metric, seed=seed),
        parameters=parameters,
        nonzero_parameters=nonzero,
        macs=count_macs(onnx_bytes, example_inputs),
        size_bytes=len(onnx_bytes),
        compressed_bytes=compressed_size(onnx_bytes),
        latency_ms=timing.candidate_ms,
        speedup=timing.speedup,
        packed_bytes=packed_size(onnx_bytes, most=_MOST_PACKED),
        timed_beside=timing.met or None,
    )
