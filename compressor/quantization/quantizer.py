"""Everything that post-training quantization does to an exported graph, in the one order that works.

Rewrites that keep the function come first, since they change the ranges; then widths, portable scales, learned rounding
on them, what goes back to float, and the biases, which make up for what rounding moved in the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from compressor.errors import NothingToImproveError, StageError, runtime_reason
from compressor.notes.quantization import BiasesCorrected, Equalized
from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.channel_scaling import with_weights
from compressor.quantization.accuracy.channel_statistics import output_sqnr_db
from compressor.quantization.accuracy.equalization import CrossLayerEqualization
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.accuracy.layer_rounding import round_layers
from compressor.quantization.accuracy.linear_layers import LinearLayer
from compressor.quantization.accuracy.mean_shifts import MeanShifts
from compressor.quantization.accuracy.smoothing import SmoothQuant
from compressor.quantization.choice.chosen_widths import ChosenWidths
from compressor.quantization.choice.give_back import GiveBack
from compressor.quantization.choice.mixed_precision import MixedPrecision
from compressor.quantization.grids.schemes import Scheme
from compressor.quantization.other_cpus.pair_safety import repaired_grids
from compressor.quantization.other_cpus.portability import (
    Portable,
    check_cpus,
    integer_nodes,
    made_portable,
    with_checked_cpus,
)
from compressor.quantization.post_training import Prepared, Rewrite, finish, prepare
from compressor.quantization.settings import IntegerSettings
from compressor.stage import Context
from compressor.workload import Workload

# What `Spare.apply` does.
Sparing = Callable[[Prepared, Scheme, Workload], Prepared]
# What `calibrated` does.
Calibrating = Callable[[bytes, "QuantizationSettings", Workload, Context], Prepared]


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Every weight becomes the integer nearest to it."""


@dataclass(frozen=True, kw_only=True)
class QuantizationSettings(IntegerSettings):
    """All that post-training quantization decides; `Quantize`, which inherits it, says what each means."""

    equalization: CrossLayerEqualization | None = None
    smoothing: SmoothQuant | None = None
    mixed: MixedPrecision | ChosenWidths | None = None
    rounding: Nearest | GPTQ | AdaRound = field(default_factory=Nearest)
    bias_correction: BiasCorrection | None = field(default_factory=BiasCorrection)
    give_back: GiveBack | None = None
    portable: Portable | None = field(default_factory=Portable)

    @property
    def moves_single_weights(self) -> tuple[str, ...]:
        """What moves weights of one channel each by itself, so that equal ones come apart."""
        moving = (None if isinstance(self.rounding, Nearest) else self.rounding, self.equalization, self.smoothing)
        return tuple(repr(one) for one in moving if one is not None)


def quantized_file(
    exported: bytes,
    settings: QuantizationSettings,
    workload: Workload,
    context: Context,
    *,
    spare: Sparing | None = None,
    calibrating: Calibrating | None = None,
    check: Callable[[bytes], None] | None = None,
) -> bytes:
    """The integer file of an exported float file, with details to the report; `spare` keeps what does harm in float.

    `calibrating` gives what `calibrated` does, to whoever has it already. `check` is given a file that computes the
    same before the one that ships is made, and raises StageError where that is not worth it. Raises StageError where
    nothing can be quantized and where the outputs broke, too.
    """
    prepared = (calibrating or calibrated)(exported, settings, workload, context)
    # Signed activations add up in 32 bits, and the file is for Arm alone.
    portable = None if context.target.signed_activations else settings.portable
    if spare is not None:
        if portable is not None:
            # What is searched is what ships: unsafe weights are other ones on a CPU that saturates.
            prepared = made_portable(prepared, portable, workload, context)
        prepared = spare(prepared, settings.activations, workload)
    correction = settings.bias_correction
    if correction is not None and correction.method == "auto" and not prepared.placement.static:
        # Ranges of every call, and none at all, were not seen to shift means.
        correction = None
    if isinstance(settings.mixed, MixedPrecision):
        biased = None
        if correction is not None:
            # What a bias will take out is no reason for more bits.
            layers = prepared.placement.static
            biased = MeanShifts(prepared.graph, layers, workload, samples=correction.samples).biased
        try:
            prepared = settings.mixed.apply(prepared, workload, context, biased=biased)
        except NothingToImproveError as found:
            prepared = prepared.leaving_out(found)
    elif settings.mixed is not None:
        prepared = settings.mixed.apply(prepared, workload, context)
    if portable is not None and (spare is None or settings.mixed is not None):
        prepared = made_portable(prepared, portable, workload, context)
    if not isinstance(settings.rounding, Nearest):
        # A layer in float again needs its own bias: where layers go back, it is found after that.
        together = correction is not None and correction.method != "analytic" and settings.give_back is None
        prepared = _rounded(
            prepared,
            settings.rounding,
            workload,
            context,
            correction=correction if together else None,
            safe=portable is not None,
        )
        if BiasesCorrected.from_json(prepared.details) is not None:
            correction = None

    def corrected(candidate: Prepared) -> Prepared:
        if correction is None:
            return candidate
        try:
            graph, told = correction.apply(candidate.graph, candidate.place, workload, context)
        except NothingToImproveError as found:
            return candidate if correction.method == "auto" else candidate.leaving_out(found)
        except Exception as error:
            # What nobody asked for must not be what fails. A kernel may refuse alone what it takes fused, as it is
            # where tensors inside are looked at, and ONNX Runtime's errors share no base class below Exception.
            if correction.method != "auto":
                raise
            return candidate.leaving_out(NothingToImproveError("bias_correction", str(error)))
        return replace(candidate, graph=graph).noting(told)

    if settings.give_back is None:
        prepared = corrected(prepared)
    else:
        # A layer in float again needs its own bias: what goes back is decided on uncorrected graphs.
        prepared = settings.give_back.apply(prepared, workload, context, correct=corrected)
    placed = prepared.place()
    if check is not None:
        check(prepared.shipped(placed))
    onnx_bytes = finish(prepared, workload, context, placed=placed)
    if portable is None:
        return onnx_bytes
    checked = check_cpus(onnx_bytes, workload, context, samples=portable.samples)
    context.tell(checked)
    return with_checked_cpus(onnx_bytes, checked.cpus)


def calibrated(exported: bytes, settings: QuantizationSettings, workload: Workload, context: Context) -> Prepared:
    """The graph with its grids, equalized where that leaves more signal; it costs some on networks that need none."""
    smoothing: tuple[Rewrite, ...] = () if settings.smoothing is None else (settings.smoothing,)
    plain = prepare(exported, settings, workload, context, rewrites=smoothing)
    if settings.equalization is None:
        return plain
    equalized = prepare(exported, settings, workload, context, rewrites=(settings.equalization, *smoothing))
    told = Equalized.from_json(equalized.details)
    if told is None:
        # It is the plain one, with the reason why there was nothing to equalize.
        return equalized
    samples = settings.equalization.samples
    before, after = (
        output_sqnr_db(plain.graph, each.place(), workload.calibration, samples=samples) for each in (plain, equalized)
    )
    told = replace(told, sqnr_db={"without": before, "with": after}, kept=after > before)
    return (equalized if after > before else plain).noting(told)


def why_failed(error: Exception) -> str:
    """Why a form cannot be had, in a sentence; raises `error` where that is no fault of the form.

    Another form may do without what one failed by, foreseen or not: ONNX Runtime's errors share no base class below
    Exception. Without memory or a disk to write to no form is better.
    """
    if isinstance(error, MemoryError | OSError):
        raise error
    if isinstance(error, StageError | ValueError):
        return str(error)
    return f"it fails ({type(error).__name__}: {runtime_reason(error)})"


def _rounded(
    prepared: Prepared,
    rounding: AdaRound | GPTQ,
    workload: Workload,
    context: Context,
    *,
    correction: BiasCorrection | None,
    safe: bool,
) -> Prepared:
    """`prepared` with learned integers, `safe` ones where asked, and biases that `correction` lets make up for them."""
    plain, layers, nodes = prepared, list[LinearLayer](), integer_nodes(prepared)
    if correction is not None:
        graph, layers = correction.biased(prepared.graph, prepared.place())
        prepared = replace(prepared, graph=graph)
    try:
        grids, biases, told = round_layers(
            rounding,
            prepared.graph,
            prepared.weights,
            place=lambda weights: prepared.place(weights=weights),
            workload=workload,
            context=context,
            corrected=layers,
            repaired=(lambda grids: repaired_grids(prepared.graph, grids, nodes)) if safe else dict,
        )
    except StageError as error:
        # Calibration has seen the data by now: what is left is an operator that cannot be run alone.
        reason = f"every weight is rounded to nearest: {error}"
        return plain.leaving_out(NothingToImproveError("rounding", reason))
    rounded = replace(plain, weights=grids).noting(told)
    if correction is None or not biases:
        return rounded
    changed = with_weights(prepared.graph, {name: value.numpy() for name, value in biases.items()})
    missing = [layer.name for layer in layers if layer.bias not in biases]
    graph, note = correction.judged(
        plain.graph, changed, rounded.place, workload, layers=len(layers), missing=missing, learned=True
    )
    return replace(rounded, graph=graph).noting(note)
