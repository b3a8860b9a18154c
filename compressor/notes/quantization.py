"""What is told of a quantized file: what became integers and what did not, which widths, and what was tried."""

from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from compressor.estimate import Estimate
from compressor.notes.note import Note
from compressor.scoring.decibels import MOST_DB


@dataclass(frozen=True, kw_only=True)
class Smoothed(Note):
    """The nodes whose inputs were rescaled where they are made, and by a Mul; what the float outputs keep."""

    key: ClassVar[str] = "smoothing"
    smoothed: tuple[str, ...]
    smoothed_by_mul: tuple[str, ...]
    float_sqnr_db: float


@dataclass(frozen=True, kw_only=True)
class Equalized(Note):
    """What equalizing did: the ratio of channels' ranges before and after, and whether it left more signal.

    `unclipped` are the ReLU6 that became ReLU, `absorbed_channels` those whose bias moved on, where there are any to
    look at. `sqnr_db` is {"without": decibels, "with": decibels} of the quantized outputs.
    """

    key: ClassVar[str] = "equalization"
    unclipped: tuple[str, ...] | None = None
    layers: int
    spread_before: float
    spread_after: float
    absorbed_channels: int | None = None
    float_sqnr_db: float
    sqnr_db: Mapping[str, float] | None = None
    kept: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Calibrated(Note):
    """How ranges were found: the method, over how many samples, of how many tensors.

    Where several methods competed, the `chosen` one and the output's error with each. Tensors without a range stay
    in float: {name: why}.
    """

    key: ClassVar[str] = "calibration"
    method: str
    samples: int
    tensors: int
    chosen: str | None = None
    output_error: Mapping[str, float] | None = None
    without_range: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class RoundingLearned(Note):
    """How rounding was learned, and what part of the integers are others than the nearest.

    `to_nearest` are the weights that it passed over.
    """

    key: ClassVar[str] = "rounding"
    method: str
    samples: int
    layers: int
    changed_fraction: float
    to_nearest: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BiasesCorrected(Note):
    """How biases were corrected, in how many layers, in which ones not, and whether it left more signal."""

    key: ClassVar[str] = "bias_correction"
    method: str
    layers: int
    missing: tuple[str, ...]
    sqnr_db_before: float
    sqnr_db_after: float
    kept: bool


@dataclass(frozen=True, kw_only=True)
class LeftOut(Note):
    """The improvements that had nothing to work on in this model, and why: {setting: the reason}."""

    left_out: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TriedWidths:
    """Widths that were looked at as a whole: which layers in float and the fraction of the float file's time, or the
    bytes and the drop; whether that meets the goal.
    """

    in_float: tuple[str, ...] | None = None
    latency: float | None = None
    weight_bytes: int | None = None
    drop: Estimate | None = None
    kept: bool


@dataclass(frozen=True, kw_only=True)
class MixedWidths(Note):
    """What widths were chosen for, and what all of them together take and leave, as predicted and as measured.

    `float_share` is the fraction of the weights that widths were chosen for and that stay in float.
    """

    key: ClassVar[str] = "mixed_precision"
    goal: Mapping[str, float | None]
    tried: tuple[TriedWidths, ...] | None = None
    weight_bytes: int | None
    float_share: float | None
    predicted_sqnr_db: float | None
    measured_sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """What the output keeps, in decibels, when `node` alone has weights of so many bits: {bits: decibels}.

    `bits` is the width that was chosen, None where that is not told. Bytes, the metric's drop and milliseconds are by
    width, too.
    """

    node: str = "?"
    bits: int | None
    reason: str
    sqnr_db: Mapping[int, float]
    size_bytes: Mapping[int, int]
    drop: Mapping[int, float] | None = None
    ms: Mapping[int, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Sensitivities(Note):
    """The layers that widths were chosen for, in the order of the model."""

    sensitivity: tuple[LayerSensitivity, ...]


@dataclass(frozen=True, kw_only=True)
class FloatAgain:
    """A layer that was tried in integers and went back to float, why, and the numbers that say so."""

    node: str = "?"
    why: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class GivenBack(Note):
    """The layers that went back to float."""

    given_back: tuple[FloatAgain, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A file that was judged: its drop, its decibels, where they were looked at, and what it misses in words, or ""."""

    drop: Estimate | None = None
    sqnr_db: float | None = None
    missed: str


@dataclass(frozen=True, kw_only=True)
class TriedInFloat:
    """Layers that were tried in float together, because of "time" or "accuracy", with what came of it."""

    nodes: tuple[str, ...]
    why: str
    speedup: Estimate | None = None
    kept: bool
    drop: Estimate | None = None
    sqnr_db: float | None = None
    missed: str | None = None


@dataclass(frozen=True, kw_only=True)
class GiveBackTried(Note):
    """What giving back tried, and how the file was judged with all layers in integers, where it was."""

    key: ClassVar[str] = "give_back"
    tried: tuple[TriedInFloat, ...]
    before: Judged | None = None


@dataclass(frozen=True, kw_only=True)
class MadePortable(Note):
    """How weights were made safe on CPUs without VNNI: how many scales grew, or which nodes have 7 bits."""

    key: ClassVar[str] = "portable"
    cure: str
    scales_grown: int | None = None
    scales: int | None = None
    seven_bits: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class IntegerForm(Note):
    """How many nodes have each form, the type of the activations, and the bits of the weights."""

    key: ClassVar[str] = "form"
    static: int
    dynamic: int
    weight_only: int
    float16: int
    activations: str
    weight_bits: int


@dataclass(frozen=True, kw_only=True)
class FloatOperator:
    """An operator that computes floats, its type, and why."""

    node: str = "?"
    op: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Coverage(Note):
    """What of the integer file ONNX Runtime runs on integers.

    `quantized` counts the operators with weights that run on integers or stored ones, `integer_kernels` and
    `integer_followers` the kernels by operator. `left_in_float` lists the operators with weights that compute floats,
    or look them up, `float_islands` those without weights that floats are made for and turned back behind;
    `conversions` counts the QuantizeLinear and DequantizeLinear that run. `kernels_seen_on` says in words where that
    was seen, if not on the machine that it is for.
    """

    quantized: int | None
    integer_kernels: Mapping[str, int]
    integer_followers: Mapping[str, int]
    left_in_float: tuple[FloatOperator, ...]
    float_islands: tuple[FloatOperator, ...]
    conversions: int | None
    kernels_seen_on: str | None = None

    @classmethod
    def from_json(cls, details: Mapping[str, Any]) -> Self | None:
        """As of every note; `quantized` may also list the operators that it counts."""
        listed = details.get("quantized")
        if isinstance(listed, Sized) and not isinstance(listed, str):
            details = {**details, "quantized": len(listed)}
        return super().from_json(details)


@dataclass(frozen=True, kw_only=True)
class KeptOutput:
    """What one output keeps: `db` decibels of its signal around its mean, at most 200, -200 where nothing is finite.

    Of an output with channels, `channel` is the one that keeps least, around its own mean, and `channel_db` how much.
    An output of whole numbers has the share of them that is `equal` instead. `why` says in words what could not be
    compared, "" for nothing. `judged` says that the metric reads it.
    """

    output: str = "?"
    judged: bool = False
    db: float | None = None
    channel: int | None = None
    channel_db: float | None = None
    equal: float | None = None
    why: str = ""

    @property
    def worst_db(self) -> float:
        """The least of its decibels; whole numbers count as kept here, they have a share of their own."""
        return min((value for value in (self.db, self.channel_db) if value is not None), default=MOST_DB)

    def says(self) -> str:
        """The same in words."""
        if self.why:
            return f"{self.output!r} {self.why}"
        if self.equal is not None:
            return f"{self.output!r} keeps {100 * self.equal:.1f} % of its whole numbers"
        text = f"{self.output!r} keeps {self.db:.1f} dB"
        return text if self.channel_db is None else f"{text}, its channel {self.channel} {self.channel_db:.1f} dB"


@dataclass(frozen=True, kw_only=True)
class OutputNoise(Note):
    """Decibels of signal to noise that the outputs of the integer file keep: of the worst, and of each."""

    sqnr_db: float
    outputs: tuple[KeptOutput, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class CheckedCpus(Note):
    """What other CPUs compute: {CPU class: in words}, and the products that may saturate on some.

    Where some may, how many `samples` were emulated, the scores with and without saturation, and {node: the part of its
    sums that were wrong}.
    """

    key: ClassVar[str] = "checked_cpus"
    products: int
    products_that_may_saturate: tuple[str, ...]
    samples: int | None = None
    score_exact: float | None = None
    score_saturated: float | None = None
    drop: float | None = None
    drop_interval: tuple[float, ...] | None = None
    wrong_sums: Mapping[str, float] | None = None
    cpus: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class TriedForm:
    """A candidate of several integer forms: whether it was kept, its numbers as far as it got, or why it was not."""

    form: str
    kept: bool
    size_bytes: int | None = None
    sqnr_db: float | None = None
    integer_kernels: Mapping[str, int] | None = None
    drop: Estimate | None = None
    speedup: Estimate | None = None
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class FormChosen(Note):
    """The integer forms that competed, and the one that was taken."""

    candidates: tuple[TriedForm, ...]
    chosen_form: str


@dataclass(frozen=True, kw_only=True)
class Agreement(Note):
    """Mean differences over the outputs' spread: torch to the trained file, and that file unfused to fused."""

    key: ClassVar[str] = "agreement"
    torch_to_file: float
    unfused_to_fused: float
