"""What importing the package loads."""

import subprocess
import sys


def test_importing_compressor_loads_nothing_heavy() -> None:
    """`import compressor` brings neither torch-pruning nor ONNX Runtime nor scikit-learn."""
    code = "import sys, compressor; print([m for m in ('torch_pruning','onnxruntime','sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
