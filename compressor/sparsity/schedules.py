"""How sparsity spreads over a training: the polynomial decay, step by step of the optimizer."""

from dataclasses import dataclass, field

from compressor.checks import check_count, check_fraction, check_positive
from compressor.errors import StageError
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, OwnOptimizer
from compressor.training.optimizers.schedules import Constant, Cosine, OneCycle
from compressor.training.precision import AutoPrecision, BFloat16, Float32
from compressor.training.settings import TrainingSettings

# Where nothing else is said, pruning ends after this part of the steps: what is left recovers (Zhu & Gupta 2017, sec.
# 3: the network needs training steps after the last weights went).
_PRUNED_BY = 2 / 3
# So many times masks are made anew where no frequency is given.
_UPDATES = 20


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """Sparsity rises from `initial` while the model trains, fast at first and slower and slower.

    After step t of the optimizer, from `begin` (>= 0) to `end` (> begin; None: two thirds of all steps) and every
    `frequency` (>= 1; None: a twentieth of that way) steps, the sparsity is

        s_t = s_f + (s_i - s_f) (1 - (t - begin) / (end - begin))^power

    with s_i = `initial`, in [0, 1), and s_f that of the stage. Zhu & Gupta 2017, "To prune, or not to prune",
    arXiv:1710.01878, eq. 1, where `power` (> 0) is 3. What is zero stays zero. `epochs`, `tail_epochs`,
    `optimizer`, `schedule` (of its rate), `weight_decay`, `precision` and `freeze` are those of the training, as in
    FineTune; its last epoch is kept, for earlier ones have fewer zeros.
    """

    initial: float = 0.0
    begin: int = 0
    end: int | None = None
    frequency: int | None = None
    power: float = 3.0
    epochs: int = 5
    tail_epochs: int = 1
    optimizer: AutoOptimizer | SGD | AdamW | OwnOptimizer = field(default_factory=AutoOptimizer)
    schedule: OneCycle | Cosine | Constant = field(default_factory=OneCycle)
    weight_decay: float = 5e-4
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fraction(self.initial, "initial is the sparsity that pruning begins with")
        check_count(self.begin, "begin is the step after which pruning begins", least=0)
        if self.end is not None:
            check_count(self.end, "end is the step after which the sparsity is reached")
            if self.end <= self.begin:
                raise ValueError(f"end comes after begin, got begin={self.begin} and end={self.end}")
        if self.frequency is not None:
            check_count(self.frequency, "frequency counts the steps from one choice of zeros to the next")
        check_positive(self.power, "power is the exponent of the decay", way_out="3 is Zhu & Gupta's")
        assert self.training  # it cannot be made of what describes none

    @property
    def training(self) -> TrainingSettings:
        """The training while which the sparsity rises."""
        return TrainingSettings(
            epochs=self.epochs,
            tail_epochs=self.tail_epochs,
            optimizer=self.optimizer,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
            precision=self.precision,
            freeze=self.freeze,
        )

    def sparsities(self, final: float, batches: int) -> dict[int, float]:
        """The sparsity by the number of steps that were made, where zeros are chosen anew; it ends at `final`.

        An epoch has `batches` steps. Raises StageError where `end` lies behind the last of them.
        """
        steps = (self.epochs + self.tail_epochs) * batches
        end = self.end or max(self.begin + 1, round(_PRUNED_BY * steps))
        if end > steps:
            raise StageError(
                f"the training has {steps} steps ({self.epochs + self.tail_epochs} epochs of {batches}), and the "
                f"sparsity would be reached after step {end}; raise epochs, or lower "
                f"{'begin' if self.end is None else 'end'}"
            )
        frequency = self.frequency or max(1, (end - self.begin) // _UPDATES)
        # The last choice is made at the end, whether or not the frequency falls on it.
        at = sorted({*range(self.begin, end, frequency), end})
        return {
            step: polynomial_decay(step, self.initial, final, begin=self.begin, end=end, power=self.power)
            for step in at
        }


def polynomial_decay(step: int, initial: float, final: float, *, begin: int, end: int, power: float) -> float:
    """The sparsity at `step` in [begin, end], from `initial` to `final`: Zhu & Gupta 2017, eq. 1."""
    left: float = (1 - (step - begin) / (end - begin)) ** power
    return final + (initial - final) * left
