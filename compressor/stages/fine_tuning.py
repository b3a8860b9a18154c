"""Fine-tuning: retraining a compressed model on its own loss."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from compressor.identity.workload import knowing
from compressor.stage import Context, Effect
from compressor.training.new_data.going_on import GoesOn
from compressor.training.other_outputs import train_every_output
from compressor.training.progress import epochs_note
from compressor.workload import Workload
from compressor.workloads import function_named


@dataclass(frozen=True, kw_only=True)
class FineTune(GoesOn):
    """Trains with the workload's loss and keeps the epoch that is best on validation.

    All settings are those of every training (`TrainingSettings`). Outputs that no loss sees are held where the
    reference has them: otherwise a second head would be lost while the first one recovers. Han et al. 2015,
    arXiv:1506.02626, sec. 3.3: retraining after pruning starts from the kept weights, at a rate below the original.

    With `data` the model goes on learning from new data beside a share `replay` of the old ones (`GoesOn`).
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True

    epochs: int = 5
    tail_epochs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.read_data_(function_named)

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        context = knowing(context, workload, self)
        self.hold(context, model)
        before = self.scores(model, workload)
        going_on = self.on_new_data(workload)
        logs = train_every_output(model, going_on, self, context=context, label="fine_tune")
        context.tell(epochs_note(logs, workload.metric, context.details))
        self.tell(context, workload, before, model)
        return model
