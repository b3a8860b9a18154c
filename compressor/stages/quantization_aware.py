"""Quantization-aware training: the integer graph itself learns, taught by the original, and becomes the file.

The exported graph is cleaned (which folds BatchNorm into the convolutions), calibrated and placed exactly as `Quantize`
does it; torch then runs the placed graph with straight-through gradients and learned steps (LSQ, LSQ+), and what it
learned is written into the same graph. So the numbers that were trained are those that ONNX Runtime computes, up to the
order in which float32 sums are added.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from compressor.batches import Inputs, Targets
from compressor.checks import check_fraction, check_kinds, check_positive
from compressor.errors import StageError
from compressor.files.export import export_onnx
from compressor.identity.workload import knowing
from compressor.kept_state import private_copy
from compressor.notes.quantization import Agreement
from compressor.notes.training import Teaching
from compressor.quantization.file.compact_graph import serialize
from compressor.quantization.grids.schemes import Asymmetric, Symmetric
from compressor.quantization.learning.fake_quantization import FakeQuantizedGraph
from compressor.quantization.other_cpus.cpu_emulation import exact_run
from compressor.quantization.other_cpus.portability import check_cpus, with_checked_cpus
from compressor.quantization.other_cpus.saturation import SATURATING
from compressor.quantization.placement.forms import ByFamily, Dynamic, Static, WeightOnly
from compressor.quantization.post_training import finish, prepare
from compressor.quantization.ranges.methods import MSE, Auto, Entropy, MinMax, MovingAverage, Percentile
from compressor.quantization.settings import IntegerSettings
from compressor.runtime import OnnxModule, judged_output, layout_of, open_session, run_on_samples
from compressor.stage import Context, Effect
from compressor.training.freezing import freezing
from compressor.training.judged import output_kind, settled
from compressor.training.lessons import Lessons
from compressor.training.loop import train
from compressor.training.new_data.going_on import GoesOn
from compressor.training.passes.losses import Position
from compressor.training.precision import Float32
from compressor.training.progress import epochs_note
from compressor.training.snapshots import digest
from compressor.training.teaching import Teacher
from compressor.workload import Workload, first_batches, predict
from compressor.workloads import function_named

# A value next to a rounding boundary falls to the other side when a sum is added in another order, and later layers
# widen it: two correct executions of one file differ. Torch may differ from the fused file by a few times what the
# file without fusions does, and by this share of the outputs' spread.
_TOLERATED_TIMES, _TOLERATED_SHARE = 4.0, 0.005
_COMPARED_BATCHES = 4
# Validation samples on which the score of CPUs that would saturate is computed.
_EMULATED_SAMPLES = 256


@dataclass(frozen=True, kw_only=True)
class QuantizationAwareTraining(GoesOn):
    """The model as an integer graph that was trained as one, for accuracy that `Quantize` does not keep.

    `weights` of 2 to 8 bits and `activations` of 8 or 16, whose ranges begin by `calibration` as in `Quantize`, learn
    from `workload.model`:
    `soft_weight` in [0, 1] is the teacher's part of the loss, `temperature` (> 0, best 1 to 2) divides the logits. The
    file is that of the best epoch by validation. `skip` holds globs of nodes and modules that stay in float. Weights
    that an earlier stage made zero stay zero, and those it made equal stay equal. In the default `form` convolutions
    and what is near them take calibrated ranges; transformers, LSTMs, GRUs and RNNs are trained with the ranges that a
    run finds, `Static()` gives transformers calibrated ones, and `WeightOnly()` trains weights of few bits, per channel
    or per block, under float arithmetic. Ranges found at run time are those of a whole batch, in training as in the
    file. The graph is trained in float32, in which its integers are exact; `precision` is the teacher's. Weights of
    frozen parameters, and of those that the globs `freeze` name by themselves or by their modules, are the rounded
    originals. `layer_rates` name parameters of the graph. The other settings are those of every training
    (`TrainingSettings`).

    With `data` the model goes on learning from new data beside a share `replay` of the old ones (`GoesOn`), and the
    teacher is what it was before: Learning without Forgetting. Ranges begin by the workload's calibration data.
    """

    effect: ClassVar[Effect] = Effect.ENCODING
    trains: ClassVar[bool] = True

    weights: Symmetric | Asymmetric = field(default_factory=Symmetric)
    activations: Symmetric | Asymmetric = field(default_factory=Asymmetric)
    calibration: MinMax | MovingAverage | Percentile | Entropy | MSE | Auto = field(default_factory=MinMax)
    epochs: int = 4
    weight_decay: float = 0.0
    temperature: float = 2.0
    soft_weight: float = 0.9
    form: ByFamily | Static | Dynamic | WeightOnly = field(default_factory=ByFamily)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.temperature, "temperature divides the logits, usually by 1 to 2")
        check_fraction(self.soft_weight, "soft_weight is the teacher's fraction of the loss", within="[0, 1]")
        if not isinstance(self.form, ByFamily | Static | Dynamic | WeightOnly):
            raise ValueError(
                f"form is what is trained, ByFamily(), Static(), Dynamic() or WeightOnly(); got {self.form}. Float16() "
                "leaves nothing to learn and Fastest() chooses between forms: use Quantize for them"
            )
        check_kinds(self)
        self._integers(self.weights)
        self.read_data_(function_named)

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """An OnnxModule of the trained integer graph. Raises StageError where nothing can be quantized or trained."""
        if isinstance(model, OnnxModule) and not layout_of(model.session).plain:
            raise StageError(
                "QuantizationAwareTraining trains files with a batch of samples that comes first in every input and "
                "output, and this one has them elsewhere, or in steps; use Quantize, with rounding=GPTQ() for accuracy"
            )
        context = knowing(context, workload, self)
        self.hold(context, model)
        # Pairs of 7-bit products cannot saturate, whatever the steps that training finds. MatMulNBits never does.
        pairs = not isinstance(self.form, WeightOnly) and self.weights.bits == 8
        saturates = pairs and context.target.isa in SATURATING
        settings = self._integers(replace(self.weights, bits=7) if saturates else self.weights)
        prepared = prepare(export_onnx(model, workload, memory=context.exports).onnx_bytes, settings, workload, context)
        learner = FakeQuantizedGraph(
            prepared.graph,
            prepared.place(),
            prepared.activations,
            prepared.weights,
            static=prepared.static,
            example=workload.example_inputs,
        )
        with freezing(model, self.freeze):
            learner.freeze_({name for name, own in model.named_parameters() if not own.requires_grad})
        workload = settled(workload)
        former = None if self.new_data is None else private_copy(model)
        original = workload.model if former is None else former
        before, going_on = self.scores(model, workload), self.on_new_data(workload)
        teacher = Teacher(original, going_on, self.precision, seed=context.seed, remember=True)
        lessons = Lessons(
            workload=workload,
            kind=output_kind(workload),
            soft_weight=self.soft_weight,
            temperature=self.temperature,
        )

        def objective(student: nn.Module, inputs: Inputs, targets: Targets, position: Position) -> Tensor:
            outputs = predict(student, inputs)
            references = teacher.outputs(inputs, targets, position)
            with teacher.form.exact():
                return lessons.loss(outputs, references, inputs, targets)

        with teacher.form.applied(teacher.asked):
            logs = train(
                learner,
                going_on,
                # The learner's parameters have names of their own, and its frozen ones are frozen already.
                replace(self, precision=Float32(), freeze=(), data=None),
                context=context,
                objective=objective,
                label="quantization-aware training",
                identity=f"{self!r} {digest(teacher.model)}",
            )
        graph, activations, weights = learner.learned(prepared.graph, prepared.activations)
        # What was trained has other outputs than what it began with: the file is compared with the float graph of the
        # learned weights, so that `sqnr_db` is what the integers of the activations cost.
        trained = replace(prepared, exported=serialize(graph), graph=graph, activations=activations, weights=weights)
        placed = trained.place()
        context.tell(epochs_note(logs, workload.metric, context.details))
        context.tell(
            Teaching(
                teacher=None if former is None else f"{type(former).__name__}, as it was",
                teacher_cache=teacher.summary(),
                taught=lessons.says(),
            )
        )
        self.tell(context, workload, before, learner)
        context.tell(agreement(learner, placed, workload))
        onnx_bytes = finish(trained, workload, context, placed=placed)
        if context.target.signed_activations:
            return OnnxModule(onnx_bytes)
        checked = check_cpus(onnx_bytes, workload, context, samples=_EMULATED_SAMPLES)
        context.tell(checked)
        return OnnxModule(with_checked_cpus(onnx_bytes, checked.cpus))

    def _integers(self, weights: Symmetric | Asymmetric) -> IntegerSettings:
        """What decides the integers, with these `weights`. Raises ValueError where no kernel runs them."""
        # Inherited fields would come before the stage's own and change its repr, which identifies snapshots.
        return IntegerSettings(
            weights=weights, activations=self.activations, calibration=self.calibration, form=self.form, skip=self.skip
        )


def agreement(learner: FakeQuantizedGraph, placed: onnx.ModelProto, workload: Workload) -> Agreement:
    """Mean differences over the outputs' spread: torch to the file as ONNX Runtime fuses it, and unfused to fused.

    The second says how much the order of sums matters. Raises StageError where torch computed something else.
    """
    data = serialize(placed)
    session = open_session(data)
    # What was trained adds up exactly; a target that does, too, may be another machine than this one.
    runs = [exact_run(data), exact_run(data, fused=False)]
    place = [value.name for value in session.get_outputs()].index(judged_output(session))
    rows: list[list[npt.NDArray[Any]]] = [[], [], []]
    with torch.no_grad():
        for inputs, _ in first_batches(workload.calibration, _COMPARED_BATCHES):
            outputs = [run_on_samples(session, inputs, run)[place] for run in runs]
            for row, output in zip(rows, [*outputs, predict(learner, inputs).numpy()], strict=True):
                row.append(output.reshape(-1))
    fused, plain, ours = (np.concatenate(row) for row in rows)
    spread = max(float(fused.std()), float(np.finfo(np.float32).tiny))
    torch_to_file = float(np.abs(ours - fused).mean()) / spread
    unfused_to_fused = float(np.abs(plain - fused).mean()) / spread
    if not torch_to_file <= _TOLERATED_TIMES * unfused_to_fused + _TOLERATED_SHARE:
        raise StageError(
            f"ONNX Runtime computes something else than what was trained: outputs differ by {torch_to_file:.3g} "
            f"of their spread, those of the file without fusions by {unfused_to_fused:.3g}; this is a defect, please "
            "report it with the model"
        )
    return Agreement(torch_to_file=torch_to_file, unfused_to_fused=unfused_to_fused)
