"""What 8-bit files compute on CPUs that add up exactly, so that tests mean the same on those that do not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.batches import Inputs
from compressor.quantization.other_cpus.cpu_emulation import SaturatingModel, exact_run
from compressor.quantization.other_cpus.saturation import SATURATING
from compressor.runtime import Feeds, feeds_of, open_session
from compressor.target import detect_isa

# How far the emulation's outputs may lie from the kernels', of the largest: what float32 leaves to the order of sums.
_SHARE = 1e-5


def exact_outputs(onnx_bytes: bytes, feeds: Feeds, *, fused: bool = True) -> list[NDArray[Any]]:
    """The file's outputs with 8-bit products added up in 32 bits: ONNX Runtime's own, where this CPU does it so.

    An x86 CPU without VNNI adds pairs of them in 16 bits. There ONNX Runtime's outputs have to be those that are
    emulated for such a CPU, and what comes back is the emulation without saturation.
    """
    if fused and detect_isa() in SATURATING:
        ran, emulated = open_session(onnx_bytes).run(None, feeds), SaturatingModel(onnx_bytes).run(feeds)
        for theirs, ours in zip(ran, emulated, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=_SHARE * float(np.abs(theirs).max()))
    return exact_run(onnx_bytes, fused=fused)(feeds)


def exact_output(onnx_bytes: bytes, inputs: Inputs, *, fused: bool = True) -> NDArray[Any]:
    """The first of `exact_outputs` for `inputs`; without `fused` with the operators as they stand in the file."""
    return exact_outputs(onnx_bytes, feeds_of(open_session(onnx_bytes), inputs), fused=fused)[0]
