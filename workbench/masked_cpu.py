"""ONNX Runtime's own kernels for x86 CPUs without VNNI, run on an Intel CPU that has it, to check the emulation.

Needs Linux on an Intel CPU whose flags name cpuid_fault, and a C compiler; `cpuid_mask.c` says how it works.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.target import Isa, cpu_flags

MASKS = {Isa.X86_AVX2: "avx2", Isa.X86_AVX512: "avx512"}
_SOURCE = Path(__file__).with_name("cpuid_mask.c")
_RUNNER = """
import sys
import numpy as np
import onnxruntime as ort
folder = sys.argv[1]
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 4
session = ort.InferenceSession(folder + "/model.onnx", options)
np.savez(folder + "/outputs.npz", *session.run(None, dict(np.load(folder + "/inputs.npz"))))
"""


def can_mask() -> bool:
    """Whether this machine can run the kernels of a CPU without VNNI."""
    return {"cpuid_fault", "avx512_vnni"} <= cpu_flags() and shutil.which("cc") is not None


def masked_environment(mask: str, folder: Path) -> dict[str, str]:
    """The environment in which a process sees the CPU that `mask` names: avx512, avx_vnni or avx2."""
    library = folder / "cpuid_mask.so"
    subprocess.run([shutil.which("cc") or "cc", "-O2", "-shared", "-fPIC", "-o", library, _SOURCE], check=True)
    return {**os.environ, "LD_PRELOAD": str(library), "CPUID_MASK": mask}


def run_masked(onnx_bytes: bytes, feeds: dict[str, NDArray], isa: Isa) -> list[NDArray]:
    """The outputs of the file as ONNX Runtime's kernels for `isa` (AVX2, or AVX-512 without VNNI) compute them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(onnx_bytes)
        np.savez(folder / "inputs.npz", **feeds)
        subprocess.run(
            [sys.executable, "-c", _RUNNER, name],
            env=masked_environment(MASKS[isa], folder),
            check=True,
        )
        with np.load(folder / "outputs.npz") as outputs:
            return [outputs[key] for key in outputs.files]
