"""The file that would ship, in float or in 8 bits, for timing alone."""

from dataclasses import replace

from torch import nn

from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.quantization.post_training import Prepared, prepare
from compressor.quantization.settings import IntegerSettings
from compressor.stage import Context
from compressor.workload import Workload, first_batches


def shipped_file(model: nn.Module, workload: Workload, context: Context, form: str) -> bytes:
    """The ONNX file of `model` in `form`, "float32" or "int8", as the target of `context` would run it.

    The integer form is the default one of each operator family, with ranges from one calibration batch: its time does
    not depend on the ranges, its accuracy does. Raises ExportError, and StageError where nothing can be quantized.
    """
    exported = export_onnx(model, workload, memory=context.exports).onnx_bytes
    if form == "float32":
        return exported
    try:
        return in_integers(exported, workload, context).shipped()
    except StageError as error:
        raise StageError(
            f"{type(model).__name__} has no 8-bit form: {error}; set form='float32' in the latency target"
        ) from error


def in_integers(exported: bytes, workload: Workload, context: Context) -> Prepared:
    """The integer form of an exported file as `shipped_file` takes it. Raises StageError where there is none."""
    brief = replace(workload, calibration=first_batches(workload.calibration, 1))
    return prepare(exported, IntegerSettings(), brief, Context(target=context.target, progress=False))
