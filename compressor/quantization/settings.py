"""What decides the integers of a graph: schemes, calibration, the form of every operator, and what stays in float."""

from dataclasses import dataclass, field

from compressor.checks import check_globs
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerChannel, PerTensor, Symmetric
from compressor.quantization.placement.forms import (
    ByEvidence,
    ByFamily,
    Dynamic,
    Fastest,
    Float16,
    Static,
    WeightOnly,
)
from compressor.quantization.ranges.methods import MSE, Auto, Entropy, MinMax, MovingAverage, Percentile


@dataclass(frozen=True, kw_only=True)
class IntegerSettings:
    """What `prepare` is told. Raises ValueError for schemes that no kernel runs, saying which do.

    The order of the fields is that of `Quantize`, which inherits them: its repr identifies half-done work on disk.
    """

    weights: Symmetric | Asymmetric = field(default_factory=Symmetric)
    activations: Symmetric | Asymmetric = field(default_factory=Asymmetric)
    calibration: MinMax | MovingAverage | Percentile | Entropy | MSE | Auto = field(default_factory=MinMax)
    form: ByFamily | Static | Dynamic | WeightOnly | Float16 | Fastest | ByEvidence = field(default_factory=ByFamily)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        weights, activations = self.weights, self.activations
        if not 2 <= weights.bits <= 8:
            raise ValueError(
                f"weights can have 2 to 8 bits, which fit the int8 kernels; got bits={weights.bits}. "
                f"Use {type(weights).__name__}(bits=8)"
            )
        if activations.bits not in {8, 16}:
            raise ValueError(
                f"activations can have 8 or 16 bits, for which ONNX has types; got bits={activations.bits}. "
                f"Use {type(activations).__name__}(bits=8)"
            )
        weight_only = isinstance(self.form, WeightOnly)
        if isinstance(weights.granularity, PerBlock) and not weight_only:
            raise ValueError(
                "weights with a scale per group have kernels for float activations alone; got "
                f"granularity={weights.granularity} with form={self.form}. Use PerChannel(), or form=WeightOnly()"
            )
        if isinstance(weights, Asymmetric) and isinstance(weights.granularity, PerChannel) and not weight_only:
            raise ValueError(
                "per-channel weights must be Symmetric, because ONNX Runtime's kernels take one zero point a tensor; "
                "got Asymmetric(granularity=PerChannel()). Use Symmetric(), or Asymmetric(granularity=PerTensor())"
            )
        # Symmetric's own default is per channel, which means nothing for activations: it is read as per tensor.
        default = isinstance(activations, Symmetric) and isinstance(activations.granularity, PerChannel)
        if not isinstance(activations.granularity, PerTensor) and not default:
            raise ValueError(
                f"activations have one range a tensor, got granularity={activations.granularity}; use Asymmetric() or "
                "Symmetric()"
            )
        check_globs(self.skip, "skip")
