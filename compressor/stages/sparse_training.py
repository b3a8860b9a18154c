"""Sparse training: a penalty that drives weights or whole channels to zero while the model learns."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from compressor.checks import check_globs, check_kinds
from compressor.identity.workload import knowing
from compressor.pruning.narrowing import fold_model_
from compressor.pruning.penalties import GroupLasso, L1Penalty, L2Penalty, SlimmingPenalty
from compressor.stage import Context, Effect
from compressor.structure.calling.shown import shown_by
from compressor.structure.preparing.matching import check_modules_match
from compressor.training.freezing import freezing
from compressor.training.optimizers.schedules import RISE, OneCycle
from compressor.training.other_outputs import train_every_output
from compressor.training.passes.rounds import Rounds
from compressor.training.progress import epochs_note
from compressor.training.settings import TrainingSettings
from compressor.training.streams import Stream
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class SparseTraining(TrainingSettings):
    """Trains with the workload's loss and a penalty, and keeps the last epoch: the score does not see zeros.

    `penalty` says what is drawn to zero, and how strongly.

    After every update the penalty takes off what its proximal operator takes in a step as long as SGD's: the rate over
    one minus momentum. Other optimizers, and one that finds its rate, take the steps of SGD at a rate of 0.01, so that
    a strength means the same everywhere. `layers` are globs of the layers that the penalty acts on. Without a strength
    the penalty fits the training, short ones on few batches too; with one, few steps need a large strength: an L1
    penalty takes strength * rate / (1 - momentum), summed over all updates, off a weight that does not matter. Outputs
    that no loss sees are held where the reference has them. The other settings are those of every training
    (`TrainingSettings`), without `averaging` and `patience`: an average is never zero, and the score does not say when
    there are zeros enough.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    trains: ClassVar[bool] = True
    keeps_last: ClassVar[bool] = True
    prepares_structure: ClassVar[bool] = True

    penalty: L1Penalty | L2Penalty | GroupLasso | SlimmingPenalty = field(default_factory=GroupLasso)
    epochs: int = 5
    layers: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, why in (("averaging", "an average is never zero"), ("patience", "the score does not see zeros")):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} has no place in sparse training: {why}; leave it out, and FineTune after it")
        check_globs(self.layers, "layers", least=1)
        check_kinds(self)

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The trained model, with its zeros. Raises StageError where the penalty finds nothing to act on."""
        context = knowing(context, workload, self)
        check_modules_match("layers", self.layers, model, context.began_with(workload))
        # A norm takes back whatever a penalty takes off the weights that it is computed from.
        fold_model_(model, workload, context, layers=self.layers)
        # The strength is laid out before the optimizer is known, and so is the course.
        settings = replace(self, schedule=OneCycle(warm_up=RISE)) if self.schedule == OneCycle() else self
        rounds = Rounds.of(settings, Stream.of(workload.train, context.seed, counted=self.steps is None))
        length = rounds.course(settings.optimizer).length(rounds.tail) * self.optimizer.step_length
        with freezing(model, self.freeze):
            shrinkage = self.penalty.on(model, shown_by(workload), layers=self.layers, length=length)
        logs = train_every_output(
            model,
            workload,
            settings,
            context=context,
            label="sparse_training",
            identity=repr(self),
            after_step=lambda fraction: shrinkage.step_(fraction * self.optimizer.step_length),
            keep_last=self.keeps_last,
        )
        context.tell(epochs_note(logs, None, context.details))
        context.tell(shrinkage.zeros())
        return model
