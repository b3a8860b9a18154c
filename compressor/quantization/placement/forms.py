"""The integer forms that operators can take, as value objects: what `Quantize(form=...)` says."""

from dataclasses import dataclass

from compressor.checks import check_max_drop, check_positive
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerTensor, Symmetric


@dataclass(frozen=True, kw_only=True)
class ByFamily:
    """Static for convolutions and linear layers near them, dynamic for LSTMs and transformers.

    GRU and RNN layers, for which there is no integer kernel, are written out as cells where they are so wide that this
    pays, and keep float arithmetic on integer weights otherwise; `Fastest()` measures it.
    """


@dataclass(frozen=True, kw_only=True)
class Static:
    """Calibrated ranges for every Conv, Gemm and MatMul, and embeddings of integers; LSTMs and GRUs stay in float."""


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Ranges found at every call, for Gemm, MatMul, LSTM, GRU, RNN and embeddings; needs no calibration.

    Conv stays in float.
    """


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """Integer weights and float activations, for every operator with weights; needs no calibration.

    Linear layers run as MatMulNBits on 4 or 8 bits, which pays where one or few rows are multiplied and the weights
    come from memory; with many rows `Dynamic()` is faster. The others only take less room in the file.
    """


@dataclass(frozen=True, kw_only=True)
class Float16:
    """Weights stored as float16 and computed in float32: half the file, the same time, hardly any error."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A form to try, with the weights of the stage or its own."""

    form: ByFamily | Static | Dynamic | WeightOnly | Float16
    weights: Symmetric | Asymmetric | None = None

    def __post_init__(self) -> None:
        weights = self.weights
        if weights and isinstance(weights.granularity, PerBlock) and not isinstance(self.form, WeightOnly):
            raise ValueError(
                f"weights with a scale per block have kernels for float activations alone; got {weights} with "
                f"form={self.form}. Use form=WeightOnly()"
            )


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """Whichever candidate is measured to be the fastest, the smallest of those that tie.

    `candidates` are the forms that are tried, each with weights of its own or the stage's.

    One is out if it loses more than `max_drop` on the validation data (a fraction, as in `Budget`; None does
    not look), or keeps fewer than `min_sqnr_db` decibels of the outputs on calibration data.
    """

    candidates: tuple[Candidate, ...] = (
        Candidate(form=ByFamily()),
        # The LSTM kernel is some 15 % faster with one scale a tensor.
        Candidate(form=ByFamily(), weights=Symmetric(granularity=PerTensor())),
        Candidate(form=Dynamic()),
        Candidate(form=Static()),
        Candidate(form=WeightOnly()),
        Candidate(form=WeightOnly(), weights=Symmetric(bits=4, granularity=PerBlock(size=32))),
        Candidate(form=Float16()),
    )
    max_drop: float | None = 0.01
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        if not self.candidates:
            raise ValueError("candidates are the forms to choose from, at least one; got none")
        check_max_drop(self.max_drop)
        if self.min_sqnr_db is not None:
            check_positive(self.min_sqnr_db, "min_sqnr_db is a ratio in decibels")


@dataclass(frozen=True, kw_only=True)
class ByEvidence:
    """The fastest file whose outputs hold, of forms that are tried in turn: cheap where the first one does.

    First `ByFamily()`; where that keeps too little, the same with the signals that do most harm on better ranges or in
    float, found by measuring what each does to all outputs; then what holds with its slow layers in float too; then
    `Dynamic()`, then `WeightOnly()`. The first that holds and is measurably faster than the float file is taken; where
    none is, the fastest of those that hold and are smaller. Validation data decide: `max_drop` is as in `Budget`, None
    does not look, and every output must keep `min_sqnr_db` (> 0) decibels of its signal around its mean, each of its
    channels half of them, and of whole numbers all but `max_drop`.
    """

    max_drop: float | None = 0.01
    min_sqnr_db: float = 10.0

    def __post_init__(self) -> None:
        check_max_drop(self.max_drop)
        check_positive(self.min_sqnr_db, "min_sqnr_db is a ratio in decibels")


Form = ByFamily | Static | Dynamic | WeightOnly | Float16 | Fastest | ByEvidence
