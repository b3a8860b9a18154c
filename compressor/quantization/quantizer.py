"""Everything that post-training quantization does to an exported graph, in the one order that works.

Rewrites that keep the function come first, since they change the ranges; then widths, portable scales, learned rounding
on them, what goes back to float, and the biases, which make up for what rounding moved in the rest.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.channel_statistics import output_sqnr_db
from compressor.quantization.accuracy.equalization import CrossLayerEqualization
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.accuracy.layer_rounding import round_layers
from compressor.quantization.accuracy.smoothing import SmoothQuant
from compressor.quantization.choice.give_back import GiveBack
from compressor.quantization.choice.mixed_precision import MixedPrecision
from compressor.quantization.other_cpus.pair_safety import repaired_grids
from compressor.quantization.other_cpus.portability import (
    Portable,
    check_cpus,
    integer_nodes,
    made_portable,
    with_checked_cpus,
)
from compressor.quantization.post_training import Prepared, Rewrite, Settings, finish, prepare
from compressor.stage import Context
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Every weight becomes the integer nearest to it."""


Rounding = Nearest | AdaRound | GPTQ


class Choices(Settings, Protocol):
    """What post-training quantization decides besides schemes, calibration and form."""

    @property
    def equalization(self) -> CrossLayerEqualization | None: ...
    @property
    def smoothing(self) -> SmoothQuant | None: ...
    @property
    def mixed(self) -> MixedPrecision | None: ...
    @property
    def rounding(self) -> Rounding: ...
    @property
    def bias_correction(self) -> BiasCorrection | None: ...
    @property
    def give_back(self) -> GiveBack | None: ...
    @property
    def portable(self) -> Portable | None: ...


def quantized_file(exported: bytes, choices: Choices, workload: Workload, context: Context) -> bytes:
    """The integer file of an exported float file, with details to the report.

    Raises StageError where nothing can be quantized and where the outputs broke.
    """
    prepared = _prepared(exported, choices, workload, context)
    if choices.mixed is not None:
        prepared = choices.mixed.apply(prepared, workload, context)
    # Signed activations add up in 32 bits, and the file is for Arm alone.
    portable = None if context.target.signed_activations else choices.portable
    if portable is not None:
        prepared = made_portable(prepared, portable, workload, context)
    if not isinstance(choices.rounding, Nearest):
        prepared = _rounded(prepared, choices.rounding, workload, context)
        if portable is not None:
            weights = repaired_grids(prepared.graph, prepared.weights, integer_nodes(prepared))
            prepared = replace(prepared, weights=weights)

    def corrected(candidate: Prepared) -> Prepared:
        if choices.bias_correction is None:
            return candidate
        graph, told = choices.bias_correction.apply(candidate.graph, candidate.place, workload, context)
        return replace(candidate, graph=graph).noting("bias_correction", told)

    if choices.give_back is None:
        prepared = corrected(prepared)
    else:
        # A layer in float again needs its own bias: what goes back is decided on uncorrected graphs.
        prepared = choices.give_back.apply(prepared, workload, context, correct=corrected)
    onnx_bytes = finish(prepared, workload, context)
    if portable is None:
        return onnx_bytes
    found, checked = check_cpus(onnx_bytes, workload, context, samples=portable.samples)
    context.details["checked_cpus"] = checked
    return with_checked_cpus(onnx_bytes, found)


def _prepared(exported: bytes, choices: Choices, workload: Workload, context: Context) -> Prepared:
    """The graph with its grids, equalized where that leaves more signal; it costs some on networks that need none."""
    smoothing: dict[str, Rewrite] = {} if choices.smoothing is None else {"smoothing": choices.smoothing}
    plain = prepare(exported, choices, workload, context, rewrites=smoothing)
    if choices.equalization is None:
        return plain
    rewrites: dict[str, Rewrite] = {"equalization": choices.equalization, **smoothing}
    equalized = prepare(exported, choices, workload, context, rewrites=rewrites)
    samples = choices.equalization.samples
    before, after = (
        output_sqnr_db(plain.graph, each.place(), workload.calibration, samples=samples) for each in (plain, equalized)
    )
    told = {**equalized.details["equalization"], "sqnr_db": {"without": before, "with": after}, "kept": after > before}
    return (equalized if after > before else plain).noting("equalization", told)


def _rounded(prepared: Prepared, rounding: AdaRound | GPTQ, workload: Workload, context: Context) -> Prepared:
    grids, told = round_layers(
        rounding,
        prepared.graph,
        prepared.weights,
        place=lambda weights: prepared.place(weights=weights),
        workload=workload,
        context=context,
    )
    return replace(prepared, weights=grids).noting("rounding", told)
