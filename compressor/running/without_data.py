"""What is run where there are no data: stages that need none, and of integer forms those without calibration."""

from collections.abc import Sequence
from dataclasses import fields, replace

from compressor.errors import StageError
from compressor.quantization.placement.forms import (
    ByEvidence,
    ByFamily,
    Candidate,
    Dynamic,
    Fastest,
    Float16,
    WeightOnly,
)
from compressor.quantization.quantizer import QuantizationSettings
from compressor.report.numbers import shapes_in_words
from compressor.stage import Stage, stage_name
from compressor.stages import Quantize
from compressor.workload import Workload, input_tensors

_FORMS = Fastest(
    candidates=(Candidate(form=Dynamic()), Candidate(form=WeightOnly()), Candidate(form=Float16())), max_drop=None
)
_NEEDS_NONE = (Dynamic, WeightOnly, Float16)
_DATA = ("equalization", "smoothing", "mixed", "rounding", "bias_correction", "give_back")
_WAY_OUT = "give some: -w model.onnx:data.npz, an .npz file with the arrays inputs and targets"


def not_scored(workload: Workload) -> str:
    """What is said of a workload without data, in large letters: nobody shall take its file for a good one."""
    sizes = shapes_in_words(tensor.shape[1:] for tensor in input_tensors(workload.example_inputs))
    return (
        "NOT SCORED: there were no data, so nothing says how good this file is. Sizes and times were measured on "
        f"made-up inputs of {sizes} a sample; other sizes take other times. Score it before you ship it: "
        "-w model.onnx:data.npz"
    )


def stages_without_data(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """`stages` as they can be done without data: the form that is measured to be the fastest of those that need none.

    Raises StageError for stages, and settings of `quantize`, that need data.
    """
    return tuple(map(_without_data, stages))


def _without_data(stage: Stage) -> Stage:
    if not isinstance(stage, Quantize):
        raise StageError(f"{stage_name(stage)} needs data, and there are none; {_WAY_OUT}")
    usual = {item.name: getattr(QuantizationSettings(), item.name) for item in fields(QuantizationSettings)}
    asked = [name for name in _DATA if getattr(stage, name) != usual[name]]
    if asked:
        told = ", ".join(asked)
        raise StageError(f"quantize decides {told} by data, and there are none; leave it out, or {_WAY_OUT}")
    # Biases are corrected by default, but not on made-up inputs.
    stage = replace(stage, bias_correction=None)
    if isinstance(stage.form, _NEEDS_NONE):
        return stage
    if isinstance(stage.form, ByFamily | ByEvidence):
        return replace(stage, form=_FORMS)
    if isinstance(stage.form, Fastest):
        left = tuple(each for each in stage.form.candidates if isinstance(each.form, _NEEDS_NONE))
        if left:
            return replace(stage, form=replace(stage.form, candidates=left, max_drop=None, min_sqnr_db=None))
    raise StageError(
        f"quantize with form={stage.form} calibrates ranges on data, and there are none; set form to dynamic, "
        f"weight_only or float16, or {_WAY_OUT}"
    )
