"""What every training can be told: for how long, by which optimizer, in which course, and what stays as it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from compressor.checks import check_count, check_fraction, check_globs, check_kinds, check_positive
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, OwnOptimizer
from compressor.training.optimizers.schedules import Constant, Cosine, OneCycle
from compressor.training.precision import AutoPrecision, BFloat16, Float32


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Settings that all stages which train inherit; each has its own defaults for how long.

    `epochs` (>= 1) passes over the training data by `schedule`, then `tail_epochs` (>= 0) at a hundredth of the rate.
    `steps` (>= 1), where given, takes the place of both: so many updates of the optimizer, for data without an end too.
    `optimizer` and `schedule` say at which rate; `weight_decay` in [0, 1) spares biases and norms. `layer_rates` are
    pairs (glob of modules or parameters, factor > 0): the rate of what they name, the last that matches. `clip` (> 0)
    is the largest norm of a gradient, None does not clip. `accumulate` (>= 1) batches give one update, as a batch of
    them all would. `averaging` in (0, 1) is the part by which an exponential average of the weights keeps its value in
    an update (Polyak & Juditsky 1992; usually 0.99 to 0.9999): it is scored beside the weights, and the better of both
    is kept. `patience` (>= 1) ends the training after so many epochs without a better score on validation. `precision`
    says what the inner layers are computed in; outputs, loss and score are float32. `freeze` holds globs of modules and
    parameters that stay as they are, besides those that are frozen already.
    """

    epochs: int = 1
    steps: int | None = None
    tail_epochs: int = 0
    optimizer: AutoOptimizer | SGD | AdamW | OwnOptimizer = field(default_factory=AutoOptimizer)
    schedule: OneCycle | Cosine | Constant = field(default_factory=OneCycle)
    weight_decay: float = 5e-4
    layer_rates: tuple[tuple[str, float], ...] = ()
    clip: float | None = 5.0
    accumulate: int = 1
    averaging: float | None = None
    patience: int | None = None
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_count(self.epochs, "epochs counts the passes over the training data")
        if self.steps is not None:
            check_count(self.steps, "steps counts the updates of the optimizer", way_out="leave it out to count epochs")
        check_count(self.tail_epochs, "tail_epochs counts the low-rate epochs after the schedule", least=0)
        if not isinstance(self.optimizer, AutoOptimizer | SGD | AdamW | OwnOptimizer):
            raise ValueError(
                "optimizer is AutoOptimizer(), SGD(rate=...), AdamW(rate=...) or OwnOptimizer(factory=..., rate=...); "
                f"got {self.optimizer!r}"
            )
        if not isinstance(self.schedule, OneCycle | Cosine | Constant):
            raise ValueError(f"schedule is OneCycle(), Cosine() or Constant(); got {self.schedule!r}")
        check_kinds(self, of=TrainingSettings)
        check_fraction(self.weight_decay, "weight_decay is a factor", way_out="it is usually below 0.01")
        for pair in self.layer_rates:
            if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
                raise ValueError(f"layer_rates are pairs such as (('features.*', 0.1),); got {self.layer_rates!r}")
            check_positive(pair[1], f"layer_rates: the factor of {pair[0]!r}", way_out="freeze names what stays")
        if self.clip is not None:
            check_positive(self.clip, "clip is the largest norm of a gradient", way_out="None does not clip")
        check_count(self.accumulate, "accumulate counts the batches of an update")
        if self.averaging is not None:
            check_fraction(
                self.averaging, "averaging is what an average keeps in an update", within="(0, 1)", least_meant=0.5
            )
        if self.patience is not None:
            check_count(self.patience, "patience counts the epochs without a better score")
        check_globs(self.freeze, "freeze")

    def told(self) -> Mapping[str, Any]:
        """Every setting of a training as text by its name, to tell one from another; a stage's own are not among it."""
        return {item.name: repr(getattr(self, item.name)) for item in fields(TrainingSettings)}
