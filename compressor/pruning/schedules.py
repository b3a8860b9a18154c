"""How pruning spreads over time: which share of what is to go has gone after each step, with training between.

`optimizer` says by what and at which rate that training goes, `precision` what the inner layers are computed in;
outputs, loss and score are float32. `freeze` holds globs of modules and parameters that it leaves as they are, besides
those that are frozen already.
"""

from dataclasses import dataclass, field

from compressor.checks import check_count
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, Optimizer, OwnOptimizer
from compressor.training.precision import AutoPrecision, BFloat16, Float32, Precision
from compressor.training.settings import TrainingSettings


class _Between:
    """The training after every step but the last, from the fields that its settings have."""

    epochs: int
    optimizer: Optimizer
    precision: Precision
    freeze: tuple[str, ...]

    @property
    def training(self) -> TrainingSettings:
        """The training between two steps."""
        return TrainingSettings(
            epochs=self.epochs, optimizer=self.optimizer, precision=self.precision, freeze=self.freeze
        )


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """Everything at once, without training."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The share, in (0, 1], of what is to go that has gone after each step."""
        return (1.0,)


@dataclass(frozen=True, kw_only=True)
class Linear(_Between):
    """Equal parts in `steps` (>= 1) steps, with `epochs` (>= 1) of training between them.

    `optimizer`, `precision` and `freeze` are those of the training, as in FineTune.
    """

    steps: int = 3
    epochs: int = 1
    optimizer: AutoOptimizer | SGD | AdamW | OwnOptimizer = field(default_factory=AutoOptimizer)
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.steps, self.training)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share, in (0, 1], of what is to go that has gone after each step."""
        return tuple(step / self.steps for step in range(1, self.steps + 1))


@dataclass(frozen=True, kw_only=True)
class Cubic(_Between):
    """Much at first and less and less later: the share 1 - (1 - t / steps)**3 after step t.

    `steps` (>= 1), with `epochs` (>= 1) of training between them. Zhu & Gupta 2017, "To prune,
    or not to prune", arXiv:1710.01878, eq. 1, from nothing on. `optimizer`, `precision` and `freeze` are those of the
    training, as in FineTune.
    """

    steps: int = 3
    epochs: int = 1
    optimizer: AutoOptimizer | SGD | AdamW | OwnOptimizer = field(default_factory=AutoOptimizer)
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.steps, self.training)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share, in (0, 1], of what is to go that has gone after each step."""
        return tuple(1 - (1 - step / self.steps) ** 3 for step in range(1, self.steps + 1))


@dataclass(frozen=True, kw_only=True)
class Steps(_Between):
    """The given `fractions`, rising to 1, of what is to go, with `epochs` of training between them.

    `optimizer`, `precision` and `freeze` are those of the training, as in FineTune.
    """

    fractions: tuple[float, ...]
    epochs: int = 1
    optimizer: AutoOptimizer | SGD | AdamW | OwnOptimizer = field(default_factory=AutoOptimizer)
    precision: AutoPrecision | Float32 | BFloat16 = field(default_factory=AutoPrecision)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip((0.0, *self.fractions), self.fractions, strict=False))
        if isinstance(self.fractions, str) or not self.fractions or not rising or self.fractions[-1] != 1:
            raise ValueError(
                "fractions are the shares of what is to go that have gone after each step: above 0, rising, the last "
                f"one 1; got {self.fractions!r}; write (0.5, 0.8, 1.0) for instance"
            )
        _check(len(self.fractions), self.training)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share, in (0, 1], of what is to go that has gone after each step."""
        return self.fractions


def _check(steps: int, training: TrainingSettings) -> None:
    assert training  # it cannot be made of what describes none
    check_count(steps, "steps counts the pruning steps", way_out="OneShot() prunes without training")
