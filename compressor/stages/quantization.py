"""Post-training quantization: weights and activations of the exported ONNX graph as integers of few bits.

Krishnamoorthi 2018, arXiv:1806.08342 (per-channel weights, per-tensor activations); Jacob et al. 2018,
arXiv:1712.05877. Which form pays is a matter of the operator: convolutions need static ranges (dynamic ones run 4.5
times slower than float in ONNX Runtime), LSTMs have a dynamic kernel alone, GRUs none.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compressor.checks import check_kinds
from compressor.files.export import export_onnx
from compressor.quantization.evidence import by_evidence
from compressor.quantization.form_choice import fastest
from compressor.quantization.placement.forms import ByEvidence, Fastest
from compressor.quantization.quantizer import QuantizationSettings, quantized_file
from compressor.runtime import OnnxModule
from compressor.stage import Context, Effect
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Quantize(QuantizationSettings):
    """The model as an ONNX graph of integers that ONNX Runtime runs with its 8-bit kernels.

    `weights` have 2 to 8 bits: fewer make the file smaller, not faster. `activations` have 8 bits, or 16, for which
    there are no integer kernels: 16 show what the accuracy would be. `calibration` says how the ranges of activations
    come from the calibration data. `form` says which operators take which integer form; `Fastest` measures,
    `ByEvidence` tries others where the usual one does not hold. `skip` holds globs over node names and module paths
    (`layer1.0.conv1`, `layer3.*`) that stay in float. `equalization` evens out the channels of neighbouring layers, for
    depthwise networks and weights with one scale a tensor. `smoothing` moves outliers of activations into the weights,
    for transformers. `mixed` gives every layer a width of its own. `rounding` learns from calibration data which way
    every weight is rounded, a must below 8 bits. `bias_correction` takes out the shift that rounding causes in the
    mean. `give_back` returns layers to float that cost accuracy or time. `portable` makes the file exact on x86 CPUs
    without VNNI too, where pairs of 8-bit products would saturate, and notes in it which CPUs were checked.
    """

    effect: ClassVar[Effect] = Effect.ENCODING

    def __post_init__(self) -> None:
        check_kinds(self)
        super().__post_init__()

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """An OnnxModule of the integer graph. Raises StageError where nothing can be quantized or the model breaks."""
        match self.form:
            case ByEvidence():
                make = by_evidence
            case Fastest():
                make = fastest
            case _:
                make = quantized_file
        return OnnxModule(
            make(export_onnx(model, workload, memory=context.exports).onnx_bytes, self, workload, context)
        )
