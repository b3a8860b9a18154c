"""Outputs of a file that was changed, held against those of the file as it was."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Outputs may differ by this share of their largest value: other opsets may fuse in another order.
TOLERANCE = 1e-4


def difference(found: list[NDArray[Any]] | str, expected: list[NDArray[Any]], tolerance: float = TOLERANCE) -> str:
    """How the outputs `found` differ from the `expected` ones, "" where they do not."""
    if isinstance(found, str):
        return found
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours.shape != theirs.shape:
            return f"output {index} has shape {ours.shape} instead of {theirs.shape}"
        if ours.dtype.kind != "f":
            if not np.array_equal(ours, theirs):
                return f"output {index} has other values"
            continue
        largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
        if not np.allclose(ours, theirs, rtol=0.0, atol=tolerance * max(largest, 1e-6), equal_nan=True):
            return f"output {index} differs by {np.nanmax(np.abs(ours - theirs)):.3g} of {largest:.3g}"
    return ""
