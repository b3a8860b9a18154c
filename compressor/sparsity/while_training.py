"""Zeros that grow in number while the model trains, step by step of the optimizer."""

from dataclasses import dataclass

from compressor.sparsity.schedules import Polynomial
from compressor.sparsity.sparsifying import Sparsifying
from compressor.training.other_outputs import train_every_output
from compressor.training.passes.losses import Position
from compressor.training.progress import epochs_note
from compressor.training.streams import batches_in


def train_sparser(work: Sparsifying, schedule: Polynomial, final: float, *, identity: str) -> None:
    """Trains the model while its sparsity rises to `final`; told. The plan has to hold the zeros of its weights."""
    batches = batches_in(work.workload.train, work.context.seed)
    sparsities = schedule.sparsities(final, batches)
    clock = _Clock(batches=batches)
    if 0 in sparsities:
        work.sparsify_(sparsities[0])

    def look(position: Position) -> None:
        clock.position = position

    def after_step(_rate: float) -> None:
        if clock.steps_made in sparsities:
            work.sparsify_(sparsities[clock.steps_made])

    logs = train_every_output(
        work.model,
        work.workload,
        schedule.training,
        context=work.context,
        before_batch=look,
        label="sparsify_weights",
        identity=identity,
        after_step=after_step,
        keep_last=True,
    )
    # A last batch of one sample is no step for a model with BatchNorm, and the last zeros may have been due there.
    work.sparsify_(final)
    work.context.tell(epochs_note(logs, None, work.context.details))


@dataclass(kw_only=True)
class _Clock:
    """Where the batch stands that is trained on; a training that goes on from disk goes on in the middle."""

    batches: int
    position: Position = Position(view=0, batch=0)  # noqa: RUF009 - it is frozen

    @property
    def steps_made(self) -> int:
        """The steps of the optimizer that are made when this batch is done."""
        return self.position.view * self.batches + self.position.batch + 1
