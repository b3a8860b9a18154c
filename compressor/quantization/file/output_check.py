"""Whether a quantized file still computes what the float file does."""

from typing import Any

import numpy as np

from compressor.quantization.placement.static import sqnr_db
from compressor.runtime import feeds_of, open_session
from compressor.stage import StageError
from compressor.workload import Workload, first_batches

# Below this the noise is about as large as the outputs; int8 models that work have 15 dB and more.
_SQNR_FLOOR_DB = 5.0
# Batches of calibration data on which the quantized outputs are compared with the float ones.
_COMPARED_BATCHES = 8


def verified_sqnr(reference: bytes, quantized: bytes, workload: Workload) -> float:
    """Decibels of signal to noise that the outputs of `quantized` keep on calibration data, at most 200.

    Raises StageError below 5 dB, and where outputs of a single sample are not finite.
    """
    before, after = open_session(reference), open_session(quantized)
    pairs = []
    for inputs, _ in first_batches(workload.calibration, _COMPARED_BATCHES):
        pairs.append((before.run(None, feeds_of(before, inputs))[0], after.run(None, feeds_of(after, inputs))[0]))
        _check_single_sample(after, feeds_of(after, inputs))
    expected, got = (np.concatenate([pair[side].reshape(-1) for pair in pairs]) for side in (0, 1))
    value = sqnr_db(expected, got) if np.isfinite(got).all() else float("-inf")
    if not value >= _SQNR_FLOOR_DB:
        raise StageError(
            f"quantization broke the model: its outputs keep {value:.1f} dB of signal to noise, at least "
            f"{_SQNR_FLOOR_DB:g} dB are needed; try calibration=Percentile(), or leave sensitive layers out with skip"
        )
    # JSON has no infinity: 200 dB is beyond what float32 can tell apart.
    return round(min(value, 200.0), 2)


def _check_single_sample(session: Any, feeds: dict[str, Any]) -> None:
    output = session.run(None, {name: value[:1] for name, value in feeds.items()})[0]
    if not np.isfinite(output).all():
        raise StageError(
            "the quantized model gives NaN or infinite outputs for a single sample; leave layers out with skip"
        )
