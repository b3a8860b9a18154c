"""Sparse training: a penalty that drives weights or whole channels to zero while the model learns."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from compressor.checks import check_globs
from compressor.pruning.narrowing import fold_model_
from compressor.pruning.penalties import GroupLasso, L1Penalty, L2Penalty, SlimmingPenalty
from compressor.stage import Context, Effect
from compressor.structure.calling.shown import shown_by
from compressor.training.freezing import freezing
from compressor.training.optimization import MOMENTUM, Cycle, check_schedule, peak_rate
from compressor.training.other_outputs import train_every_output
from compressor.training.precision import AutoPrecision, BFloat16, Float32
from compressor.training.progress import epochs_note
from compressor.training.streams import batches_in
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class SparseTraining:
    """Trains with the workload's loss and a penalty, and keeps the last epoch: the score does not see zeros.

    After every step of the optimizer the penalty takes off what its proximal operator takes in a step as long as the
    optimizer's: the rate over one minus SGD's momentum. Models trained by AdamW at a fiftieth of the rate get the same
    shrinkage as others, so that a strength means the same everywhere. `epochs` (>= 1) of one cycle up to
    `learning_rate` (> 0), then `tail_epochs` (>= 0) at a hundredth; `weight_decay` in [0, 1) as in other trainings.
    `layers` are globs of the layers that the penalty acts on. Without a strength the penalty fits the training, short
    ones on few batches too; with one, few steps need a large strength: an L1 penalty takes strength * rate / (1 -
    momentum), summed over all steps, off a weight that does not matter. `precision` says what the inner layers are
    computed in; outputs, loss and score are float32. `freeze` holds globs of modules and parameters that stay as they
    are, besides those that are frozen already. Outputs that no loss sees are held where the reference has them.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True
    prepares_structure: ClassVar[bool] = True

    penalty: L1Penalty | L2Penalty | GroupLasso | SlimmingPenalty = field(default_factory=GroupLasso)
    epochs: int = 5
    learning_rate: float = 0.01
    tail_epochs: int = 0
    weight_decay: float = 5e-4
    layers: tuple[str, ...] = ("*",)
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            tail_epochs=self.tail_epochs,
            weight_decay=self.weight_decay,
        )
        check_globs(self.layers, "layers", least=1)
        check_globs(self.freeze, "freeze")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The trained model, with its zeros. Raises StageError where the penalty finds nothing to act on."""
        # A norm takes back whatever a penalty takes off the weights that it is computed from.
        fold_model_(model, workload, context, layers=self.layers)
        batches = batches_in(workload.train, context.seed)
        cycle = Cycle(epochs=self.epochs, batches=batches, peak=self.learning_rate / (1 - MOMENTUM))
        with freezing(model, self.freeze):
            shrinkage = self.penalty.on(
                model, shown_by(workload), layers=self.layers, length=cycle.length(self.tail_epochs)
            )
        length_per_rate = 1 / peak_rate(model, 1.0) / (1 - MOMENTUM)
        logs = train_every_output(
            model,
            workload,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            context=context,
            tail_epochs=self.tail_epochs,
            weight_decay=self.weight_decay,
            label="sparse_training",
            identity=repr(self),
            after_step=lambda rate: shrinkage.step_(rate * length_per_rate),
            keep_last=True,
            precision=self.precision,
            freeze=self.freeze,
        )
        context.tell(epochs_note(logs, None, context.details))
        context.tell(shrinkage.zeros())
        return model
