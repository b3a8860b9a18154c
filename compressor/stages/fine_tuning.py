"""Fine-tuning: retraining a compressed model on its own loss, one cycle of the rate and a low-rate tail."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from compressor.checks import check_globs
from compressor.stage import Context, Effect
from compressor.training.optimization import check_schedule
from compressor.training.other_outputs import train_every_output
from compressor.training.precision import AutoPrecision, BFloat16, Float32
from compressor.training.progress import epochs_note
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Trains with the workload's loss and keeps the epoch that is best on validation.

    `epochs` (>= 1) of one cycle up to `learning_rate` (> 0; models trained by AdamW take a fiftieth of it), then
    `tail_epochs` (>= 0) more at a hundredth. `weight_decay` in [0, 1) spares biases and norms. `precision` says what
    the inner layers are computed in; outputs, loss and score are float32. `freeze` holds globs of modules and
    parameters that stay as they are, besides those that are frozen already. Outputs that no loss sees are held where
    the reference has them: otherwise a second head would be lost while the first one recovers. Han et al. 2015,
    arXiv:1506.02626, sec. 3.3: retraining after pruning starts from the kept weights, at a rate below the original.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True

    epochs: int = 5
    learning_rate: float = 0.01
    tail_epochs: int = 1
    weight_decay: float = 5e-4
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_schedule(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            tail_epochs=self.tail_epochs,
            weight_decay=self.weight_decay,
        )
        check_globs(self.freeze, "freeze")

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        logs = train_every_output(
            model,
            workload,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            context=context,
            tail_epochs=self.tail_epochs,
            weight_decay=self.weight_decay,
            label="fine_tune",
            precision=self.precision,
            freeze=self.freeze,
        )
        context.tell(epochs_note(logs, workload.metric, context.details))
        return model
