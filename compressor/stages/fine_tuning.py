"""Fine-tuning: retraining a compressed model on its own loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compressor.identity.workload import knowing
from compressor.stage import Context, Effect
from compressor.training.other_outputs import train_every_output
from compressor.training.progress import epochs_note
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class FineTune(TrainingSettings):
    """Trains with the workload's loss and keeps the epoch that is best on validation.

    All settings are those of every training (`TrainingSettings`). Outputs that no loss sees are held where the
    reference has them: otherwise a second head would be lost while the first one recovers. Han et al. 2015,
    arXiv:1506.02626, sec. 3.3: retraining after pruning starts from the kept weights, at a rate below the original.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True

    epochs: int = 5
    tail_epochs: int = 1

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        context = knowing(context, workload, self)
        logs = train_every_output(model, workload, self, context=context, label="fine_tune")
        context.tell(epochs_note(logs, workload.metric, context.details))
        return model
